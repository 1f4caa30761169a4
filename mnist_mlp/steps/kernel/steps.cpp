// What Python calls (native.py), and what needs no vector: memory, layouts, threads and the choice of the code path.
#include "steps.h"

#include <sched.h>

#include <cstdlib>
#include <cstring>
#include <new>
#include <system_error>
#include <thread>

namespace steps {

void Barrier::pause(bool long_since) {
  if (long_since) {
    sched_yield();
  } else {
#if defined(__SSE2__)
    _mm_pause();
#endif
  }
}

// By squaring: no libm's pow decides a bit.
double power(double base, std::int64_t exponent) {
  double result = 1;
  for (; exponent; exponent >>= 1, base *= base) {
    if (exponent & 1) result *= base;
  }
  return result;
}

// ln x for x >= 1: x = 2^n y with y in [sqrt(1/2), sqrt(2)), ln y = 2 artanh((y - 1) / (y + 1)) by its series.
double logarithm(float x) {
  if (!(x < __builtin_inff())) return x;
  std::uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const std::uint32_t exponent = (bits - 0x3f3504f3u) >> 23;  // relative to sqrt(1/2)
  const int n = (int)(exponent << 23) >> 23;
  bits -= (std::uint32_t)n << 23;
  float y;
  std::memcpy(&y, &bits, 4);
  const double z = ((double)y - 1) / ((double)y + 1), square = z * z;
  double series = 0;
  for (int k = 21; k > 0; k -= 2) series = series * square + 2. / k;
  return series * z + n * 0x1.62e42fefa39efp-1;
}

namespace {

// T[c][r] = S[r][c] for 4 x 4 floats.
inline void transpose4(const float *s, long s_row, float *t, long t_row) {
#if defined(__SSE2__)
  __m128 a = _mm_loadu_ps(s), b = _mm_loadu_ps(s + s_row), c = _mm_loadu_ps(s + 2 * s_row),
         d = _mm_loadu_ps(s + 3 * s_row);
  _MM_TRANSPOSE4_PS(a, b, c, d);
  _mm_storeu_ps(t, a);
  _mm_storeu_ps(t + t_row, b);
  _mm_storeu_ps(t + 2 * t_row, c);
  _mm_storeu_ps(t + 3 * t_row, d);
#else
  for (int r = 0; r < 4; ++r) {
    for (int c = 0; c < 4; ++c) t[c * t_row + r] = s[r * s_row + c];
  }
#endif
}

// T[c][r] = S[r][c] for rows x cols floats.
void transpose(long rows, long cols, const float *s, long s_row, float *t, long t_row) {
  for (long r = 0; r < rows; r += 4) {
    for (long c = 0; c < cols; c += 4) {
      if (r + 4 <= rows && c + 4 <= cols) {
        transpose4(s + r * s_row + c, s_row, t + c * t_row + r, t_row);
        continue;
      }
      for (long i = r; i < rows && i < r + 4; ++i) {
        for (long j = c; j < cols && j < c + 4; ++j) t[j * t_row + i] = s[i * s_row + j];
      }
    }
  }
}

// From PyTorch's [out, in] to panels, and back.
void load_matrix(const Layer &l, const float *torch, float *w) {
  for (long p = 0; p < l.panels; ++p) {
    const long c = p * PANEL, count = l.out - c < PANEL ? l.out - c : PANEL;
    transpose(count, l.in, torch + c * l.in, l.in, w + p * l.rows * PANEL, PANEL);
  }
}
void store_matrix(const Layer &l, const float *w, float *torch) {
  for (long p = 0; p < l.panels; ++p) {
    const long c = p * PANEL, count = l.out - c < PANEL ? l.out - c : PANEL;
    transpose(l.in, count, w + p * l.rows * PANEL, PANEL, torch + c * l.in, l.in);
  }
}

// A moment that the optimizer does not keep is null.
void load_all(Net &n, float *const *tensors) {
  for (int i = 0; i < n.depth; ++i, tensors += 6) {
    const Layer &l = n.layers[i];
    float *const weights[] = {l.w, l.m, l.v}, *const biases[] = {l.b, l.bm, l.bv};
    for (int j = 0; j < 3; ++j) {
      if (tensors[2 * j]) load_matrix(l, tensors[2 * j], weights[j]);
      if (tensors[2 * j + 1]) std::memcpy(biases[j], tensors[2 * j + 1], (std::size_t)l.out * sizeof(float));
    }
    if (i) transpose(l, 0, l.in, 0, l.panels);
  }
}
void store_all(const Net &n, float *const *tensors) {
  for (int i = 0; i < n.depth; ++i, tensors += 6) {
    const Layer &l = n.layers[i];
    float *const weights[] = {l.w, l.m, l.v}, *const biases[] = {l.b, l.bm, l.bv};
    for (int j = 0; j < 3; ++j) {
      if (tensors[2 * j]) store_matrix(l, weights[j], tensors[2 * j]);
      if (tensors[2 * j + 1]) std::memcpy(tensors[2 * j + 1], biases[j], (std::size_t)l.out * sizeof(float));
    }
  }
}

// ---- memory: zeros, aligned to a cache line

template <class T>
bool allocate(T *&p, long count) {
  std::free(p);
  p = nullptr;
  const std::size_t bytes = ((std::size_t)(count > 0 ? count : 1) * sizeof(T) + 63) / 64 * 64;
  void *memory = std::aligned_alloc(64, bytes);
  if (!memory) return false;
  std::memset(memory, 0, bytes);
  p = static_cast<T *>(memory);
  return true;
}

bool reserve_batch(Net &n, long batch) {
  if (batch <= n.batch) return true;
  n.batch = 0;
  bool ok = allocate(n.x, batch * row_stride(n.layers[0].in)) && allocate(n.losses, batch) &&
            allocate(n.wrong, batch) && allocate(n.order, batch);
  for (int i = 0; ok && i < n.depth; ++i) {
    Layer &l = n.layers[i];
    ok = allocate(l.act, batch * l.stride) && allocate(l.delta, batch * l.stride);
  }
  if (ok) n.batch = batch;
  return ok;
}

bool reserve_gradients(Net &n) {
  bool ok = true;
  for (int i = 0; ok && i < n.depth; ++i) {
    Layer &l = n.layers[i];
    ok = l.g || allocate(l.g, l.rows * l.panels * PANEL);
  }
  return ok;
}

bool reserve_columns(Net &n, long entries, int threads) {
  bool ok = true;
  for (int t = 0; ok && t < threads; ++t) {
    if (!n.column_starts[t]) ok = allocate(n.column_starts[t], n.layers[0].in + 2);
    if (ok && n.column_entries[t] < entries) {
      n.column_entries[t] = 0;
      ok = allocate(n.columns[t], entries);
      if (ok) n.column_entries[t] = entries;
    }
  }
  return ok;
}

// ---- IEEE arithmetic, rounded to nearest, denormals kept, whatever the thread was set to (torch.set_flush_denormal)

class PlainArithmetic {
 public:
#if defined(__SSE2__)
  PlainArithmetic() : before_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~PlainArithmetic() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#elif defined(__aarch64__)
  PlainArithmetic() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" : : "r"(0l));
  }
  ~PlainArithmetic() { asm volatile("msr fpcr, %0" : : "r"(before_)); }

 private:
  long before_;
#endif
};

// ---- threads

// work(thread, barrier) on `threads` threads; on this one alone where no other can be had. A thread is started for each
// group of minibatches: that takes some 1/100 of a group's time, and nothing is left behind that a fork could break.
template <class Work>
void divide(std::int64_t &threads, const Work &work) {
  Barrier *barrier = nullptr;
  std::thread others[MAX_THREADS];
  std::atomic<int> go{0};  // 1: begin; 2: do nothing, there are too few
  const int wanted = threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : (int)threads;
  Barrier all(wanted), alone(1);
  int started = 1;
  try {
    for (; started < wanted; ++started) {
      others[started] = std::thread([&, started] {
        while (!go.load(std::memory_order_acquire)) sched_yield();
        if (go.load(std::memory_order_acquire) == 2) return;
        const PlainArithmetic arithmetic;
        work(started, *barrier);
      });
    }
  } catch (const std::system_error &) {
  }
  threads = started == wanted ? wanted : 1;
  barrier = threads == 1 ? &alone : &all;
  go.store(started == wanted ? 1 : 2, std::memory_order_release);
  {
    const PlainArithmetic arithmetic;
    work(0, *barrier);
  }
  for (int i = 1; i < started; ++i) others[i].join();
}

// ---- code paths, best first

bool runs(const Path &path) {
#if defined(__x86_64__) && !defined(STEPS_PORTABLE_ONLY)
  __builtin_cpu_init();
  if (&path == &avx512) return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("fma");
  if (&path == &avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return &path == &portable;
}
const Path *const PATHS[] = {
#if defined(__x86_64__) && !defined(STEPS_PORTABLE_ONLY)  // tests build faster without the others
    &avx512, &avx2,
#endif
    &portable};

const Path *best() {
  for (const Path *path : PATHS) {
    if (runs(*path)) return path;
  }
  return &portable;
}
const Path *chosen = best();

}  // namespace

void transpose(const Layer &l, long k0, long k1, long p0, long p1) {
  for (long p = p0; p < p1; ++p) {
    const long c = p * PANEL, count = l.out - c < PANEL ? l.out - c : PANEL;
    for (long k = k0; k < k1; k += PANEL) {
      transpose(PANEL, count, l.w + (p * l.rows + k) * PANEL, PANEL, l.t + (k / PANEL * l.out + c) * PANEL, PANEL);
    }
  }
}

}  // namespace steps

#define EXPORT extern "C" __attribute__((visibility("default")))
using namespace steps;

// Of Group and Evaluation, so that a library of another version is noticed.
EXPORT std::int64_t steps_sizes() { return (std::int64_t)(sizeof(Group) * 1000 + sizeof(Evaluation)); }

EXPORT const char *steps_path() { return chosen->name; }

// Uses another code path from now on; false where this CPU has none of that name.
EXPORT bool steps_use(const char *name) {
  for (const Path *path : PATHS) {
    if (runs(*path) && !std::strcmp(path->name, name)) return chosen = path, true;
  }
  return false;
}

EXPORT void steps_free(Net *n) {
  if (!n) return;
  for (int i = 0; n->layers && i < n->depth; ++i) {
    Layer &l = n->layers[i];
    for (float *p : {l.w, l.m, l.v, l.g, l.b, l.bm, l.bv, l.bg, l.t, l.act, l.delta}) std::free(p);
  }
  for (int t = 0; t < MAX_THREADS; ++t) std::free(n->column_starts[t]), std::free(n->columns[t]);
  for (float *p : {n->x, n->sums}) std::free(p);
  std::free(n->losses), std::free(n->wrong), std::free(n->order), std::free(n->layers);
  delete n;
}

// A network of `depth` linear layers, widths [depth + 1]; null where there is no memory.
EXPORT Net *steps_new(std::int64_t depth, const std::int64_t *widths) {
  Net *n = new (std::nothrow) Net{};
  if (!n) return nullptr;
  n->depth = (int)depth;
  bool ok = allocate(n->layers, depth) && allocate(n->sums, padded(widths[1]));
  for (std::int64_t i = 0; ok && i < depth; ++i) {
    Layer &l = n->layers[i];
    l.in = widths[i], l.out = widths[i + 1];
    l.rows = padded(l.in), l.panels = padded(l.out) / PANEL, l.stride = row_stride(l.out);
    for (float **p : {&l.w, &l.m, &l.v}) ok = ok && allocate(*p, l.rows * l.panels * PANEL);
    for (float **p : {&l.b, &l.bm, &l.bv, &l.bg}) ok = ok && allocate(*p, l.panels * PANEL);
    ok = ok && allocate(l.t, i ? l.rows * l.out : 0);
  }
  if (ok) return n;
  steps_free(n);
  return nullptr;
}

// Makes the group's steps, from and to PyTorch's tensors; false where there is no memory, and then nothing was done.
EXPORT bool steps_train(Net *n, Group *g) {
  if (!reserve_batch(*n, g->samples < g->batch ? g->samples : g->batch)) return false;
  if (g->clipping != NO_CLIPPING && !reserve_gradients(*n)) return false;
  if (g->images.entries && !reserve_columns(*n, n->batch * g->images.most, (int)g->threads)) return false;
  load_all(*n, g->tensors);
  const Path &path = *chosen;
  divide(g->threads, [&](int thread, Barrier &barrier) { path.train(*n, *g, thread, barrier); });
  store_all(*n, g->tensors);
  return true;
}

EXPORT bool steps_evaluate(Net *n, Evaluation *e) {
  if (!reserve_batch(*n, 64)) return false;
  load_all(*n, e->tensors);
  const Path &path = *chosen;
  divide(e->threads, [&](int thread, Barrier &barrier) { path.evaluate(*n, *e, thread, barrier); });
  return true;
}

// Pixels [count, in] that are not the background: into starts [count + 1], where entries is null; then into entries.
EXPORT void steps_entries(const float *pixels, std::int64_t count, std::int64_t in, float background,
                          std::int64_t *starts, Entry *entries) {
  std::int64_t found = 0;
  for (std::int64_t i = 0; i < count; ++i, pixels += in) {
    starts[i] = found;
    if (entries) {
      for (std::int64_t k = 0; k < in; ++k) {
        if (pixels[k] != background) entries[found++] = {pixels[k] - background, (std::int32_t)k};
      }
    } else {
      for (std::int64_t k = 0; k < in; ++k) found += pixels[k] != background;
    }
  }
  starts[count] = found;
}

// Random words as dropout draws them: `count`, a multiple of 16, from this counter on.
EXPORT void steps_random(const std::uint32_t *counter, const std::uint32_t *key, std::int64_t count,
                         std::uint32_t *words) {
  chosen->random(counter, key, count, words);
}

// Makes fused multiply-adds for a while, on this thread; returns how many. sink: [2], 1 and 0.
EXPORT double steps_peak(std::int64_t rounds, float *sink) { return chosen->peak(rounds, sink); }

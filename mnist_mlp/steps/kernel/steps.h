// What the parts of the kernel share: the network's memory, a group of minibatches, and the table of code paths.
// Read network.h next: the step itself. steps.cpp is what Python calls.
#pragma once
#include <atomic>
#include <cstdint>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace steps {

// Widths are padded to whole panels of 16 floats on every CPU, so that memory looks the same to every code path.
constexpr long PANEL = 16;
constexpr long padded(long width) { return (width + PANEL - 1) / PANEL * PANEL; }
// Between the rows of activations: an odd number of panels, so that a column does not fall into a few sets of a cache.
constexpr long row_stride(long width) { return (padded(width) / PANEL | 1) * PANEL; }

constexpr int MAX_THREADS = 16;

// A pixel that differs from the background: its difference, and where it is.
struct Entry {
  float value;
  std::int32_t at;
};

// Mirrored by `_Images` in native.py. Without entries, the first layer is computed over all pixels.
struct Images {
  const float *pixels;         // [images, in]
  const std::int64_t *starts;  // [images + 1]: where each image's entries begin
  const Entry *entries;        // in order of pixels
  const std::int64_t *labels;  // [images]
  std::int64_t most;           // entries of one image, at most
  float background;
};

enum Optimizer : std::int64_t { ADAM, ADAMW, SGD };
enum Clipping : std::int64_t { NO_CLIPPING, BY_NORM, BY_VALUE };

// Mirrored by `_Group` in native.py: minibatches to be trained on.
struct Group {
  Images images;
  const std::int64_t *order;  // [samples]: the images' numbers
  float *const *tensors;      // of each layer: weight and bias, their first, and their second moments; torch's memory
  const double *dropout;      // of each hidden layer
  std::int64_t samples, batch, made;  // made: optimizer steps before this group
  std::uint64_t seed;
  std::int64_t epoch, step;  // step: minibatches of this epoch before this group
  double lr, beta1, beta2, eps, weight_decay, momentum, dampening, limit;
  std::int64_t optimizer, nesterov, clipping, threads;
  double loss;  // result: sum over the samples
  std::int64_t errors;
};

// Mirrored by `_Evaluation` in native.py.
struct Evaluation {
  Images images;
  float *const *tensors;
  std::int64_t first, samples;
  float *logits;   // [samples, classes]
  double *losses;  // [samples]
  unsigned char *wrong;  // [samples]: 1 where another class has the largest logit
  unsigned char *active;  // [threads, hidden units of all layers]: 1 where a unit was above 0 for an image
  std::int64_t threads;
};

// A matrix of weights [in, out] lies in panels of 16 outputs: [out / 16][in][16]. A strip of a product then reads, and
// an optimizer step writes, memory in order.
struct Layer {
  long in, out, rows, panels, stride;  // rows: in, padded; stride: between rows of act and delta
  float *w, *m, *v, *g;                // weights, moments and, when clipping, gradients
  float *b, *bm, *bv, *bg;             // the same of the bias
  float *t;                            // transposed weights, [in / 16][out][16]
  float *act, *delta;                  // [batch, stride]: outputs, and the loss's gradient by them before ReLU
};

struct Net {
  int depth;
  long batch;  // images that there is memory for
  Layer *layers;
  float *x;     // [batch, row_stride(in)]: the images of a minibatch, where the first layer is dense
  float *sums;  // [out of the first layer]: over its weights, where it is sparse
  double *losses;
  unsigned char *wrong;
  std::int64_t *order;  // of an evaluation
  // The minibatch's entries by pixel, one list for each thread's images.
  std::int64_t *column_starts[MAX_THREADS];
  Entry *columns[MAX_THREADS];
  long column_entries[MAX_THREADS];  // that there is memory for
};

constexpr long at(const Layer &l, long k, long c) { return (c / PANEL * l.rows + k) * PANEL + c % PANEL; }

// Waits a moment without leaving the core; then lets others have it.
class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}
  void wait() {
    if (threads_ == 1) return;
    const int round = round_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (long spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) pause(spins > 2000);
  }

 private:
  static void pause(bool long_since);
  const int threads_;
  std::atomic<int> arrived_{0}, round_{0};
};

double power(double base, std::int64_t exponent);
double logarithm(float x);

// Inputs [k0, k1) and panels [p0, p1) of the weights, into their transpose; k0 a whole panel's.
void transpose(const Layer &layer, long k0, long k1, long p0, long p1);

// One compilation of network.h.
struct Path {
  const char *name;
  void (*train)(Net &, Group &, int thread, Barrier &);
  void (*evaluate)(Net &, Evaluation &, int thread, Barrier &);
  void (*random)(const std::uint32_t *counter, const std::uint32_t *key, long count, std::uint32_t *words);
  double (*peak)(long rounds, float *sink);
};

extern const Path portable, avx2, avx512;

}  // namespace steps

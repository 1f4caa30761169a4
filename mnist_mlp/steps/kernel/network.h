// An optimizer step of the network: forward, loss, backward and update. Each code path compiles this file once, in a
// namespace of its own.
//
// With several threads, each computes its share of a minibatch's images up to the gradients by the activations, and
// then its share of the weights. A sum is never divided, so that the bits are those of one thread.

// Of the sparse layer, outputs that are computed together: enough that each waits for no other's multiply-add.
enum { WIDE = 8, WIDE_PANELS = WIDE / PANEL_VECTORS };

// Where a thread's share begins, in whole units.
INLINE long share(long total, long unit, int thread, int threads) {
  const long cut = (total * thread / threads + unit - 1) / unit * unit;
  return thread == threads || cut > total ? total : cut;
}

// ---- forward

struct Minibatch {
  const std::int64_t *order;  // the images' numbers, and after them those of later minibatches
  long count, left;           // images of this minibatch; with all later ones
};

// Asks memory for what will be read some time later.
INLINE void fetch_ahead(const char *p, const char *p_end) {
  for (; p < p_end; p += 64) __builtin_prefetch(p);
}

static void first_products(Net &n, const Images &images, const Minibatch &batch, long lo, long hi) {
  const std::int64_t *order = batch.order;
  const Layer l = n.layers[0];
  const bool hidden = n.depth > 1;
  const auto end = [=](long m, long c, V x) __attribute__((always_inline)) {
    x += load(l.b + c);
    store(l.act + m * l.stride + c, hidden ? (x < splat(TINY) ? V{} : x) : x);
  };
  if (!images.entries) {
    const long stride = row_stride(l.in);
    for (long m = lo; m < hi; ++m) {
      __builtin_memcpy(n.x + m * stride, images.pixels + order[m] * l.in, (unsigned long)l.in * sizeof(float));
    }
    return product(l.in, {n.x, stride, 1}, {l.w, l.rows * PANEL, PANEL}, lo, hi, l.panels, Nothing{}, end);
  }
  // W x = W (x - background) + background * (sum over W's inputs), and most of x - background is zero.
  for (long p = 0; p < l.panels;) {
    const Right w = {l.w + p * l.rows * PANEL, l.rows * PANEL, PANEL};
    const bool wide = p + WIDE_PANELS <= l.panels;
    for (long m = lo; m < hi; ++m) {
      const Entry *e = images.entries + images.starts[order[m]], *e_end = images.entries + images.starts[order[m] + 1];
      if (p == 0 && m + batch.count < batch.left) {
        const std::int64_t *next = images.starts + order[m + batch.count];
        fetch_ahead((const char *)(images.entries + next[0]), (const char *)(images.entries + next[1]));
      }
      const auto sums = [&](auto &sum) __attribute__((always_inline)) {
        constexpr int vectors = sizeof(sum) / sizeof(V);
        UNROLL for (int j = 0; j < vectors; ++j) {
          sum[j] = load(n.sums + p * PANEL + j * LANES) * splat(images.background);
        }
        gather(e, e_end, w, sum);
        UNROLL for (int j = 0; j < vectors; ++j) end(m, p * PANEL + j * LANES, sum[j]);
      };
      if (wide) {
        V sum[WIDE];
        sums(sum);
      } else {
        V sum[PANEL_VECTORS];
        sums(sum);
      }
    }
    p += wide ? WIDE_PANELS : 1;
  }
}

static void drop(const Layer &l, double p, int layer, std::uint64_t seed, long epoch, long step, long lo, long hi) {
  const std::int32_t limit = (std::int32_t)(p * 0x1p31);
  const V scale = splat((float)(1 / (1 - p)));
  const std::uint32_t key[2] = {(std::uint32_t)seed, (std::uint32_t)(seed >> 32)};
  for (long m = lo; m < hi; ++m) {
    const std::uint32_t rest[3] = {(std::uint32_t)m, (std::uint32_t)step,
                                   (std::uint32_t)epoch << 8 | (std::uint32_t)layer};
    float *row = l.act + m * l.stride;
    random_row(l.panels * PANEL, 0, rest, key, [&](long c, W words) __attribute__((always_inline)) {
      store(row + c, (I)(words >> 1) < limit - I{} ? V{} : load(row + c) * scale);
    });
  }
}

struct Dropping {  // null where there is none
  const Group *group;
  long step;
};

static void forward(Net &n, const Images &images, const Minibatch &batch, Dropping dropping, long lo, long hi) {
  for (int i = 0; i < n.depth; ++i) {
    const Layer l = n.layers[i], before = n.layers[i ? i - 1 : 0];
    const bool hidden = i < n.depth - 1;
    if (i == 0) {
      first_products(n, images, batch, lo, hi);
    } else {
      product(l.in, {before.act, before.stride, 1}, {l.w, l.rows * PANEL, PANEL}, lo, hi, l.panels, Nothing{},
              [=](long m, long c, V x) __attribute__((always_inline)) {
                x += load(l.b + c);
                store(l.act + m * l.stride + c, hidden ? (x < splat(TINY) ? V{} : x) : x);
              });
    }
    if (const Group *g = dropping.group; g && hidden && g->dropout[i] > 0) {
      drop(l, g->dropout[i], i, g->seed, g->epoch, dropping.step, lo, hi);
    }
  }
}

// Of images [lo, hi): losses, errors and, for a minibatch of `count` (0: none), the gradient of its mean loss.
static void cross_entropy(Net &n, const Images &images, const std::int64_t *order, long count, long lo, long hi) {
  const Layer &l = n.layers[n.depth - 1];
  const float share_of_mean = count ? 1 / (float)count : 0;
  for (long m = lo; m < hi; ++m) {
    const float *y = l.act + m * l.stride;
    float *d = l.delta + m * l.stride;
    const long label = images.labels[order[m]];
    float top = y[0], sum = 0;
    long best = 0;
    for (long c = 1; c < l.out; ++c) {
      if (y[c] > top) top = y[c], best = c;
    }
    for (long c = 0; c < l.panels * PANEL; c += LANES) store(d + c, exponential(load(y + c) - splat(top)));
    for (long c = 0; c < l.out; ++c) sum += d[c];
    for (long c = l.out; c < l.panels * PANEL; ++c) d[c] = 0;
    n.losses[m] = logarithm(sum) - ((double)y[label] - top);
    n.wrong[m] = best != label;
    if (!count) continue;
    for (long c = 0; c < l.panels * PANEL; c += LANES) store(d + c, load(d + c) / splat(sum));
    d[label] -= 1;
    for (long c = 0; c < l.panels * PANEL; c += LANES) store(d + c, flush(load(d + c) * splat(share_of_mean)));
  }
}

// ---- backward

static void backward(Net &n, const Group &g, long lo, long hi) {
  for (int i = n.depth - 1; i > 0; --i) {
    const Layer l = n.layers[i], before = n.layers[i - 1];
    const V scale = splat(g.dropout[i - 1] > 0 ? (float)(1 / (1 - g.dropout[i - 1])) : 1);
    product(l.out, {l.delta, l.stride, 1}, {l.t, l.out * PANEL, PANEL}, lo, hi, before.panels, Nothing{},
            [=](long m, long c, V x) __attribute__((always_inline)) {
              // Zero is what ReLU or dropout made of it.
              const V y = load(before.act + m * before.stride + c);
              store(before.delta + m * before.stride + c, y == V{} ? V{} : flush(x * scale));
            });
  }
}

// ---- update: one function for each optimizer, of one vector of (weight, moments, gradient)

struct Adam {  // Kingma and Ba 2015, algorithm 1; AdamW: Loshchilov and Hutter 2019, algorithm 2
  float first, second, kept, step_size, correction, eps, l2, shrink;
  Adam(const Group &g, long step) {
    first = (float)(1 - g.beta1), second = (float)(1 - g.beta2), kept = (float)g.beta2, eps = (float)g.eps;
    step_size = (float)(g.lr / (1 - power(g.beta1, step)));
    correction = (float)(1 / __builtin_sqrt(1 - power(g.beta2, step)));
    l2 = g.optimizer == ADAM ? (float)g.weight_decay : 0;
    shrink = g.optimizer == ADAMW ? (float)(1 - g.lr * g.weight_decay) : 1;
  }
  INLINE_MEMBER void operator()(float *w, float *m, float *v, V gradient) const {
    const V before = load(w);
    const V d = fma(splat(l2), before, gradient);
    const V mean = flush(fma(splat(first), d - load(m), load(m)));
    V square = fma(splat(second) * d, d, splat(kept) * load(v));
    square = square < splat(TINY_SQUARE) ? V{} : square;
    store(m, mean);
    store(v, square);
    const V step = mean / fma(root(square), splat(correction), splat(eps));
    store(w, fma(splat(-step_size), step, splat(shrink) * before));
  }
};

struct Sgd {
  float lr, momentum, rate, l2;
  bool nesterov;
  Sgd(const Group &g, long step) {
    lr = (float)g.lr, momentum = (float)g.momentum, l2 = (float)g.weight_decay, nesterov = g.nesterov;
    rate = step == 1 ? 1 : (float)(1 - g.dampening);  // PyTorch's first momentum is the gradient, undampened
  }
  INLINE_MEMBER void operator()(float *w, float *m, float *, V gradient) const {
    V d = fma(splat(l2), load(w), gradient);
    if (momentum != 0) {
      const V mean = flush(fma(splat(momentum), load(m), splat(rate) * d));
      store(m, mean);
      d = nesterov ? fma(splat(momentum), mean, d) : mean;
    }
    store(w, fma(splat(-lr), d, load(w)));
  }
};

// What becomes of a finished gradient: it updates at once or, when clipping, is kept.
template <class Update>
struct Apply {
  Update update;
  INLINE_MEMBER void fetch(const Layer &l, long a) const {
    __builtin_prefetch(l.w + a, 1);
    __builtin_prefetch(l.m + a, 1);
    __builtin_prefetch(l.v + a, 1);
  }
  INLINE_MEMBER void weight(const Layer &l, long a, V gradient) const { update(l.w + a, l.m + a, l.v + a, gradient); }
  INLINE_MEMBER void bias(const Layer &l, long c, V gradient) const { update(l.b + c, l.bm + c, l.bv + c, gradient); }
};
struct Keep {
  INLINE_MEMBER void fetch(const Layer &l, long a) const { __builtin_prefetch(l.g + a, 1); }
  INLINE_MEMBER void weight(const Layer &l, long a, V gradient) const { store(l.g + a, gradient); }
  INLINE_MEMBER void bias(const Layer &, long, V) const {}  // kept anyway
};

// The minibatch's entries by pixel, for this thread's images.
static void make_columns(Net &n, const Images &images, const std::int64_t *order, long lo, long hi, int thread) {
  std::int64_t *starts = n.column_starts[thread];
  Entry *columns = n.columns[thread];
  const long in = n.layers[0].in;
  __builtin_memset(starts, 0, (unsigned long)(in + 2) * sizeof *starts);
  for (long m = lo; m < hi; ++m) {
    const Entry *e = images.entries + images.starts[order[m]], *e_end = images.entries + images.starts[order[m] + 1];
    for (; e < e_end; ++e) ++starts[e->at + 2];
  }
  for (long k = 0; k < in; ++k) starts[k + 2] += starts[k + 1];
  for (long m = lo; m < hi; ++m) {
    const Entry *e = images.entries + images.starts[order[m]], *e_end = images.entries + images.starts[order[m] + 1];
    for (; e < e_end; ++e) columns[starts[e->at + 1]++] = {e->value, (std::int32_t)m};
  }
}

// The sparse first layer: gradients of panels [p, ...) from the lists, updates, and the new weights' sums.
template <int VECTORS, class Sink>
static void column_gradients(Net &n, float background, long p, int threads, Sink sink) {
  const Layer l = n.layers[0];
  const Right d = {l.delta + p * PANEL, PANEL, l.stride};
  const Net lists = n;
  V bias[VECTORS], total[VECTORS] = {};
  for (int j = 0; j < VECTORS; ++j) bias[j] = load(l.bg + p * PANEL + j * LANES) * splat(background);
  for (long k = 0; k < l.in; ++k) {
    V sum[VECTORS];
    UNROLL for (int j = 0; j < VECTORS; ++j) sum[j] = bias[j];
    for (int t = 0; t < threads; ++t) {
      const std::int64_t *starts = lists.column_starts[t] + k;
      gather(lists.columns[t] + starts[0], lists.columns[t] + starts[1], d, sum);
    }
    const long a = at(l, k, p * PANEL), panel = l.rows * PANEL;
    UNROLL for (int j = 0; j < VECTORS; ++j) {
      sink.weight(l, a + offset(j, panel), sum[j]);
      total[j] += load(l.w + a + offset(j, panel));
    }
  }
  for (int j = 0; j < VECTORS; ++j) store(n.sums + p * PANEL + j * LANES, total[j]);
}

static void sum_weights(Net &n, long p, long p_end) {
  const Layer &l = n.layers[0];
  for (long c = p * PANEL; c < p_end * PANEL; c += LANES) {
    V total = {};
    for (long k = 0; k < l.in; ++k) total += load(l.w + at(l, k, c));
    store(n.sums + c, total);
  }
}

// Gradients of this thread's share of all weights, handed to the sink as they are finished.
template <class Sink>
static void gradients(Net &n, const Group &g, long count, int thread, Sink sink) {
  for (int i = 0; i < n.depth; ++i) {
    const Layer l = n.layers[i];
    const long p = share(l.panels, 1, thread, g.threads), p_end = share(l.panels, 1, thread + 1, g.threads);
    for (long c = p * PANEL; c < p_end * PANEL; c += LANES) {
      V sum = {};
      for (long b = 0; b < count; ++b) sum += load(l.delta + b * l.stride + c);
      store(l.bg + c, sum);
      sink.bias(l, c, sum);
    }
    if (i == 0 && g.images.entries) {
      const float background = g.images.background;
      long q = p;
      for (; q + WIDE_PANELS <= p_end; q += WIDE_PANELS) column_gradients<WIDE>(n, background, q, g.threads, sink);
      for (; q < p_end; ++q) column_gradients<PANEL_VECTORS>(n, background, q, g.threads, sink);
      continue;
    }
    const Left a = i ? Left{n.layers[i - 1].act, 1, n.layers[i - 1].stride} : Left{n.x, 1, row_stride(l.in)};
    const long k = share(l.in, PANEL, thread, g.threads), k_end = share(l.in, PANEL, thread + 1, g.threads);
    product(count, {a.at + k, a.row, a.col}, {l.delta, PANEL, l.stride}, 0, k_end - k, l.panels,
            [=](long row, long c) __attribute__((always_inline)) { sink.fetch(l, at(l, k + row, c)); },
            [=](long row, long c, V x) __attribute__((always_inline)) { sink.weight(l, at(l, k + row, c), x); });
    if (i) transpose(l, k, k_end, 0, l.panels);
  }
}

// The norm of all kept gradients together: over the inputs of each output, then over outputs and layers.
static float total_norm(const Net &n) {
  double total = 0;
  for (int i = 0; i < n.depth; ++i) {
    const Layer &l = n.layers[i];
    for (long c = 0; c < l.panels * PANEL; c += LANES) {
      V sum = load(l.bg + c) * load(l.bg + c);
      for (long k = 0; k < l.in; ++k) sum = fma(load(l.g + at(l, k, c)), load(l.g + at(l, k, c)), sum);
      for (long j = 0; j < LANES && c + j < l.out; ++j) total += (double)sum[j];
    }
  }
  return (float)__builtin_sqrt(total);
}

template <class Update>
static void clipped_updates(Net &n, const Group &g, int thread, const Update &update) {
  float factor = 1, limit = (float)g.limit;
  if (g.clipping == BY_NORM) {
    factor = limit / (total_norm(n) + 1e-6f);
    factor = factor > 1 ? 1 : factor;
  }
  const auto clip = [&](V x) __attribute__((always_inline)) {
    if (g.clipping == BY_NORM) return x * splat(factor);
    x = x > splat(limit) ? splat(limit) : x;
    return x < splat(-limit) ? splat(-limit) : x;
  };
  for (int i = 0; i < n.depth; ++i) {
    const Layer &l = n.layers[i];
    const long p = share(l.panels, 1, thread, g.threads), p_end = share(l.panels, 1, thread + 1, g.threads);
    for (long c = p * PANEL; c < p_end * PANEL; c += LANES) {
      update(l.b + c, l.bm + c, l.bv + c, clip(load(l.bg + c)));
    }
    for (long a = p * l.rows * PANEL; a < p_end * l.rows * PANEL; a += LANES) {
      update(l.w + a, l.m + a, l.v + a, clip(load(l.g + a)));
    }
    if (i) transpose(l, 0, l.rows, p, p_end);
    if (i == 0 && g.images.entries) sum_weights(n, p, p_end);
  }
}

template <class Update>
static void update_all(Net &n, const Group &g, long count, long step, int thread, Barrier &barrier) {
  const Update update(g, step);
  if (g.clipping == NO_CLIPPING) return gradients(n, g, count, thread, Apply<Update>{update});
  gradients(n, g, count, thread, Keep{});
  barrier.wait();
  clipped_updates(n, g, thread, update);
}

// ---- what steps.cpp calls

static void train(Net &n, Group &g, int thread, Barrier &barrier) {
  if (g.images.entries) {
    const long panels = n.layers[0].panels;
    sum_weights(n, share(panels, 1, thread, g.threads), share(panels, 1, thread + 1, g.threads));
    barrier.wait();
  }
  for (long first = 0, i = 0; first < g.samples; first += g.batch, ++i) {
    const std::int64_t *order = g.order + first;
    const long count = g.samples - first < g.batch ? g.samples - first : g.batch;
    const long lo = share(count, TILE_ROWS, thread, g.threads), hi = share(count, TILE_ROWS, thread + 1, g.threads);
    if (g.images.entries) make_columns(n, g.images, order, lo, hi, thread);
    forward(n, g.images, {order, count, g.samples - first}, {&g, g.step + i}, lo, hi);
    cross_entropy(n, g.images, order, count, lo, hi);
    backward(n, g, lo, hi);
    barrier.wait();
    if (thread == 0) {
      for (long m = 0; m < count; ++m) g.loss += n.losses[m], g.errors += n.wrong[m];
    }
    const long step = g.made + i + 1;
    if (g.optimizer == SGD) {
      update_all<Sgd>(n, g, count, step, thread, barrier);
    } else {
      update_all<Adam>(n, g, count, step, thread, barrier);
    }
    barrier.wait();
  }
}

// Which hidden units let something pass for one of these rows.
static void note_active(const Net &n, unsigned char *active, long row, long end) {
  for (int i = 0; i + 1 < n.depth; active += n.layers[i++].out) {
    const Layer &l = n.layers[i];
    for (long m = row; m < end; ++m) {
      const float *y = l.act + m * l.stride;
      for (long c = 0; c < l.out; ++c) active[c] |= y[c] > 0;
    }
  }
}

static void evaluate(Net &n, Evaluation &e, int thread, Barrier &barrier) {
  if (e.images.entries && thread == 0) sum_weights(n, 0, n.layers[0].panels);
  barrier.wait();
  // Each thread has its share of the samples, and rows of its own for them.
  const Layer &last = n.layers[n.depth - 1];
  const long rows = n.batch / e.threads, row = thread * rows;
  long units = 0;
  for (int i = 0; i + 1 < n.depth; ++i) units += n.layers[i].out;
  const long end = share(e.samples, 1, thread + 1, e.threads);
  for (long first = share(e.samples, 1, thread, e.threads); first < end; first += rows) {
    const long count = end - first < rows ? end - first : rows;
    for (long m = 0; m < count; ++m) n.order[row + m] = e.first + first + m;
    forward(n, e.images, {n.order, 0, 0}, {nullptr, 0}, row, row + count);
    cross_entropy(n, e.images, n.order, 0, row, row + count);
    note_active(n, e.active + thread * units, row, row + count);
    for (long m = 0; m < count; ++m) {
      e.losses[first + m] = n.losses[row + m];
      e.wrong[first + m] = n.wrong[row + m];
      const float *y = last.act + (row + m) * last.stride;
      for (long c = 0; c < last.out; ++c) e.logits[(first + m) * last.out + c] = y[c];
    }
  }
}

static void random(const std::uint32_t *counter, const std::uint32_t *key, long count, std::uint32_t *words) {
  random_row(count, counter[0], counter + 1, key, [&](long i, W w) { __builtin_memcpy(words + i, &w, sizeof w); });
}

// Fused multiply-adds on registers alone: what the machine can do. Returns how many were made.
static double peak(long rounds, float *sink) {
  V sum[12];
  for (int j = 0; j < 12; ++j) sum[j] = splat((float)j);  // all different: a compiler makes equal sums once
  const V a = splat(sink[0]), b = splat(sink[1]);
  for (long i = 0; i < rounds; ++i) {
    UNROLL for (int j = 0; j < 12; ++j) sum[j] = fma(sum[j], a, b);
  }
  for (int j = 1; j < 12; ++j) sum[0] += sum[j];
  *sink = sum[0][0];
  return 12. * LANES * (double)rounds;
}

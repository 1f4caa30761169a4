// Matrix products, tile by tile in registers.
//
// Every sum goes over the inner index in rising order, from zero, one fused multiply-add for each term. `end` gets each
// finished vector of the result, so that what follows (bias, ReLU, an optimizer step) costs no memory traffic.
// `begin` is told before the sums which rows of 16 come next, to fetch what `end` will need. Both are passed by value:
// what they hold then stays in registers, as no store to memory can change it.

struct Left {
  const float *at;  // element (m, k) lies at m * row + k * col
  long row, col;
};
struct Right {
  const float *at;  // element (k, n) lies at n / 16 * panel + k * row + n % 16
  long panel, row;
};
constexpr int PANEL_VECTORS = (int)PANEL / LANES;
INLINE long offset(int vector, long panel) {
  return vector / PANEL_VECTORS * panel + vector % PANEL_VECTORS * LANES;
}

template <int ROWS, int VECTORS, class Begin, class End>
INLINE void tile(long inner, Left a, Right b, long m, long n, const Begin &begin, const End &end) {
  V sum[ROWS][VECTORS] = {};
  UNROLL for (int i = 0; i < ROWS; ++i) {
    UNROLL for (int j = 0; j < VECTORS; j += PANEL_VECTORS) begin(m + i, n + j * LANES);
  }
  for (long k = 0; k < inner; ++k) {
    V right[VECTORS];
    UNROLL for (int j = 0; j < VECTORS; ++j) right[j] = load(b.at + k * b.row + offset(j, b.panel));
    UNROLL for (int i = 0; i < ROWS; ++i) {
      const V left = splat(a.at[i * a.row + k * a.col]);
      UNROLL for (int j = 0; j < VECTORS; ++j) sum[i][j] = fma(left, right[j], sum[i][j]);
    }
  }
  UNROLL for (int i = 0; i < ROWS; ++i) {
    UNROLL for (int j = 0; j < VECTORS; ++j) end(m + i, n + j * LANES, sum[i][j]);
  }
}

// Fewer rows than a tile has.
template <int ROWS, int VECTORS, class Begin, class End>
INLINE void rest(long inner, Left a, Right b, long m, long m_end, long n, const Begin &begin, const End &end) {
  if constexpr (ROWS > 0) {
    if (m_end - m == ROWS) return tile<ROWS, VECTORS>(inner, a, b, m, n, begin, end);
    rest<ROWS - 1, VECTORS>(inner, a, b, m, m_end, n, begin, end);
  }
}

template <int VECTORS, class Begin, class End>
static void strip(long inner, Left a, Right b, long m, long m_end, long n, Begin begin, End end) {
  a.at += m * a.row;
  for (; m + TILE_ROWS <= m_end; m += TILE_ROWS, a.at += TILE_ROWS * a.row) {
    tile<TILE_ROWS, VECTORS>(inner, a, b, m, n, begin, end);
  }
  rest<TILE_ROWS - 1, VECTORS>(inner, a, b, m, m_end, n, begin, end);
}

// Rows [m, m_end) and all columns of A B.
template <class Begin, class End>
static void product(long inner, Left a, Right b, long m, long m_end, long panels, Begin begin, End end) {
  constexpr long together = TILE_VECTORS / PANEL_VECTORS;
  long p = 0;
  for (; p + together <= panels; p += together, b.at += together * b.panel) {
    strip<TILE_VECTORS>(inner, a, b, m, m_end, p * PANEL, begin, end);
  }
  for (; p < panels; ++p, b.at += b.panel) strip<PANEL_VECTORS>(inner, a, b, m, m_end, p * PANEL, begin, end);
}

// Nothing is fetched ahead.
struct Nothing {
  INLINE_MEMBER void operator()(long, long) const {}
};

// Sums over lists of entries, for one row of the result: from `begin`, value * row `at` of B for each entry in order.
template <int VECTORS>
INLINE void gather(const Entry *e, const Entry *e_end, Right b, V (&sum)[VECTORS]) {
  for (; e < e_end; ++e) {
    const float *row = b.at + e->at * b.row;
    const V left = splat(e->value);
    UNROLL for (int j = 0; j < VECTORS; ++j) sum[j] = fma(left, load(row + offset(j, b.panel)), sum[j]);
  }
}

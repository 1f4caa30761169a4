// A vector of floats on this code path, and the few operations that C++ has no sign for.
//
// The width changes no bit: lanes always hold different outputs, and what one lane does is IEEE arithmetic.

#if defined(STEPS_AVX512)
enum { LANES = 16, TILE_VECTORS = 4 };
#elif defined(STEPS_AVX2)
enum { LANES = 8, TILE_VECTORS = 2 };
#elif defined(STEPS_LANES)  // tests compile other widths
enum { LANES = STEPS_LANES, TILE_VECTORS = LANES == 16 ? 4 : 16 / LANES };
#else
enum { LANES = 4, TILE_VECTORS = 4 };
#endif
#if defined(STEPS_AVX512) || defined(STEPS_AVX2) || defined(__aarch64__)
enum { TILE_ROWS = 6 };
#else
enum { TILE_ROWS = 2 };  // a fused multiply-add without the instruction is long
#endif

typedef float V __attribute__((vector_size(4 * LANES), may_alias));
typedef std::int32_t I __attribute__((vector_size(4 * LANES), may_alias));
typedef std::uint32_t W __attribute__((vector_size(4 * LANES), may_alias));
typedef std::uint64_t U __attribute__((vector_size(4 * LANES), may_alias));  // half as many lanes

#define INLINE static inline __attribute__((always_inline))
#define INLINE_MEMBER inline __attribute__((always_inline))
#if defined(STEPS_LANES)
#define UNROLL
#elif defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

INLINE V load(const float *p) { return *(const V *)p; }
INLINE void store(float *p, V x) { *(V *)p = x; }
INLINE V splat(float x) { return x - V{}; }

#if defined(STEPS_AVX512)  // with masks of ones: GCC 12 warns of its own code in the functions without
INLINE V fma(V a, V b, V c) { return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
INLINE V root(V x) { return (V)_mm512_maskz_sqrt_ps(0xffff, (__m512)x); }
INLINE U multiply_low(U a, U b) { return (U)_mm512_maskz_mul_epu32(0xff, (__m512i)a, (__m512i)b); }
#elif defined(STEPS_AVX2)
INLINE V fma(V a, V b, V c) { return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE V root(V x) { return (V)_mm256_sqrt_ps((__m256)x); }
INLINE U multiply_low(U a, U b) { return (U)_mm256_mul_epu32((__m256i)a, (__m256i)b); }
#elif defined(__aarch64__) && !defined(STEPS_LANES)
INLINE V fma(V a, V b, V c) { return (V)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
INLINE V root(V x) { return (V)vsqrtq_f32((float32x4_t)x); }
INLINE U multiply_low(U a, U b) { return (a & 0xffffffffu) * (b & 0xffffffffu); }
#else
// What the fused instruction gives, where there is none: the exact product in double, the sum rounded to odd (so that
// the last rounding, to float, rounds as from the exact sum: Boldo and Melquiond 2008).
INLINE float fma_lane(float a, float b, float c) {
  const double product = (double)a * b, sum = product + c, part = sum - product;
  const double lost = (product - (sum - part)) + (c - part);
  std::int64_t bits;
  __builtin_memcpy(&bits, &sum, 8);
  if ((lost > 0 || lost < 0) && !(bits & 1)) bits += (lost > 0) == (sum > 0) ? 1 : -1;
  double odd;
  __builtin_memcpy(&odd, &bits, 8);
  return (float)odd;
}
static __attribute__((noinline)) void fma_lanes(const V &a, const V &b, V &c) {
  for (int i = 0; i < LANES; ++i) c[i] = fma_lane(a[i], b[i], c[i]);
}
INLINE V fma(V a, V b, V c) {
  fma_lanes(a, b, c);
  return c;
}
INLINE V root(V x) {
  for (int i = 0; i < LANES; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
}
INLINE U multiply_low(U a, U b) { return (a & 0xffffffffu) * (b & 0xffffffffu); }
#endif

INLINE V magnitude(V x) { return (V)((I)x & 0x7fffffff); }

// Denormals. A CPU's own flushing to zero would change bits: x86 decides after rounding what is tiny, ARM before. So
// arithmetic is plain IEEE, and what is stored is zero below 2^-60 (squares: 2^-120) on every CPU. Products of what is
// left are then no denormals, which take a hundred cycles each on some CPUs.
constexpr float TINY = 0x1p-60f, TINY_SQUARE = 0x1p-120f;
INLINE V flush(V x) { return magnitude(x) < splat(TINY) ? V{} : x; }  // NaN stays

// e^x for x <= 0, and 0 below -41 (e^-41 < 2^-59). x = n ln 2 + r, |r| <= ln 2 / 2, Taylor's series to r^7.
INLINE V exponential(V x) {
  const V magic = splat(0x1.8p23f);  // adding it rounds to an integer, which is then in the low bits
  const V shifted = fma(x, splat(0x1.715476p+0f), magic), n = shifted - magic;
  V r = fma(n, splat(-0x1.62e4p-1f), x);  // ln 2 in two parts: the first times n is exact
  r = fma(n, splat(-0x1.7f7d1cp-20f), r);
  V p = splat(1 / 5040.f);
  p = fma(p, r, splat(1 / 720.f));
  p = fma(p, r, splat(1 / 120.f));
  p = fma(p, r, splat(1 / 24.f));
  p = fma(p, r, splat(1 / 6.f));
  p = fma(p, r, splat(0.5f));
  p = fma(p, r, splat(1));
  p = fma(p, r, splat(1));
  const V scale = (V)(((W)shifted + 127) << 23);  // 2^n: the magic number's own bits are shifted out
  return x < splat(-41) ? V{} : p * scale;
}

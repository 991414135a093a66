// Compute kernels, compiled once per instruction set (SL_ISA_NAME = avx512, avx2 or baseline) and once more for maps of bfloat16
// (SL_BF16, names with _bf16 behind): `E` is an element of a map, everything in registers and in scratch rows is float32.
// Plain loops over GCC/Clang vector types; intrinsics only where the language has no word for it (masked tails).
// Every kernel computes an output the same way whatever its neighbours are, so results do not depend on the list of sites, on its
// order or on the number of threads.
#include "isa.h"

#include <cfloat>
#include <cmath>
#include <cstring>

#include "isa_vectors.h"

namespace sightline {
namespace {

typedef uint16_t VH __attribute__((vector_size(W * 2)));
typedef int16_t VS __attribute__((vector_size(W * 2)));
typedef uint16_t VHU __attribute__((vector_size(W * 2), aligned(2), may_alias));

#if SL_BF16
typedef uint16_t E;  // bfloat16: the upper half of a float32
typedef VS VD;       // which lanes differ
#else
typedef float E;
typedef VI VD;
#endif

SL_INLINE E* elements(Raw* p) { return reinterpret_cast<E*>(p); }
SL_INLINE const E* elements(const Raw* p) { return reinterpret_cast<const E*>(p); }

// Keeps lanes [0, n), zero elsewhere.
SL_INLINE VF keep(VF v, int n) {
#if defined(__AVX512F__)
  return (VF)_mm512_maskz_mov_ps((__mmask16)((1u << n) - 1), (__m512)v);
#elif defined(__AVX2__)
  return (VF)_mm256_and_ps((__m256)v, _mm256_castsi256_ps(tail_mask(n)));
#else
  for (int i = n; i < W; ++i) v[i] = 0;
  return v;
#endif
}

SL_INLINE VI keep_lanes(VI v, int n) { return (VI)keep((VF)v, n); }

#if SL_BF16
typedef uint32_t VU __attribute__((vector_size(W * 4)));
// Rows of W ones and W zeros: the mask that keeps n lanes starts n before the zeros.
alignas(64) const int16_t kHalfTail[32] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
SL_INLINE VS keep_lanes(VS v, int n) { return v & (VS)*reinterpret_cast<const VHU*>(kHalfTail + 16 - n); }

SL_INLINE VH load_half(const uint16_t* p) { return *reinterpret_cast<const VHU*>(p); }
SL_INLINE VF widen(VH h) {
#if defined(__AVX512F__)  // one shuffle into the upper halves; GCC makes two instructions of the other way
  constexpr int32_t kPlace = 0x10000;
  const __m512i from = _mm512_setr_epi32(0, kPlace, 2 * kPlace, 3 * kPlace, 4 * kPlace, 5 * kPlace, 6 * kPlace, 7 * kPlace, 8 * kPlace,
                                         9 * kPlace, 10 * kPlace, 11 * kPlace, 12 * kPlace, 13 * kPlace, 14 * kPlace, 15 * kPlace);
  return (VF)_mm512_maskz_permutexvar_epi16(0xaaaaaaaau, from, _mm512_castsi256_si512((__m256i)h));
#else
  return (VF)(__builtin_convertvector(h, VU) << 16);
#endif
}
SL_INLINE float widen(uint16_t h) {
  const uint32_t bits = (uint32_t)h << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
// To the nearest, ties to even; NaN stays NaN.
SL_INLINE VH narrow(VF x) {
#if defined(__AVX512BF16__)
  return (VH)_mm512_cvtneps_pbh((__m512)x);
#else
  const VU bits = (VU)x, up = bits + 0x7fff + ((bits >> 16) & 1);
  return __builtin_convertvector((x != x ? bits | 0x400000 : up) >> 16, VH);
#endif
}
SL_INLINE VF load(const uint16_t* p) { return widen(load_half(p)); }
SL_INLINE void store(uint16_t* p, VF v) { *reinterpret_cast<VHU*>(p) = narrow(v); }
SL_INLINE void store_tail(uint16_t* p, VF v, int n) {
#if defined(__AVX512F__)
  _mm256_mask_storeu_epi16(p, (__mmask16)((1u << n) - 1), (__m256i)narrow(v));
#else
  const VH h = narrow(v);
  for (int i = 0; i < n; ++i) p[i] = h[i];
#endif
}
SL_INLINE VH load_half_tail(const uint16_t* p, int n) {
#if defined(__AVX512F__)
  return (VH)_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p);
#else
  VH h = {};
  for (int i = 0; i < n; ++i) h[i] = p[i];
  return h;
#endif
}
SL_INLINE VF load_tail(const uint16_t* p, int n) { return widen(load_half_tail(p, n)); }
SL_INLINE VF as_held(VF y) { return widen(narrow(y)); }
// Compared as bits: no need to widen.
SL_INLINE VD differing(VF y, const uint16_t* held) { return (VD)(narrow(y) != load_half(held)); }
SL_INLINE VD differing_tail(VF y, const uint16_t* held, int n) { return keep_lanes((VD)(narrow(y) != load_half_tail(held, n)), n); }
SL_INLINE VI unequal(const uint16_t* a, const uint16_t* b) { return __builtin_convertvector(load_half(a) != load_half(b), VI); }
SL_INLINE VI unequal_tail(const uint16_t* a, const uint16_t* b, int n) {
  return __builtin_convertvector(load_half_tail(a, n) != load_half_tail(b, n), VI);
}
#else
SL_INLINE float widen(float x) { return x; }
SL_INLINE VF as_held(VF y) { return y; }
SL_INLINE VI unequal(const float* a, const float* b) { return load(a) != load(b); }
SL_INLINE VI unequal_tail(const float* a, const float* b, int n) { return load_tail(a, n) != load_tail(b, n); }
SL_INLINE VD differing(VF y, const float* held) { return y != load(held); }
SL_INLINE VD differing_tail(VF y, const float* held, int n) { return keep_lanes((VD)(y != load_tail(held, n)), n); }
#endif

SL_INLINE VF select(VI mask, VF a, VF b) { return mask ? a : b; }
// max and min as the hardware has them: a NaN in `a` gives `b`, so pass the value that must win as `b`.
SL_INLINE VF vmax(VF a, VF b) {
#if defined(__AVX512F__)
  return (VF)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (VF)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return select(a > b, a, b);
#endif
}
SL_INLINE VF vmin(VF a, VF b) {
#if defined(__AVX512F__)
  return (VF)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (VF)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return select(a < b, a, b);
#endif
}
SL_INLINE VF vabs(VF x) { return (VF)((VI)x & 0x7fffffff); }

SL_INLINE float sum(VF v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float s = 0;
  for (int i = 0; i < W; ++i) s += v[i];
  return s;
#endif
}

SL_INLINE bool any(VI v) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)v, (__m512i)v) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)v, (__m256i)v);
#else
  return (v[0] | v[1] | v[2] | v[3]) != 0;
#endif
}

#if SL_BF16
SL_INLINE bool any(VS v) {
  uint64_t words[W / 4], all = 0;
  std::memcpy(words, &v, sizeof words);
  for (uint64_t word : words) all |= word;
  return all != 0;
}
#endif

// -- activations -----------------------------------------------------------------------------------

// exp(x): x = n ln2 + r with |r| <= ln2 / 2, polynomial of degree 6 for exp(r); about 1 ulp; saturates to 0 and inf.
SL_INLINE VF vexp(VF x) {
  const VF high = set1(88.72284f), low = set1(-103.97208f);
  VF t = vmin(high + 1.0f, vmax(low, x));  // NaN in x survives: it is the second operand
  VF n = t * 1.44269504088896341f + 12582912.0f;
  VI ni = (VI)n - 0x4b400000;
  n = n - 12582912.0f;
  VF r = t - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  VF p = set1(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // two steps so that both the largest finite and the subnormal results come out right
  VI half = ni >> 1, rest = ni - half;
  VF y = p * (VF)((half + 127) << 23) * (VF)((rest + 127) << 23);
  y = select(x > high, set1(INFINITY), y);
  return select(x < low, set1(0.0f), y);
}

// erf by a rational approximation on [-4, 4] (odd numerator of degree 13 over even denominator of degree 8), about 2 ulp.
SL_INLINE VF verf(VF x) {
  x = vmin(set1(4.0f), vmax(set1(-4.0f), x));
  VF s = x * x;
  VF p = set1(-2.72614225801306e-10f);
  p = p * s + 2.77068142495902e-08f;
  p = p * s - 2.10102402082508e-06f;
  p = p * s - 5.69250639462346e-05f;
  p = p * s - 7.34990630326855e-04f;
  p = p * s - 2.95459980854025e-03f;
  p = p * s - 1.60960333262415e-02f;
  VF q = set1(-1.45660718464996e-05f);
  q = q * s - 2.13374055278905e-04f;
  q = q * s - 1.68282697438203e-03f;
  q = q * s - 7.37332916720468e-03f;
  q = q * s - 1.42647390514189e-02f;
  return x * p / q;
}

SL_INLINE VF vsigmoid(VF x) { return 1.0f / (1.0f + vexp(-x)); }

SL_INLINE VF vtanh(VF x) {
  // Near 0 the quotient cancels: use the odd series there.
  VF s = x * x;
  VF small = x * (1.0f + s * (-0.333333333f + s * (0.133333333f + s * (-0.0539682540f + s * 0.0218694885f))));
  VF e = vexp(2.0f * vmin(set1(10.0f), vmax(set1(-10.0f), x)));
  VF large = (e - 1.0f) / (e + 1.0f);
  return select(vabs(x) < 0.25f, small, large);
}

template <class F>
SL_INLINE VF lanewise(VF x, F f) {
  VF y = x;
  for (int i = 0; i < W; ++i) y[i] = f(x[i]);
  return y;
}

template <int ACT>
SL_INLINE VF activate(VF x, float p0, float p1, const float* slope) {
  const VF zero = set1(0.0f);
  if constexpr (ACT == kRelu) return vmax(zero, x);
  if constexpr (ACT == kClamp) return vmin(set1(p1), vmax(set1(p0), x));
  if constexpr (ACT == kLeakyRelu) return select(x > 0.0f, x, x * p0);
  if constexpr (ACT == kPrelu) return select(x > 0.0f, x, x * load(slope));
  if constexpr (ACT == kSilu) return x / (1.0f + vexp(-x));
  if constexpr (ACT == kHardswish) return x * vmin(set1(6.0f), vmax(zero, x + 3.0f)) / 6.0f;
  if constexpr (ACT == kSigmoid) return vsigmoid(x);
  if constexpr (ACT == kHardsigmoid) return vmin(set1(6.0f), vmax(zero, x + 3.0f)) / 6.0f;
  if constexpr (ACT == kGelu) return 0.5f * x * (1.0f + verf(x * 0.70710678118654752f));
  if constexpr (ACT == kGeluTanh) return 0.5f * x * (1.0f + vtanh(0.79788456080286536f * (x + 0.044715f * x * x * x)));
  if constexpr (ACT == kTanh) return vtanh(x);
  if constexpr (ACT == kElu) return lanewise(x, [p0](float v) { return v > 0 ? v : p0 * std::expm1(v); });
  if constexpr (ACT == kMish) return lanewise(x, [](float v) { return v * std::tanh(v > 20 ? v : std::log1p(std::exp(v))); });
  if constexpr (ACT == kSoftplus) return lanewise(x, [p0, p1](float v) { return v * p0 > p1 ? v : std::log1p(std::exp(v * p0)) / p0; });
  if constexpr (ACT == kExp) return vexp(x);
  if constexpr (ACT == kSqrt) return lanewise(x, [](float v) { return std::sqrt(v); });
  if constexpr (ACT == kAbs) return vabs(x);
  if constexpr (ACT == kNeg) return -x;
  return x;
}

// -- publishing --------------------------------------------------------------------------------------

// Threshold to compare sums of squares with (or maxima), so that no root is taken.
SL_INLINE float limit_of(const Publish& a) {
  return a.norm == kMax ? a.threshold : a.norm == kRms ? a.threshold * a.threshold * (float)a.c : a.threshold * a.threshold;
}

constexpr int kWithinMax = 3;  // kWithin under the max norm: a variant of its own keeps the loop free of branches

template <int ACT, int MODE>
SL_INLINE bool publish_one(const Publish& a, float limit, float* row, const E* residual, E* held) {
  const int c = a.c;
  VD differs = {};
  VF accum = set1(0.0f);
  auto step = [&](int i, bool tail, int n) __attribute__((always_inline)) {
    auto there = [&](const E* p) __attribute__((always_inline)) { return tail ? load_tail(p, n) : load(p); };
    VF y = load(row + i);
    if (residual && !a.residual_after_act) y = y + there(residual + i);
    y = activate<ACT>(y, a.p0, a.p1, a.slope + i);
    if (residual && a.residual_after_act) y = y + there(residual + i);
    if constexpr (MODE == kAlways) {
      if (tail) store_tail(held + i, y, n); else store(held + i, y);
    } else if constexpr (MODE == kExact) {
      VD d = tail ? differing_tail(y, held + i, n) : differing(y, held + i);
      if (tail) {
        differs |= d;
        store_tail(held + i, y, n);
      } else {
        differs |= d;
        store(held + i, y);
      }
    } else {
      y = as_held(y);
      VF d = y - there(held + i);
      if (tail) d = keep(d, n);
      if constexpr (MODE == kWithinMax) accum = select((vabs(d) > accum) | (d != d), vabs(d), accum);
      else accum = accum + d * d;
      store(row + i, y);  // rows are padded to whole vectors
    }
  };
  int i = 0;
  for (; i + W <= c; i += W) step(i, false, W);
  if (i < c) step(i, true, c - i);
  if constexpr (MODE == kAlways) return true;
  if constexpr (MODE == kExact) return any(differs);
  float n;
  if constexpr (MODE == kWithinMax) {
    n = 0;
    for (int k = 0; k < W; ++k) n = (accum[k] > n || accum[k] != accum[k]) ? accum[k] : n;
  } else {
    n = sum(accum);
  }
  if (n <= limit) return false;
  for (i = 0; i + W <= c; i += W) store(held + i, load(row + i));
  if (i < c) store_tail(held + i, load(row + i), c - i);
  return true;
}

template <int ACT, int MODE>
int publish_rows(const Publish& a, float* rows, int ldr, const Site* sites, int pixels, uint8_t* changed) {
  // Held maps rarely lie in cache, and scattered sites defeat the hardware's own prefetching: ask some rows ahead.
  constexpr int kAhead = 12;
  auto fetch = [&](int p) __attribute__((always_inline)) {
    constexpr int bytes = sizeof(E);
    const Raw* row = a.held + (int64_t)sites[p].index * a.ld * bytes;
    for (int i = 0; i < a.c * bytes; i += 64) __builtin_prefetch(row + i, 1, 2);
    if (!a.residual) return;
    const Raw* other = a.residual + (int64_t)sites[p].index * a.residual_ld * bytes;
    for (int i = 0; i < a.c * bytes; i += 64) __builtin_prefetch(other + i, 0, 2);
  };
  const float limit = limit_of(a);
  int total = 0;
  if constexpr (MODE != kAlways)
    for (int p = 0; p < (pixels < kAhead ? pixels : kAhead); ++p) fetch(p);
  for (int p = 0; p < pixels; ++p) {
    if constexpr (MODE != kAlways)
      if (p + kAhead < pixels) fetch(p + kAhead);
    const int64_t at = sites[p].index;
    const E* residual = a.residual ? elements(a.residual) + at * a.residual_ld : nullptr;
    bool now = publish_one<ACT, MODE>(a, limit, rows + (int64_t)p * ldr, residual, elements(a.held) + at * a.ld);
    changed[p] = now;
    total += now;
  }
  return total;
}

template <int ACT>
int publish_act(const Publish& a, float* rows, int ldr, const Site* sites, int pixels, uint8_t* changed) {
  switch (a.mode) {
    case kAlways: return publish_rows<ACT, kAlways>(a, rows, ldr, sites, pixels, changed);
    case kExact: return publish_rows<ACT, kExact>(a, rows, ldr, sites, pixels, changed);
    default:
      return a.norm == kMax ? publish_rows<ACT, kWithinMax>(a, rows, ldr, sites, pixels, changed)
                            : publish_rows<ACT, kWithin>(a, rows, ldr, sites, pixels, changed);
  }
}

int publish(const Publish& a, float* rows, int ldr, const Site* sites, int pixels, uint8_t* changed) {
  using F = int (*)(const Publish&, float*, int, const Site*, int, uint8_t*);
  static const F table[kActCount] = {
      publish_act<kNone>, publish_act<kRelu>, publish_act<kClamp>, publish_act<kLeakyRelu>, publish_act<kPrelu>,
      publish_act<kSilu>, publish_act<kHardswish>, publish_act<kSigmoid>, publish_act<kHardsigmoid>, publish_act<kGelu>,
      publish_act<kGeluTanh>, publish_act<kTanh>, publish_act<kElu>, publish_act<kMish>, publish_act<kSoftplus>,
      publish_act<kExp>, publish_act<kSqrt>, publish_act<kAbs>, publish_act<kNeg>};
  return table[a.act](a, rows, ldr, sites, pixels, changed);
}

// -- publishing from registers -----------------------------------------------------------------------------

struct Clamp { VF low, high; };

SL_INLINE Clamp clamp_of(const Publish& p) {
  const float low = p.act == kNone ? -INFINITY : p.act == kRelu ? 0.0f : p.p0;
  return Clamp{set1(low), set1(p.act == kClamp ? p.p1 : INFINITY)};
}

// Finishes one vector of a site's channels, n of which exist; tells which lanes changed.
template <int MODE, bool RES>
SL_INLINE VD publish_vector(VF y, const Clamp& clamp, const E* residual, E* held, int n) {
  if constexpr (RES) y = y + (n >= W ? load(residual) : load_tail(residual, n));
  y = vmin(clamp.high, vmax(clamp.low, y));
  VD differs = {};
  if (n >= W) {
    if constexpr (MODE == kExact) differs = differing(y, held);
    store(held, y);
  } else {
    if constexpr (MODE == kExact) differs = differing_tail(y, held, n);
    store_tail(held, y, n);
  }
  return differs;
}

// -- convolution --------------------------------------------------------------------------------------

// A sum of many terms is added up in stretches of this many, so that its rounding error does not grow with the depth of the layer.
constexpr int kStretch = 384;

#if SL_BF16
// acc + b's first half * w's first half + the same of the second halves; a lane holds a pair of input channels.
SL_INLINE VF add_products(VF acc, VI b, VI w) {
#if defined(__AVX512BF16__)
  return (VF)_mm512_dpbf16_ps((__m512)acc, (__m512bh)b, (__m512bh)w);
#else
  acc += (VF)(b << 16) * (VF)(w << 16);
  return acc + (VF)(b & -65536) * (VF)(w & -65536);
#endif
}

SL_INLINE VI splat_pair(uint32_t pair) {
  float bits;
  std::memcpy(&bits, &pair, 4);
  return (VI)set1(bits);
}

// bias + sum over taps and their channels, two channels at a time. A last odd channel is paired with zero, never with what lies behind.
// Rounding to bfloat16 hides what a long sum in float32 loses, so it is added up in one go.
template <int P, int V>
SL_INLINE void reduce(const Raw* const* taps, int64_t shift, int ntaps, int run, const float* w, const float* bias, VF (&acc)[P][V]) {
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) acc[p][v] = load(bias + v * W);
  const int whole = run / 2;
  for (int t = 0; t < ntaps; ++t) {
    const E* x[P];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) x[p] = elements(taps[(int64_t)p * ntaps + t]) + shift;
#pragma GCC unroll 2
    for (int k = 0; k < whole; ++k) {
      VI wv[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) wv[v] = (VI)load(w + v * W);
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) {
        uint32_t pair;
        std::memcpy(&pair, x[p] + 2 * k, 4);
        const VI b = splat_pair(pair);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) acc[p][v] = add_products(acc[p][v], b, wv[v]);
      }
      w += V * W;
    }
    if (run % 2 == 0) continue;
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
      const VI b = splat_pair(x[p][run - 1]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[p][v] = add_products(acc[p][v], b, (VI)load(w + v * W));
    }
    w += V * W;
  }
}
#else
// bias + sum over taps and their channels, for P pixels x V vectors of output channels, all in registers.
template <int P, int V>
SL_INLINE void reduce(const Raw* const* taps, int64_t shift, int ntaps, int run, const float* w, const float* bias, VF (&acc)[P][V]) {
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) acc[p][v] = load(bias + v * W);
  alignas(64) float total[P * V * W];
  const bool deep = (int64_t)ntaps * run > 512;
  bool kept = false;
  int since = 0;
  for (int t = 0; t < ntaps; ++t) {
    const float* x[P];
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) x[p] = elements(taps[(int64_t)p * ntaps + t]) + shift;
    for (int k0 = 0; k0 < run; k0 += kStretch) {
      const int k1 = run - k0 < kStretch ? run : k0 + kStretch;
#pragma GCC unroll 2
      for (int k = k0; k < k1; ++k) {
        VF wv[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) wv[v] = load(w + v * W);
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) {
          VF b = set1(x[p][k]);
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) acc[p][v] += b * wv[v];
        }
        w += V * W;
      }
      since += k1 - k0;
      if (!deep || since < kStretch) continue;
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          float* part = total + (p * V + v) * W;
          store(part, kept ? load(part) + acc[p][v] : acc[p][v]);
          acc[p][v] = set1(0.0f);
        }
      kept = true;
      since = 0;
    }
  }
  if (!kept) return;
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) acc[p][v] += load(total + (p * V + v) * W);
}
#endif

template <int P, int V>
void conv_block(const Raw* const* taps, int64_t shift, int ntaps, int run, const float* w, const float* bias, float* out, int ldo) {
  VF acc[P][V];
  reduce<P, V>(taps, shift, ntaps, run, w, bias, acc);
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(out + (int64_t)p * ldo + v * W, acc[p][v]);
}

// The same reduction, published at once. Held rows and residuals are asked for before it and arrive during it.
template <int P, int V, int MODE, bool RES>
void conv_block_publish(const ConvTile& t, int at, const Publish& pub, const Clamp& clamp, const Site* sites, uint8_t* flags) {
  E* held[P];
  const E* residual[P];
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
    held[p] = elements(pub.held) + (int64_t)sites[p].index * pub.ld + t.c0;
    residual[p] = RES ? elements(pub.residual) + (int64_t)sites[p].index * pub.residual_ld + t.c0 : nullptr;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      __builtin_prefetch(held[p] + v * W, 1, 3);
      if constexpr (RES) __builtin_prefetch(residual[p] + v * W, 0, 3);
    }
  }
  VF acc[P][V];
  reduce<P, V>(t.taps + (int64_t)at * t.ntaps, t.shift, t.ntaps, t.run, t.weights, t.bias, acc);
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
    VD differs = {};
    VF distance = set1(0.0f);
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const int n = t.valid - v * W;
      if (n <= 0) continue;
      if constexpr (MODE == kWithin) {
        VF y = acc[p][v];
        if constexpr (RES) y = y + (n < W ? load_tail(residual[p] + v * W, n) : load(residual[p] + v * W));
        y = as_held(vmin(clamp.high, vmax(clamp.low, y)));
        VF d = y - (n < W ? load_tail(held[p] + v * W, n) : load(held[p] + v * W));
        if (n < W) d = keep(d, n);
        distance += d * d;
        store(t.out + (int64_t)(at + p) * t.ldo + v * W, y);
      } else {
        differs |= publish_vector<MODE, RES>(acc[p][v], clamp, residual[p] + (RES ? v * W : 0), held[p] + v * W, n);
      }
    }
    if constexpr (MODE == kWithin) t.sums[at + p] = sum(distance);
    else if (MODE == kAlways || any(differs)) __atomic_store_n(&flags[p], (uint8_t)1, __ATOMIC_RELAXED);
  }
}

void commit(const Publish& a, const float* rows, int ldr, const float* sums, int64_t stride, int panels, const Site* sites, int pixels,
            uint8_t* flags) {
  const float limit = limit_of(a);
  for (int p = 0; p < pixels; ++p) {
    float n = sums[p];
    for (int k = 1; k < panels; ++k) n += sums[k * stride + p];
    flags[p] = !(n <= limit);
    if (!flags[p]) continue;
    E* held = elements(a.held) + (int64_t)sites[p].index * a.ld;
    const float* row = rows + (int64_t)p * ldr;
    int i = 0;
    for (; i + W <= a.c; i += W) store(held + i, load(row + i));
    if (i < a.c) store_tail(held + i, load(row + i), a.c - i);
  }
}

#if defined(__AVX512F__)
constexpr int kMaxPixels[5] = {0, 12, 12, 8, 6};
#elif defined(__AVX2__)
constexpr int kMaxPixels[5] = {0, 10, 6, 4, 3};
#else
constexpr int kMaxPixels[5] = {0, 10, 6, 4, 3};
#endif

using ConvBlock = void (*)(const Raw* const*, int64_t, int, int, const float*, const float*, float*, int);

template <int V>
ConvBlock conv_block_for(int p) {
  static_assert(kMaxPixels[V] <= 12);
  switch (p) {
    case 1: return conv_block<1, V>;
    case 2: return conv_block<2, V>;
    case 3: return conv_block<3, V>;
    case 4: if constexpr (kMaxPixels[V] >= 4) return conv_block<4, V>; break;
    case 5: if constexpr (kMaxPixels[V] >= 5) return conv_block<5, V>; break;
    case 6: if constexpr (kMaxPixels[V] >= 6) return conv_block<6, V>; break;
    case 7: if constexpr (kMaxPixels[V] >= 7) return conv_block<7, V>; break;
    case 8: if constexpr (kMaxPixels[V] >= 8) return conv_block<8, V>; break;
    case 9: if constexpr (kMaxPixels[V] >= 9) return conv_block<9, V>; break;
    case 10: if constexpr (kMaxPixels[V] >= 10) return conv_block<10, V>; break;
    case 11: if constexpr (kMaxPixels[V] >= 11) return conv_block<11, V>; break;
    case 12: if constexpr (kMaxPixels[V] >= 12) return conv_block<12, V>; break;
  }
  return nullptr;
}

template <int V>
void conv_panel(const ConvTile& t) {
  // Balanced groups: 7 pixels become 4 + 3, not 6 + 1.
  const int groups = (t.pixels + kMaxPixels[V] - 1) / kMaxPixels[V];
  int done = 0;
  for (int g = 0; g < groups; ++g) {
    const int p = (t.pixels - done + groups - g - 1) / (groups - g);
    conv_block_for<V>(p)(t.taps + (int64_t)done * t.ntaps, t.shift, t.ntaps, t.run, t.weights, t.bias, t.out + (int64_t)done * t.ldo, t.ldo);
    done += p;
  }
}

using ConvBlockPublish = void (*)(const ConvTile&, int, const Publish&, const Clamp&, const Site*, uint8_t*);

template <int V, int MODE, bool RES>
void conv_panel_publish(const ConvTile& t, const Publish& pub, const Site* sites, uint8_t* flags) {
  static constexpr int kMost = kMaxPixels[V];
  static const ConvBlockPublish table[13] = {
      nullptr,
      conv_block_publish<1, V, MODE, RES>,
      conv_block_publish<2, V, MODE, RES>,
      conv_block_publish<3, V, MODE, RES>,
      conv_block_publish<(kMost >= 4 ? 4 : 1), V, MODE, RES>,
      conv_block_publish<(kMost >= 5 ? 5 : 1), V, MODE, RES>,
      conv_block_publish<(kMost >= 6 ? 6 : 1), V, MODE, RES>,
      conv_block_publish<(kMost >= 7 ? 7 : 1), V, MODE, RES>,
      conv_block_publish<(kMost >= 8 ? 8 : 1), V, MODE, RES>,
      conv_block_publish<(kMost >= 9 ? 9 : 1), V, MODE, RES>,
      conv_block_publish<(kMost >= 10 ? 10 : 1), V, MODE, RES>,
      conv_block_publish<(kMost >= 11 ? 11 : 1), V, MODE, RES>,
      conv_block_publish<(kMost >= 12 ? 12 : 1), V, MODE, RES>};
  const Clamp clamp = clamp_of(pub);
  const int groups = (t.pixels + kMost - 1) / kMost;
  int done = 0;
  for (int g = 0; g < groups; ++g) {
    const int p = (t.pixels - done + groups - g - 1) / (groups - g);
    table[p](t, done, pub, clamp, sites + done, flags + done);
    done += p;
  }
}

template <int V>
void conv_publish_v(const ConvTile& t, const Publish& pub, const Site* sites, uint8_t* flags) {
  if (pub.mode == kWithin)
    pub.residual ? conv_panel_publish<V, kWithin, true>(t, pub, sites, flags) : conv_panel_publish<V, kWithin, false>(t, pub, sites, flags);
  else if (pub.mode == kAlways)
    pub.residual ? conv_panel_publish<V, kAlways, true>(t, pub, sites, flags) : conv_panel_publish<V, kAlways, false>(t, pub, sites, flags);
  else
    pub.residual ? conv_panel_publish<V, kExact, true>(t, pub, sites, flags) : conv_panel_publish<V, kExact, false>(t, pub, sites, flags);
}

void conv_publish(const ConvTile& t, const Publish& pub, const Site* sites, uint8_t* flags) {
  switch (t.vectors) {
    case 1: return conv_publish_v<1>(t, pub, sites, flags);
    case 2: return conv_publish_v<2>(t, pub, sites, flags);
    case 3: return conv_publish_v<3>(t, pub, sites, flags);
    default: return conv_publish_v<4>(t, pub, sites, flags);
  }
}

void conv(const ConvTile& t) {
  switch (t.vectors) {
    case 1: return conv_panel<1>(t);
    case 2: return conv_panel<2>(t);
    case 3: return conv_panel<3>(t);
    default: return conv_panel<4>(t);
  }
}

// -- depthwise ----------------------------------------------------------------------------------------

// How a run's results leave the registers: kept as rows, or published at once.
constexpr int kKeep = -1;

template <int KH, int KW, int S, int R, int MODE, bool RES>
void depthwise_run_block(const DepthwiseRun& a, int at, const Publish& pub, const Clamp& clamp, int64_t index, uint8_t* flags) {
  VD differs[R] = {};
  for (int c = 0; c < a.c; c += W) {
    VF acc[R];
    const VF b = load(a.bias + c);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[r] = b;
#pragma GCC unroll 7
    for (int ky = 0; ky < KH; ++ky) {
      const E* x = elements(a.rows[ky]) + (int64_t)at * S * a.ld + c;
      VF w[KW];
#pragma GCC unroll 7
      for (int kx = 0; kx < KW; ++kx) w[kx] = load(a.weights + (int64_t)(ky * KW + kx) * a.cpad + c);
#pragma GCC unroll 20
      for (int j = 0; j < (R - 1) * S + KW; ++j) {
        const VF v = load(x + (int64_t)j * a.ld);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
          if (j - r * S >= 0 && j - r * S < KW) acc[r] += v * w[j - r * S];
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      if constexpr (MODE == kKeep) {
        store(a.out + (int64_t)(at + r) * a.ldo + c, acc[r]);
      } else {
        const E* residual = RES ? elements(pub.residual) + (index + at + r) * pub.residual_ld + c : nullptr;
        differs[r] |= publish_vector<MODE, RES>(acc[r], clamp, residual, elements(pub.held) + (index + at + r) * pub.ld + c, a.c - c);
      }
    }
  }
  if constexpr (MODE != kKeep)
    for (int r = 0; r < R; ++r) flags[at + r] = MODE == kAlways || any(differs[r]);
}

template <int KH, int KW, int S, int MODE, bool RES>
void depthwise_run_k(const DepthwiseRun& a, const Publish& pub, int64_t index, uint8_t* flags) {
  const Clamp clamp = clamp_of(pub);
  int at = 0;
  if constexpr (W == 16 && KH == 3)  // 32 registers: neighbours share more of what they read
    for (; at + 8 <= a.count; at += 8) depthwise_run_block<KH, KW, S, 8, MODE, RES>(a, at, pub, clamp, index, flags);
  for (; at + 4 <= a.count; at += 4) depthwise_run_block<KH, KW, S, 4, MODE, RES>(a, at, pub, clamp, index, flags);
  switch (a.count - at) {
    case 3: return depthwise_run_block<KH, KW, S, 3, MODE, RES>(a, at, pub, clamp, index, flags);
    case 2: return depthwise_run_block<KH, KW, S, 2, MODE, RES>(a, at, pub, clamp, index, flags);
    case 1: return depthwise_run_block<KH, KW, S, 1, MODE, RES>(a, at, pub, clamp, index, flags);
    default: return;
  }
}

template <int MODE, bool RES>
bool depthwise_run_any(int kh, int kw, const DepthwiseRun& a, const Publish& pub, int64_t index, uint8_t* flags) {
  if (a.stride != 1 && a.stride != 2) return false;
  if (kh == 3 && kw == 3) {
    a.stride == 1 ? depthwise_run_k<3, 3, 1, MODE, RES>(a, pub, index, flags) : depthwise_run_k<3, 3, 2, MODE, RES>(a, pub, index, flags);
    return true;
  }
  if (kh == 5 && kw == 5) {
    a.stride == 1 ? depthwise_run_k<5, 5, 1, MODE, RES>(a, pub, index, flags) : depthwise_run_k<5, 5, 2, MODE, RES>(a, pub, index, flags);
    return true;
  }
  return false;
}

bool depthwise_run(int kh, int kw, const DepthwiseRun& a) { return depthwise_run_any<kKeep, false>(kh, kw, a, Publish{}, 0, nullptr); }

bool depthwise_publish(int kh, int kw, const DepthwiseRun& a, const Publish& pub, int64_t index, uint8_t* flags) {
  if (pub.mode == kAlways)
    return pub.residual ? depthwise_run_any<kAlways, true>(kh, kw, a, pub, index, flags)
                        : depthwise_run_any<kAlways, false>(kh, kw, a, pub, index, flags);
  return pub.residual ? depthwise_run_any<kExact, true>(kh, kw, a, pub, index, flags)
                      : depthwise_run_any<kExact, false>(kh, kw, a, pub, index, flags);
}

void depthwise_pixel(const Raw* const* taps, int ntaps, const float* weights, int cpad, const float* bias, float* out, int c) {
  for (int i = 0; i < c; i += W) {
    VF acc = load(bias + i);
    for (int t = 0; t < ntaps; ++t) acc += load(elements(taps[t]) + i) * load(weights + (int64_t)t * cpad + i);
    store(out + i, acc);
  }
}

// -- pooling, resampling, element-wise ------------------------------------------------------------------

void max_pixel(const Raw* const* taps, int ntaps, float* out, int c) {
  for (int i = 0; i < c; i += W) {
    VF m = load(elements(taps[0]) + i);
    for (int t = 1; t < ntaps; ++t) {
      const VF x = load(elements(taps[t]) + i);
      m = select((x > m) | (x != x), x, m);
    }
    store(out + i, m);
  }
}

void weighted_pixel(const Raw* const* taps, int ny, int nx, const float* wy, const float* wx, float divisor, float* out, int c) {
  if (ny == 2 && nx == 2 && divisor == 1.0f) {  // bilinear resampling
    const E *a = elements(taps[0]), *b = elements(taps[1]), *d = elements(taps[2]), *e = elements(taps[3]);
    for (int i = 0; i < c; i += W)
      store(out + i, (load(a + i) * wx[0] + load(b + i) * wx[1]) * wy[0] + (load(d + i) * wx[0] + load(e + i) * wx[1]) * wy[1]);
    return;
  }
  for (int i = 0; i < c; i += W) {
    VF acc = set1(0.0f);
    for (int y = 0; y < ny; ++y) {
      VF line = set1(0.0f);
      for (int x = 0; x < nx; ++x) line += load(elements(taps[y * nx + x]) + i) * wx[x];
      acc += line * wy[y];
    }
    store(out + i, divisor == 1.0f ? acc : acc / divisor);
  }
}

void copy_pixel(const Raw* x, float* out, int c) {
  for (int i = 0; i < c; i += W) store(out + i, load(elements(x) + i));
}

void affine_pixel(const Raw* x, const float* scale, const float* shift, float* out, int c) {
  for (int i = 0; i < c; i += W) store(out + i, load(elements(x) + i) * load(scale + i) + load(shift + i));
}

void binary_pixel(int op, const Raw* a, const Raw* b, float* out, int c) {
  for (int i = 0; i < c; i += W) {
    const VF x = load(elements(a) + i), y = load(elements(b) + i);
    VF z;
    switch (op) {
      case kAdd: z = x + y; break;
      case kSub: z = x - y; break;
      case kMul: z = x * y; break;
      case kDiv: z = x / y; break;
      case kMaximum: z = select((x > y) | (x != x), x, y); break;
      default: z = select((x < y) | (x != x), x, y); break;
    }
    store(out + i, z);
  }
}

void sum_row(const Raw* map, int pixels, int ld, float* out, int c) {
  const E* x = elements(map);
  for (int i = 0; i < c; i += W) {
    VF s[4] = {set1(0), set1(0), set1(0), set1(0)};
    int p = 0;
    for (; p + 4 <= pixels; p += 4)
      for (int k = 0; k < 4; ++k) s[k] += load(x + (int64_t)(p + k) * ld + i);
    for (; p < pixels; ++p) s[0] += load(x + (int64_t)p * ld + i);
    store(out + i, (s[0] + s[1]) + (s[2] + s[3]));
  }
}

// -- frames and masks -----------------------------------------------------------------------------------

void round_row(const float* x, Raw* raw, int64_t n) {
  E* out = elements(raw);
  int64_t i = 0;
  for (; i + W <= n; i += W) store(out + i, load(x + i));
  if (i < n) {
    alignas(64) float rest[W] = {};
    std::memcpy(rest, x + i, (size_t)(n - i) * 4);
    store_tail(out + i, load(rest), (int)(n - i));
  }
}

void diff_row(const Raw* frame, int64_t fp, const Raw* held, int64_t hp, int c, int w, int mode, int norm, float threshold,
              uint8_t* out) {
  if (mode == kAlways) {
    std::memset(out, 1, (size_t)w);
    return;
  }
  const E *a = elements(frame), *b = elements(held);
  const float limit = norm == kMax ? threshold : norm == kRms ? threshold * threshold * (float)c : threshold * threshold;
  const bool exact = mode == kExact, largest = norm == kMax;
  // W pixels at a time; `n` of them exist.
  auto pixels = [&](int x, auto get, auto differ) __attribute__((always_inline)) {
    VI changed = {};
    VF size = set1(0.0f);
    for (int k = 0; k < c; ++k) {
      if (exact) {
        changed |= differ(a + k * fp + x, b + k * hp + x);
        continue;
      }
      const VF d = get(a + k * fp + x) - get(b + k * hp + x);
      size = largest ? select((vabs(d) > size) | (d != d), vabs(d), size) : size + d * d;
    }
    return exact ? changed : ~(size <= limit);
  };
  typedef uint8_t VB __attribute__((vector_size(W)));
  typedef VB VBU __attribute__((aligned(1), may_alias));
  auto bytes = [](VI flags) __attribute__((always_inline)) { return __builtin_convertvector(flags, VB) & 1; };
  int x = 0;
  for (; x + W <= w; x += W)
    *reinterpret_cast<VBU*>(out + x) = bytes(pixels(x, [](const E* p) { return load(p); }, [](const E* p, const E* q) { return unequal(p, q); }));
  if (x == w) return;
  const int n = w - x;
  const VB last = bytes(pixels(x, [n](const E* p) { return load_tail(p, n); }, [n](const E* p, const E* q) { return unequal_tail(p, q, n); }));
  for (int i = 0; i < n; ++i) out[x + i] = last[i];
}

// Copies planar pixels [from, to) to the held planes and, interleaved, to the map; C > 0 fixes the number of channels.
template <int C>
SL_INLINE void write_pixels(const E* x, int64_t xp, E* held, int64_t hp, E* out, int ld, int c, int from, int to) {
  const int channels = C > 0 ? C : c, pitch = C > 0 ? C : ld;
  for (int i = from; i < to; ++i)
    for (int k = 0; k < channels; ++k) out[(int64_t)i * pitch + k] = held[k * hp + i] = x[k * xp + i];
}

template <int C>
int write_row_c(const E* x, int64_t xp, E* held, int64_t hp, E* out, int ld, int c, int w, const uint8_t* bits) {
  int total = 0, i = 0;
  for (; i + 8 <= w; i += 8) {
    uint64_t eight;
    std::memcpy(&eight, bits + i, 8);
    if (eight == 0x0101010101010101ull) {
      write_pixels<C>(x, xp, held, hp, out, ld, c, i, i + 8);
      total += 8;
      continue;
    }
    for (; eight; eight &= eight - 1, ++total) {  // noise changes single pixels: no calls, no loops over stretches
      const int at = i + (__builtin_ctzll(eight) >> 3);
      write_pixels<C>(x, xp, held, hp, out, ld, c, at, at + 1);
    }
  }
  for (; i < w; ++i)
    if (bits[i]) {
      write_pixels<C>(x, xp, held, hp, out, ld, c, i, i + 1);
      ++total;
    }
  return total;
}

int write_row(const Raw* frame, int64_t xp, Raw* kept, int64_t hp, Raw* map, int ld, int c, int w, const uint8_t* bits) {
  const E* x = elements(frame);
  E *held = elements(kept), *out = elements(map);
  return c == 3 && ld == 3 ? write_row_c<3>(x, xp, held, hp, out, ld, c, w, bits) : write_row_c<0>(x, xp, held, hp, out, ld, c, w, bits);
}

bool all_finite(const Raw* raw, int64_t n) {
  const E* x = elements(raw);
  // A finite value has an exponent below 255. OR of comparisons vectorises; stop once per block.
  for (int64_t i = 0; i < n;) {
    const int64_t end = i + 4096 < n ? i + 4096 : n;
    int32_t bad = 0;
    for (; i < end; ++i) {
      const float value = widen(x[i]);
      int32_t bits;
      std::memcpy(&bits, &value, 4);
      bad |= (bits & 0x7f800000) == 0x7f800000;
    }
    if (bad) return false;
  }
  return true;
}

bool equal(const Raw* first, const Raw* second, int64_t n) {
  const E *a = elements(first), *b = elements(second);
  for (int64_t i = 0; i < n;) {
    const int64_t end = i + 4096 < n ? i + 4096 : n;
    int32_t differs = 0;
    for (; i < end; ++i) differs |= a[i] != b[i];
    if (differs) return false;
  }
  return true;
}

void or_row(const uint8_t* in, int k, int dilation, int stride, int out_w, uint8_t* tmp, uint8_t* out) {
  const int full = (out_w - 1) * stride + 1;
  uint8_t* dst = stride == 1 ? out : tmp;
  std::memcpy(dst, in, (size_t)full);
  for (int j = 1; j < k; ++j) {
    const uint8_t* src = in + (int64_t)j * dilation;
    for (int x = 0; x < full; ++x) dst[x] |= src[x];
  }
  if (stride == 2)
    for (int x = 0; x < out_w; ++x) out[x] = tmp[2 * x];
  else if (stride != 1)
    for (int x = 0; x < out_w; ++x) out[x] = tmp[x * stride];
}

void or_into(const uint8_t* in, uint8_t* out, int n) {
  for (int i = 0; i < n; ++i) out[i] |= in[i];
}

int list_row(const uint8_t* mask, int x0, int x1, int32_t index0, uint16_t y, Site* out) {
  int n = 0, x = x0;
  for (; x + 8 <= x1; x += 8) {
    uint64_t eight;
    std::memcpy(&eight, mask + x, 8);
    if (!eight) continue;
    if (eight == 0x0101010101010101ull) {
      for (int k = 0; k < 8; ++k) out[n + k] = Site{index0 + x + k, y, (uint16_t)(x + k)};
      n += 8;
      continue;
    }
    while (eight) {
      const int k = __builtin_ctzll(eight) >> 3;
      out[n++] = Site{index0 + x + k, y, (uint16_t)(x + k)};
      eight &= eight - 1;  // mask bytes are 0 or 1: one bit each
    }
  }
  for (; x < x1; ++x)
    if (mask[x]) out[n++] = Site{index0 + x, y, (uint16_t)x};
  return n;
}

int64_t count(const uint8_t* mask, int64_t n) {
  int64_t total = 0;
  for (int64_t i = 0; i < n; ++i) total += mask[i];
  return total;
}

}  // namespace

#if SL_BF16
#define SL_TABLE SL_CONCAT(SL_CONCAT(kernels_, SL_ISA_NAME), _bf16)
#else
#define SL_TABLE SL_CONCAT(kernels_, SL_ISA_NAME)
#endif
#if SL_BF16 && !defined(__AVX512BF16__)
constexpr bool kEmulated = true;
#else
constexpr bool kEmulated = false;
#endif

const Kernels* SL_TABLE() {
  static const Kernels table = {
      SL_STRING(SL_ISA_NAME), (int)sizeof(E), kEmulated, W, {0, kMaxPixels[1], kMaxPixels[2], kMaxPixels[3], kMaxPixels[4]},
      conv, conv_publish, commit, depthwise_run, depthwise_publish, depthwise_pixel, max_pixel, weighted_pixel, copy_pixel, affine_pixel, binary_pixel, sum_row, publish, round_row, diff_row, write_row,
      all_finite, equal, or_row, or_into, list_row, count};
  return &table;
}

}  // namespace sightline

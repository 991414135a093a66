// Elements of maps (float32, or bfloat16 where SL_BF16) as the float32 vectors of an instruction set, activations, and how finished
// vectors are published. For the files isa_*.cpp that work on maps of a program; everything here has internal linkage.
#pragma once
#include <cmath>
#include <cstring>

#include "isa.h"
#include "isa_vectors.h"

#if SL_BF16
#define SL_NAMED(name) SL_CONCAT(SL_CONCAT(name, SL_ISA_NAME), _bf16)
#else
#define SL_NAMED(name) SL_CONCAT(name, SL_ISA_NAME)
#endif

namespace sightline {

// Each of the files writes its kernels into the table of its instruction set and element type.
void SL_NAMED(add_depthwise_)(Kernels& table);
void SL_NAMED(add_pixels_)(Kernels& table);
void SL_NAMED(add_frames_)(Kernels& table);
void SL_NAMED(add_narrow_)(Kernels& table);
// Panels of half a vector of output channels; see Kernels::conv and conv_publish.
void SL_NAMED(conv_half_)(const ConvTile& tile);
void SL_NAMED(conv_half_publish_)(const ConvTile& tile, const Publish& pub, const Site* sites, uint8_t* flags);

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

// -- publishing from registers ------------------------------------------------------------

// Threshold to compare sums of squares with (or maxima), so that no root is taken.
SL_INLINE float limit_of(const Publish& a) {
  return a.norm == kMax ? a.threshold : a.norm == kRms ? a.threshold * a.threshold * (float)a.c : a.threshold * a.threshold;
}

struct Clamp { VF low, high; };

SL_INLINE Clamp clamp_of(const Publish& p) {
  const float low = p.act == kNone ? -INFINITY : p.act == kRelu ? 0.0f : p.p0;
  return Clamp{set1(low), set1(p.act == kClamp ? p.p1 : INFINITY)};
}

// Publishes one finished vector of a site's channels, n of which exist; tells which lanes changed.
template <int MODE>
SL_INLINE VD store_vector(VF y, E* held, int n) {
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

// The same with an addition and a clamp before.
template <int MODE, bool RES>
SL_INLINE VD publish_vector(VF y, const Clamp& clamp, const E* residual, E* held, int n) {
  if constexpr (RES) y = y + (n >= W ? load(residual) : load_tail(residual, n));
  return store_vector<MODE>(vmin(clamp.high, vmax(clamp.low, y)), held, n);
}

// The same with any activation that `publishes_pixels` allows; with slopes there is no addition.
template <int MODE, bool RES, bool PRELU>
SL_INLINE VD finish_vector(VF y, const Clamp& clamp, const float* slope, const E* residual, E* held, int n) {
  if constexpr (PRELU) return store_vector<MODE>(select(y > 0.0f, y, y * load(slope)), held, n);
  else return publish_vector<MODE, RES>(y, clamp, residual, held, n);
}

}  // namespace
}  // namespace sightline

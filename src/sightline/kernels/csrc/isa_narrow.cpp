// Convolutions and resampling of few channels, compiled once per instruction set and element type like isa_kernels.cpp: a vector of
// channels would be mostly empty there. Only AVX-512 with maps of float32 has these; the others have shorter vectors.
#include <type_traits>

#include "isa_elements.h"

namespace sightline {

#if defined(__AVX512F__) && !SL_BF16
namespace {

// -- half a vector of output channels ---------------------------------------------------------------------

typedef float VE __attribute__((vector_size(32)));
typedef float VEU __attribute__((vector_size(32), aligned(4), may_alias));
constexpr int H = 8;
constexpr int kMostPixels = 12;

SL_INLINE VE load_half(const float* p) { return *reinterpret_cast<const VEU*>(p); }
SL_INLINE void store_half(float* p, VE v) { *reinterpret_cast<VEU*>(p) = v; }
SL_INLINE __mmask8 lanes(int n) { return (__mmask8)((1u << n) - 1); }
SL_INLINE VE load_lanes(const float* p, int n) { return n >= H ? load_half(p) : (VE)_mm256_maskz_loadu_ps(lanes(n), p); }
SL_INLINE void store_lanes(float* p, VE v, int n) {
  if (n >= H) store_half(p, v);
  else _mm256_mask_storeu_ps(p, lanes(n), (__m256)v);
}

// Sums of few terms only (see Program::add_conv), so they are added up in one go.
template <int P>
SL_INLINE void reduce_half(const ConvTile& t, int at, VE (&acc)[P]) {
  const VE bias = load_half(t.bias);
#pragma GCC unroll 12
  for (int p = 0; p < P; ++p) acc[p] = bias;
  const Raw* const* const taps = t.taps + (int64_t)at * t.ntaps;
  const float* w = t.weights;
  const int ntaps = t.ntaps, run = t.run;
  for (int tap = 0; tap < ntaps; ++tap) {
    const float* x[P];
#pragma GCC unroll 12
    for (int p = 0; p < P; ++p) x[p] = elements(taps[(int64_t)p * ntaps + tap]) + t.shift;
#pragma GCC unroll 2
    for (int k = 0; k < run; ++k) {
      const VE wv = load_half(w);
#pragma GCC unroll 12
      for (int p = 0; p < P; ++p) acc[p] = (VE)_mm256_fmadd_ps(_mm256_set1_ps(x[p][k]), (__m256)wv, (__m256)acc[p]);
      w += H;
    }
  }
}

template <int P>
void block_half(const ConvTile& t, int at) {
  VE acc[P];
  reduce_half<P>(t, at, acc);
#pragma GCC unroll 12
  for (int p = 0; p < P; ++p) store_half(t.out + (int64_t)(at + p) * t.ldo, acc[p]);
}

template <int P, int MODE>
void block_half_publish(const ConvTile& t, int at, const Publish& pub, const Site* sites, uint8_t* flags) {
  VE acc[P];
  float* held[P];
  float* const base = elements(pub.held) + t.c0;
  const float* const other = pub.residual ? elements(pub.residual) + t.c0 : nullptr;
  const int64_t ld = pub.ld, other_ld = pub.residual_ld;
#pragma GCC unroll 12
  for (int p = 0; p < P; ++p) {
    held[p] = base + sites[p].index * ld;
    __builtin_prefetch(held[p], 1, 3);
  }
  reduce_half<P>(t, at, acc);
  const int n = t.valid < H ? t.valid : H;
  const VE low = (VE)_mm256_set1_ps(clamp_of(pub).low[0]), high = (VE)_mm256_set1_ps(clamp_of(pub).high[0]);
  float* const out = MODE == kWithin ? t.out + (int64_t)at * t.ldo : nullptr;
  float* const sums = MODE == kWithin ? t.sums + at : nullptr;
  const int64_t ldo = t.ldo;
#pragma GCC unroll 12
  for (int p = 0; p < P; ++p) {
    VE y = acc[p];
    if (other) y += load_lanes(other + sites[p].index * other_ld, n);
    y = (VE)_mm256_min_ps((__m256)high, _mm256_max_ps((__m256)low, (__m256)y));
    if constexpr (MODE == kWithin) {
      VE d = y - load_lanes(held[p], n);
      d = (VE)_mm256_maskz_mov_ps(lanes(n), (__m256)d);
      d *= d;
      float total = 0;
      for (int i = 0; i < H; ++i) total += d[i];
      sums[p] = total;
      store_half(out + p * ldo, y);
    } else {
      if constexpr (MODE == kExact)
        if (_mm256_mask_cmp_ps_mask(lanes(n), (__m256)y, (__m256)load_lanes(held[p], n), _CMP_NEQ_UQ))
          __atomic_store_n(&flags[p], (uint8_t)1, __ATOMIC_RELAXED);
      store_lanes(held[p], y, n);
    }
  }
}

// Calls block(pixels, first) for groups of up to 12 pixels of even size.
template <class F>
SL_INLINE void by_groups(int pixels, F&& block) {
  const int groups = (pixels + kMostPixels - 1) / kMostPixels;
  for (int g = 0, done = 0; g < groups; ++g) {
    const int p = (pixels - done + groups - g - 1) / (groups - g);
    switch (p) {
      case 1: block(std::integral_constant<int, 1>{}, done); break;
      case 2: block(std::integral_constant<int, 2>{}, done); break;
      case 3: block(std::integral_constant<int, 3>{}, done); break;
      case 4: block(std::integral_constant<int, 4>{}, done); break;
      case 5: block(std::integral_constant<int, 5>{}, done); break;
      case 6: block(std::integral_constant<int, 6>{}, done); break;
      case 7: block(std::integral_constant<int, 7>{}, done); break;
      case 8: block(std::integral_constant<int, 8>{}, done); break;
      case 9: block(std::integral_constant<int, 9>{}, done); break;
      case 10: block(std::integral_constant<int, 10>{}, done); break;
      case 11: block(std::integral_constant<int, 11>{}, done); break;
      default: block(std::integral_constant<int, 12>{}, done); break;
    }
    done += p;
  }
}

template <int MODE>
void publish_half(const ConvTile& t, const Publish& pub, const Site* sites, uint8_t* flags) {
  by_groups(t.pixels, [&](auto p, int at) { block_half_publish<p.value, MODE>(t, at, pub, sites + at, flags + at); });
}

// -- several pixels in a vector ----------------------------------------------------------------------------

// Publishes pixels of `c` channels that fill the first n lanes.
SL_INLINE void publish_lanes(VF y, float* held, int n, int c, int mode, uint8_t* flags) {
  const __mmask16 there = (__mmask16)((1u << n) - 1);
  if (mode == kExact) {
    uint32_t differs = _mm512_mask_cmp_ps_mask(there, (__m512)y, _mm512_maskz_loadu_ps(there, held), _CMP_NEQ_UQ);
    for (int i = 0; i * c < n; ++i, differs >>= c) flags[i] = (differs & ((1u << c) - 1)) != 0;
  }
  if (n == W) store(held, y);
  else _mm512_mask_storeu_ps(held, there, (__m512)y);
}

void conv_narrow(const NarrowRun& a, const Publish& pub, int64_t index, uint8_t* flags) {
  const int c = pub.c, most = W / c, mode = pub.mode;
  const Clamp clamp = clamp_of(pub);
  alignas(64) int32_t first[W];
  for (int i = 0; i < W; ++i) first[i] = i < most * c ? i / c * a.pitch : 0;
  const __m512i start = _mm512_load_si512(first), one = _mm512_set1_epi32(1);
  float* held = elements(pub.held) + index * c;
  for (int at = 0; at < a.count; at += most, held += most * c) {
    VF acc = load(a.bias);
    const float* w = a.weights;
    for (int ky = 0; ky < a.kh; ++ky) {
      if (!a.rows[ky]) {
        w += (int64_t)a.run * W;
        continue;
      }
      const float* x = elements(a.rows[ky]) + (int64_t)at * a.pitch;
      const __m512 near = (__m512)load(x), far = (__m512)load(x + W);
      __m512i lane = start;
      for (int k = 0; k < a.run; ++k, w += W) {
        acc = multiply_add((VF)_mm512_permutex2var_ps(near, lane, far), load(w), acc);
        lane = _mm512_add_epi32(lane, one);
      }
    }
    const int n = a.count - at < most ? a.count - at : most;
    publish_lanes(vmin(clamp.high, vmax(clamp.low, acc)), held, n * c, c, mode, flags + at);
  }
}

void upsample_narrow(const NarrowUpsample& a, const Publish& pub, int64_t index, uint8_t* flags) {
  const int c = a.c, most = W / c, mode = pub.mode;
  const Clamp clamp = clamp_of(pub);
  const VF y0 = set1(a.y0), y1 = set1(a.y1);
  const float *upper = elements(a.upper), *lower = elements(a.lower);
  float* held = elements(pub.held) + index * c;
  for (int at = 0; at < a.count; at += most, held += most * c) {
    const int from = a.left[(int64_t)at * c];
    const __m512i base = _mm512_set1_epi32(from);
    const __m512i left = _mm512_sub_epi32(_mm512_loadu_si512(a.left + (int64_t)at * c), base);
    const __m512i right = _mm512_sub_epi32(_mm512_loadu_si512(a.right + (int64_t)at * c), base);
    const VF x0 = load(a.x0 + (int64_t)at * c), x1 = load(a.x1 + (int64_t)at * c);
    auto line = [&](const float* x) __attribute__((always_inline)) {
      const __m512 near = (__m512)load(x + from), far = (__m512)load(x + from + W);
      return multiply_add((VF)_mm512_permutex2var_ps(near, right, far), x1, (VF)_mm512_permutex2var_ps(near, left, far) * x0);
    };
    const VF y = multiply_add(line(lower), y1, line(upper) * y0);
    const int n = a.count - at < most ? a.count - at : most;
    publish_lanes(vmin(clamp.high, vmax(clamp.low, y)), held, n * c, c, mode, flags + at);
  }
}

}  // namespace

void SL_NAMED(conv_half_)(const ConvTile& t) {
  by_groups(t.pixels, [&](auto p, int at) { block_half<p.value>(t, at); });
}

void SL_NAMED(conv_half_publish_)(const ConvTile& t, const Publish& pub, const Site* sites, uint8_t* flags) {
  if (pub.mode == kWithin) publish_half<kWithin>(t, pub, sites, flags);
  else if (pub.mode == kAlways) publish_half<kAlways>(t, pub, sites, flags);
  else publish_half<kExact>(t, pub, sites, flags);
}

void SL_NAMED(add_narrow_)(Kernels& t) {
  t.half_panels = true;
  t.conv_narrow = conv_narrow;
  t.upsample_narrow = upsample_narrow;
}

#else

void SL_NAMED(conv_half_)(const ConvTile&) {}  // there are no such panels
void SL_NAMED(conv_half_publish_)(const ConvTile&, const Publish&, const Site*, uint8_t*) {}
void SL_NAMED(add_narrow_)(Kernels&) {}

#endif

}  // namespace sightline

// Steps that work pixel by pixel: pooling, resampling, element-wise steps, moves of channels. Compiled once per instruction set and
// element type like isa_kernels.cpp. A pixel's value is the same whether it is kept as a row or published at once.
#include <limits>

#include "isa_elements.h"

namespace sightline {
namespace {

// row(i) gives a function from the first channel of a vector to its values for pixel i.
template <int MODE, bool RES, bool PRELU, class Row>
SL_INLINE void publish_pixels(const PixelTask& to, Row row) {
  const Publish& pub = *to.publish;
  const Clamp clamp = clamp_of(pub);
  E* const base = elements(pub.held);
  const E* const other = RES ? elements(pub.residual) : nullptr;
  const int64_t ld = pub.ld, other_ld = pub.residual_ld;
  const float* const slope = pub.slope;
  const Site* const sites = to.sites;
  uint8_t* const flags = to.flags;
  const int c = pub.c, whole = c - c % W, count = to.count;
  for (int i = 0; i < count; ++i) {
    const int64_t index = sites[i].index;
    E* const held = base + index * ld;
    const E* const residual = RES ? other + index * other_ld : nullptr;
    const auto value = row(i);
    VD differs = {};
    for (int at = 0; at < whole; at += W)
      differs |= finish_vector<MODE, RES, PRELU>(value(at), clamp, slope + at, residual + (RES ? at : 0), held + at, W);
    if (whole < c)
      differs |= finish_vector<MODE, RES, PRELU>(value(whole), clamp, slope + whole, residual + (RES ? whole : 0), held + whole, c - whole);
    if constexpr (MODE == kExact) flags[i] = any(differs);
  }
}

template <class Row>
SL_INLINE void finish_pixels(const PixelTask& to, Row row) {
  if (to.rows) {
    const int c = to.publish->c;
    for (int i = 0; i < to.count; ++i) {
      float* const out = to.rows + (int64_t)i * to.ldr;
      const auto value = row(i);
      for (int at = 0; at < c; at += W) store(out + at, value(at));
    }
    return;
  }
  const bool always = to.publish->mode == kAlways;
  if (to.publish->act == kPrelu)
    always ? publish_pixels<kAlways, false, true>(to, row) : publish_pixels<kExact, false, true>(to, row);
  else if (to.publish->residual)
    always ? publish_pixels<kAlways, true, false>(to, row) : publish_pixels<kExact, true, false>(to, row);
  else
    always ? publish_pixels<kAlways, false, false>(to, row) : publish_pixels<kExact, false, false>(to, row);
}

// -- windows ------------------------------------------------------------------------------------------

typedef const Raw* const* Taps;

// Lanes of which a or b is NaN are added to `bad`.
#if defined(__AVX512F__)
typedef __mmask16 Lanes;
SL_INLINE Lanes unordered(VF a, VF b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_UNORD_Q); }
SL_INLINE VF mark_nan(VF x, Lanes bad) { return (VF)_mm512_mask_mov_ps((__m512)x, bad, (__m512)set1(std::numeric_limits<float>::quiet_NaN())); }
#else
typedef VI Lanes;
SL_INLINE Lanes unordered(VF a, VF b) { return (a != a) | (b != b); }
SL_INLINE VF mark_nan(VF x, Lanes bad) { return select(bad, set1(std::numeric_limits<float>::quiet_NaN()), x); }
#endif

void max_pool(Taps taps, int ntaps, const PixelTask& to) {
  finish_pixels(to, [=](int i) __attribute__((always_inline)) {
    const Raw* const* const own = taps + (int64_t)i * ntaps;
    return [=](int at) __attribute__((always_inline)) {
      auto tap = [&](int t) __attribute__((always_inline)) { return load(elements(own[t]) + at); };
      VF m = tap(0);
      Lanes bad = unordered(m, m);
      int t = 1;
      for (; t + 1 < ntaps; t += 2) {
        const VF a = tap(t), b = tap(t + 1);
        bad |= unordered(a, b);
        m = vmax(m, vmax(a, b));
      }
      if (t < ntaps) {
        const VF a = tap(t);
        bad |= unordered(a, a);
        m = vmax(m, a);
      }
      return mark_nan(m, bad);
    };
  });
}

void weighted(Taps taps, int ny, int nx, const float* wy, const float* wx, const float* div_y, const float* div_x, float divisor,
              const PixelTask& to) {
  const Site* const sites = to.sites;
  auto divided = [](VF x, float by) __attribute__((always_inline)) { return by == 1.0f ? x : x / by; };
  if (ny == 2 && nx == 2) {
    finish_pixels(to, [=](int i) __attribute__((always_inline)) {
      const Raw* const* const own = taps + (int64_t)i * 4;
      const E *a = elements(own[0]), *b = elements(own[1]), *d = elements(own[2]), *e = elements(own[3]);
      const int y = sites[i].y, x = sites[i].x;
      const float by = divisor != 0 ? divisor : div_y[y] * div_x[x];
      const VF x0 = set1(wx[2 * x]), x1 = set1(wx[2 * x + 1]), y0 = set1(wy[2 * y]), y1 = set1(wy[2 * y + 1]);
      return [=](int at) __attribute__((always_inline)) {
        const VF upper = multiply_add(load(b + at), x1, load(a + at) * x0), lower = multiply_add(load(e + at), x1, load(d + at) * x0);
        return divided(multiply_add(lower, y1, upper * y0), by);
      };
    });
    return;
  }
  finish_pixels(to, [=](int i) __attribute__((always_inline)) {
    const Raw* const* const own = taps + (int64_t)i * ny * nx;
    const int y = sites[i].y, x = sites[i].x;
    const float by = divisor != 0 ? divisor : div_y[y] * div_x[x];
    const float *const rows = wy + (int64_t)y * ny, *const cols = wx + (int64_t)x * nx;
    return [=](int at) __attribute__((always_inline)) {
      VF acc = set1(0.0f);
      for (int j = 0; j < ny; ++j) {
        VF line = set1(0.0f);
        for (int k = 0; k < nx; ++k) line += load(elements(own[j * nx + k]) + at) * cols[k];
        acc += line * rows[j];
      }
      return divided(acc, by);
    };
  });
}

// -- moves and arithmetic -------------------------------------------------------------------------------

SL_INLINE VF pick(const E* x, const int32_t* list) {
  const int32_t* const lanes = list + 2;
  if (list[0] < 0) {
    VF y = {};
    for (int i = 0; i < W; ++i) y[i] = widen(x[lanes[i]]);
    return y;
  }
  const E *const first = x + list[0], *const second = x + list[1];
#if defined(__AVX512F__)
  return (VF)_mm512_permutex2var_ps((__m512)load(first), _mm512_loadu_si512(lanes), (__m512)load(second));
#elif defined(__AVX2__)
  const __m256i at = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes));
  return (VF)_mm256_blendv_ps(_mm256_permutevar8x32_ps((__m256)load(first), at), _mm256_permutevar8x32_ps((__m256)load(second), at),
                              (__m256)_mm256_slli_epi32(at, 28));
#else
  VF y = {};
  for (int i = 0; i < W; ++i) y[i] = widen(lanes[i] < W ? first[lanes[i]] : second[lanes[i] - W]);
  return y;
#endif
}

void gather(Taps from, const int32_t* const* picks, float fill, const PixelTask& to) {
  const VF filled = set1(fill);
  if (!picks) {
    finish_pixels(to, [=](int i) __attribute__((always_inline)) {
      const Raw* const x = from[i];
      return [=](int at) __attribute__((always_inline)) { return x ? load(elements(x) + at) : filled; };
    });
    return;
  }
  finish_pixels(to, [=](int i) __attribute__((always_inline)) {
    const Raw* const x = from[i];
    const int32_t* const list = picks[i];
    return [=](int at) __attribute__((always_inline)) { return x ? pick(elements(x), list + (int64_t)(at / W) * (W + 2)) : filled; };
  });
}

void affine(Taps from, const float* scale, const float* shift, const PixelTask& to) {
  finish_pixels(to, [=](int i) __attribute__((always_inline)) {
    const E* const x = elements(from[i]);
    return [=](int at) __attribute__((always_inline)) { return load(x + at) * load(scale + at) + load(shift + at); };
  });
}

template <class Op>
SL_INLINE void binary_with(Taps a, Taps b, const PixelTask& to, Op op) {
  finish_pixels(to, [=](int i) __attribute__((always_inline)) {
    const E *const x = elements(a[i]), *const y = elements(b[i]);
    return [=](int at) __attribute__((always_inline)) { return op(load(x + at), load(y + at)); };
  });
}

void binary(int op, Taps a, Taps b, const PixelTask& to) {
  switch (op) {
    case kAdd: return binary_with(a, b, to, [](VF x, VF y) __attribute__((always_inline)) { return x + y; });
    case kSub: return binary_with(a, b, to, [](VF x, VF y) __attribute__((always_inline)) { return x - y; });
    case kMul: return binary_with(a, b, to, [](VF x, VF y) __attribute__((always_inline)) { return x * y; });
    case kDiv: return binary_with(a, b, to, [](VF x, VF y) __attribute__((always_inline)) { return x / y; });
    case kMaximum: return binary_with(a, b, to, [](VF x, VF y) __attribute__((always_inline)) { return select((x > y) | (x != x), x, y); });
    default: return binary_with(a, b, to, [](VF x, VF y) __attribute__((always_inline)) { return select((x < y) | (x != x), x, y); });
  }
}

SL_INLINE float largest(VF v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)v);
#else
  float m = v[0];
  for (int i = 1; i < W; ++i) m = v[i] > m ? v[i] : m;
  return m;
#endif
}

// The first n lanes of x, -inf behind them.
SL_INLINE VF or_lowest(VF x, int n) {
#if defined(__AVX512F__)
  return (VF)_mm512_mask_mov_ps((__m512)set1(-INFINITY), (__mmask16)((1u << n) - 1), (__m512)x);
#else
  for (int i = n; i < W; ++i) x[i] = -INFINITY;
  return x;
#endif
}

// exp(x - largest) / sum of them. A NaN anywhere makes the sum NaN, whatever the largest value is taken to be.
void softmax(Taps from, const PixelTask& to) {
  const int c = to.publish->c, whole = c - c % W;
  for (int i = 0; i < to.count; ++i) {
    const E* const x = elements(from[i]);
    float* const out = to.rows + (int64_t)i * to.ldr;
    VF most = set1(-INFINITY);
    for (int at = 0; at < whole; at += W) most = vmax(load(x + at), most);
    if (whole < c) most = vmax(or_lowest(load(x + whole), c - whole), most);
    const VF top = set1(largest(most));
    VF total = set1(0.0f);
    for (int at = 0; at < c; at += W) {
      VF y = vexp(load(x + at) - top);
      if (at == whole) y = keep(y, c - whole);
      total += y;
      store(out + at, y);
    }
    const VF factor = set1(sum(total));
    for (int at = 0; at < c; at += W) store(out + at, load(out + at) / factor);
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

}  // namespace

void SL_NAMED(add_pixels_)(Kernels& t) {
  t.max_pool = max_pool;
  t.weighted = weighted;
  t.gather = gather;
  t.affine = affine;
  t.binary = binary;
  t.softmax = softmax;
  t.sum_row = sum_row;
}

}  // namespace sightline

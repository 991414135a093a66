// Compute kernels, compiled once per instruction set (SL_ISA_NAME = avx512, avx2 or baseline) and once more for maps of bfloat16
// (SL_BF16, names with _bf16 behind): `E` is an element of a map, everything in registers and in scratch rows is float32.
// Plain loops over GCC/Clang vector types; intrinsics only where the language has no word for it (masked tails).
// Every kernel computes an output the same way whatever its neighbours are, so results do not depend on the list of sites, on its
// order or on the number of threads.
#include <type_traits>

#include "isa_elements.h"

namespace sightline {
namespace {

// -- publishing --------------------------------------------------------------------------------------

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

// The same reduction, published at once. Held rows and residuals are asked for before it and arrive during it. Under kAlways every site
// changes, and no flags are set. What the structs say is read before the first store, which may write anything for all the compiler knows.
template <int P, int V, int MODE, bool RES>
void conv_block_publish(const ConvTile& t, int at, const Publish& pub, const Clamp& clamp, const Site* sites, uint8_t* flags) {
  E* held[P];
  const E* residual[P];
  E* const base = elements(pub.held) + t.c0;
  const E* const other = RES ? elements(pub.residual) + t.c0 : nullptr;
  const int64_t ld = pub.ld, other_ld = pub.residual_ld;
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
    const int64_t index = sites[p].index;
    held[p] = base + index * ld;
    residual[p] = RES ? other + index * other_ld : nullptr;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      __builtin_prefetch(held[p] + v * W, 1, 3);
      if constexpr (RES) __builtin_prefetch(residual[p] + v * W, 0, 3);
    }
  }
  VF acc[P][V];
  reduce<P, V>(t.taps + (int64_t)at * t.ntaps, t.shift, t.ntaps, t.run, t.weights, t.bias, acc);
  const VF low = clamp.low, high = clamp.high;
  const int valid = t.valid;
  if constexpr (MODE == kWithin) {
    float* const out = t.out + (int64_t)at * t.ldo;
    float* const sums = t.sums + at;
    const int64_t ldo = t.ldo;
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
      VF distance = set1(0.0f);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const int n = valid - v * W;
        if (n <= 0) continue;
        VF y = acc[p][v];
        if constexpr (RES) y = y + (n < W ? load_tail(residual[p] + v * W, n) : load(residual[p] + v * W));
        y = as_held(vmin(high, vmax(low, y)));
        VF d = y - (n < W ? load_tail(held[p] + v * W, n) : load(held[p] + v * W));
        if (n < W) d = keep(d, n);
        distance += d * d;
        store(out + p * ldo + v * W, y);
      }
      sums[p] = sum(distance);
    }
  } else {
    auto finish = [&](auto whole) __attribute__((always_inline)) {  // most panels hold whole vectors only
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) {
        VD differs = {};
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          const int n = decltype(whole)::value ? W : valid - v * W;
          if (n <= 0) continue;
          differs |= publish_vector<MODE, RES>(acc[p][v], Clamp{low, high}, residual[p] + (RES ? v * W : 0), held[p] + v * W, n);
        }
        if constexpr (MODE == kExact)
          if (any(differs)) __atomic_store_n(&flags[p], (uint8_t)1, __ATOMIC_RELAXED);
      }
    };
    if (valid >= V * W) finish(std::true_type{});
    else finish(std::false_type{});
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
    case 0: return SL_NAMED(conv_half_publish_)(t, pub, sites, flags);
    case 1: return conv_publish_v<1>(t, pub, sites, flags);
    case 2: return conv_publish_v<2>(t, pub, sites, flags);
    case 3: return conv_publish_v<3>(t, pub, sites, flags);
    default: return conv_publish_v<4>(t, pub, sites, flags);
  }
}

void conv(const ConvTile& t) {
  switch (t.vectors) {
    case 0: return SL_NAMED(conv_half_)(t);
    case 1: return conv_panel<1>(t);
    case 2: return conv_panel<2>(t);
    case 3: return conv_panel<3>(t);
    default: return conv_panel<4>(t);
  }
}
}  // namespace

#if SL_BF16 && !defined(__AVX512BF16__)
constexpr bool kEmulated = true;
#else
constexpr bool kEmulated = false;
#endif

const Kernels* SL_NAMED(kernels_)() {
  static const Kernels table = [] {
    Kernels t{};
    t.name = SL_STRING(SL_ISA_NAME);
    t.element = (int)sizeof(E);
    t.emulated = kEmulated;
    t.lanes = W;
    for (int v = 0; v < 5; ++v) t.max_pixels[v] = kMaxPixels[v];
    t.conv = conv;
    t.conv_publish = conv_publish;
    t.commit = commit;
    t.publish = publish;
    SL_NAMED(add_depthwise_)(t);
    SL_NAMED(add_pixels_)(t);
    SL_NAMED(add_frames_)(t);
    SL_NAMED(add_narrow_)(t);
    return t;
  }();
  return &table;
}

}  // namespace sightline

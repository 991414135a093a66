// Depthwise convolutions, compiled once per instruction set and element type like isa_kernels.cpp. The order of a pixel's additions is
// the same in a run and alone.
#include <type_traits>

#include "isa_elements.h"

namespace sightline {
namespace {

// How a run's results leave the registers: kept as rows, or published at once.
constexpr int kKeep = -1;

// What a block needs, read from the structs once: its stores may write anything for all the compiler knows.
struct Target {
  Clamp clamp;
  const float* slope;
  const E* residual;
  int64_t residual_ld;
  E* held;
  int64_t ld;
  float* out;
  int64_t ldo;
  uint8_t* flags;
};

// Moves to the next pixel. The compiler would rather compute all addresses from the first one, which takes more registers than there are.
SL_INLINE void advance(const E*& x, int64_t by) {
  x += by;
  asm("" : "+r"(x));
}

template <int KH, int KW, int S, int R, int MODE, bool RES, bool PRELU>
SL_INLINE void run_block(const E* const (&rows)[KH], int64_t ld, const float* weights, int64_t cpad, const float* bias, int c, int at, const Target& to) {
  VD differs[R] = {};
  for (int first = 0; first < c; first += W) {
    VF acc[R];
    const VF b = load(bias + first);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[r] = b;
#pragma GCC unroll 7
    for (int ky = 0; ky < KH; ++ky) {
      const E* x = rows[ky] + (int64_t)at * S * ld + first;
      const float* weight = weights + (int64_t)ky * KW * cpad + first;
      VF w[KW];
#pragma GCC unroll 7
      for (int kx = 0; kx < KW; ++kx) w[kx] = load(weight + kx * cpad);
#pragma GCC unroll 20
      for (int j = 0; j < (R - 1) * S + KW; ++j) {
        const VF v = load(x);
        advance(x, ld);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
          if (j - r * S >= 0 && j - r * S < KW) acc[r] = multiply_add(v, w[j - r * S], acc[r]);
      }
    }
    const int n = c - first;
    if constexpr (MODE == kKeep) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) store(to.out + (at + r) * to.ldo + first, acc[r]);
    } else {
      auto finish = [&](int lanes) __attribute__((always_inline)) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
          differs[r] |= finish_vector<MODE, RES, PRELU>(acc[r], to.clamp, to.slope + (PRELU ? first : 0),
                                                        RES ? to.residual + (at + r) * to.residual_ld + first : nullptr,
                                                        to.held + (at + r) * to.ld + first, lanes);
      };
      if (n >= W) finish(W);
      else finish(n);
    }
  }
  if constexpr (MODE == kExact)
    for (int r = 0; r < R; ++r) to.flags[at + r] = any(differs[r]);
}

template <int KH, int KW, int S, int MODE, bool RES, bool PRELU>
void run_all(const DepthwiseRun& a, const Publish& pub, int64_t index, uint8_t* flags) {
  const Target to{clamp_of(pub),
                  pub.slope,
                  RES ? elements(pub.residual) + index * pub.residual_ld : nullptr,
                  pub.residual_ld,
                  MODE == kKeep ? nullptr : elements(pub.held) + index * pub.ld,
                  pub.ld,
                  a.out,
                  a.ldo,
                  flags};
  const E* rows[KH];
  for (int i = 0; i < KH; ++i) rows[i] = elements(a.rows[i]);
  // The map is larger than the cache: what the next row of outputs reads first is fetched while this one is computed.
  auto fetch = [&](int at, int pixels) {
    const int64_t bytes = sizeof(E), from = (int64_t)at * S * a.ld * bytes, to_end = ((int64_t)(at + pixels) * S * a.ld) * bytes;
    for (int ky = a.behind; ky < KH; ++ky) {
      const Raw* row = a.rows[ky] + a.ahead;
      for (int64_t i = from; i < to_end; i += 64) __builtin_prefetch(row + i, 0, 2);
    }
  };
  auto block = [&](auto pixels, int at) {
    if (a.ahead) fetch(at, decltype(pixels)::value);
    run_block<KH, KW, S, decltype(pixels)::value, MODE, RES, PRELU>(rows, a.ld, a.weights, a.cpad, a.bias, a.c, at, to);
  };
  int at = 0;
  if constexpr (W == 16)  // 32 registers: neighbours share more of what they read
    for (; at + 8 <= a.count; at += 8) block(std::integral_constant<int, 8>{}, at);
  for (; at + 4 <= a.count; at += 4) block(std::integral_constant<int, 4>{}, at);
  switch (a.count - at) {
    case 3: return block(std::integral_constant<int, 3>{}, at);
    case 2: return block(std::integral_constant<int, 2>{}, at);
    case 1: return block(std::integral_constant<int, 1>{}, at);
    default: return;
  }
}

bool depthwise_runs(int kh, int kw, int stride) { return kh == kw && (kh == 3 || kh == 5) && (stride == 1 || stride == 2); }

template <int MODE, bool RES, bool PRELU>
void run_kernel(int kh, const DepthwiseRun& a, const Publish& pub, int64_t index, uint8_t* flags) {
  if (kh == 3)
    a.stride == 1 ? run_all<3, 3, 1, MODE, RES, PRELU>(a, pub, index, flags) : run_all<3, 3, 2, MODE, RES, PRELU>(a, pub, index, flags);
  else
    a.stride == 1 ? run_all<5, 5, 1, MODE, RES, PRELU>(a, pub, index, flags) : run_all<5, 5, 2, MODE, RES, PRELU>(a, pub, index, flags);
}

void depthwise_run(int kh, int, const DepthwiseRun& a) { run_kernel<kKeep, false, false>(kh, a, Publish{}, 0, nullptr); }

// Calls body(mode, with an addition, with slopes).
template <class F>
SL_INLINE void by_publish(const Publish& pub, F&& body) {
  const std::true_type yes;
  const std::false_type no;
  const std::integral_constant<int, kAlways> always;
  const std::integral_constant<int, kExact> exact;
  if (pub.act == kPrelu) pub.mode == kAlways ? body(always, no, yes) : body(exact, no, yes);
  else if (pub.residual) pub.mode == kAlways ? body(always, yes, no) : body(exact, yes, no);
  else pub.mode == kAlways ? body(always, no, no) : body(exact, no, no);
}

void depthwise_publish(int kh, int, const DepthwiseRun& a, const Publish& pub, int64_t index, uint8_t* flags) {
  by_publish(pub, [&](auto mode, auto res, auto prelu) { run_kernel<mode.value, res.value, prelu.value>(kh, a, pub, index, flags); });
}

template <int MODE, bool RES, bool PRELU>
void single_pixels(const Raw* const* taps, int ntaps, const float* weights, int64_t cpad, const float* bias, const PixelTask& to) {
  const Publish& pub = *to.publish;
  const Clamp clamp = clamp_of(pub);
  const int c = pub.c;
  for (int i = 0; i < to.count; ++i) {
    const Raw* const* const own = taps + (int64_t)i * ntaps;
    const int64_t index = MODE == kKeep ? 0 : to.sites[i].index;
    VD differs = {};
    for (int at = 0; at < c; at += W) {
      VF acc = load(bias + at);
      for (int t = 0; t < ntaps; ++t) acc = multiply_add(load(elements(own[t]) + at), load(weights + t * cpad + at), acc);
      if constexpr (MODE == kKeep)
        store(to.rows + (int64_t)i * to.ldr + at, acc);
      else
        differs |= finish_vector<MODE, RES, PRELU>(acc, clamp, pub.slope + (PRELU ? at : 0),
                                                   RES ? elements(pub.residual) + index * pub.residual_ld + at : nullptr,
                                                   elements(pub.held) + index * pub.ld + at, c - at);
    }
    if constexpr (MODE == kExact) to.flags[i] = any(differs);
  }
}

void depthwise(const Raw* const* taps, int ntaps, const float* weights, int cpad, const float* bias, const PixelTask& to) {
  if (to.rows) return single_pixels<kKeep, false, false>(taps, ntaps, weights, cpad, bias, to);
  by_publish(*to.publish,
             [&](auto mode, auto res, auto prelu) { single_pixels<mode.value, res.value, prelu.value>(taps, ntaps, weights, cpad, bias, to); });
}

}  // namespace

void SL_NAMED(add_depthwise_)(Kernels& t) {
  t.depthwise_runs = depthwise_runs;
  t.depthwise_run = depthwise_run;
  t.depthwise_publish = depthwise_publish;
  t.depthwise = depthwise;
}

}  // namespace sightline

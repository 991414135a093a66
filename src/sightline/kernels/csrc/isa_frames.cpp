// Kernels of frames and masks, compiled once per instruction set and element type like isa_kernels.cpp.
#include "isa_elements.h"

namespace sightline {
namespace {

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

#if defined(__AVX512F__) && !SL_BF16
// Lane i of the v-th vector of interleaved pixels is channel j % 3 of pixel j / 3, j = v * W + i: `two` brings the first and second plane
// to their places, `three` puts the third one's pixels in between.
struct Interleaving {
  alignas(64) int32_t two[3][W], three[3][W];
  constexpr Interleaving() : two(), three() {
    for (int j = 0; j < 3 * W; ++j) {
      two[j / W][j % W] = j / 3 + (j % 3 == 1 ? W : 0);
      three[j / W][j % W] = j % 3 == 2 ? W + j / 3 : j % W;
    }
  }
};
constexpr Interleaving kInterleaving;

// W pixels of three planes, all of them changed: the planes are copied and interleaved in registers.
SL_INLINE void write_three_planes(const E* x, int64_t xp, E* held, int64_t hp, E* out) {
  const VF r = load(x), g = load(x + xp), b = load(x + 2 * xp);
  store(held, r);
  store(held + hp, g);
  store(held + 2 * hp, b);
#pragma GCC unroll 3
  for (int v = 0; v < 3; ++v) {
    const __m512 mixed = _mm512_permutex2var_ps((__m512)r, _mm512_load_si512(kInterleaving.two[v]), (__m512)g);
    store(out + v * W, (VF)_mm512_permutex2var_ps(mixed, _mm512_load_si512(kInterleaving.three[v]), (__m512)b));
  }
}
#endif

template <int C>
int write_row_c(const E* x, int64_t xp, E* held, int64_t hp, E* out, int ld, int c, int w, const uint8_t* bits) {
  int total = 0, i = 0;
  constexpr uint64_t kAll = 0x0101010101010101ull;
  for (; i + 8 <= w; i += 8) {
    uint64_t eight;
    std::memcpy(&eight, bits + i, 8);
#if defined(__AVX512F__) && !SL_BF16
    if constexpr (C == 3) {
      uint64_t next = 0;
      if (i + W <= w) std::memcpy(&next, bits + i + 8, 8);
      if (eight == kAll && next == kAll) {
        write_three_planes(x + i, xp, held + i, hp, out + 3 * (int64_t)i);
        total += W;
        i += 8;
        continue;
      }
    }
#endif
    if (eight == kAll) {
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

void SL_NAMED(add_frames_)(Kernels& t) {
  t.round_row = round_row;
  t.diff_row = diff_row;
  t.write_row = write_row;
  t.all_finite = all_finite;
  t.equal = equal;
  t.or_row = or_row;
  t.or_into = or_into;
  t.list_row = list_row;
  t.count = count;
}

}  // namespace sightline

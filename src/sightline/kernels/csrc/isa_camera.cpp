// Kernels of the temporal noise filter (camera.cpp), compiled once per instruction set. Nothing is read or written beyond a row.
#include <cstring>
#include <utility>

#include "camera.h"
#include "isa_vectors.h"

namespace sightline {
namespace {

typedef uint8_t VB __attribute__((vector_size(W)));
typedef VB VBU __attribute__((aligned(1), may_alias));

// Calls body(first pixel, lanes) for whole vectors, then once for what is left; `lanes` is W at compile time in the former.
template <class F>
SL_INLINE void by_vectors(int w, F&& body) {
  int i = 0;
  for (; i + W <= w; i += W) body(i, std::integral_constant<int, W>{});
  if (i < w) body(i, w - i);
}
using Whole = std::integral_constant<int, W>;
SL_INLINE VF get(const float* p, Whole) { return load(p); }
SL_INLINE VF get(const float* p, int n) { return load_tail(p, n); }
SL_INLINE void put(float* p, VF v, Whole) { store(p, v); }
SL_INLINE void put(float* p, VF v, int n) { store_tail(p, v, n); }
// Compilers of today convert vectors of bytes one by one.
SL_INLINE VI get(const uint8_t* p, Whole) {
#if defined(__AVX512F__)
  return (VI)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__AVX2__)
  return (VI)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
  return __builtin_convertvector(*reinterpret_cast<const VBU*>(p), VI);
#endif
}
SL_INLINE VI get(const uint8_t* p, int n) {
  uint8_t bytes[W] = {};
  std::memcpy(bytes, p, (size_t)n);
  return get(bytes, Whole{});
}
SL_INLINE void put(uint8_t* p, VI v, Whole) {
#if defined(__AVX512F__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8((__m512i)v));
#elif defined(__AVX2__)
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
#else
  *reinterpret_cast<VBU*>(p) = __builtin_convertvector(v, VB);
#endif
}
SL_INLINE void put(uint8_t* p, VI v, int n) {
  uint8_t bytes[W];
  put(bytes, v, Whole{});
  std::memcpy(p, bytes, (size_t)n);
}
SL_INLINE VF floats(VI v) { return __builtin_convertvector(v, VF); }
SL_INLINE VF larger(VF a, VF b) { return a > b ? a : b; }
SL_INLINE VF smaller(VF a, VF b) { return a < b ? a : b; }

// The mean of a pixel that is `age` frames old deviates too: a deviation d from it says d^2 * age / (age + 1) about the noise.
// C > 0 fixes the number of channels. Rows are taken by value: stores of bytes might change anything else.
template <int C>
SL_INLINE void fire(const NoiseRow r, const NoiseSettings s, uint8_t* __restrict out) {
  const int c = C > 0 ? C : r.c;
  const VF limit = set1(s.strength * (float)c), floor = set1(s.floor);
  by_vectors(r.w, [&](int i, auto n) __attribute__((always_inline)) {
    VF q = set1(0.0f);
    for (int k = 0; k < c; ++k) {
      const VF d = get(r.frame + k * r.frame_plane + i, n) - get(r.maps + k * r.plane + i, n);
      q += d * d;
    }
    const VF age = floats(get(r.age + i, n)), noise = limit * larger(get(r.maps + c * r.plane + i, n), floor);
    put(out + i, (VI)(q * age > noise * age + noise) & 1, n);
  });
}

void noise_fire(const NoiseRow& r, const NoiseSettings& s, uint8_t* out) { r.c == 3 ? fire<3>(r, s, out) : fire<0>(r, s, out); }

template <int C>
SL_INLINE bool update(const NoiseRow r, const NoiseSettings s, float gain, const uint8_t* __restrict moved,
                      const uint8_t* __restrict fired, float* __restrict maps,
                      int64_t plane, uint8_t* __restrict age) {
  const int c = C > 0 ? C : r.c;
  const VF share = set1(1.0f / (float)c), floor = set1(s.floor), least = set1(gain), rate = set1(s.rate);
  VI finite = ~VI{};
  by_vectors(r.w, [&](int i, auto n) __attribute__((always_inline)) {
    const VI old = get(r.age + i, n), fresh = (VI)(get(moved + i, n) != 0);
    const VF part = 1.0f / floats(old + 1), weight = larger(part, least);
    VF q = set1(0.0f);
    for (int k = 0; k < c; ++k) {
      const VF x = get(r.frame + k * r.frame_plane + i, n), m = get(r.maps + k * r.plane + i, n), d = x - m;
      q += d * d;
      finite &= (VI)(d - d == 0.0f);
      put(maps + k * plane + i, fresh ? x : m + weight * d, n);
    }
    const VF v = get(r.maps + c * r.plane + i, n);
    const VF seen = smaller(q * share * (1.0f - part), 4.0f * larger(v, floor));  // one odd frame says little
    put(maps + c * plane + i, fresh ? v : v + rate * (seen - v), n);
    const VI next = old + 1;
    const VI young = fresh | (VI)(get(fired + i, n) != 0);
    put(age + i, young ? VI{} + 1 : (next > 255 ? VI{} + 255 : next), n);
  });
  int all = -1;
  for (int j = 0; j < W; ++j) all &= finite[j];
  return all != 0;
}

bool noise_update(const NoiseRow& r, const NoiseSettings& s, float gain, const uint8_t* moved, const uint8_t* fired, float* maps, int64_t plane,
                  uint8_t* age) {
  return r.c == 3 ? update<3>(r, s, gain, moved, fired, maps, plane, age) : update<0>(r, s, gain, moved, fired, maps, plane, age);
}

void sum_of_5(const uint8_t* __restrict in, int w, uint8_t* __restrict out) {
  for (int x = 0; x < w; ++x) out[x] = (uint8_t)(in[x] + in[x + 1] + in[x + 2] + in[x + 3] + in[x + 4]);
}

void vote(const uint8_t* const* rows, int votes, int w, uint8_t* __restrict out) {
  const uint8_t *__restrict a = rows[0], *__restrict b = rows[1], *__restrict c = rows[2], *__restrict d = rows[3], *__restrict e = rows[4];
  const uint8_t least = (uint8_t)votes;
  for (int x = 0; x < w; ++x) out[x] = (uint8_t)(a[x] + b[x] + c[x] + d[x] + e[x]) >= least;
}

void or_into(const uint8_t* __restrict in, uint8_t* __restrict out, int w) {
  for (int x = 0; x < w; ++x) out[x] |= in[x];
}

}  // namespace

const CameraKernels* SL_CONCAT(camera_kernels_, SL_ISA_NAME)() {
  static const CameraKernels table = {noise_fire, noise_update, sum_of_5, vote, or_into};
  return &table;
}

}  // namespace sightline

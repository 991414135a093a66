// The float32 vectors of the instruction set that a file isa_*.cpp is compiled for, and how they meet memory.
// Everything here has internal linkage: each instruction set needs a copy of its own.
#pragma once
#include <cstdint>
#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#define SL_CONCAT_(a, b) a##b
#define SL_CONCAT(a, b) SL_CONCAT_(a, b)
#define SL_STRING_(a) #a
#define SL_STRING(a) SL_STRING_(a)
#define SL_INLINE static inline __attribute__((always_inline))

namespace sightline {
namespace {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float VF __attribute__((vector_size(W * 4)));
typedef int32_t VI __attribute__((vector_size(W * 4)));
typedef float VFU __attribute__((vector_size(W * 4), aligned(4), may_alias));

SL_INLINE VF load(const float* p) { return *reinterpret_cast<const VFU*>(p); }
SL_INLINE void store(float* p, VF v) { *reinterpret_cast<VFU*>(p) = v; }

SL_INLINE VF set1(float x) {
#if defined(__AVX512F__)
  return (VF)_mm512_set1_ps(x);
#elif defined(__AVX2__)
  return (VF)_mm256_set1_ps(x);
#else
  return VF{x, x, x, x};
#endif
}

#if defined(__AVX2__) && !defined(__AVX512F__)
alignas(32) const int32_t kTail[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
SL_INLINE __m256i tail_mask(int n) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kTail + 8 - n)); }
#endif

// a * b + c, rounded once where there is an instruction for it; said in so many words where a compiler could choose which product to fuse.
SL_INLINE VF multiply_add(VF a, VF b, VF c) {
#if defined(__AVX512F__)
  return (VF)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (VF)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

// The first n lanes, 0 < n <= W; memory behind them stays as it is.
SL_INLINE void store_tail(float* p, VF v, int n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#elif defined(__AVX2__)
  _mm256_maskstore_ps(p, tail_mask(n), (__m256)v);
#else
  for (int i = 0; i < n; ++i) p[i] = v[i];
#endif
}

// Reads n values only: the lanes behind a map's last channel are the next pixel's, which another thread may be writing.
SL_INLINE VF load_tail(const float* p, int n) {
#if defined(__AVX512F__)
  return (VF)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#elif defined(__AVX2__)
  return (VF)_mm256_maskload_ps(p, tail_mask(n));
#else
  VF v = {};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
#endif
}

}  // namespace
}  // namespace sightline

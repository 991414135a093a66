// Kernels of the operators in eager.cpp, compiled once per instruction set like isa_kernels.cpp. Unlike there, maps are the
// caller's own tensors: nothing is read or written beyond the `c` channels of a pixel.
#include "eager.h"

#include <cmath>
#include <utility>

#include "isa_transpose.h"
#include "isa_vectors.h"

namespace sightline {
namespace {

// Calls body(first channel, lanes) for whole vectors, then once for what is left; `lanes` is W at compile time in the former.
template <class F>
SL_INLINE void by_vectors(int c, F&& body) {
  int i = 0;
  for (; i + W <= c; i += W) body(i, std::integral_constant<int, W>{});
  if (i < c) body(i, c - i);
}
SL_INLINE VF get(const float* p, std::integral_constant<int, W>) { return load(p); }
SL_INLINE VF get(const float* p, int n) { return load_tail(p, n); }
SL_INLINE void put(float* p, VF v, std::integral_constant<int, W>) { store(p, v); }
SL_INLINE void put(float* p, VF v, int n) { store_tail(p, v, n); }

SL_INLINE float sum(VF v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float s = 0;
  for (int i = 0; i < W; ++i) s += v[i];
  return s;
#endif
}

// -- gradient of a weight ------------------------------------------------------------------------------------

template <int P, int V>
SL_INLINE void grad_block(const GradTile& t, int first) {
  VF acc[P][V];
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) acc[p][v] = VF{};
  const float* g = t.g;
  const int64_t shift = t.shift + first;
  for (int row = 0; row < t.rows; ++row, g += t.ldg) {
    const float* x = t.taps[row] + shift;
    VF gv[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) gv[v] = load(g + v * W);
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
      const VF b = set1(x[p]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) acc[p][v] += b * gv[v];
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      float* out = t.out + (int64_t)(first + p) * t.ldo + v * W;
      store(out, load(out) + acc[p][v]);
    }
}

#if defined(__AVX512F__)
constexpr int kMost[5] = {0, 12, 12, 8, 6};
#else
constexpr int kMost[5] = {0, 10, 6, 4, 3};
#endif

template <int V>
void grad_weight_v(const GradTile& t) {
  constexpr int P = kMost[V];
  int i = 0;
  for (; i + P <= t.cin; i += P) grad_block<P, V>(t, i);
  if constexpr (P > 6)
    for (; i + 6 <= t.cin; i += 6) grad_block<6, V>(t, i);
  if constexpr (P > 3)
    for (; i + 3 <= t.cin; i += 3) grad_block<3, V>(t, i);
  for (; i < t.cin; ++i) grad_block<1, V>(t, i);
}

void grad_weight(const GradTile& t) {
  switch (t.vectors) {
    case 1: return grad_weight_v<1>(t);
    case 2: return grad_weight_v<2>(t);
    case 3: return grad_weight_v<3>(t);
    default: return grad_weight_v<4>(t);
  }
}

void add_row(const float* from, float* to, int c) {
  by_vectors(c, [&](int i, auto n) __attribute__((always_inline)) { put(to + i, get(to + i, n) + get(from + i, n), n); });
}

// -- planes and rows -----------------------------------------------------------------------------------------

// to[j * to_ld + i] = from[i * from_ld + j] for i < m, j < n, at most W each.
void transpose_block(const float* from, int64_t from_ld, float* to, int64_t to_ld, int m, int n) {
  if (m * n <= 2 * W) {
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < n; ++j) to[j * to_ld + i] = from[i * from_ld + j];
    return;
  }
  VF v[W];
  if (m == W && n == W) {
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) v[i] = load(from + i * from_ld);
    transpose(v);
#pragma GCC unroll 16
    for (int j = 0; j < W; ++j) store(to + j * to_ld, v[j]);
    return;
  }
  for (int i = 0; i < W; ++i) v[i] = i < m ? load_tail(from + i * from_ld, n) : VF{};
  transpose(v);
  for (int j = 0; j < n; ++j) store_tail(to + j * to_ld, v[j], m);
}

void transpose_all(const float* from, int64_t from_ld, float* to, int64_t to_ld, int m, int n) {
  for (int i = 0; i < m; i += W)
    for (int j = 0; j < n; j += W)
      transpose_block(from + i * from_ld + j, from_ld, to + j * to_ld + i, to_ld, m - i < W ? m - i : W, n - j < W ? n - j : W);
}

void rows_to_planes(const float* rows, int64_t ld, float* planes, int64_t plane, int pixels, int c) {
  transpose_all(rows, ld, planes, plane, pixels, c);
}
void planes_to_rows(const float* planes, int64_t plane, float* rows, int64_t ld, int pixels, int c) {
  transpose_all(planes, plane, rows, ld, c, pixels);
}

// to[offsets[j] + i] = from[i * ld + j]: columns of a matrix to places of their own, a block of W x W at a time.
void pack(const float* from, int64_t ld, int m, int n, const int64_t* offsets, float* to) {
  for (int i0 = 0; i0 < m; i0 += W)
    for (int j0 = 0; j0 < n; j0 += W) {
      const int rows = m - i0 < W ? m - i0 : W, columns = n - j0 < W ? n - j0 : W;
      VF v[W];
      for (int i = 0; i < W; ++i) v[i] = i < rows ? load_tail(from + (i0 + i) * ld + j0, columns) : VF{};
      transpose(v);
      for (int j = 0; j < columns; ++j)
        if (offsets[j0 + j] >= 0) store_tail(to + offsets[j0 + j] + i0, v[j], rows);
    }
}

// to[i * ld + j] = from[offsets[j] + i]
void unpack(const float* from, const int64_t* offsets, int m, int n, float* to, int64_t ld) {
  for (int i0 = 0; i0 < m; i0 += W)
    for (int j0 = 0; j0 < n; j0 += W) {
      const int rows = m - i0 < W ? m - i0 : W, columns = n - j0 < W ? n - j0 : W;
      VF v[W];
      for (int j = 0; j < W; ++j) v[j] = j < columns ? load_tail(from + offsets[j0 + j] + i0, rows) : VF{};
      transpose(v);
      for (int i = 0; i < rows; ++i) store_tail(to + (i0 + i) * ld + j0, v[i], columns);
    }
}

// -- depthwise -------------------------------------------------------------------------------------------------

void depthwise(const float* const* taps, int ntaps, const float* weights, int ldw, const float* bias, float* out, int c) {
  by_vectors(c, [&](int i, auto n) __attribute__((always_inline)) {
    VF acc = get(bias + i, n);
    for (int t = 0; t < ntaps; ++t)
      if (taps[t]) acc += get(taps[t] + i, n) * get(weights + (int64_t)t * ldw + i, n);
    put(out + i, acc, n);
  });
}

void depthwise_grad_input(float* const* taps, int ntaps, const float* weights, int ldw, const float* g, int c) {
  by_vectors(c, [&](int i, auto n) __attribute__((always_inline)) {
    const VF gv = get(g + i, n);
    for (int t = 0; t < ntaps; ++t)
      if (taps[t]) put(taps[t] + i, get(taps[t] + i, n) + gv * get(weights + (int64_t)t * ldw + i, n), n);
  });
}

void depthwise_grad_weight(const float* const* taps, int rows, const float* g, int ldg, float* out, int c) {
  by_vectors(c, [&](int i, auto n) __attribute__((always_inline)) {
    VF acc = {};
    for (int r = 0; r < rows; ++r)
      if (taps[r]) acc += get(taps[r] + i, n) * get(g + (int64_t)r * ldg + i, n);
    put(out + i, get(out + i, n) + acc, n);
  });
}

// -- pooling -----------------------------------------------------------------------------------------------------

// As torch has it: a NaN wins, and of equal values the first.
void max_pool(const float* const* taps, int ntaps, float* out, int c) {
  by_vectors(c, [&](int i, auto n) __attribute__((always_inline)) {
    VF m = set1(-INFINITY);
    for (int t = 0; t < ntaps; ++t)
      if (taps[t]) {
        const VF x = get(taps[t] + i, n);
        m = (x > m) | (x != x) ? x : m;
      }
    put(out + i, m, n);
  });
}

void max_pool_grad(const float* const* taps, float* const* to, int ntaps, const float* g, int c) {
  by_vectors(c, [&](int i, auto n) __attribute__((always_inline)) {
    VF m = set1(-INFINITY);
    VI best = VI{} - 1;
    for (int t = 0; t < ntaps; ++t)
      if (taps[t]) {
        const VF x = get(taps[t] + i, n);
        const VI better = (x > m) | (x != x) | (best < 0);
        m = better ? x : m;
        best = better ? VI{} + t : best;
      }
    const VF gv = get(g + i, n);
    for (int t = 0; t < ntaps; ++t)
      if (to[t]) {
        const VF old = get(to[t] + i, n);
        put(to[t] + i, best == t ? old + gv : old, n);
      }
  });
}

void sum_pool(const float* const* taps, int ntaps, float divisor, float* out, int c) {
  by_vectors(c, [&](int i, auto n) __attribute__((always_inline)) {
    VF acc = {};
    for (int t = 0; t < ntaps; ++t)
      if (taps[t]) acc += get(taps[t] + i, n);
    put(out + i, acc / divisor, n);
  });
}

void sum_pool_grad(float* const* to, int ntaps, float divisor, const float* g, int c) {
  by_vectors(c, [&](int i, auto n) __attribute__((always_inline)) {
    const VF share = get(g + i, n) / divisor;
    for (int t = 0; t < ntaps; ++t)
      if (to[t]) put(to[t] + i, get(to[t] + i, n) + share, n);
  });
}

// -- channel sums --------------------------------------------------------------------------------------------------

void dots(const float* x, const float* weights, int64_t ldw, float* out, int64_t ldo, int filters, int c) {
  for (int f = 0; f < filters; ++f) {
    const float* w = weights + f * ldw;
    VF acc[2] = {};
    int i = 0;
    for (; i + 2 * W <= c; i += 2 * W) {
      acc[0] += load(x + i) * load(w + i);
      acc[1] += load(x + i + W) * load(w + i + W);
    }
    if (i + W <= c) {
      acc[0] += load(x + i) * load(w + i);
      i += W;
    }
    if (i < c) acc[1] += load_tail(x + i, c - i) * load_tail(w + i, c - i);
    out[f * ldo] = sum(acc[0] + acc[1]);
  }
}

void add_scaled(float factor, const float* from, float* to, int c) {
  by_vectors(c, [&](int i, auto n) __attribute__((always_inline)) { put(to + i, get(to + i, n) + factor * get(from + i, n), n); });
}

}  // namespace

const EagerKernels* SL_CONCAT(eager_kernels_, SL_ISA_NAME)() {
  static const EagerKernels table = {grad_weight, add_row, rows_to_planes, planes_to_rows, pack, unpack, depthwise, depthwise_grad_input,
                                     depthwise_grad_weight, max_pool, max_pool_grad, sum_pool, sum_pool_grad, dots, add_scaled};
  return &table;
}

}  // namespace sightline

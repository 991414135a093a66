// The inner loops of layers over nearest neighbours, compiled once per instruction set. Register blocks of rows x vectors of channels.
#include <utility>

#include "isa_transpose.h"
#include "isa_vectors.h"
#include "knn.h"

namespace sightline {
namespace {

#if defined(__AVX512F__)
constexpr int kWidest = 4;
constexpr int most_rows(int vectors) { return vectors == 4 ? 6 : vectors == 3 ? 8 : 12; }
#else
constexpr int kWidest = 2;
constexpr int most_rows(int vectors) { return vectors == 2 ? 6 : 8; }
#endif

template <int P, int V>
void add_rows(const float* const* x, float* const* out, const float* w, int channels) {
  VF acc[P][V] = {};
  const float* xs[P];
  for (int p = 0; p < P; ++p) xs[p] = x[p];
  for (int c = 0; c < channels; ++c, w += V * W) {
    VF wv[V];
    for (int i = 0; i < V; ++i) wv[i] = load(w + i * W);
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
      const VF xb = set1(xs[p][c]);
#pragma GCC unroll 4
      for (int i = 0; i < V; ++i) acc[p][i] += xb * wv[i];
    }
  }
  for (int p = 0; p < P; ++p)
    for (int i = 0; i < V; ++i) store(out[p] + i * W, load(out[p] + i * W) + acc[p][i]);
}

// C > 0 fixes the number of channels.
template <int P, int V, int C>
SL_INLINE void node_rows(const float* const* x, int64_t ldx, const float* const* w, int taps, int channels, float* out) {
  VF acc[P][V] = {};
  const int n = C > 0 ? C : channels;
  for (int t = 0; t < taps; ++t) {
    const float *xt = x[t], *wt = w[t];
#pragma GCC unroll 4
    for (int c = 0; c < n; ++c) {
      VF wv[V];
      for (int i = 0; i < V; ++i) wv[i] = load(wt + (c * V + i) * W);
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) {
        const VF xb = set1(xt[p * ldx + c]);
#pragma GCC unroll 4
        for (int i = 0; i < V; ++i) acc[p][i] += xb * wv[i];
      }
    }
  }
  for (int p = 0; p < P; ++p)
    for (int i = 0; i < V; ++i) store(out + (p * V + i) * W, acc[p][i]);
}

template <int P, int V>
void node(const float* const* x, int64_t ldx, const float* const* w, int taps, int channels, float* out) {
  if (channels == 3) return node_rows<P, V, 3>(x, ldx, w, taps, channels, out);
  node_rows<P, V, 0>(x, ldx, w, taps, channels, out);
}

// P input channels of `out` at a time.
template <int P, int V>
void outer(const float* const* x, const float* const* g, int rows, int c0, float* out) {
  VF acc[P][V] = {};
  for (int r = 0; r < rows; ++r) {
    VF gv[V];
    for (int i = 0; i < V; ++i) gv[i] = load(g[r] + i * W);
    const float* xr = x[r] + c0;
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) {
      const VF xb = set1(xr[p]);
#pragma GCC unroll 4
      for (int i = 0; i < V; ++i) acc[p][i] += xb * gv[i];
    }
  }
  float* to = out + c0 * V * W;
  for (int p = 0; p < P; ++p)
    for (int i = 0; i < V; ++i) store(to + (p * V + i) * W, load(to + (p * V + i) * W) + acc[p][i]);
}

// P rows x C channels; one vector of sums each.
template <int P, int C>
void dots(int vectors, const float* const* g, const float* const* w, int taps, int row, int channel, float* out, int64_t ldo) {
  VF acc[P][C] = {};
  const int64_t width = (int64_t)vectors * W;
  for (int t = 0; t < taps; ++t) {
    const float *gt = g[t] + row * width, *wt = w[t] + channel * width;
    for (int i = 0; i < vectors; ++i) {
      VF wv[C];
      for (int c = 0; c < C; ++c) wv[c] = load(wt + c * width + i * W);
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        const VF gv = load(gt + p * width + i * W);
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) acc[p][c] += gv * wv[c];
      }
    }
  }
  for (int p = 0; p < P; ++p)
    for (int c = 0; c < C; ++c) {
      float sum = 0;
      for (int i = 0; i < W; ++i) sum += acc[p][c][i];
      out[(row + p) * ldo + channel + c] += sum;
    }
}

// Calls body.operator()<P, V>() for run-time rows and vectors.
template <int V, class F, int... P>
SL_INLINE void with_rows(int rows, F&& body, std::integer_sequence<int, P...>) {
  ((rows == P + 1 ? (body.template operator()<P + 1, V>(), 0) : 0), ...);
}
template <class F>
SL_INLINE void with_block(int vectors, int rows, F&& body) {
  if (vectors == 1) return with_rows<1>(rows, body, std::make_integer_sequence<int, most_rows(1)>());
  if (vectors == 2) return with_rows<2>(rows, body, std::make_integer_sequence<int, most_rows(2)>());
#if defined(__AVX512F__)
  if (vectors == 3) return with_rows<3>(rows, body, std::make_integer_sequence<int, most_rows(3)>());
  with_rows<4>(rows, body, std::make_integer_sequence<int, most_rows(4)>());
#endif
}

void add_rows_any(int vectors, const float* const* x, float* const* out, int rows, const float* w, int channels) {
  with_block(vectors, rows, [&]<int P, int V>() __attribute__((always_inline)) { add_rows<P, V>(x, out, w, channels); });
}

void node_any(int vectors, const float* const* x, int64_t ldx, const float* const* w, int taps, int channels, int rows, float* out) {
  with_block(vectors, rows, [&]<int P, int V>() __attribute__((always_inline)) { node<P, V>(x, ldx, w, taps, channels, out); });
}

void outer_any(int vectors, const float* const* x, const float* const* g, int rows, int channels, float* out) {
  const int most = most_rows(vectors), blocks = (channels + most - 1) / most;
  for (int b = 0, c0 = 0; b < blocks; ++b) {
    const int count = (channels - c0 + blocks - b - 1) / (blocks - b);  // blocks of about the same size
    with_block(vectors, count, [&]<int P, int V>() __attribute__((always_inline)) { outer<P, V>(x, g, rows, c0, out); });
    c0 += count;
  }
}

template <int P>
SL_INLINE void dots_row(int vectors, const float* const* g, const float* const* w, int taps, int channels, int row, float* out, int64_t ldo) {
  int c = 0;
  for (; c + 4 <= channels; c += 4) dots<P, 4>(vectors, g, w, taps, row, c, out, ldo);
  if (channels - c == 3) dots<P, 3>(vectors, g, w, taps, row, c, out, ldo);
  else
    for (; c < channels; ++c) dots<P, 1>(vectors, g, w, taps, row, c, out, ldo);
}

void dots_any(int vectors, const float* const* g, const float* const* w, int taps, int channels, int rows, float* out, int64_t ldo) {
  int r = 0;
  for (; r + 4 <= rows; r += 4) dots_row<4>(vectors, g, w, taps, channels, r, out, ldo);
  for (; r < rows; ++r) dots_row<1>(vectors, g, w, taps, channels, r, out, ldo);
}

void finish(const float* rows, const float* bias, float* out, int count) {
  int i = 0;
  for (; i + W <= count; i += W) store(out + i, bias ? load(rows + i) + load(bias + i) : load(rows + i));
  if (i < count) {
    const int n = count - i;
    store_tail(out + i, bias ? load_tail(rows + i, n) + load_tail(bias + i, n) : load_tail(rows + i, n), n);
  }
}

// Weights come from memory that no cache holds, in as many streams as a block has rows: lines are asked for early.
void pack(const float* from, int64_t ld, int m, int n, const int64_t* offsets, float* to) {
  constexpr int kAhead = 8 * W;
  for (int i0 = 0; i0 < m; i0 += W, from += W * ld) {
    const int rows = m - i0 < W ? m - i0 : W;
    for (int j0 = 0; j0 < n; j0 += W) {
      const int columns = n - j0 < W ? n - j0 : W;
      VF v[W];
      if (rows == W && columns == W) {
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) {
          __builtin_prefetch(from + i * ld + j0 + kAhead, 0, 2);
          v[i] = load(from + i * ld + j0);
        }
        transpose(v);
#pragma GCC unroll 16
        for (int j = 0; j < W; ++j) store(to + offsets[j0 + j] + i0, v[j]);
      } else {
        for (int i = 0; i < W; ++i) v[i] = i < rows ? load_tail(from + i * ld + j0, columns) : VF{};
        transpose(v);
        for (int j = 0; j < columns; ++j) store_tail(to + offsets[j0 + j] + i0, v[j], rows);
      }
    }
  }
}

void unpack(const float* from, const int64_t* offsets, int m, int n, float* to, int64_t ld) {
  for (int i0 = 0; i0 < m; i0 += W, to += W * ld) {
    const int rows = m - i0 < W ? m - i0 : W;
    for (int j0 = 0; j0 < n; j0 += W) {
      const int columns = n - j0 < W ? n - j0 : W;
      VF v[W];
      if (rows == W && columns == W) {
#pragma GCC unroll 16
        for (int j = 0; j < W; ++j) v[j] = load(from + offsets[j0 + j] + i0);
        transpose(v);
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) store(to + i * ld + j0, v[i]);
      } else {
        for (int j = 0; j < W; ++j) v[j] = j < columns ? load_tail(from + offsets[j0 + j] + i0, rows) : VF{};
        transpose(v);
        for (int i = 0; i < rows; ++i) store_tail(to + i * ld + j0, v[i], columns);
      }
    }
  }
}

}  // namespace

const KnnKernels* SL_CONCAT(knn_kernels_, SL_ISA_NAME)() {
#if defined(__AVX512F__)
  static const KnnKernels table = {W, kWidest, {0, most_rows(1), most_rows(2), most_rows(3), most_rows(4)},
                                   add_rows_any, node_any, outer_any, dots_any, finish, pack, unpack};
#else
  static const KnnKernels table = {W, kWidest, {0, most_rows(1), most_rows(2), 0, 0}, add_rows_any, node_any, outer_any, dots_any, finish, pack, unpack};
#endif
  return &table;
}

}  // namespace sightline

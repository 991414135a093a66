// Layers over nearest neighbours: every output row is a sum over k input rows, each multiplied by one cell of a kernel.
//
// A map is a set of rows of contiguous channels, one per (node, image): row (n, b) lies at data + n * node + b * image. A table gives
// every output node its k input nodes (-1: none) and the kernel cells that they meet.
//
// The bits of an output row depend on its inputs, on the layer's shape and on the instruction set; not on which other rows are computed,
// in what order, nor on the number of threads.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "eager.h"

namespace sightline {

struct KnnKernels {
  int lanes;
  int widest;        // most vectors of a panel of output channels
  int most_rows[5];  // rows that are computed together, for panels of 1..4 vectors (index 0 unused)
  // out[r][j] += sum over c of x[r][c] * w[c * width + j], where width = vectors * lanes; no row of out twice
  void (*add_rows)(int vectors, const float* const* x, float* const* out, int rows, const float* w, int channels);
  // out[r * width + j] = sum over taps t and c of x[t][r * ldx + c] * w[t][c * width + j]
  void (*node)(int vectors, const float* const* x, int64_t ldx, const float* const* w, int taps, int channels, int rows, float* out);
  // out[c * width + j] += sum over r of x[r][c] * g[r][j]
  void (*outer)(int vectors, const float* const* x, const float* const* g, int rows, int channels, float* out);
  // out[r * ldo + c] += sum over taps t and j of g[t][r * width + j] * w[t][c * width + j]
  void (*dots)(int vectors, const float* const* g, const float* const* w, int taps, int channels, int rows, float* out, int64_t ldo);
  // out[j] = rows[j] + bias[j] (bias may be null), j < count
  void (*finish)(const float* rows, const float* bias, float* out, int count);
  // to[offsets[j] + i] = from[i * ld + j] for i < m, j < n; and the reverse
  void (*pack)(const float* from, int64_t ld, int m, int n, const int64_t* offsets, float* to);
  void (*unpack)(const float* from, const int64_t* offsets, int m, int n, float* to, int64_t ld);
};

const KnnKernels* knn_kernels_avx512();
const KnnKernels* knn_kernels_avx2();
const KnnKernels* knn_kernels_baseline();

// Memory for vectors of any width; not initialised.
struct KnnFree { void operator()(float* p) const { std::free(p); } };
using KnnFloats = std::unique_ptr<float[], KnnFree>;
KnnFloats knn_floats(size_t n);

struct KnnMap { float* data; int64_t node, image; };  // strides in floats

struct KnnTable {
  const int32_t *index, *cell;  // [nodes][k]
  int nodes, k;
  int sources;                  // nodes of the input
};

// A layer's shape, and how its work is cut: panels of output channels, chunks of input channels.
struct KnnShape {
  KnnShape(const KnnKernels& kernels, int cin, int cout, int cells);
  int cin, cout, cells;
  int vectors, width;  // of a panel
  int panels;
  bool by_node;        // few input channels: a node is summed whole in registers; else cell by cell
  int chunk;           // input channels per step of the latter
  int block;           // cells whose weights are packed at a time, where they are packed on the way
  int chunks() const { return (cin + chunk - 1) / chunk; }
  int channels(int i) const { return i + 1 < chunks() ? chunk : cin - i * chunk; }
  int valid(int panel) const { return panel + 1 < panels ? width : cout - panel * width; }
  int blocks() const { return (cells + block - 1) / block; }
  size_t panel_floats() const { return (size_t)cells * cin * width; }  // of packed weights
};

// Weights [cout][cin][cells] and how to read them. `packed`: all of them in the order of use (knn_pack), or null: packed on the way,
// which takes no memory to speak of and is what changing weights need.
struct KnnWeights {
  const KnnKernels* k;
  KnnShape shape;
  const float *raw, *bias;  // bias [cout] or null
  const float* packed = nullptr;
};

// The weights in the order of use, panels * panel_floats().
KnnFloats knn_pack(const KnnWeights& weights);

// out = layer(x) at the table's nodes, for `batch` images. Nodes without inputs are zero.
void knn_conv(const KnnWeights& weights, const KnnTable& table, int batch, KnnMap x, KnnMap out);

// Gradients; gx (all of it is written), gw [cout][cin][cells] and gb [cout] may be null: not wanted. Rows of g are contiguous: g.image is
// cout, and those of x: x.image is cin.
void knn_conv_backward(const KnnWeights& weights, const KnnTable& table, int batch, KnnMap g, KnnMap x, float* gx, float* gw, float* gb);

// Pooling of rows of `count` contiguous floats (batch and channels together).
void knn_max_pool(const EagerKernels& e, const KnnTable& table, int64_t count, const float* x, float* out);
void knn_max_pool_backward(const EagerKernels& e, const KnnTable& table, int64_t count, const float* g, const float* x, float* gx);
// weights [nodes][k]
void knn_sum_pool(const EagerKernels& e, const KnnTable& table, const float* weights, int64_t count, const float* x, float* out);
void knn_sum_pool_backward(const EagerKernels& e, const KnnTable& table, const float* weights, int64_t count, const float* g, float* gx);

// The k nearest of `sources` points to each of `queries` points, [count][axes] in float64: by distance, rounded to 20 binary digits, then
// by index. index and distance [queries][k].
void knn_search(int sources, int queries, int axes, int k, const double* from, const double* to, int64_t* index, double* distance);

// Points in float64: visual places (2 axes) of candidates and of output nodes, and their cortical coordinates (`axes` axes; 0: places are
// what neighbours are laid out by; `wraps`: the second axis has period 1).
struct KnnPoints {
  const double *places, *node_places, *cortex, *node_cortex;
  int axes;
  bool wraps;
};
// The cell of a side x side kernel that each of a node's k candidates meets, [nodes][k].
void knn_cells(const KnnPoints& points, int nodes, int k, int side, const int64_t* candidate, int32_t* cell);

// Throws std::out_of_range where the table points outside the input or the kernel.
void knn_check(const KnnTable& table, int cells);

}  // namespace sightline

// What the files knn_*.cpp share: pairs of a table sorted by cell, loops over panels, weights in the order of use. Not for other files.
#pragma once
#include <algorithm>
#include <cstring>
#include <vector>

#include "knn.h"
#include "pool.h"

namespace sightline {

constexpr int kMostRows = 12;                   // of any register block
constexpr int64_t kKnnWorthSharing = 400'000;   // multiply-adds below which a second thread does not pay

template <class F>
void knn_items(int items, int64_t work, F&& body) {
  if (work < kKnnWorthSharing)
    for (int i = 0; i < items; ++i) body(i);
  else
    Pool::instance().run(items, [&](int item, int) { body(item); });
}

// The pairs (source, node) of a table that are not padding, by cell; within a cell, by node. `apart`: by how often a node of `to` has come
// before, so that pairs with the same one lie far from each other.
struct KnnPairs {
  std::vector<int32_t> from, to, begin;  // begin [cells + 1]
  int count(int cell) const { return begin[(size_t)cell + 1] - begin[(size_t)cell]; }
};
KnnPairs knn_pairs(const KnnTable& table, int cells, bool backward);

// Weights of one panel, for some input channels and cells: [cells][channels][width], zeros in channels of the panel that do not exist.
void knn_pack_part(const KnnWeights& weights, int panel, int c0, int channels, int v0, int cells, float* to);
// Offsets in that layout of `channels` * `cells` values that lie cells first.
std::vector<int64_t> knn_offsets(int channels, int cells, int width);

// Sums rows through the pairs of cells [v0, v1), whose weights are given: sums[to * batch + b] += row (from, b) of x * weights of the cell, for images [b0, b0 + images).
struct KnnSum {
  const KnnKernels* k;
  int vectors, width;
  KnnMap x;  // moved to the chunk's first channel
  int b0, images;
};
void knn_add_pairs(const KnnSum& sum, const KnnPairs& pairs, int v0, int v1, const float* weights, int channels, float* sums);

// Whether a node reads at least one input.
inline bool knn_reads(const KnnTable& table, int node) {
  const int32_t* at = table.index + (int64_t)node * table.k;
  return std::any_of(at, at + table.k, [](int32_t m) { return m >= 0; });
}

// Images at a time, so that sums of `nodes` rows of `width` stay in the second-level cache.
inline int knn_images(int nodes, int width, int batch) {
  const int64_t most = (1 << 17) / ((int64_t)std::max(nodes, 1) * width);
  const int parts = (int)((batch + std::max<int64_t>(most, 1) - 1) / std::max<int64_t>(most, 1));
  return parts ? (batch + parts - 1) / parts : 1;
}

}  // namespace sightline

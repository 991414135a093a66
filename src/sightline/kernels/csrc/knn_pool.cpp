// Pooling over nearest neighbours. A node's row holds all images and channels, so neighbours are whole rows.
#include "knn_parts.h"

namespace sightline {

namespace {

constexpr int kNodes = 16;
constexpr int64_t kColumns = 512;

// body(node, its k slots) for all nodes, a few per item.
template <class F>
void each_node(const KnnTable& t, int64_t count, F&& body) {
  knn_items((t.nodes + kNodes - 1) / kNodes, (int64_t)t.nodes * t.k * count, [&](int item) {
    for (int n = item * kNodes; n < std::min((item + 1) * kNodes, t.nodes); ++n) body(n, t.index + (int64_t)n * t.k);
  });
}

// body(first column, columns): nodes may add to the same rows, but columns never meet.
template <class F>
void each_column(const KnnTable& t, int64_t count, F&& body) {
  knn_items((int)((count + kColumns - 1) / kColumns), (int64_t)t.nodes * t.k * count,
            [&](int item) { body(item * kColumns, (int)std::min(kColumns, count - item * kColumns)); });
}

}  // namespace

void knn_max_pool(const EagerKernels& e, const KnnTable& t, int64_t count, const float* x, float* out) {
  each_node(t, count, [&](int n, const int32_t* index) {
    std::vector<const float*> taps;
    for (int j = 0; j < t.k; ++j)
      if (index[j] >= 0) taps.push_back(x + index[j] * count);
    float* to = out + n * count;
    if (taps.empty()) std::memset(to, 0, (size_t)count * sizeof(float));
    else
      for (int64_t c = 0; c < count; c += kColumns) {
        e.max_pool(taps.data(), (int)taps.size(), to + c, (int)std::min(kColumns, count - c));
        for (const float*& tap : taps) tap += kColumns;
      }
  });
}

void knn_max_pool_backward(const EagerKernels& e, const KnnTable& t, int64_t count, const float* g, const float* x, float* gx) {
  each_column(t, count, [&](int64_t c, int columns) {
    std::vector<const float*> taps;
    std::vector<float*> to;
    for (int m = 0; m < t.sources; ++m) std::memset(gx + m * count + c, 0, (size_t)columns * sizeof(float));
    for (int n = 0; n < t.nodes; ++n) {
      taps.clear(), to.clear();
      for (int j = 0; j < t.k; ++j) {
        const int64_t m = t.index[(int64_t)n * t.k + j];
        if (m >= 0) taps.push_back(x + m * count + c), to.push_back(gx + m * count + c);
      }
      e.max_pool_grad(taps.data(), to.data(), (int)taps.size(), g + n * count + c, columns);
    }
  });
}

void knn_sum_pool(const EagerKernels& e, const KnnTable& t, const float* weights, int64_t count, const float* x, float* out) {
  each_node(t, count, [&](int n, const int32_t* index) {
    for (int64_t c = 0; c < count; c += kColumns) {
      const int columns = (int)std::min(kColumns, count - c);
      float* to = out + n * count + c;
      std::memset(to, 0, (size_t)columns * sizeof(float));
      for (int j = 0; j < t.k; ++j)
        if (index[j] >= 0) e.add_scaled(weights[(int64_t)n * t.k + j], x + index[j] * count + c, to, columns);
    }
  });
}

void knn_sum_pool_backward(const EagerKernels& e, const KnnTable& t, const float* weights, int64_t count, const float* g, float* gx) {
  each_column(t, count, [&](int64_t c, int columns) {
    for (int m = 0; m < t.sources; ++m) std::memset(gx + m * count + c, 0, (size_t)columns * sizeof(float));
    for (int64_t i = 0; i < (int64_t)t.nodes * t.k; ++i)
      if (t.index[i] >= 0) e.add_scaled(weights[i], g + i / t.k * count + c, gx + t.index[i] * count + c, columns);
  });
}

}  // namespace sightline

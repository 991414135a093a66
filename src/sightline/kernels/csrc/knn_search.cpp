// The k nearest of some points, exactly, with ties by index: a k-d tree whose leaves are scanned.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "knn_parts.h"

namespace sightline {

namespace {

constexpr int kLeaf = 16, kAxes = 3;

// A positive double without the lower half of its bits, rounded: grows with it, and close ones are equal.
uint64_t rounded(double distance) {
  uint64_t bits;
  std::memcpy(&bits, &distance, sizeof bits);
  return (bits + (1ull << 31)) >> 32;
}

struct Found {
  uint64_t order;  // rounded distance, then index
  double distance;
  bool operator<(const Found& other) const { return order < other.order; }
};

class Tree {
 public:
  Tree(int count, int axes, const double* points) : axes_(axes), order_((size_t)count) {
    std::iota(order_.begin(), order_.end(), 0);
    nodes_.reserve((size_t)count / 4 + 1);
    build(points, 0, count);
    for (int a = 0; a < axes; ++a)
      for (int i : order_) coordinates_[a].push_back(points[(int64_t)i * axes + a]);
  }

  void nearest(const double* q, int k, std::vector<Found>& found, int64_t* index, double* distance) const {
    // A bound first: the k-th distance among the points of the smallest subtree around q that has enough.
    found.clear();
    collect(smallest(q, k), q, HUGE_VAL, found);
    std::nth_element(found.begin(), found.begin() + (k - 1), found.end());
    // What rounds to the same distance must be found too, whatever its index.
    const double limit = found[(size_t)k - 1].distance * (1 + 0x1p-18);
    found.clear();
    collect(0, q, limit * limit, found);
    std::nth_element(found.begin(), found.begin() + (k - 1), found.end());
    std::sort(found.begin(), found.begin() + k);
    for (int i = 0; i < k; ++i) {
      index[i] = (int64_t)(found[(size_t)i].order & 0xffffffffu);
      distance[i] = found[(size_t)i].distance;
    }
  }

 private:
  struct Node {
    double low[kAxes], high[kAxes];
    int first, last;
    int right = 0;  // the left child follows its parent; 0: a leaf
    int axis = 0;
    double middle = 0;
  };

  int build(const double* points, int first, int last) {
    const int at = (int)nodes_.size();
    nodes_.emplace_back();
    Node node;
    node.first = first, node.last = last;
    for (int a = 0; a < kAxes; ++a) {
      node.low[a] = a < axes_ ? HUGE_VAL : 0, node.high[a] = a < axes_ ? -HUGE_VAL : 0;
      for (int i = first; i < last && a < axes_; ++i) {
        const double v = points[(int64_t)order_[(size_t)i] * axes_ + a];
        node.low[a] = std::min(node.low[a], v), node.high[a] = std::max(node.high[a], v);
      }
      if (node.high[a] - node.low[a] > node.high[node.axis] - node.low[node.axis]) node.axis = a;
    }
    if (last - first > kLeaf) {
      const int half = (first + last) / 2, axis = node.axis;
      std::nth_element(order_.begin() + first, order_.begin() + half, order_.begin() + last,
                       [&](int i, int j) { return points[(int64_t)i * axes_ + axis] < points[(int64_t)j * axes_ + axis]; });
      node.middle = points[(int64_t)order_[(size_t)half] * axes_ + axis];
      build(points, first, half);
      node.right = build(points, half, last);
    }
    nodes_[(size_t)at] = node;
    return at;
  }

  int smallest(const double* q, int k) const {
    int at = 0;
    for (;;) {
      const Node& n = nodes_[(size_t)at];
      if (!n.right) return at;
      const int next = q[n.axis] < n.middle ? at + 1 : n.right;
      if (nodes_[(size_t)next].last - nodes_[(size_t)next].first < k) return at;
      at = next;
    }
  }

  void collect(int root, const double* q, double limit, std::vector<Found>& found) const {
    int stack[64], depth = 0;
    stack[depth++] = root;
    while (depth) {
      const int at = stack[--depth];
      const Node& n = nodes_[(size_t)at];
      double outside = 0;
      for (int a = 0; a < axes_; ++a) {
        const double d = std::max({n.low[a] - q[a], q[a] - n.high[a], 0.0});
        outside += d * d;
      }
      if (outside > limit) continue;
      if (n.right) {
        stack[depth++] = n.right;
        stack[depth++] = at + 1;
        continue;
      }
      for (int i = n.first; i < n.last; ++i) {
        double squares = 0;
        for (int a = 0; a < axes_; ++a) {
          const double d = q[a] - coordinates_[a][(size_t)i];
          squares += d * d;
        }
        if (squares > limit) continue;
        const double distance = std::sqrt(squares);
        found.push_back({rounded(distance) << 32 | (uint64_t)order_[(size_t)i], distance});
      }
    }
  }

  int axes_;
  std::vector<int> order_;
  std::vector<double> coordinates_[kAxes];
  std::vector<Node> nodes_;
};

}  // namespace

void knn_search(int sources, int queries, int axes, int k, const double* from, const double* to, int64_t* index, double* distance) {
  const Tree tree(sources, axes, from);
  constexpr int kQueries = 64;
  knn_items((queries + kQueries - 1) / kQueries, (int64_t)queries * k * 64, [&](int item) {
    std::vector<Found> found;
    for (int i = item * kQueries; i < std::min((item + 1) * kQueries, queries); ++i)
      tree.nearest(to + (int64_t)i * axes, k, found, index + (int64_t)i * k, distance + (int64_t)i * k);
  });
}

void knn_cells(const KnnPoints& p, int nodes, int k, int side, const int64_t* candidate, int32_t* cell) {
  constexpr int kNodes = 64;
  constexpr double kCoincide = 1e-9;  // in units of the field's radius: there is no direction but rounding's
  knn_items((nodes + kNodes - 1) / kNodes, (int64_t)nodes * k * 64, [&](int item) {
    std::vector<double> laid[2];
    laid[0].resize((size_t)k), laid[1].resize((size_t)k);
    for (int n = item * kNodes; n < std::min((item + 1) * kNodes, nodes); ++n) {
      double low[2] = {HUGE_VAL, HUGE_VAL}, high[2] = {-HUGE_VAL, -HUGE_VAL};
      for (int j = 0; j < k; ++j) {
        const int64_t m = candidate[(int64_t)n * k + j];
        double at[2] = {p.places[2 * m], p.places[2 * m + 1]};
        if (p.axes > 0) {
          double squares = 0;
          for (int a = 0; a < p.axes; ++a) {
            double d = std::fabs(p.cortex[m * p.axes + a] - p.node_cortex[(int64_t)n * p.axes + a]);
            if (p.wraps && a == 1) d = std::min(d, 1 - d);
            squares += d * d;
          }
          const double x = at[0] - p.node_places[2 * n], y = at[1] - p.node_places[2 * n + 1], length = std::sqrt(x * x + y * y);
          const double distance = std::sqrt(squares);
          at[0] = length > kCoincide ? distance * (x / length) : distance;
          at[1] = length > kCoincide ? distance * (y / length) : 0;
        }
        for (int a = 0; a < 2; ++a) {
          laid[a][(size_t)j] = at[a];
          low[a] = std::min(low[a], at[a]), high[a] = std::max(high[a], at[a]);
        }
      }
      for (int j = 0; j < k; ++j) {
        int steps[2];
        for (int a = 0; a < 2; ++a) {
          const double step = (laid[a][(size_t)j] - low[a]) / (high[a] - low[a] + 1e-6) * (side - 1);
          steps[a] = (int)std::clamp(std::ceil(step - 0.5), 0.0, (double)(side - 1));
        }
        cell[(int64_t)n * k + j] = steps[0] * side + steps[1];
      }
    }
  });
}

}  // namespace sightline

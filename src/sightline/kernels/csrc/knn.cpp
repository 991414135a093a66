// Convolution over nearest neighbours, forward.
//
// Few input channels: a node's sum over all its neighbours stays in registers, several images at a time, and the weights of a panel of
// output channels stay in the second-level cache. Many: cell by cell, so that one small matrix of weights meets all rows that use it; the sums
// of a panel stay in the cache, and weights are packed a chunk of input channels at a time.
#include <stdexcept>
#include <string>

#include "knn_parts.h"

namespace sightline {

namespace {

constexpr int kFewChannels = 16;
constexpr int kScratch = 36 * 64 * 64;  // packed weights at a time: about half a megabyte
constexpr int kLine = 16;               // cells of a cache line

int narrowest_waste(const KnnKernels& k, int cout) {
  int best = k.widest, least = 1 << 30;
  for (int v = k.widest; v >= 1; --v) {
    const int width = v * k.lanes, padded = (cout + width - 1) / width * width;
    if (padded < least) least = padded, best = v;
  }
  return best;
}

// One panel of output channels, whose weights are in the order of use.
void panel_by_node(const KnnWeights& w, const KnnTable& table, int batch, const KnnMap& x, const KnnMap& out, int panel, const float* weights) {
  const KnnShape& s = w.shape;
  constexpr int kNodes = 16;
  const int most = w.k->most_rows[s.vectors], valid = s.valid(panel);
  const float* bias = w.bias ? w.bias + panel * s.width : nullptr;
  knn_items((table.nodes + kNodes - 1) / kNodes, (int64_t)table.nodes * table.k * s.cin * s.width * batch, [&](int item) {
    std::vector<const float*> xs((size_t)table.k), ws((size_t)table.k);
    alignas(64) float rows[kMostRows * 64];
    for (int n = item * kNodes; n < std::min((item + 1) * kNodes, table.nodes); ++n) {
      const int32_t *index = table.index + (int64_t)n * table.k, *cell = table.cell + (int64_t)n * table.k;
      int taps = 0;
      for (int j = 0; j < table.k; ++j) {
        if (index[j] < 0) continue;
        xs[(size_t)taps] = x.data + index[j] * x.node;
        ws[(size_t)taps++] = weights + (size_t)cell[j] * s.cin * s.width;
      }
      float* to = out.data + n * out.node + panel * s.width;
      if (!taps) {
        for (int b = 0; b < batch; ++b) std::memset(to + b * out.image, 0, (size_t)valid * sizeof(float));
        continue;
      }
      const int groups = (batch + most - 1) / most;
      for (int g = 0, b = 0; g < groups; ++g) {
        const int count = (batch - b + groups - g - 1) / (groups - g);
        w.k->node(s.vectors, xs.data(), x.image, ws.data(), taps, s.cin, count, rows);
        for (int r = 0; r < count; ++r) w.k->finish(rows + r * s.width, bias, to + (b + r) * out.image, valid);
        for (int t = 0; t < taps; ++t) xs[(size_t)t] += count * x.image;
        b += count;
      }
    }
  });
}

void conv_by_node(const KnnWeights& w, const KnnTable& table, int batch, const KnnMap& x, const KnnMap& out) {
  const KnnFloats own = w.packed ? KnnFloats() : knn_floats(w.shape.panel_floats());
  for (int panel = 0; panel < w.shape.panels; ++panel) {
    if (own) knn_pack_part(w, panel, 0, w.shape.cin, 0, w.shape.cells, own.get());
    panel_by_node(w, table, batch, x, out, panel, own ? own.get() : w.packed + (size_t)panel * w.shape.panel_floats());
  }
}

void conv_by_cell(const KnnWeights& w, const KnnTable& table, int batch, const KnnMap& x, const KnnMap& out) {
  const KnnShape& s = w.shape;
  const KnnPairs pairs = knn_pairs(table, s.cells, false);
  const int images = knn_images(table.nodes, s.width, batch), parts = images ? (batch + images - 1) / images : 0;
  const int64_t work = (int64_t)pairs.from.size() * s.cin * s.cout * batch;
  knn_items(s.panels * parts, work, [&](int item) {
    const int panel = item / parts, b0 = item % parts * images, count = std::min(images, batch - b0);
    const KnnFloats sums = knn_floats((size_t)table.nodes * (size_t)count * (size_t)s.width);
    std::memset(sums.get(), 0, (size_t)table.nodes * (size_t)count * (size_t)s.width * sizeof(float));
    const KnnFloats scratch = w.packed ? KnnFloats() : knn_floats((size_t)s.block * (size_t)s.chunk * (size_t)s.width);
    for (int i = 0; i < s.chunks(); ++i) {
      const int channels = s.channels(i);
      const KnnSum sum{w.k, s.vectors, s.width, {x.data + i * s.chunk, x.node, x.image}, b0, count};
      if (w.packed) {
        const float* weights = w.packed + (size_t)panel * s.panel_floats() + (size_t)s.cells * i * s.chunk * s.width;
        knn_add_pairs(sum, pairs, 0, s.cells, weights, channels, sums.get());
        continue;
      }
      for (int v0 = 0; v0 < s.cells; v0 += s.block) {
        const int v1 = std::min(v0 + s.block, s.cells);
        knn_pack_part(w, panel, i * s.chunk, channels, v0, v1 - v0, scratch.get());
        knn_add_pairs(sum, pairs, v0, v1, scratch.get(), channels, sums.get());
      }
    }
    const float* bias = w.bias ? w.bias + panel * s.width : nullptr;
    for (int n = 0; n < table.nodes; ++n) {
      const float* shift = bias && knn_reads(table, n) ? bias : nullptr;
      for (int b = 0; b < count; ++b)
        w.k->finish(sums.get() + ((size_t)n * count + b) * s.width, shift, out.data + n * out.node + (b0 + b) * out.image + panel * s.width,
                    s.valid(panel));
    }
  });
}

}  // namespace

KnnFloats knn_floats(size_t n) {
  void* p = std::aligned_alloc(64, (n * sizeof(float) + 127) / 64 * 64);
  if (!p) throw std::bad_alloc();
  return KnnFloats(static_cast<float*>(p));
}

KnnShape::KnnShape(const KnnKernels& k, int cin_, int cout_, int cells_) : cin(cin_), cout(cout_), cells(cells_) {
  vectors = narrowest_waste(k, cout);
  width = vectors * k.lanes;
  panels = (cout + width - 1) / width;
  by_node = cin <= kFewChannels;
  block = cells;
  chunk = cin;
  if (by_node) return;
  // Sums are loaded and stored once per chunk: long chunks, of all cells if there are few.
  const int most = cells <= 3 * kLine ? kScratch / (cells * width) : 128;
  chunk = std::min(cin, std::max(kLine, most / kLine * kLine));
  chunk = (cin + chunks() - 1) / chunks();  // chunks of about the same size
  if ((int64_t)cells * chunk * width > kScratch) block = std::max(kLine, kScratch / (chunk * width) / kLine * kLine);
}

void knn_check(const KnnTable& t, int cells) {
  const int64_t count = (int64_t)t.nodes * t.k;
  bool good = true;
  for (int64_t i = 0; i < count; ++i) good &= (t.index[i] >= -1) & (t.index[i] < t.sources);
  if (!good) throw std::out_of_range("index: a neighbour is not among the input's " + std::to_string(t.sources) + " nodes");
  if (!t.cell) return;
  for (int64_t i = 0; i < count; ++i) good &= (t.cell[i] >= 0) & (t.cell[i] < cells);
  if (!good) throw std::out_of_range("cell: a cell is not among the kernel's " + std::to_string(cells));
}

KnnPairs knn_pairs(const KnnTable& table, int cells, bool backward) {
  KnnPairs p;
  const int64_t count = (int64_t)table.nodes * table.k;
  p.begin.assign((size_t)cells + 1, 0);
  for (int64_t i = 0; i < count; ++i)
    if (table.index[i] >= 0) ++p.begin[(size_t)table.cell[i] + 1];
  for (int v = 0; v < cells; ++v) p.begin[(size_t)v + 1] += p.begin[(size_t)v];
  p.from.resize((size_t)p.begin[(size_t)cells]);
  p.to.resize(p.from.size());
  std::vector<int32_t> next(p.begin.begin(), p.begin.end() - 1);
  for (int64_t i = 0; i < count; ++i) {
    if (table.index[i] < 0) continue;
    const size_t at = (size_t)next[(size_t)table.cell[i]]++;
    p.from[at] = table.index[i];
    p.to[at] = (int32_t)(i / table.k);
  }
  if (!backward) return p;
  // Several nodes may read one input through the same cell: their gradients meet in one row. First all first ones, then all second ones.
  p.from.swap(p.to);
  std::vector<int32_t> seen((size_t)table.sources, 0), from, to, rank;
  for (int v = 0; v < cells; ++v) {
    const size_t a = (size_t)p.begin[(size_t)v], b = (size_t)p.begin[(size_t)v + 1];
    rank.clear();
    int deepest = 0;
    for (size_t i = a; i < b; ++i) {
      rank.push_back(seen[(size_t)p.to[i]]++);
      deepest = std::max(deepest, rank.back());
    }
    for (size_t i = a; i < b; ++i) seen[(size_t)p.to[i]] = 0;
    if (!deepest) continue;
    from.assign(p.from.begin() + (int64_t)a, p.from.begin() + (int64_t)b);
    to.assign(p.to.begin() + (int64_t)a, p.to.begin() + (int64_t)b);
    size_t out = a;
    for (int r = 0; r <= deepest; ++r)
      for (size_t i = 0; i < rank.size(); ++i)
        if (rank[i] == r) p.from[out] = from[i], p.to[out++] = to[i];
  }
  return p;
}

std::vector<int64_t> knn_offsets(int channels, int cells, int width) {
  std::vector<int64_t> offsets((size_t)channels * (size_t)cells);
  for (int c = 0; c < channels; ++c)
    for (int v = 0; v < cells; ++v) offsets[(size_t)c * (size_t)cells + (size_t)v] = ((int64_t)v * channels + c) * width;
  return offsets;
}

void knn_pack_part(const KnnWeights& w, int panel, int c0, int channels, int v0, int cells, float* to) {
  const KnnShape& s = w.shape;
  const int valid = s.valid(panel);
  const int64_t ld = (int64_t)s.cin * s.cells;
  const float* from = w.raw + (int64_t)panel * s.width * ld + (int64_t)c0 * s.cells + v0;
  if (valid < s.width) std::memset(to, 0, (size_t)cells * (size_t)channels * (size_t)s.width * sizeof(float));
  if (cells == s.cells) return w.k->pack(from, ld, valid, channels * cells, knn_offsets(channels, cells, s.width).data(), to);
  std::vector<int64_t> offsets((size_t)cells);
  for (int v = 0; v < cells; ++v) offsets[(size_t)v] = (int64_t)v * channels * s.width;
  for (int c = 0; c < channels; ++c) w.k->pack(from + (int64_t)c * s.cells, ld, valid, cells, offsets.data(), to + (int64_t)c * s.width);
}

KnnFloats knn_pack(const KnnWeights& w) {
  const KnnShape& s = w.shape;
  KnnFloats packed = knn_floats((size_t)s.panels * s.panel_floats());
  const int chunks = s.chunks();
  knn_items(s.panels * chunks, (int64_t)s.cout * s.cin * s.cells, [&](int item) {
    const int panel = item / chunks, i = item % chunks;
    float* to = packed.get() + (size_t)panel * s.panel_floats() + (size_t)s.cells * i * s.chunk * s.width;
    knn_pack_part(w, panel, i * s.chunk, s.channels(i), 0, s.cells, to);
  });
  return packed;
}

void knn_add_pairs(const KnnSum& sum, const KnnPairs& pairs, int v0, int v1, const float* weights, int channels, float* sums) {
  const int most = sum.k->most_rows[sum.vectors];
  const float* x[kMostRows];
  float* out[kMostRows];
  for (int v = v0; v < v1; ++v) {
    const float* w = weights + (size_t)(v - v0) * channels * sum.width;
    int pair = pairs.begin[(size_t)v], b = 0;
    int64_t left = (int64_t)pairs.count(v) * sum.images;
    while (left > 0) {
      const int64_t groups = (left + most - 1) / most;
      const int want = (int)((left + groups - 1) / groups);
      int count = 0;
      for (; count < want; ++count) {
        float* to = sums + ((int64_t)pairs.to[(size_t)pair] * sum.images + b) * sum.width;
        // A row that is summed to twice must not be in one block; with many images that cannot happen.
        if (sum.images < most && std::find(out, out + count, to) != out + count) break;
        out[count] = to;
        x[count] = sum.x.data + pairs.from[(size_t)pair] * sum.x.node + (sum.b0 + b) * sum.x.image;
        if (++b == sum.images) b = 0, ++pair;
      }
      sum.k->add_rows(sum.vectors, x, out, count, w, channels);
      left -= count;
    }
  }
}

void knn_conv(const KnnWeights& w, const KnnTable& table, int batch, KnnMap x, KnnMap out) {
  if (w.shape.by_node) conv_by_node(w, table, batch, x, out);
  else
    conv_by_cell(w, table, batch, x, out);
}

}  // namespace sightline

// Convolution over nearest neighbours, backward. The gradient of the input is a convolution through the reversed pairs with transposed
// weights; that of the weights, one small product per cell.
#include "knn_parts.h"

namespace sightline {

namespace {

size_t rows_of(int nodes, int images) { return (size_t)nodes * (size_t)images; }

// Channels of a panel of g, [nodes][images][width], zeros in channels that do not exist.
void copy_panel(const KnnWeights& w, const KnnMap& g, int panel, int first, int last, int b0, int images, float* to) {
  const KnnShape& s = w.shape;
  const int valid = s.valid(panel);
  for (int n = first; n < last; ++n)
    for (int b = 0; b < images; ++b) {
      float* row = to + ((size_t)n * images + b) * s.width;
      std::memcpy(row, g.data + n * g.node + (b0 + b) * g.image + panel * s.width, (size_t)valid * sizeof(float));
      std::fill(row + valid, row + s.width, 0.0f);
    }
}

void input_by_cell(const KnnWeights& w, const KnnTable& table, int batch, const KnnMap& g, float* gx) {
  const int cin = w.shape.cin, cells = w.shape.cells;
  const KnnShape s(*w.k, w.shape.cout, cin, cells);  // of the transposed layer
  const KnnPairs pairs = knn_pairs(table, cells, true);
  const int images = knn_images(table.sources, s.width, batch), parts = (batch + images - 1) / images;
  knn_items(s.panels * parts, (int64_t)pairs.from.size() * cin * s.cin * batch, [&](int item) {
    const int panel = item / parts, b0 = item % parts * images, count = std::min(images, batch - b0), valid = s.valid(panel);
    const size_t size = rows_of(table.sources, count) * (size_t)s.width, most = (size_t)s.chunk * (size_t)s.block * (size_t)s.width;
    const KnnFloats sums = knn_floats(size), scratch = knn_floats(most);
    std::memset(sums.get(), 0, size * sizeof(float));
    std::vector<int64_t> offsets((size_t)cells);
    for (int i = 0; i < s.chunks(); ++i)
      for (int v0 = 0; v0 < cells; v0 += s.block) {
        const int channels = s.channels(i), v1 = std::min(v0 + s.block, cells);
        if (valid < s.width) std::memset(scratch.get(), 0, most * sizeof(float));
        for (int v = v0; v < v1; ++v) offsets[(size_t)(v - v0)] = (int64_t)(v - v0) * channels * s.width;
        for (int o = 0; o < channels; ++o) {
          const float* from = w.raw + ((int64_t)(i * s.chunk + o) * cin + panel * s.width) * cells + v0;
          w.k->pack(from, cells, valid, v1 - v0, offsets.data(), scratch.get() + (int64_t)o * s.width);
        }
        const KnnSum sum{w.k, s.vectors, s.width, {g.data + i * s.chunk, g.node, g.image}, b0, count};
        knn_add_pairs(sum, pairs, v0, v1, scratch.get(), channels, sums.get());
      }
    for (int m = 0; m < table.sources; ++m)
      for (int b = 0; b < count; ++b)
        std::memcpy(gx + ((int64_t)m * batch + b0 + b) * cin + panel * s.width, sums.get() + ((size_t)m * count + b) * s.width,
                    (size_t)valid * sizeof(float));
  });
}

void input_by_node(const KnnWeights& w, const KnnTable& table, int batch, const KnnMap& g, float* gx) {
  const KnnShape& s = w.shape;
  const KnnFloats packed = knn_pack(w), panel_of_g = knn_floats(rows_of(table.nodes, batch) * (size_t)s.width);
  // the pairs of each input node: where its readers' rows and their weights begin
  std::vector<int32_t> begin((size_t)table.sources + 1, 0);
  const int64_t slots = (int64_t)table.nodes * table.k;
  for (int64_t i = 0; i < slots; ++i)
    if (table.index[i] >= 0) ++begin[(size_t)table.index[i] + 1];
  for (int m = 0; m < table.sources; ++m) begin[(size_t)m + 1] += begin[(size_t)m];
  std::vector<int32_t> next(begin.begin(), begin.end() - 1);
  std::vector<int64_t> slot((size_t)begin[(size_t)table.sources]);
  for (int64_t i = 0; i < slots; ++i)
    if (table.index[i] >= 0) slot[(size_t)next[(size_t)table.index[i]]++] = i;
  std::memset(gx, 0, rows_of(table.sources, batch) * (size_t)s.cin * sizeof(float));
  constexpr int kNodes = 32;
  const int64_t work = (int64_t)slot.size() * s.cin * s.width * batch;
  for (int panel = 0; panel < s.panels; ++panel) {
    knn_items((table.nodes + kNodes - 1) / kNodes, work, [&](int item) {
      copy_panel(w, g, panel, item * kNodes, std::min((item + 1) * kNodes, table.nodes), 0, batch, panel_of_g.get());
    });
    const float* weights = packed.get() + (size_t)panel * s.panel_floats();
    knn_items((table.sources + kNodes - 1) / kNodes, work, [&](int item) {
      std::vector<const float*> gs, ws;
      for (int m = item * kNodes; m < std::min((item + 1) * kNodes, table.sources); ++m) {
        gs.clear(), ws.clear();
        for (int32_t p = begin[(size_t)m]; p < begin[(size_t)m + 1]; ++p) {
          gs.push_back(panel_of_g.get() + (size_t)(slot[(size_t)p] / table.k) * batch * s.width);
          ws.push_back(weights + (size_t)table.cell[slot[(size_t)p]] * s.cin * s.width);
        }
        w.k->dots(s.vectors, gs.data(), ws.data(), (int)gs.size(), s.cin, batch, gx + (int64_t)m * batch * s.cin, s.cin);
      }
    });
  }
}

// [cells][channels][width] back to rows of gw.
void unpack(const KnnWeights& w, int panel, int c0, int channels, const float* from, float* gw) {
  const KnnShape& s = w.shape;
  const int64_t ld = (int64_t)s.cin * s.cells;
  float* to = gw + (int64_t)panel * s.width * ld + (int64_t)c0 * s.cells;
  w.k->unpack(from, knn_offsets(channels, s.cells, s.width).data(), s.valid(panel), channels * s.cells, to, ld);
}

void weight_by_cell(const KnnWeights& w, const KnnTable& table, int batch, const KnnMap& g, const KnnMap& x, float* gw) {
  const KnnShape& s = w.shape;
  const KnnPairs pairs = knn_pairs(table, s.cells, false);
  const int images = knn_images(table.nodes, s.width, batch), chunks = s.chunks();
  knn_items(s.panels * chunks, (int64_t)pairs.from.size() * s.cin * s.cout * batch, [&](int item) {
    const int panel = item / chunks, c0 = item % chunks * s.chunk, channels = s.channels(item % chunks);
    const size_t size = (size_t)s.cells * (size_t)channels * (size_t)s.width;
    const KnnFloats sums = knn_floats(size), rows = knn_floats(rows_of(table.nodes, images) * (size_t)s.width);
    std::memset(sums.get(), 0, size * sizeof(float));
    std::vector<const float*> xs, gs;
    for (int b0 = 0; b0 < batch; b0 += images) {
      const int count = std::min(images, batch - b0);
      copy_panel(w, g, panel, 0, table.nodes, b0, count, rows.get());
      for (int v = 0; v < s.cells; ++v) {
        xs.clear(), gs.clear();
        for (int32_t p = pairs.begin[(size_t)v]; p < pairs.begin[(size_t)v + 1]; ++p)
          for (int b = 0; b < count; ++b) {
            xs.push_back(x.data + pairs.from[(size_t)p] * x.node + (b0 + b) * x.image + c0);
            gs.push_back(rows.get() + ((size_t)pairs.to[(size_t)p] * count + b) * s.width);
          }
        if (!xs.empty()) w.k->outer(s.vectors, xs.data(), gs.data(), (int)xs.size(), channels, sums.get() + (size_t)v * channels * s.width);
      }
    }
    unpack(w, panel, c0, channels, sums.get(), gw);
  });
}

void weight_by_node(const KnnWeights& w, const KnnTable& table, int batch, const KnnMap& g, const KnnMap& x, float* gw) {
  const KnnShape& s = w.shape;
  knn_items(s.panels, (int64_t)table.nodes * table.k * s.cin * s.cout * batch, [&](int panel) {
    const KnnFloats sums = knn_floats(s.panel_floats()), rows = knn_floats((size_t)batch * (size_t)s.width);
    std::memset(sums.get(), 0, s.panel_floats() * sizeof(float));
    std::vector<const float*> xs((size_t)batch), gs((size_t)batch);
    for (int b = 0; b < batch; ++b) gs[(size_t)b] = rows.get() + (size_t)b * s.width;
    for (int n = 0; n < table.nodes; ++n) {
      copy_panel(w, KnnMap{g.data + n * g.node, g.node, g.image}, panel, 0, 1, 0, batch, rows.get());
      for (int j = 0; j < table.k; ++j) {
        const int32_t m = table.index[(int64_t)n * table.k + j];
        if (m < 0) continue;
        for (int b = 0; b < batch; ++b) xs[(size_t)b] = x.data + m * x.node + b * x.image;
        float* to = sums.get() + (size_t)table.cell[(int64_t)n * table.k + j] * s.cin * s.width;
        w.k->outer(s.vectors, xs.data(), gs.data(), batch, s.cin, to);
      }
    }
    unpack(w, panel, 0, s.cin, sums.get(), gw);
  });
}

void bias_gradient(const KnnShape& s, const KnnTable& table, int batch, const KnnMap& g, float* gb) {
  constexpr int kColumns = 64;
  std::vector<uint8_t> reads((size_t)table.nodes);
  for (int n = 0; n < table.nodes; ++n) reads[(size_t)n] = knn_reads(table, n);
  knn_items((s.cout + kColumns - 1) / kColumns, (int64_t)table.nodes * batch * s.cout, [&](int item) {
    const int o0 = item * kColumns, count = std::min(kColumns, s.cout - o0);
    double sums[kColumns] = {};
    for (int n = 0; n < table.nodes; ++n)
      for (int b = 0; b < batch && reads[(size_t)n]; ++b) {
        const float* row = g.data + n * g.node + b * g.image + o0;
        for (int o = 0; o < count; ++o) sums[o] += row[o];
      }
    for (int o = 0; o < count; ++o) gb[o0 + o] = (float)sums[o];
  });
}

}  // namespace

void knn_conv_backward(const KnnWeights& w, const KnnTable& table, int batch, KnnMap g, KnnMap x, float* gx, float* gw, float* gb) {
  const bool by_node = w.shape.by_node;
  if (gx) (by_node ? input_by_node : input_by_cell)(w, table, batch, g, gx);
  if (gw) (by_node ? weight_by_node : weight_by_cell)(w, table, batch, g, x, gw);
  if (gb) bias_gradient(w.shape, table, batch, g, gb);
}

}  // namespace sightline

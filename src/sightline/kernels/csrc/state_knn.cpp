// Layers on points without a grid (k nearest neighbours): every output point has taps of its own, and each tap meets its own part of the
// weights. Taps are taken part by part, so that a part is read once for all points that meet it.
#include <algorithm>
#include <cstring>

#include "pool.h"
#include "state_parts.h"

namespace sightline {

// Fills one row of channels per site. A row is its bias plus one product after the other, in the order of the parts (and of its taps
// within a part), whatever the other sites are.
void State::knn_rows(const Step& s, const Site* list, int count, float* rows, Scratch& w) const {
  const Link& l = s.links[0];
  const Tensor &tin = program->tensors[(size_t)l.tensor], &tout = program->tensors[(size_t)s.out];
  const Axis& table = program->axes[(size_t)l.cols];
  const Kernels& k = *program->k;
  const int64_t ld = (int64_t)tin.ld * k.element;  // bytes from point to point
  const Raw* base = at(l.tensor);
  const int taps = table.taps;
  w.starts.assign((size_t)s.cells + 1, 0);
  for (int i = 0; i < count; ++i) {
    const int32_t *index = table.index.data() + (size_t)list[i].x * taps, *cell = s.cell.data() + (size_t)list[i].x * taps;
    for (int j = 0; j < taps; ++j)
      if (index[j] >= 0) ++w.starts[(size_t)cell[j] + 1];
  }
  int most = 0;
  for (int v = 0; v < s.cells; ++v) {
    most = std::max(most, w.starts[(size_t)v + 1]);
    w.starts[(size_t)v + 1] += w.starts[(size_t)v];
  }
  const size_t all = (size_t)w.starts[(size_t)s.cells];
  grow(w.taps, all + 1);
  grow(w.owners, all);
  for (int i = 0; i < count; ++i) {
    const int32_t *index = table.index.data() + (size_t)list[i].x * taps, *cell = s.cell.data() + (size_t)list[i].x * taps;
    const Raw* image = base + (int64_t)(list[i].index / tout.w) * tin.w * ld;
    bool some = false;
    for (int j = 0; j < taps; ++j) {
      if (index[j] < 0) continue;
      const size_t place = (size_t)w.starts[(size_t)cell[j]]++;
      w.taps[place] = image + index[j] * ld;
      w.owners[place] = i;
      some = true;
    }
    if (some) std::memcpy(rows + (int64_t)i * s.ldo, s.bias.data, sizeof(float) * (size_t)s.ldo);
    else std::memset(rows + (int64_t)i * s.ldo, 0, sizeof(float) * (size_t)s.ldo);
  }
  const int chunk = std::min(most, kChunk);
  grow(w.middle, (size_t)chunk * s.ldo + 64);
  float* products = w.middle.data;
  const float* zero = zeros_.data;
  const size_t depth = (size_t)pairs(s.cin, k.element);
  for (int v = 0, from = 0; v < s.cells; from = w.starts[(size_t)v++]) {  // starts[v] has become the end of part v
    for (int c = from; c < w.starts[(size_t)v]; c += kChunk) {
      const int n = std::min(kChunk, w.starts[(size_t)v] - c);
      for (const Panel& panel : s.phases[0].panels) {
        const float* weights = s.weights.data + panel.weights + (size_t)v * depth * (size_t)(panel.vectors * k.lanes);
        k.conv(ConvTile{w.taps.data() + c, 0, n, 1, s.cin, panel.vectors, weights, zero, products + panel.c0, s.ldo});
      }
      for (int i = 0; i < n; ++i)
        program->planar->add_row(products + (int64_t)i * s.ldo, rows + (int64_t)w.owners[(size_t)(c + i)] * s.ldo, s.ldo);
    }
  }
}

// The same in float32, by the kernels that the layers themselves have.
void State::knn_rows_float(const Step& s, const Site* list, int count, float* rows, Scratch& w) const {
  const Link& l = s.links[0];
  const Tensor &tin = program->tensors[(size_t)l.tensor], &tout = program->tensors[(size_t)s.out];
  const Axis& axis = program->axes[(size_t)l.cols];
  const size_t k = (size_t)axis.taps;
  KnnTable table{axis.index.data(), s.cell.data(), count, axis.taps, tin.n * tin.w};
  if (count != tout.w || tout.n != 1) {  // not simply all of them
    grow(w.owners, k * (size_t)count);
    grow(w.starts, k * (size_t)count);
    for (int i = 0; i < count; ++i) {
      const int32_t *from = axis.index.data() + (size_t)list[i].x * k, first = list[i].index / tout.w * tin.w;
      int32_t* to = w.owners.data() + (size_t)i * k;
      for (size_t j = 0; j < k; ++j) to[j] = from[j] < 0 ? -1 : from[j] + first;
      std::memcpy(w.starts.data() + (size_t)i * k, s.cell.data() + (size_t)list[i].x * k, sizeof(int32_t) * k);
    }
    table.index = w.owners.data();
    table.cell = w.starts.data();
  }
  knn_conv(*s.knn, table, 1, KnnMap{reinterpret_cast<float*>(at(l.tensor)), tin.ld, 0}, KnnMap{rows, s.ldo, 0});
}

// Each channel for itself: tap after tap is added to a row that stays in the first cache.
void State::run_knn_depthwise(int step) {
  const Step& s = program->steps[(size_t)step];
  const Link& l = s.links[0];
  const Tensor &tin = program->tensors[(size_t)l.tensor], &tout = program->tensors[(size_t)s.out];
  const Axis& axis = program->axes[(size_t)l.cols];
  const Kernels& k = *program->k;
  const Raw* base = at(l.tensor);
  const int64_t ld = (int64_t)tin.ld * k.element;
  const int outputs = tout.c / tin.c;
  list_sites(step);
  for_chunks(step, (int64_t)axis.taps * tout.c, [&](const Publish& pub, const Site* list, int n, float* rows, int ldr, Scratch& w) {
    if (outputs > 1) grow(w.middle, (size_t)ldr + 64);
    Raw* repeated = reinterpret_cast<Raw*>(w.middle.data);
    for (int i = 0; i < n; ++i) {
      const int32_t *index = axis.index.data() + (size_t)list[i].x * axis.taps, *cell = s.cell.data() + (size_t)list[i].x * axis.taps;
      const Raw* image = base + (int64_t)(list[i].index / tout.w) * tin.w * ld;
      float* row = rows + (int64_t)i * ldr;
      std::fill(row, row + ldr, 0.0f);
      for (int j = 0; j < axis.taps; ++j) {
        if (index[j] < 0) continue;
        const Raw* tap = image + index[j] * ld;
        if (outputs > 1) {  // every channel as often as it is read
          for (int c = 0; c < tout.c; ++c) std::memcpy(repeated + c * k.element, tap + c / outputs * k.element, (size_t)k.element);
          tap = repeated;
        }
        k.depthwise(&tap, 1, s.weights.data + (size_t)cell[j] * (size_t)s.cpad, s.cpad, row, PixelTask{&pub, list + i, 1, nullptr, row, ldr});
      }
    }
  });
}

void State::run_knn(int step) {
  const Step& s = program->steps[(size_t)step];
  if (s.cpad) return run_knn_depthwise(step);
  list_sites(step);
  const Publish pub = publisher(step);
  const int n = (int)list_.size(), threads = Pool::instance().threads();
  if (s.knn) {  // shares its work among threads by itself
    constexpr int kMost = 8192;
    for (int from = 0; from < n; from += kMost) {
      const int count = std::min(kMost, n - from);
      grow(big_rows_, (size_t)count * s.ldo + 64);
      grow(big_flags_, (size_t)count);
      knn_rows_float(s, list_.data() + from, count, big_rows_.data, scratch(0));
      finish(step, pub, big_rows_.data, s.ldo, list_.data() + from, count, big_flags_.data());
    }
    return note_density(step, pub);
  }
  const int64_t work = (int64_t)n * program->axes[(size_t)s.links[0].cols].taps * s.cin * s.ldo;
  const bool parallel = threads > 1 && work >= kSerialWork;
  int block = std::clamp((1 << 18) / s.ldo, kChunk, 4096);  // rows stay in L2
  if (parallel) block = std::clamp((n + threads - 1) / threads, 8, block);
  auto body = [&](int b, int worker) {
    Scratch& w = scratch(worker);
    const int from = b * block, count = std::min(block, n - from);
    float* rows = w.row_space((size_t)count * s.ldo + 64);
    grow(w.flags, (size_t)count);
    knn_rows(s, list_.data() + from, count, rows, w);
    finish(step, pub, rows, s.ldo, list_.data() + from, count, w.flags.data());
  };
  const int blocks = (n + block - 1) / block;
  if (parallel) Pool::instance().run(blocks, body);
  else
    for (int b = 0; b < blocks; ++b) body(b, 0);
  note_density(step, pub);
}

}  // namespace sightline

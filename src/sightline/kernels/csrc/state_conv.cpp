// Convolutions: taps, panels, and how the work is cut for threads.
#include <algorithm>
#include <cstring>

#include "pool.h"
#include "state_parts.h"

namespace sightline {

void State::fill_taps(const Step& s, int phase, bool merged, const Site* list, int n, const Raw** taps) const {
  const Link& l = s.links[0];
  const Tensor &tin = program->tensors[(size_t)l.tensor], &tout = program->tensors[(size_t)s.out];
  const Raw* base = at(l.tensor);
  const int64_t ld = (int64_t)tin.ld * program->k->element;  // bytes from pixel to pixel
  if (l.how == Reads::kSame) {
    for (int i = 0; i < n; ++i) taps[i] = base + (int64_t)list[i].index * ld;
    return;
  }
  const Axis &ay = program->axes[(size_t)l.rows], &ax = program->axes[(size_t)l.cols];
  const Phase& p = s.phases[(size_t)phase];
  const int ny = (int)p.ky.size(), nx = (int)p.kx.size();
  const int *ky = p.ky.data(), *kx = p.kx.data();
  const Raw* const zero = reinterpret_cast<const Raw*>(zeros_.data);
  for (int from = 0, to = 0; from < n; from = to) {  // sites of one row read the same rows
    const int y = list[from].y, first = list[from].index - list[from].x;
    for (to = from + 1; to < n && list[to].index - list[to].x == first;) ++to;
    const Raw* image = base + (tin.n == 1 ? 0 : (int64_t)(first / (tout.h * tout.w)) * tin.h * tin.w * ld);
    const int32_t* rows = ay.index.data() + (size_t)y * ay.taps;
    const int ntaps = merged ? ny : ny * nx;
    for (int j = 0; j < ny; ++j) {
      const int r = rows[ky[j]];
      const Raw* const line = image + (int64_t)r * tin.w * ld;
      const Raw** out = taps + (merged ? j : j * nx);
      if (r < 0) {
        for (int i = from; i < to; ++i, out += ntaps)
          for (int m = 0; m < (merged ? 1 : nx); ++m) out[m] = zero;
      } else if (merged) {
        for (int i = from; i < to; ++i, out += ntaps) *out = line + ax.index[(size_t)list[i].x * ax.taps] * ld;
      } else {
        for (int i = from; i < to; ++i, out += ntaps) {
          const int32_t* cols = ax.index.data() + (size_t)list[i].x * ax.taps;
          for (int m = 0; m < nx; ++m) {
            const int c = cols[kx[m]];
            out[m] = c < 0 ? zero : line + c * ld;
          }
        }
      }
    }
    taps += (int64_t)(to - from) * ntaps;
  }
}

// All panels of a convolution over pixels whose taps lie in shape.taps, finished and written; w.flags says which changed. False: none.
bool State::conv_panels(const Step& s, const Phase& p, bool merged, const ConvTile& shape, const Site* list, int count, const Publish& pub,
                        Scratch& w) {
  const Kernels& k = *program->k;
  const bool in_registers = finishes_in_registers(pub), keeps_rows = !publishes_at_once(pub);
  const int panels = (int)p.panels.size();
  float* rows = keeps_rows ? w.row_space((size_t)count * s.ldo + 64) : nullptr;
  grow(w.flags, (size_t)count);
  grow(w.sums, (size_t)count * panels);
  std::memset(w.flags.data(), 0, (size_t)count);
  ConvTile t = shape;
  t.ldo = s.ldo;
  for (int i = 0; i < panels; ++i) {
    const Panel& panel = p.panels[(size_t)i];
    t.shift = panel.shift;
    t.vectors = panel.vectors;
    t.weights = s.weights.data + (merged ? panel.merged : panel.weights);
    t.bias = s.bias.data + panel.bias;
    t.c0 = panel.c0;
    t.valid = panel.valid;
    for (int c = 0; c < count; c += kChunk) {
      t.taps = shape.taps + (size_t)c * shape.ntaps;
      t.pixels = std::min(kChunk, count - c);
      t.out = rows ? rows + (size_t)c * s.ldo + panel.c0 : nullptr;
      t.sums = w.sums.data() + (size_t)i * count + c;
      if (in_registers) k.conv_publish(t, pub, list + c, w.flags.data() + c);
      else k.conv(t);
    }
  }
  if (!in_registers) return k.publish(pub, rows, s.ldo, list, count, w.flags.data()) > 0;
  if (keeps_rows) k.commit(pub, rows, s.ldo, w.sums.data(), count, panels, list, count, w.flags.data());
  return true;
}

void State::conv_pixels(const Step& s, const Phase& p, bool merged, const ConvTile& shape, const Site* list, int count, const Publish& pub,
                        int step, Scratch& w) {
  if (conv_panels(s, p, merged, shape, list, count, pub, w)) mark_changed(step, pub, list, count, w.flags.data());
}

void State::conv_group(const Step& s, int phase, bool merged, const SiteList& list, const Publish& pub, int step) {
  if (merged && s.narrow && publishes_at_once(pub) && !pub.residual) return run_conv_narrow(step, list, pub);
  const Kernels& k = *program->k;
  const Phase& p = s.phases[(size_t)phase];
  const int n = (int)list.size();
  const int ntaps = (int)(merged ? p.ky.size() : p.ky.size() * p.kx.size());
  const int run = merged ? s.kw * s.cin : s.cin;
  const int64_t depth = (int64_t)ntaps * run;
  const int panels = (int)p.panels.size();
  const int threads = Pool::instance().threads();
  const bool parallel = threads > 1 && depth * s.ldo * n >= kSerialWork;
  int block = kChunk;
  if (depth * s.ldo * k.element > kSmallWeights) block = std::clamp((1 << 18) / s.ldo, kChunk, 2048);
  block = std::min(block, std::max(kChunk, 16384 / std::max(ntaps, 1)));
  bool by_panel = false;
  if (parallel && n < block * 2 * threads) {
    if (n >= 64 * threads) block = std::max(32, (n + 2 * threads - 1) / (2 * threads));
    else if (panels >= threads && !s.panels_overlap) by_panel = true;
    else block = std::max(6, (n + threads - 1) / threads);
  }
  auto tile = [&](const Panel& panel, const Raw* const* taps, int pixels, float* out, float* sums) {
    return ConvTile{taps, panel.shift, pixels, ntaps, run, panel.vectors, s.weights.data + (merged ? panel.merged : panel.weights), s.bias.data + panel.bias,
                    out ? out + panel.c0 : nullptr, s.ldo, sums, panel.c0, panel.valid};
  };
  const bool in_registers = finishes_in_registers(pub), keeps_rows = !publishes_at_once(pub);
  if (by_panel) {
    grow(big_taps_, (size_t)n * ntaps + 1);
    grow(big_flags_, (size_t)n);
    fill_taps(s, phase, merged, list.data(), n, big_taps_.data());
    if (keeps_rows) grow(big_rows_, (size_t)n * s.ldo + 64);
    grow(big_sums_, (size_t)n * panels);
    std::memset(big_flags_.data(), 0, (size_t)n);
    Pool::instance().run(panels, [&](int i, int) {
      const ConvTile t = tile(p.panels[(size_t)i], big_taps_.data(), n, big_rows_.data, big_sums_.data() + (size_t)i * n);
      if (in_registers) k.conv_publish(t, pub, list.data(), big_flags_.data());
      else k.conv(t);
    });
    if (!in_registers) return finish(step, pub, big_rows_.data, s.ldo, list.data(), n, big_flags_.data());
    if (keeps_rows) k.commit(pub, big_rows_.data, s.ldo, big_sums_.data(), n, panels, list.data(), n, big_flags_.data());
    return mark_changed(step, pub, list.data(), n, big_flags_.data());
  }
  const int blocks = (n + block - 1) / block;
  const int even = (n + blocks - 1) / blocks;
  auto body = [&](int b, int worker) {
    Scratch& w = scratch(worker);
    const int from = b * even, count = std::min(even, n - from);
    if (count <= 0) return;
    grow(w.taps, (size_t)even * ntaps + 1);
    grow(w.flags, (size_t)even);
    fill_taps(s, phase, merged, list.data() + from, count, w.taps.data());
    conv_pixels(s, p, merged, tile(p.panels[0], w.taps.data(), count, nullptr, nullptr), list.data() + from, count, pub, step, w);
  };
  if (parallel) Pool::instance().run(blocks, body);
  else
    for (int b = 0; b < blocks; ++b) body(b, 0);
}

void State::run_conv(int step) {
  const Step& s = program->steps[(size_t)step];
  list_categories(step);
  const Publish pub = publisher(step);
  const size_t count = s.merged_rows ? 2 : s.phases.size();
  for (size_t i = 0; i < count; ++i)
    if (!categories_[i].empty()) conv_group(s, s.merged_rows ? 0 : (int)i, s.merged_rows && i == 1, categories_[i], pub, step);
  note_density(step, pub);
}

// A depthwise convolution at some sites of one output row. w.lines[j] is where column 0 of window row j lies, null outside the map, and
// pixels lie `pitch` elements apart. Published into `places` at once where `pub` allows that, else left in rows. `ahead`: see DepthwiseRun.
void State::depthwise_row(const Step& s, const Site* list, int n, const Site* places, int pitch, const Publish& pub, float* rows, int ldr,
                          uint8_t* flags, Scratch& w, int64_t ahead) const {
  const Axis& ax = program->axes[(size_t)s.links[0].cols];
  const Kernels& k = *program->k;
  const int behind = std::max(0, s.kh - program->axes[(size_t)s.links[0].rows].stride);
  const Raw* zero = reinterpret_cast<const Raw*>(zeros_.data);
  const int64_t ld = (int64_t)pitch * k.element;  // bytes from pixel to pixel
  const bool at_once = publishes_pixels(pub), runs = s.inner_x1 > s.inner_x0 && k.depthwise_runs(s.kh, s.kw, ax.stride);
  grow(w.taps, (size_t)s.kh * s.kw);
  const Raw** taps = w.taps.data();
  for (int i = 0; i < n;) {
    const int x = list[i].x;
    const int32_t* cx = ax.index.data() + (size_t)x * ax.taps;
    float* row = at_once ? nullptr : rows + (int64_t)i * ldr;
    if (runs && x >= s.inner_x0 && x < s.inner_x1) {
      int count = 1;
      while (count < kLongest && i + count < n && list[i + count].x == x + count && x + count < s.inner_x1) ++count;
      for (int j = 0; j < s.kh; ++j) taps[j] = w.lines[(size_t)j] ? w.lines[(size_t)j] + cx[0] * ld : zero;
      const DepthwiseRun run{taps, count, pitch, ax.stride, s.weights.data, s.cpad, s.bias.data, row, ldr, pub.c, ahead, behind};
      if (at_once) k.depthwise_publish(s.kh, s.kw, run, pub, places[i].index, flags + i);
      else k.depthwise_run(s.kh, s.kw, run);
      i += count;
      continue;
    }
    int t = 0;
    for (int j = 0; j < s.kh; ++j)
      for (int m = 0; m < s.kw; ++m) taps[t++] = (!w.lines[(size_t)j] || cx[m] < 0) ? zero : w.lines[(size_t)j] + cx[m] * ld;
    k.depthwise(taps, t, s.weights.data, s.cpad, s.bias.data, PixelTask{&pub, places + i, 1, flags + i, at_once ? nullptr : row, ldr});
    ++i;
  }
}

void State::run_depthwise(int step) {
  const Step& s = program->steps[(size_t)step];
  list_sites(step);
  const Link& l = s.links[0];
  const Tensor &tin = program->tensors[(size_t)l.tensor], &tout = program->tensors[(size_t)s.out];
  const Axis& ay = program->axes[(size_t)l.rows];
  const Raw* base = at(l.tensor);
  const int64_t line = (int64_t)tin.w * tin.ld * program->k->element;  // bytes from row to row
  const int64_t ahead = line * tin.h * tin.n >= kFetched ? ay.stride * line : 0;
  const Publish pub = publisher(step);
  const bool at_once = publishes_pixels(pub);
  const int ldr = (tout.c + 15) / 16 * 16;
  const int chunk = at_once ? 256 : std::clamp(32768 / ldr, 8, 64);
  split_list(chunk, (int64_t)s.kh * s.kw * tout.c, [&](const Site* list, int n, Scratch& w) {
    float* rows = at_once ? nullptr : w.row_space((size_t)chunk * ldr + 64);
    grow(w.flags, (size_t)chunk);
    grow(w.lines, (size_t)s.kh);
    uint8_t* flags = w.flags.data();
    for (int from = 0, to = 0; from < n; from = to) {
      const int image = list[from].index / (tout.h * tout.w), y = list[from].y;
      while (to < n && list[to].y == y && list[to].index - list[from].index < tout.w) ++to;
      for (int j = 0; j < s.kh; ++j) {
        const int r = ay.index[(size_t)y * ay.taps + j];
        w.lines[(size_t)j] = r < 0 ? nullptr : base + ((int64_t)(tin.n == 1 ? 0 : image) * tin.h + r) * line;
      }
      depthwise_row(s, list + from, to - from, list + from, tin.ld, pub, at_once ? nullptr : rows + (int64_t)from * ldr, ldr, flags + from, w, ahead);
    }
    if (at_once) mark_changed(step, pub, list, n, flags);
    else finish(step, pub, rows, ldr, list, n, flags);
  });
  note_density(step, pub);
}

}  // namespace sightline

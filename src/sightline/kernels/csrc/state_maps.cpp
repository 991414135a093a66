// Pooling, resampling, element-wise steps, moves and means.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "pool.h"
#include "state_parts.h"

namespace sightline {

void State::run_windows(int step) {
  const Step& s = program->steps[(size_t)step];
  if (s.narrow && s.residual < 0 && (s.act == kNone || s.act == kRelu || s.act == kClamp) && (fresh || threshold[(size_t)step] == 0))
    return run_upsample_narrow(step);
  list_sites(step);
  const Link& l = s.links[0];
  const Tensor &tin = program->tensors[(size_t)l.tensor], &tout = program->tensors[(size_t)s.out];
  const Axis &ay = program->axes[(size_t)l.rows], &ax = program->axes[(size_t)l.cols];
  const Raw* base = at(l.tensor);
  const Raw* zero = reinterpret_cast<const Raw*>(zeros_.data);
  const bool max = s.kind == Kind::kMaxPool;
  const Kernels& k = *program->k;
  const int64_t ld = (int64_t)tin.ld * k.element;  // bytes from pixel to pixel
  const int ny = ay.taps, nx = ax.taps, ntaps = ny * nx;
  for_pixels(step, (int64_t)ntaps * tout.c, [&](const PixelTask& to, Scratch& w) {
    grow(w.taps, (size_t)to.count * ntaps);
    const Raw** taps = w.taps.data();
    for (int i = 0; i < to.count; ++i, taps += ntaps) {
      const Site site = to.sites[i];
      const Raw* image = tin.n == 1 ? base : base + (int64_t)(site.index / (tout.h * tout.w)) * tin.h * tin.w * ld;
      const int32_t *rows = ay.index.data() + (size_t)site.y * ny, *cols = ax.index.data() + (size_t)site.x * nx;
      const Raw* some = nullptr;  // a maximum does not mind reading a pixel twice, so one inside stands for those outside
      bool outside = false;
      for (int j = 0; j < ny; ++j) {
        const Raw* const line = image + (int64_t)rows[j] * tin.w * ld;
        for (int m = 0; m < nx; ++m) {
          const bool inside = rows[j] >= 0 && cols[m] >= 0;
          taps[j * nx + m] = inside ? line + cols[m] * ld : zero;
          if (inside) some = taps[j * nx + m];
          outside |= !inside;
        }
      }
      if (!max || !outside) continue;
      for (int j = 0; j < ntaps; ++j)
        if (taps[j] == zero) taps[j] = some ? some : reinterpret_cast<const Raw*>(s.empty_pixel.data);
    }
    if (max) k.max_pool(w.taps.data(), ntaps, to);
    else k.weighted(w.taps.data(), ny, nx, s.wy.data(), s.wx.data(), s.div_y.data(), s.div_x.data(), s.divisor, to);
  });
}

// Mean and variance over the channels in two passes, as far as float32 input deserves; then scale and shift. `x` is overwritten.
static void normalize_pixel(float* x, const float* scale, const float* shift, int c, float epsilon) {
  double sum = 0, squares = 0;
  for (int i = 0; i < c; ++i) sum += x[i];
  const float mean = (float)(sum / c);
  for (int i = 0; i < c; ++i) squares += (double)(x[i] - mean) * (x[i] - mean);
  const float factor = (float)(1.0 / std::sqrt(squares / c + epsilon));
  for (int i = 0; i < c; ++i) x[i] = (x[i] - mean) * factor * scale[i] + shift[i];
}

void State::run_elementwise(int step) {
  const Step& s = program->steps[(size_t)step];
  list_sites(step);
  const Tensor& tout = program->tensors[(size_t)s.out];
  const Kernels& k = *program->k;
  const int ldr = (tout.c + 15) / 16 * 16 + 64;
  // Where each site's operand lies; a single channel is spread over a row of its own.
  auto operands = [&](int link, const PixelTask& to, const Raw** from, Raw* spread) {
    const Tensor& t = program->tensors[(size_t)s.links[(size_t)link].tensor];
    const Raw* base = at(s.links[(size_t)link].tensor);
    const int64_t ld = (int64_t)t.ld * k.element;  // bytes from pixel to pixel
    const bool same = t.n == tout.n && t.h == tout.h && t.w == tout.w;
    for (int i = 0; i < to.count; ++i) {
      const Site& site = to.sites[i];
      int64_t pixel = site.index;
      if (!same) {
        const int64_t image = t.n == 1 ? 0 : site.index / (tout.h * tout.w);
        pixel = (image * t.h + (t.h == 1 ? 0 : site.y)) * t.w + (t.w == 1 ? 0 : site.x);
      }
      from[i] = base + pixel * ld;
      if (t.c == tout.c) continue;
      Raw* row = spread + (int64_t)i * ldr * k.element;
      if (k.element == 4) std::fill_n(reinterpret_cast<float*>(row), tout.c, *reinterpret_cast<const float*>(from[i]));
      else std::fill_n(reinterpret_cast<uint16_t*>(row), tout.c, *reinterpret_cast<const uint16_t*>(from[i]));
      from[i] = row;
    }
  };
  auto spread_space = [&](int link, const PixelTask& to) {
    return program->tensors[(size_t)s.links[(size_t)link].tensor].c == tout.c ? 0 : (size_t)to.count * ldr;
  };
  if (s.kind == Kind::kBinary) {
    for_pixels(step, 2 * tout.c, [&](const PixelTask& to, Scratch& w) {
      grow(w.taps, 2 * (size_t)to.count);
      const size_t first = spread_space(0, to), second = spread_space(1, to);
      grow(w.sums, first + second);
      const Raw **a = w.taps.data(), **b = a + to.count;
      operands(0, to, a, reinterpret_cast<Raw*>(w.sums.data()));
      operands(1, to, b, reinterpret_cast<Raw*>(w.sums.data() + first));
      k.binary(s.op, a, b, to);
    });
  } else if (s.normalize >= 0 || s.softmax) {
    for_chunks(step, 8 * tout.c, [&](const Publish& pub, const Site* list, int n, float* rows, int ld, Scratch& w) {
      grow(w.taps, (size_t)n);
      const PixelTask to{&pub, list, n, nullptr, rows, ld};
      operands(0, to, w.taps.data(), nullptr);
      if (s.softmax) return k.softmax(w.taps.data(), to);
      k.gather(w.taps.data(), nullptr, 0, to);
      for (int i = 0; i < n; ++i) normalize_pixel(rows + (int64_t)i * ld, s.weights.data, s.bias.data, tout.c, s.normalize);
    });
  } else {
    for_pixels(step, 2 * tout.c, [&](const PixelTask& to, Scratch& w) {
      grow(w.taps, (size_t)to.count);
      operands(0, to, w.taps.data(), nullptr);
      if (s.weights.size) k.affine(w.taps.data(), s.weights.data, s.bias.data, to);
      else k.gather(w.taps.data(), nullptr, 0, to);
    });
  }
}

namespace {
float widen(float x) { return x; }
float widen(uint16_t x) {
  const uint32_t bits = (uint32_t)x << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Channels of one pixel to their places.
template <class E>
void copy_runs(const std::vector<ChannelRun>& runs, const E* from, float* out) {
  for (const ChannelRun& run : runs)
    if (run.length == 1) out[run.dst] = widen(from[run.src]);
    else if constexpr (sizeof(E) == sizeof(float)) std::memcpy(out + run.dst, from + run.src, sizeof(float) * (size_t)run.length);
    else for (int j = 0; j < run.length; ++j) out[run.dst + j] = widen(from[run.src + j]);
}
}  // namespace

void State::run_gather(int step) {
  const Step& s = program->steps[(size_t)step];
  bool whole = true;
  for (const GatherPart& part : s.parts) whole = whole && part.whole;
  if (!whole && (s.parts.size() != 1 || s.parts[0].picks.empty())) return run_gather_parts(step);
  // Every site takes all of its channels from one place of one part.
  list_sites(step);
  const Tensor& tout = program->tensors[(size_t)s.out];
  const Kernels& k = *program->k;
  for_pixels(step, tout.c, [&](const PixelTask& to, Scratch& w) {
    grow(w.taps, (size_t)to.count);
    const Raw** from = w.taps.data();
    std::fill(from, from + to.count, nullptr);
    for (const GatherPart& part : s.parts) {
      const Link& l = s.links[(size_t)part.link];
      const Tensor& t = program->tensors[(size_t)l.tensor];
      const Raw* base = at(l.tensor);
      const int64_t ld = (int64_t)t.ld * k.element;  // bytes from pixel to pixel
      if (l.how == Reads::kSame) {
        for (int i = 0; i < to.count; ++i) from[i] = base + to.sites[i].index * ld;
        continue;
      }
      const int32_t *rows = program->axes[(size_t)l.rows].index.data(), *cols = program->axes[(size_t)l.cols].index.data();
      for (int i = 0; i < to.count; ++i) {
        const Site site = to.sites[i];
        const int r = rows[site.y], c = cols[site.x];
        const int64_t image = tout.n == 1 ? 0 : site.index / (tout.h * tout.w);
        if (r >= 0 && c >= 0) from[i] = base + ((image * t.h + r) * t.w + c) * ld;
      }
    }
    if (whole) return k.gather(from, nullptr, s.fill, to);
    const GatherPart& part = s.parts[0];
    grow(w.picks, (size_t)to.count);
    for (int i = 0; i < to.count; ++i) {
      const size_t phase = part.picks.size() == 1 ? 0 : (size_t)((to.sites[i].y % part.period_y) * part.period_x + to.sites[i].x % part.period_x);
      w.picks[(size_t)i] = part.picks[phase].data();
    }
    k.gather(from, w.picks.data(), s.fill, to);
  });
}

// The channels of a site come from several parts.
void State::run_gather_parts(int step) {
  const Step& s = program->steps[(size_t)step];
  list_sites(step);
  const Tensor& tout = program->tensors[(size_t)s.out];
  const int element = program->k->element;
  for_chunks(step, tout.c, [&](const Publish&, const Site* list, int n, float* rows, int ldr, Scratch&) {
    for (int i = 0; i < n; ++i) {
      const Site site = list[i];
      float* out = rows + (int64_t)i * ldr;
      std::fill(out, out + tout.c, s.fill);
      for (const GatherPart& part : s.parts) {
        const Link& l = s.links[(size_t)part.link];
        const Tensor& t = program->tensors[(size_t)l.tensor];
        int r = site.y, c = site.x;
        if (l.how == Reads::kWindow) {
          r = program->axes[(size_t)l.rows].index[site.y];
          c = program->axes[(size_t)l.cols].index[site.x];
        }
        if (r < 0 || c < 0) continue;
        const int64_t image = site.index / (tout.h * tout.w);
        const Raw* from = at(l.tensor) + ((image * t.h + r) * t.w + c) * t.ld * element;
        const auto& runs = part.runs[(size_t)((site.y % part.period_y) * part.period_x + site.x % part.period_x)];
        if (element == 4) copy_runs(runs, reinterpret_cast<const float*>(from), out);
        else copy_runs(runs, reinterpret_cast<const uint16_t*>(from), out);
      }
    }
  });
}

// Mean over the map. Sums of rows are kept, so that only rows with changes are read again; the order of additions never changes.
void State::run_mean(int step) {
  const Step& s = program->steps[(size_t)step];
  list_sites(step);
  const Tensor &tin = program->tensors[(size_t)s.links[0].tensor], &tout = program->tensors[(size_t)s.out];
  const Mask& m = changed[(size_t)tin.mask];
  const int pad = (tin.c + 15) / 16 * 16;
  float* sums = row_sums_[(size_t)step].data;
  const Raw* x = at(s.links[0].tensor);
  const int64_t line = (int64_t)tin.w * tin.ld * program->k->element;  // bytes from row to row
  std::vector<int> rows;
  for (const Site& site : list_)
    for (int r = site.index * tin.h; r < (site.index + 1) * tin.h; ++r)
      if (fresh || m.row_any[(size_t)r] || (!resum_.empty() && resum_[(size_t)site.index])) rows.push_back(r);
  auto body = [&](int i, int) {
    const int r = rows[(size_t)i];
    program->k->sum_row(x + r * line, tin.w, tin.ld, sums + (int64_t)r * pad, tin.c);
  };
  if ((int64_t)rows.size() * tin.w * tin.c < kSerialWork)
    for (int i = 0; i < (int)rows.size(); ++i) body(i, 0);
  else
    Pool::instance().run((int)rows.size(), body);
  const double scale = 1.0 / ((double)tin.h * tin.w);
  for_chunks(step, (int64_t)tin.h * tout.c, [&](const Publish&, const Site* list, int n, float* out, int ldr, Scratch&) {
    std::vector<double> total((size_t)tout.c);
    for (int i = 0; i < n; ++i) {
      std::fill(total.begin(), total.end(), 0.0);
      for (int r = list[i].index * tin.h; r < (list[i].index + 1) * tin.h; ++r)
        for (int c = 0; c < tout.c; ++c) total[(size_t)c] += sums[(int64_t)r * pad + c];
      for (int c = 0; c < tout.c; ++c) out[(int64_t)i * ldr + c] = (float)(total[(size_t)c] * scale);
    }
  });
}

}  // namespace sightline

// Pooling, resampling, element-wise steps, moves and means.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "pool.h"
#include "state_parts.h"

namespace sightline {

void State::run_windows(int step) {
  const Step& s = program->steps[(size_t)step];
  list_sites(step);
  const Link& l = s.links[0];
  const Tensor &tin = program->tensors[(size_t)l.tensor], &tout = program->tensors[(size_t)s.out];
  const Axis &ay = program->axes[(size_t)l.rows], &ax = program->axes[(size_t)l.cols];
  const Raw* base = at(l.tensor);
  const Raw* zero = reinterpret_cast<const Raw*>(zeros_.data);
  const bool max = s.kind == Kind::kMaxPool;
  const Kernels& k = *program->k;
  const int64_t ld = (int64_t)tin.ld * k.element;  // bytes from pixel to pixel
  for_chunks(step, (int64_t)ay.taps * ax.taps * tout.c, [&](const Site* list, int n, float* rows, int ldr, Scratch& w) {
    grow(w.taps, (size_t)ay.taps * ax.taps);
    for (int i = 0; i < n; ++i) {
      const Site at = list[i];
      const Raw* image = tin.n == 1 ? base : base + (int64_t)(at.index / (tout.h * tout.w)) * tin.h * tin.w * ld;
      int t = 0;
      for (int j = 0; j < ay.taps; ++j)
        for (int m = 0; m < ax.taps; ++m) {
          const int r = ay.index[(size_t)at.y * ay.taps + j], c = ax.index[(size_t)at.x * ax.taps + m];
          if (r < 0 || c < 0) {
            if (!max) w.taps[(size_t)t++] = zero;
          } else {
            w.taps[(size_t)t++] = image + ((int64_t)r * tin.w + c) * ld;
          }
        }
      float* out = rows + (int64_t)i * ldr;
      if (max) {
        if (t) k.max_pixel(w.taps.data(), t, out, tout.c);
        else std::fill(out, out + ldr, s.fill);
      } else {
        const float d = s.divisor != 0 ? s.divisor : s.div_y[at.y] * s.div_x[at.x];
        k.weighted_pixel(w.taps.data(), ay.taps, ax.taps, s.wy.data() + (size_t)at.y * ay.taps, s.wx.data() + (size_t)at.x * ax.taps, d,
                         out, tout.c);
      }
    }
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
  auto operand = [&](int i, const Site& site, Raw* splat) -> const Raw* {
    const Tensor& t = program->tensors[(size_t)s.links[(size_t)i].tensor];
    const int64_t image = site.index / (tout.h * tout.w);
    const int64_t pixel = ((t.n == 1 ? 0 : image) * t.h + (t.h == 1 ? 0 : site.y)) * t.w + (t.w == 1 ? 0 : site.x);
    const Raw* x = at(s.links[(size_t)i].tensor) + pixel * t.ld * k.element;
    if (t.c == tout.c) return x;
    if (k.element == 4) std::fill_n(reinterpret_cast<float*>(splat), tout.c, *reinterpret_cast<const float*>(x));
    else std::fill_n(reinterpret_cast<uint16_t*>(splat), tout.c, *reinterpret_cast<const uint16_t*>(x));
    return splat;
  };
  for_chunks(step, 2 * tout.c, [&](const Site* list, int n, float* rows, int ldr, Scratch& w) {
    if (s.kind == Kind::kPointwise) {
      const Tensor& t = program->tensors[(size_t)s.links[0].tensor];
      const Raw* x = at(s.links[0].tensor);
      for (int i = 0; i < n; ++i) {
        const Raw* from = x + (int64_t)list[i].index * t.ld * k.element;
        if (s.normalize >= 0) {
          k.copy_pixel(from, rows + (int64_t)i * ldr, tout.c);
          normalize_pixel(rows + (int64_t)i * ldr, s.weights.data, s.bias.data, tout.c, s.normalize);
        } else if (s.weights.size) k.affine_pixel(from, s.weights.data, s.bias.data, rows + (int64_t)i * ldr, tout.c);
        else k.copy_pixel(from, rows + (int64_t)i * ldr, tout.c);
      }
      return;
    }
    grow(w.sums, 2 * (size_t)ldr + 128);  // a row of its own for each broadcast operand
    Raw *first = reinterpret_cast<Raw*>(w.sums.data()), *second = reinterpret_cast<Raw*>(w.sums.data() + ldr + 64);
    for (int i = 0; i < n; ++i)
      k.binary_pixel(s.op, operand(0, list[i], first), operand(1, list[i], second), rows + (int64_t)i * ldr, tout.c);
  });
}

namespace {
float widen(float x) { return x; }
float widen(uint16_t x) {
  const uint32_t bits = (uint32_t)x << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Channels of one pixel to their places. Shuffles move single channels, so a run must cost no more than its channels do.
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
  list_sites(step);
  const Tensor& tout = program->tensors[(size_t)s.out];
  const int element = program->k->element;
  for_chunks(step, tout.c, [&](const Site* list, int n, float* rows, int ldr, Scratch&) {
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
  for_chunks(step, (int64_t)tin.h * tout.c, [&](const Site* list, int n, float* out, int ldr, Scratch&) {
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

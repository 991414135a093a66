// Pooling at listed sites, products that are summed over channels only, and the gradients of both.
#include "eager_parts.h"

namespace sightline {

void EagerWindow::max_pool(int n, int c, View x, View out, const uint8_t* mask) const {
  const Lists lists = list(mask, n);
  const Source source(*this, n, c, x, lists, false);
  const Phase& phase = phases_[0];
  const int taps = phase.taps();
  for_rows(lists[0], c, taps, out, [&](const Site* here, int count, auto&& row) {
    std::vector<const float*> from((size_t)count * taps);
    fill_taps<const float*>(source.pixels, phase, here, count, nullptr, from.data());
    for (int i = 0; i < count; ++i) e_->max_pool(from.data() + (size_t)i * taps, taps, row(i), c);
  });
}

void EagerWindow::avg_pool(int n, int c, View x, View out, const uint8_t* mask, const float* div_y, const float* div_x) const {
  const Lists lists = list(mask, n);
  const Source source(*this, n, c, x, lists, false);
  const Phase& phase = phases_[0];
  const int taps = phase.taps();
  for_rows(lists[0], c, taps, out, [&](const Site* here, int count, auto&& row) {
    std::vector<const float*> from((size_t)count * taps);
    fill_taps<const float*>(source.pixels, phase, here, count, nullptr, from.data());
    for (int i = 0; i < count; ++i)
      e_->sum_pool(from.data() + (size_t)i * taps, taps, div_y[here[i].y] * div_x[here[i].x], row(i), c);
  });
}

void EagerWindow::max_pool_backward(int n, int c, View gy, View x, View gx, const uint8_t* mask) const {
  const Lists lists = list(mask, n);
  const Source source(*this, n, c, x, lists, false), target(*this, n, c, gx, lists, true);
  const std::vector<Site>& sites = lists[0];
  const int total = (int)sites.size(), taps = phases_[0].taps();
  const Floats g = gather_rows(gy, sites, c, c);
  by_channels(c, (int64_t)total * taps * c * 4, [&](int c0, int width) {
    std::vector<const float*> from((size_t)kTile * taps);
    std::vector<float*> to((size_t)kTile * taps);
    Pixels in = source.pixels, out = target.pixels;
    in.data += c0;
    out.data += c0;
    for (int i = 0; i < total; i += kTile) {
      const int count = std::min(kTile, total - i);
      fill_taps<const float*>(in, phases_[0], sites.data() + i, count, nullptr, from.data());
      fill_taps<float*>(out, phases_[0], sites.data() + i, count, nullptr, to.data());
      for (int j = 0; j < count; ++j)
        e_->max_pool_grad(from.data() + (size_t)j * taps, to.data() + (size_t)j * taps, taps, g.get() + (int64_t)(i + j) * c + c0, width);
    }
  });
  target.give_back();
}

void EagerWindow::avg_pool_backward(int n, int c, View gy, View gx, const uint8_t* mask, const float* div_y, const float* div_x) const {
  const Lists lists = list(mask, n);
  const Source target(*this, n, c, gx, lists, true);
  const std::vector<Site>& sites = lists[0];
  const int total = (int)sites.size(), taps = phases_[0].taps();
  const Floats g = gather_rows(gy, sites, c, c);
  by_channels(c, (int64_t)total * taps * c * 4, [&](int c0, int width) {
    std::vector<float*> to((size_t)kTile * taps);
    Pixels out = target.pixels;
    out.data += c0;
    for (int i = 0; i < total; i += kTile) {
      const int count = std::min(kTile, total - i);
      fill_taps<float*>(out, phases_[0], sites.data() + i, count, nullptr, to.data());
      for (int j = 0; j < count; ++j) {
        const Site& s = sites[(size_t)(i + j)];
        e_->sum_pool_grad(to.data() + (size_t)j * taps, taps, div_y[s.y] * div_x[s.x], g.get() + (int64_t)(i + j) * c + c0, width);
      }
    }
  });
  target.give_back();
}

// -- channel sums ----------------------------------------------------------------------------------------------------

// [filter][tap][channel], from [filter][channel][tap]
static Floats taps_first(const float* weight, int filters, int c, int taps) {
  Floats out = floats((size_t)filters * c * taps);
  for (int f = 0; f < filters; ++f)
    for (int k = 0; k < c; ++k)
      for (int t = 0; t < taps; ++t) out[((size_t)f * taps + t) * c + k] = weight[((size_t)f * c + k) * taps + t];
  return out;
}

void EagerWindow::channel_sum(int n, int c, int filters, View x, const float* weight, float* out) const {
  const Lists lists = list(nullptr, n);
  const Source source(*this, n, c, x, lists, false);
  const Phase& phase = phases_[0];
  const int taps = phase.taps(), windows = hout_ * wout_;
  const Floats packed = taps_first(weight, filters, c, taps);
  const int64_t per_filter = (int64_t)windows * taps;
  for_tiles(lists[0], (int64_t)taps * c * filters * 4, [&](const Site* here, int count) {
    std::vector<const float*> from((size_t)count * taps);
    fill_taps<const float*>(source.pixels, phase, here, count, nullptr, from.data());
    for (int i = 0; i < count; ++i) {
      const int image = image_of(here[i]), window = here[i].index - image * windows;
      float* at = out + image * filters * per_filter + (int64_t)window * taps;
      for (int t = 0; t < taps; ++t) {
        if (const float* pixel = from[(size_t)i * taps + t])
          e_->dots(pixel, packed.get() + (int64_t)t * c, (int64_t)taps * c, at + t, per_filter, filters, c);
        else
          for (int f = 0; f < filters; ++f) at[f * per_filter + t] = 0;
      }
    }
  });
}

void EagerWindow::channel_sum_backward(int n, int c, int filters, const float* gy, View x, const float* weight, View gx, float* gw) const {
  const Lists lists = list(nullptr, n);
  const std::vector<Site>& sites = lists[0];
  const Phase& phase = phases_[0];
  const int taps = phase.taps(), windows = hout_ * wout_, total = (int)sites.size();
  const int64_t per_filter = (int64_t)windows * taps, work = (int64_t)total * taps * c * filters * 4;
  auto gradient = [&](const Site& s, int f, int t) {
    const int image = image_of(s);
    return gy[(image * filters + f) * per_filter + (int64_t)(s.index - image * windows) * taps + t];
  };
  if (gx.data) {
    const Source target(*this, n, c, gx, lists, true);
    const Floats packed = taps_first(weight, filters, c, taps);
    by_channels(c, work, [&](int c0, int width) {
      std::vector<float*> to((size_t)kTile * taps);
      for (int i = 0; i < total; i += kTile) {
        const int count = std::min(kTile, total - i);
        fill_taps<float*>(target.pixels, phase, sites.data() + i, count, nullptr, to.data());
        for (int j = 0; j < count; ++j)
          for (int t = 0; t < taps; ++t)
            if (float* pixel = to[(size_t)j * taps + t])
              for (int f = 0; f < filters; ++f)
                e_->add_scaled(gradient(sites[(size_t)(i + j)], f, t), packed.get() + ((int64_t)f * taps + t) * c + c0, pixel + c0, width);
      }
    });
    target.give_back();
  }
  if (!gw) return;
  const Source source(*this, n, c, x, lists, false);
  const Floats sums = zeros((size_t)filters * taps * c);  // [tap][filter][channel]
  for_items(taps, work, [&](int t, int) {
    const Phase one{{t / kw_}, {t % kw_}};
    std::vector<const float*> from((size_t)kTile);
    std::vector<float> part((size_t)c);
    for (int i = 0; i < total; i += kTile) {
      const int count = std::min(kTile, total - i);
      fill_taps<const float*>(source.pixels, one, sites.data() + i, count, nullptr, from.data());
      for (int f = 0; f < filters; ++f) {
        std::fill(part.begin(), part.end(), 0.0f);
        for (int j = 0; j < count; ++j)
          if (from[(size_t)j]) e_->add_scaled(gradient(sites[(size_t)(i + j)], f, t), from[(size_t)j], part.data(), c);
        e_->add_row(part.data(), sums.get() + ((int64_t)t * filters + f) * c, c);
      }
    }
  });
  for (int f = 0; f < filters; ++f)
    for (int k = 0; k < c; ++k)
      for (int t = 0; t < taps; ++t) gw[((int64_t)f * c + k) * taps + t] = sums[((size_t)t * filters + f) * c + k];
}

}  // namespace sightline

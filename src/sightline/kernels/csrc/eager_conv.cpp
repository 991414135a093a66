// Convolution at listed sites, and its gradients there.
#include "eager_parts.h"

namespace sightline {

namespace {

constexpr int kStretch = 128;   // sites whose products are added up before they join a weight's gradient: bounds the rounding error
constexpr int kChannels = 48;   // input channels of one item of the weight's gradient; a multiple of every register block

}  // namespace

// A few vectors of the output channels of one group.
struct EagerWindow::Panel {
  int group, c0, vectors, valid;  // c0: among all groups' channels; valid: how many of its lanes exist
  size_t weights = 0;
};

struct EagerWindow::Panels {
  std::vector<Panel> all;
  int64_t ld = 0;  // of a row that all panels can write to, in order: each may overwrite the beginning of the next
  int lanes;

  Panels(int groups, int per_group, int lanes_) : lanes(lanes_) {
    for (int g = 0; g < groups; ++g)
      for (int done = 0; done < per_group;) {
        const int left = (per_group - done + lanes - 1) / lanes, v = left == 5 ? 3 : std::min(left, 4);
        all.push_back(Panel{g, g * per_group + done, v, std::min(v * lanes, per_group - done)});
        ld = std::max<int64_t>(ld, all.back().c0 + v * lanes);
        done += v * lanes;
      }
  }
  int width(const Panel& p) const { return p.vectors * lanes; }
  // Places for `depth` rows of weights per panel; returns how much all of them take.
  size_t place(size_t depth) {
    size_t total = 0;
    for (Panel& p : all) {
      p.weights = total;
      total += depth * (size_t)width(p);
    }
    return total;
  }
  // Values per channel, each panel's padded with zeros to 4 vectors.
  Floats spread(const float* values) const {
    Floats out = zeros(all.size() * 4 * (size_t)lanes);
    if (values)
      for (size_t i = 0; i < all.size(); ++i) std::copy(values + all[i].c0, values + all[i].c0 + all[i].valid, out.get() + i * 4 * (size_t)lanes);
    return out;
  }
};

// Places of kernel taps in a packed panel: `step` floats per listed tap, -1 for the others.
static std::vector<int64_t> tap_places(const std::vector<int>& taps, int kernel, int64_t step) {
  std::vector<int64_t> places((size_t)kernel, -1);
  for (size_t i = 0; i < taps.size(); ++i) places[(size_t)taps[i]] = (int64_t)i * step;
  return places;
}

// Weights of all panels for the taps of a phase: [tap][input channel][lane].
Floats EagerWindow::pack_forward(const ConvShape& shape, const float* weight, const std::vector<int>& taps, Panels& panels) const {
  const int in = shape.in_group(), n = (int)taps.size(), kernel = kh_ * kw_;
  const size_t total = panels.place((size_t)n * in);
  Floats packed = floats(total);
  for_items((int)panels.all.size(), (int64_t)total, [&](int i, int) {
    const Panel& p = panels.all[(size_t)i];
    const int width = panels.width(p);
    const float* from = weight + p.group * shape.w_group + (p.c0 - p.group * shape.out_group()) * shape.w_out;
    float* to = packed.get() + p.weights;
    if (p.valid < width) std::fill(to, to + (size_t)width * in * n, 0.0f);
    // One input channel's taps after the other; where they lie in one stretch, many at once.
    const std::vector<int64_t> places = tap_places(taps, kernel, (int64_t)in * width);
    const int together = shape.w_in == kernel ? std::min(in, std::max(1, 64 / kernel)) : 1;
    std::vector<int64_t> offsets((size_t)together * kernel);
    for (int j = 0; j < together * kernel; ++j)
      offsets[(size_t)j] = places[(size_t)(j % kernel)] < 0 ? -1 : places[(size_t)(j % kernel)] + j / kernel * width;
    for (int ci = 0; ci < in; ci += together)
      e_->pack(from + ci * shape.w_in, shape.w_out, p.valid, std::min(together, in - ci) * kernel, offsets.data(), to + (int64_t)ci * width);
  });
  return packed;
}

// The same for the way back, panels of input channels: [tap][output channel][lane], `tap_size` floats per tap.
Floats EagerWindow::pack_backward(const ConvShape& shape, const float* weight, const std::vector<int>& taps, Panels& panels,
                                  size_t& tap_size) const {
  const int out = shape.out_group(), n = (int)taps.size(), kernel = kh_ * kw_;
  tap_size = panels.place((size_t)out);
  Floats packed = floats(tap_size * (size_t)n);
  const std::vector<int64_t> places = tap_places(taps, kernel, (int64_t)tap_size);
  for_items((int)panels.all.size(), (int64_t)tap_size * n, [&](int i, int) {
    const Panel& p = panels.all[(size_t)i];
    const int width = panels.width(p);
    const float* from = weight + p.group * shape.w_group + (p.c0 - p.group * shape.in_group()) * shape.w_in;
    float* to = packed.get() + p.weights;
    if (p.valid < width)
      for (int t = 0; t < n; ++t) std::fill(to + t * tap_size, to + t * tap_size + (size_t)width * out, 0.0f);
    for (int co = 0; co < out; ++co) e_->pack(from + co * shape.w_out, shape.w_in, p.valid, kernel, places.data(), to + (int64_t)co * width);
  });
  return packed;
}

std::vector<int> EagerWindow::Phase::kernel_taps(int kw) const {
  std::vector<int> out;
  for (int y : ky)
    for (int x : kx) out.push_back(y * kw + x);
  return out;
}

void EagerWindow::conv(int n, View x, View out, const ConvShape& shape, const float* weight, const float* bias, const uint8_t* mask) const {
  const Lists lists = list(mask, n);
  const Source source(*this, n, shape.cin, x, lists, false);
  if (shape.depthwise()) return depthwise(lists, source.pixels, out, shape, weight, bias);
  const int in = shape.in_group();
  Panels panels(shape.groups, shape.out_group(), k_->lanes);
  const Floats biases = panels.spread(bias), none = zeros((size_t)shape.cin * kw_);
  auto run = [&](const Phase& reads, const std::vector<Site>& sites, const float* packed, int ntaps, int length) {
    for_tiles(sites, (int64_t)ntaps * length * shape.cout, [&](const Site* here, int count) {
      std::vector<const float*> pointers((size_t)count * ntaps + 1);
      fill_taps<const float*>(source.pixels, reads, here, count, none.get(), pointers.data());
      const Floats rows = floats((size_t)count * panels.ld);
      for (size_t i = 0; i < panels.all.size(); ++i) {
        const Panel& p = panels.all[i];
        k_->conv(ConvTile{reinterpret_cast<const Raw* const*>(pointers.data()), (int64_t)p.group * in, count, ntaps, length, p.vectors, packed + p.weights,
                          biases.get() + i * 4 * (size_t)k_->lanes, rows.get() + p.c0, (int)panels.ld});
      }
      write_rows(rows.get(), panels.ld, here, count, out, shape.cout);
    });
  };
  for (size_t ph = 0; ph < lists.size(); ++ph) {
    if (lists[ph].empty()) continue;
    const Phase& phase = phases_[ph];
    const Floats packed = pack_forward(shape, weight, phase.kernel_taps(kw_), panels);
    if (phases_.size() > 1 || shape.groups > 1 || source.pixels.x != shape.cin || shape.cin > 64) {
      run(phase, lists[ph], packed.get(), phase.taps(), in);
      continue;
    }
    // Where neighbouring taps are neighbouring pixels without a gap, a row of the window is one long tap.
    std::vector<Site> apart, merged;
    for (const Site& s : lists[ph]) (inner_[s.x] ? merged : apart).push_back(s);
    run(phase, apart, packed.get(), phase.taps(), in);
    run(Phase{phase.ky, {0}}, merged, packed.get(), kh_, kw_ * in);
  }
}

void EagerWindow::conv_backward(int n, View gy, View x, const ConvShape& shape, const float* weight, const uint8_t* mask, View gx, float* gw,
                                float* gb) const {
  const Lists lists = list(mask, n);
  const int64_t ldg = (shape.cout + 15) / 16 * 16;
  const int kernel = kh_ * kw_, out = shape.out_group();
  const bool depthwise = shape.depthwise();
  const int64_t ldw = depthwise ? shape.cin : (out + 4 * k_->lanes - 1) / k_->lanes * k_->lanes;
  Floats sums = gw ? zeros((size_t)kernel * (depthwise ? 1 : shape.cin) * ldw) : Floats();
  if (gb) std::fill(gb, gb + shape.cout, 0.0f);
  std::unique_ptr<Source> from = gw ? std::make_unique<Source>(*this, n, shape.cin, x, lists, false) : nullptr;
  std::unique_ptr<Source> to = gx.data ? std::make_unique<Source>(*this, n, shape.cin, gx, lists, true) : nullptr;
  for (size_t ph = 0; ph < lists.size(); ++ph) {
    const std::vector<Site>& sites = lists[ph];
    if (sites.empty()) continue;
    const Floats g = gather_rows(gy, sites, shape.cout, ldg);
    if (to) grad_input(phases_[ph], sites, g.get(), ldg, shape, weight, to->pixels);
    if (from) grad_weight(phases_[ph], sites, g.get(), ldg, shape, from->pixels, sums.get(), ldw);
    if (!gb) continue;
    std::vector<float> part((size_t)shape.cout);
    for (size_t i = 0; i < sites.size(); i += kStretch) {
      std::fill(part.begin(), part.end(), 0.0f);
      for (size_t j = i; j < std::min(sites.size(), i + kStretch); ++j) e_->add_row(g.get() + (int64_t)j * ldg, part.data(), shape.cout);
      e_->add_row(part.data(), gb, shape.cout);
    }
  }
  if (to) to->give_back();
  if (!gw) return;
  if (depthwise) {  // [tap][channel]
    for (int c = 0; c < shape.cin; ++c)
      for (int t = 0; t < kernel; ++t) gw[(int64_t)c * kernel + t] = sums[(size_t)t * ldw + c];
    return;
  }
  // from [tap][group][input channel][output channel]
  const int in = shape.in_group(), together = shape.w_in == kernel ? in : 1;
  std::vector<int64_t> offsets((size_t)together * kernel);
  for (int j = 0; j < together * kernel; ++j) offsets[(size_t)j] = ((int64_t)(j % kernel) * shape.groups * in + j / kernel) * ldw;
  for (int g = 0; g < shape.groups; ++g)
    for (int ci = 0; ci < in; ci += together)
      e_->unpack(sums.get() + ((int64_t)g * in + ci) * ldw, offsets.data(), out, together * kernel, gw + g * shape.w_group + ci * shape.w_in,
                 shape.w_out);
}

// Each site's gradient times the weights of a tap, added to the pixel that the tap reads. Threads share channels, not sites, so
// that no two write to one place and the order of additions is that of the sites.
void EagerWindow::grad_input(const Phase& phase, const std::vector<Site>& list, const float* g, int64_t ldg, const ConvShape& shape,
                             const float* weight, const Pixels& gx) const {
  const int taps = phase.taps(), out = shape.out_group(), n = (int)list.size();
  if (!taps) return;
  if (shape.depthwise()) {
    const Floats packed = depthwise_weights(phase, weight, shape.cin);
    return by_channels(shape.cin, (int64_t)n * taps * shape.cin * 4, [&](int c0, int c) {
      std::vector<float*> to((size_t)taps * kTile);
      for (int i = 0; i < n; ++i) {
        if (i % kTile == 0) fill_taps<float*>(gx, phase, list.data() + i, std::min(kTile, n - i), nullptr, to.data());
        float** at = to.data() + (int64_t)(i % kTile) * taps;
        for (int t = 0; t < taps; ++t) at[t] += at[t] ? c0 : 0;
        e_->depthwise_grad_input(at, taps, packed.get() + c0, shape.cin, g + i * ldg + c0, c);
      }
    });
  }
  Panels panels(shape.groups, shape.in_group(), k_->lanes);
  size_t tap_size = 0;
  const Floats packed = pack_backward(shape, weight, phase.kernel_taps(kw_), panels, tap_size), no_bias = zeros(4 * (size_t)k_->lanes);
  const int all = (int)panels.all.size(), parts = std::min(all, std::max(1, Pool::instance().threads()));
  for_items(parts, (int64_t)n * taps * shape.cin * out, [&](int part, int) {
    const int begin = (int)((int64_t)all * part / parts), end = (int)((int64_t)all * (part + 1) / parts);
    const int c0 = panels.all[(size_t)begin].c0, c1 = panels.all[(size_t)end - 1].c0 + panels.all[(size_t)end - 1].valid;
    std::vector<float*> to((size_t)kTile * taps);
    std::vector<const float*> from((size_t)kTile);
    const Floats rows = floats((size_t)kTile * panels.ld);
    for (int i = 0; i < n; i += kTile) {
      const int count = std::min(kTile, n - i);
      fill_taps<float*>(gx, phase, list.data() + i, count, nullptr, to.data());
      for (int j = 0; j < count; ++j) from[(size_t)j] = g + (i + j) * ldg;
      for (int t = 0; t < taps; ++t) {
        for (int b = begin; b < end; ++b) {
          const Panel& p = panels.all[(size_t)b];
          k_->conv(ConvTile{reinterpret_cast<const Raw* const*>(from.data()), (int64_t)p.group * out, count, 1, out, p.vectors, packed.get() + t * tap_size + p.weights,
                            no_bias.get(), rows.get() + p.c0, (int)panels.ld});
        }
        for (int j = 0; j < count; ++j)
          if (float* pixel = to[(size_t)j * taps + t]) e_->add_row(rows.get() + j * panels.ld + c0, pixel + c0, c1 - c0);
      }
    }
  });
}

// One item is a tap and some input channels: it sees all sites, and nobody else adds to its sums. Depthwise, where a site's work is
// small, it is all taps of some channels instead, so that a site's pixels are read while they are near.
void EagerWindow::grad_weight(const Phase& phase, const std::vector<Site>& list, const float* g, int64_t ldg, const ConvShape& shape,
                              const Pixels& x, float* sums, int64_t ldw) const {
  const std::vector<int> taps = phase.kernel_taps(kw_);
  const int n = (int)list.size(), in = shape.in_group(), out = shape.out_group();
  if (shape.depthwise())
    return by_channels(shape.cin, (int64_t)n * (int)taps.size() * shape.cin * 4, [&](int c0, int c) {
      std::vector<const float*> from((size_t)kStretch);
      Pixels part = x;
      part.data += c0;
      for (int i = 0; i < n; i += kStretch)
        for (int tap : taps) {
          const int count = std::min(kStretch, n - i);
          fill_taps<const float*>(part, Phase{{tap / kw_}, {tap % kw_}}, list.data() + i, count, nullptr, from.data());
          e_->depthwise_grad_weight(from.data(), count, g + i * ldg + c0, (int)ldg, sums + tap * ldw + c0, c);
        }
    });
  const int pieces = (in + kChannels - 1) / kChannels;
  const Floats none = zeros((size_t)shape.cin);
  const Panels panels(1, out, k_->lanes);
  for_items((int)taps.size() * pieces, (int64_t)n * (int)taps.size() * in * shape.cout, [&](int item, int) {
    const int tap = taps[(size_t)(item / pieces)], first = item % pieces * kChannels;
    const Phase one{{tap / kw_}, {tap % kw_}};
    std::vector<const float*> from((size_t)kStretch);
    for (int i = 0; i < n; i += kStretch) {
      const int count = std::min(kStretch, n - i);
      fill_taps<const float*>(x, one, list.data() + i, count, none.get(), from.data());
      for (int group = 0; group < shape.groups; ++group)
        for (const Panel& p : panels.all)
          e_->grad_weight(GradTile{from.data(), (int64_t)group * in + first, count, std::min(kChannels, in - first),
                                   g + i * ldg + group * out + p.c0, (int)ldg, p.vectors,
                                   sums + (((int64_t)tap * shape.groups + group) * in + first) * ldw + p.c0, (int)ldw});
    }
  });
}

// -- depthwise -----------------------------------------------------------------------------------------------------

Floats EagerWindow::depthwise_weights(const Phase& phase, const float* weight, int c) const {
  const std::vector<int> taps = phase.kernel_taps(kw_);
  Floats packed = floats(taps.size() * (size_t)c);
  for (int i = 0; i < c; ++i)
    for (size_t t = 0; t < taps.size(); ++t) packed[t * (size_t)c + (size_t)i] = weight[(int64_t)i * kh_ * kw_ + taps[t]];
  return packed;
}

void EagerWindow::depthwise(const Lists& lists, const Pixels& x, View out, const ConvShape& shape, const float* weight,
                            const float* bias) const {
  const Floats none = zeros((size_t)shape.cin);
  for (size_t ph = 0; ph < lists.size(); ++ph) {
    if (lists[ph].empty()) continue;
    const Phase& phase = phases_[ph];
    const Floats packed = depthwise_weights(phase, weight, shape.cin);
    for_rows(lists[ph], shape.cin, phase.taps(), out, [&](const Site* here, int count, auto&& row) {
      std::vector<const float*> taps((size_t)count * phase.taps() + 1);
      fill_taps<const float*>(x, phase, here, count, nullptr, taps.data());
      for (int i = 0; i < count; ++i)
        e_->depthwise(taps.data() + (size_t)i * phase.taps(), phase.taps(), packed.get(), shape.cin, bias ? bias : none.get(), row(i), shape.cin);
    });
  }
}

}  // namespace sightline

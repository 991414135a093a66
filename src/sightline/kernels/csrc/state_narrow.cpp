// Steps whose maps have few channels: runs of adjacent sites instead of one site after the other.
#include "pool.h"
#include "state_parts.h"

namespace sightline {

// compute(sites, count, flags, scratch) publishes sites that lie side by side in a row.
template <class F>
void State::for_runs(int step, const SiteList& list, const Publish& pub, int64_t work_per_site, F&& compute) {
  constexpr int kSites = 512;
  const int n = (int)list.size(), items = (n + kSites - 1) / kSites;
  auto part = [&](int item, int worker) {
    Scratch& w = scratch(worker);
    grow(w.flags, kSites);
    const Site* sites = list.data() + (size_t)item * kSites;
    const int count = std::min(kSites, n - item * kSites);
    for (int from = 0, to = 0; from < count; from = to) {
      for (to = from + 1; to < count && sites[to].x == sites[from].x + (to - from) && sites[to].index == sites[from].index + (to - from);) ++to;
      compute(sites + from, to - from, w.flags.data() + from, w);
    }
    mark_changed(step, pub, sites, count, w.flags.data());
  };
  if (work_per_site * n < kSerialWork)
    for (int i = 0; i < items; ++i) part(i, 0);
  else
    Pool::instance().run(items, part);
}

void State::run_conv_narrow(int step, const SiteList& list, const Publish& pub) {
  const Step& s = program->steps[(size_t)step];
  const Tensor& tin = program->tensors[(size_t)s.links[0].tensor];
  const Axis& ax = program->axes[(size_t)s.links[0].cols];
  const int run = s.kw * s.cin;
  for_runs(step, list, pub, (int64_t)s.kh * run * pub.c, [&](const Site* sites, int count, uint8_t* flags, Scratch& w) {
    grow(w.taps, (size_t)s.kh);
    fill_taps(s, 0, true, sites, 1, w.taps.data());
    for (int i = 0; i < s.kh; ++i)
      if (w.taps[(size_t)i] == reinterpret_cast<const Raw*>(zeros_.data)) w.taps[(size_t)i] = nullptr;
    const NarrowRun a{w.taps.data(), count, s.kh, run, ax.stride * tin.ld, s.narrow_weights.data, s.narrow_bias.data};
    program->k->conv_narrow(a, pub, sites[0].index, flags);
  });
}

void State::run_upsample_narrow(int step) {
  const Step& s = program->steps[(size_t)step];
  list_sites(step);
  const Link& l = s.links[0];
  const Tensor &tin = program->tensors[(size_t)l.tensor], &tout = program->tensors[(size_t)s.out];
  const Axis& ay = program->axes[(size_t)l.rows];
  const Publish pub = publisher(step);
  const Raw* base = at(l.tensor);
  const int64_t line = (int64_t)tin.w * tin.ld * program->k->element;  // bytes from row to row
  for_runs(step, list_, pub, 4 * tout.c, [&](const Site* sites, int count, uint8_t* flags, Scratch&) {
    const int y = sites[0].y;
    const Raw* image = base + (int64_t)(sites[0].index / (tout.h * tout.w)) * tin.h * line;
    const size_t at = (size_t)sites[0].x * (size_t)tout.c;
    const NarrowUpsample a{image + ay.index[2 * (size_t)y] * line,
                           image + ay.index[2 * (size_t)y + 1] * line,
                           s.wy[2 * (size_t)y],
                           s.wy[2 * (size_t)y + 1],
                           s.left.data() + at,
                           s.right.data() + at,
                           s.left_weight.data() + at,
                           s.right_weight.data() + at,
                           count,
                           tout.c};
    program->k->upsample_narrow(a, pub, sites[0].index, flags);
  });
  note_density(step, pub);
}

}  // namespace sightline

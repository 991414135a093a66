// Constants and small helpers that the files of State share.
#pragma once
#include <algorithm>

#include "pool.h"
#include "program.h"

namespace sightline {

constexpr int kLongest = 16;                      // pixels of a depthwise run, so that zero_elements covers a run of padding rows
constexpr int kChunk = 96;                        // pixels that share one pass over a weight panel
constexpr int64_t kSmallWeights = 400 * 1024;     // bytes: below this, weights stay in L2 whatever the loop order
constexpr int64_t kFetched = 1 << 18;             // bytes of a map from which its rows are asked for ahead of time
constexpr double kBusy = 0.7;                     // share of a map from which a step counts as busy
constexpr uint8_t kLookAgain = 8;                 // frames for which a busy step publishes without comparing
constexpr int64_t kSerialWork = 200 * 1000;       // multiply-accumulates below which threads do not pay

template <class T, class A>
static inline void grow(std::vector<T, A>& v, size_t n) {
  if (v.size() < n) v.resize(n);
}
static inline void grow(Aligned& a, size_t floats) {
  if (a.size < floats) a = Aligned(floats);
}
static inline void mark(uint8_t& flag) { __atomic_store_n(&flag, (uint8_t)1, __ATOMIC_RELAXED); }

// How rows of a step are finished, into a map of c channels whose pixels lie ld elements apart.
static inline Publish finishing(const Step& s, int c, int ld) {
  Publish p;
  p.act = s.act;
  p.p0 = s.p0;
  p.p1 = s.p1;
  p.slope = s.slope.data;
  p.c = c;
  p.ld = ld;
  return p;
}

// Splits list_ into chunks and gives each to body(sites, count, scratch).
template <class F>
void State::split_list(int chunk, int64_t work_per_site, F&& body) {
  const int n = (int)list_.size(), items = (n + chunk - 1) / chunk;
  auto part = [&](int i, int worker) {
    const int from = i * chunk;
    body(list_.data() + from, std::min(chunk, n - from), scratch(worker));
  };
  if (work_per_site * n < kSerialWork)
    for (int i = 0; i < items; ++i) part(i, 0);
  else
    Pool::instance().run(items, part);
}

// compute(pixels, scratch) gives the values of some sites to a kernel, which publishes them at once if it can.
template <class F>
void State::for_pixels(int step, int64_t work_per_site, F&& compute) {
  const Tensor& t = program->tensors[(size_t)program->steps[(size_t)step].out];
  const Publish pub = publisher(step);
  const bool at_once = publishes_pixels(pub);
  const int ldr = (t.c + 15) / 16 * 16;
  const int chunk = at_once ? 256 : std::clamp(32768 / ldr, 8, 64);
  split_list(chunk, work_per_site, [&](const Site* list, int count, Scratch& s) {
    grow(s.flags, (size_t)chunk);
    const PixelTask pixels{&pub, list, count, s.flags.data(), at_once ? nullptr : s.row_space((size_t)chunk * ldr + 64), ldr};
    compute(pixels, s);
    if (at_once) mark_changed(step, pub, list, count, s.flags.data());
    else finish(step, pub, pixels.rows, ldr, list, count, s.flags.data());
  });
  note_density(step, pub);
}

// compute(publish, sites, count, rows, ldr, scratch) fills one row of channels per site; publishing is done here.
template <class F>
void State::for_chunks(int step, int64_t work_per_site, F&& compute) {
  const Tensor& t = program->tensors[(size_t)program->steps[(size_t)step].out];
  const Publish pub = publisher(step);
  const int ldr = (t.c + 15) / 16 * 16;
  const int chunk = std::clamp(32768 / ldr, 8, 64);
  split_list(chunk, work_per_site, [&](const Site* list, int count, Scratch& s) {
    float* rows = s.row_space((size_t)chunk * ldr + 64);
    grow(s.flags, (size_t)chunk);
    compute(pub, list, count, rows, ldr, s);
    finish(step, pub, rows, ldr, list, count, s.flags.data());
  });
  note_density(step, pub);
}

}  // namespace sightline

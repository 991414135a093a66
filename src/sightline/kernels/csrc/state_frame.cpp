// Taking a frame: comparing it with the held one, filtering what changed, writing it.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>

#include "pool.h"
#include "state_parts.h"

namespace sightline {

// A position stays only if at least 5 of its 5x5 neighbourhood changed, and joins if so: specks go, rims of real changes come in.
void State::filter_vote(Mask& m) const {
  const Tensor& t = program->tensors[(size_t)program->steps[0].out];
  std::vector<uint8_t> across(m.bits.size()), out(m.bits.size(), 0);
  for (int r = 0; r < m.rows; ++r)
    for (int x = 0; x < t.w; ++x) {
      int n = 0;
      for (int j = std::max(0, x - 2); j <= std::min(t.w - 1, x + 2); ++j) n += m.bits[(size_t)r * t.w + j];
      across[(size_t)r * t.w + x] = (uint8_t)n;
    }
  for (int n = 0; n < t.n; ++n)
    for (int y = 0; y < t.h; ++y)
      for (int x = 0; x < t.w; ++x) {
        int votes = 0;
        for (int j = std::max(0, y - 2); j <= std::min(t.h - 1, y + 2); ++j) votes += across[((size_t)n * t.h + j) * t.w + x];
        out[((size_t)n * t.h + y) * t.w + x] = votes >= 5;
      }
  m.bits.swap(out);
}

// Aligned 8x8 blocks change as a whole: the grain in which video codecs make their errors.
void State::filter_block(Mask& m) const {
  const Tensor& t = program->tensors[(size_t)program->steps[0].out];
  for (int n = 0; n < t.n; ++n)
    for (int y0 = 0; y0 < t.h; y0 += 8)
      for (int x0 = 0; x0 < t.w; x0 += 8) {
        const int y1 = std::min(t.h, y0 + 8), x1 = std::min(t.w, x0 + 8);
        uint8_t any = 0;
        for (int y = y0; y < y1; ++y)
          for (int x = x0; x < x1; ++x) any |= m.bits[((size_t)n * t.h + y) * t.w + x];
        if (any)
          for (int y = y0; y < y1; ++y) std::memset(m.bits.data() + ((size_t)n * t.h + y) * t.w + x0, 1, (size_t)(x1 - x0));
      }
}

bool State::begin(const Frame& f) {
  const Step& s = program->steps[0];
  if (s.kind != Kind::kInput) throw std::logic_error("the first step must be the input");
  const Tensor& t = program->tensors[(size_t)s.out];
  while ((int)scratch_.size() < std::max(64, Pool::instance().threads())) scratch_.push_back(std::make_unique<Scratch>());
  Mask& m = changed[(size_t)t.mask];
  const Kernels& k = *program->k;
  m.clear();
  const int64_t plane = (int64_t)t.h * t.w, element = k.element;
  const float limit = threshold[0];
  const int mode = fresh ? kAlways : limit > 0 ? kWithin : kExact;
  // Filters look at neighbours, so with one of them the whole frame is taken.
  const Mask* need = needed[0].rows && filter == Filter::kNone ? &needed[0] : nullptr;
  // A wide frame's row is rounded into scratch memory, plane behind plane, before anything looks at it.
  const int64_t frame_element = f.wide ? 4 : element, frame_plane = f.wide ? t.w : f.plane;
  auto rows_in = [&](int r, int worker) -> const Raw* {
    const Raw* x = f.data + ((r / t.h) * f.image + (r % t.h) * f.row) * frame_element;
    if (!f.wide) return x;
    Raw* rounded = reinterpret_cast<Raw*>(scratch(worker).row_space((size_t)t.c * t.w));
    for (int c = 0; c < t.c; ++c)
      k.round_row(reinterpret_cast<const float*>(x) + c * f.plane, rounded + c * frame_plane * element, t.w);
    return rounded;
  };
  auto rows_held = [&](int r) {
    return reinterpret_cast<Raw*>(held_frame_.data) + ((r / t.h) * plane * t.c + (int64_t)(r % t.h) * t.w) * element;
  };
  std::atomic<bool> bad{false};
  constexpr int kRows = 16;
  const int items = (m.rows + kRows - 1) / kRows;
  auto compare = [&](int i, int worker) {
    for (int r = i * kRows; r < std::min(m.rows, (i + 1) * kRows); ++r) {
      if (need && !need->row_any[(size_t)r]) continue;
      const Raw* x = rows_in(r, worker);
      const Raw* held = rows_held(r);
      if (mode != kAlways) {  // most rows of a still frame are equal: find out at the speed of memory
        bool same = true;
        for (int c = 0; c < t.c && same; ++c) same = k.equal(x + c * frame_plane * element, held + c * plane * element, t.w);
        if (same) continue;
      }
      uint8_t* bits = m.bits.data() + (size_t)r * t.w;
      k.diff_row(x, frame_plane, held, plane, t.c, t.w, mode, norm, limit, bits);
      if (need) {
        const uint8_t* wanted = need->bits.data() + (size_t)r * t.w;
        for (int p = 0; p < t.w; ++p) bits[p] &= wanted[p];
      }
      if (!k.count(bits, t.w)) continue;
      m.row_any[(size_t)r] = 1;
      // of a row that is needed in part, only the pixels that are taken must be finite
      for (int from = 0, to = 0; from < t.w; from = to) {
        if (need && !bits[from]) {
          to = from + 1;
          continue;
        }
        for (to = need ? from : t.w; to < t.w && bits[to];) ++to;
        for (int c = 0; c < t.c; ++c)
          if (!k.all_finite(x + (c * frame_plane + from) * element, to - from)) bad.store(true, std::memory_order_relaxed);
      }
    }
  };
  Pool::instance().run(items, compare);
  m.count = 1;
  if (bad.load()) {
    m.clear();
    return false;
  }
  if (filter != Filter::kNone && mode != kAlways) {
    filter == Filter::kVote ? filter_vote(m) : filter_block(m);
    for (int r = 0; r < m.rows; ++r) m.row_any[(size_t)r] = k.count(m.bits.data() + (size_t)r * t.w, t.w) > 0;
  }
  Raw* out = at(s.out);
  std::atomic<int64_t> total{0};
  auto write = [&](int i, int worker) {
    int64_t n = 0;
    for (int r = i * kRows; r < std::min(m.rows, (i + 1) * kRows); ++r) {
      if (!m.row_any[(size_t)r]) continue;
      n += k.write_row(rows_in(r, worker), frame_plane, rows_held(r), plane, out + (int64_t)r * t.w * t.ld * element, t.ld, t.c, t.w,
                       m.bits.data() + (size_t)r * t.w);
    }
    total.fetch_add(n, std::memory_order_relaxed);
  };
  Pool::instance().run(items, write);
  m.count = total.load();
  if (!m.count) m.row_any.assign(m.row_any.size(), 0);
  sites[0].bits = m.bits;
  sites[0].row_any = m.row_any;
  sites[0].count = m.count;
  return true;
}

}  // namespace sightline

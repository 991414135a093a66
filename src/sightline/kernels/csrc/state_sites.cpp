// Which sites a step computes: what its inputs changed, what is needed, what was left stale; and their lists.
#include <algorithm>
#include <cstring>

#include "state_parts.h"

namespace sightline {

void State::project(const Link& link, const Mask& from, const Tensor& tin, const Tensor& tout, Mask& to) {
  if (!from.count) return;
  const Kernels& k = *program->k;
  if (link.how == Reads::kSame) {
    for (int r = 0; r < from.rows; ++r)
      if (from.row_any[(size_t)r]) {
        k.or_into(from.bits.data() + (size_t)r * from.width, to.bits.data() + (size_t)r * to.width, to.width);
        to.row_any[(size_t)r] = 1;
      }
    to.count = 1;
    return;
  }
  if (link.how == Reads::kImage) {
    for (int n = 0; n < tout.n; ++n) {
      const int from_image = tin.n == 1 ? 0 : n;
      bool any = false;
      for (int r = 0; r < tin.h; ++r) any = any || from.row_any[(size_t)(from_image * tin.h + r)];
      if (!any) continue;
      std::memset(to.bits.data() + (size_t)n * tout.h * to.width, 1, (size_t)tout.h * to.width);
      std::memset(to.row_any.data() + (size_t)n * tout.h, 1, (size_t)tout.h);
      to.count = 1;
    }
    return;
  }
  const Axis &ay = program->axes[(size_t)link.rows], &ax = program->axes[(size_t)link.cols];
  const size_t ow = (size_t)tout.w;
  grow(row_or_, (size_t)tin.h * ow);
  const int reach = ax.regular ? (ax.out - 1) * ax.stride + (ax.taps - 1) * ax.dilation + 1 : 0;
  grow(row_in_, (size_t)reach + 64);
  grow(row_tmp_, (size_t)reach + 64);
  for (int n = 0; n < tout.n; ++n) {
    // 1. each changed input row, spread along the columns
    for (int r = 0; r < tin.h; ++r) {
      const size_t row = (size_t)n * tin.h + r;
      if (!from.row_any[row]) continue;
      const uint8_t* in = from.bits.data() + row * from.width;
      uint8_t* out = row_or_.data() + (size_t)r * ow;
      if (ax.regular) {
        const int lo = std::max(0, -ax.start), hi = std::min(reach, ax.in - ax.start);
        if (lo > 0) std::memset(row_in_.data(), 0, (size_t)std::min(lo, reach));
        if (hi > lo) std::memcpy(row_in_.data() + lo, in + ax.start + lo, (size_t)(hi - lo));
        if (hi < reach) std::memset(row_in_.data() + std::max(hi, 0), 0, (size_t)(reach - std::max(hi, 0)));
        k.or_row(row_in_.data(), ax.taps, ax.dilation, ax.stride, ax.out, row_tmp_.data(), out);
      } else if (!ax.first.empty() && 2 * k.count(in, ax.in) < ax.in) {  // few have changed: ask each of them who reads it
        std::memset(out, 0, ow);
        for (int i = 0; i < ax.in; ++i)
          if (in[i])
            for (int j = ax.first[(size_t)i]; j < ax.first[(size_t)i + 1]; ++j) out[ax.readers[(size_t)j]] = 1;
      } else {
        for (int x = 0; x < ax.out; ++x) {
          const int32_t* taps = ax.index.data() + (size_t)x * ax.taps;
          uint8_t any = 0;
          for (int j = 0; j < ax.taps && !any; ++j)
            if (taps[j] >= 0) any = in[taps[j]];
          out[x] = any;
        }
      }
    }
    // 2. each output row gathers the rows that it reads
    for (int y = 0; y < ay.out; ++y) {
      const size_t row = (size_t)n * tout.h + y;
      for (int j = 0; j < ay.taps; ++j) {
        const int r = ay.index[(size_t)y * ay.taps + j];
        if (r < 0 || !from.row_any[(size_t)n * tin.h + r]) continue;
        k.or_into(row_or_.data() + (size_t)r * ow, to.bits.data() + row * ow, (int)ow);
        to.row_any[row] = 1;
        to.count = 1;
      }
    }
  }
}

// Fills sites[step]; false if there is nothing to do. Afterwards sites.count is only known to be non-zero: listing makes it exact.
bool State::find_sites(int step) {
  const Step& s = program->steps[(size_t)step];
  const Tensor& tout = program->tensors[(size_t)s.out];
  Mask& to = sites[(size_t)step];
  changed[(size_t)tout.mask].clear();
  if (s.kind == Kind::kMean) resum_.clear();
  if (forced[(size_t)step]) return to.count > 0;
  const bool limited = needed[(size_t)step].rows || stale[(size_t)step].count;
  if (fresh || whole[(size_t)step]) {
    whole[(size_t)step] = 0;
    to.fill();
    return limited ? keep_needed(step) : true;
  }
  to.clear();
  for (const Link& l : s.links) {
    const Tensor& tin = program->tensors[(size_t)l.tensor];
    project(l, changed[(size_t)tin.mask], tin, tout, to);
  }
  if (s.residual >= 0) {
    const Tensor& tin = program->tensors[(size_t)s.residual];
    project(Link{s.residual, Reads::kSame, -1, -1}, changed[(size_t)tin.mask], tin, tout, to);
  }
  return limited ? keep_needed(step) : to.count > 0;
}

// Adds what is stale to the sites and keeps those that are needed; the others are stale from now on.
bool State::keep_needed(int step) {
  Mask &to = sites[(size_t)step], &old = stale[(size_t)step];
  const Mask& need = needed[(size_t)step];
  if (program->steps[(size_t)step].kind == Kind::kMean) resum_ = old.bits;  // which of their rows changed is not known any more
  bool some = false, left = false;
  for (int r = 0; r < to.rows; ++r) {
    const size_t row = (size_t)r;
    if (!to.row_any[row] && !old.row_any[row]) continue;
    uint8_t* now = to.bits.data() + row * (size_t)to.width;
    uint8_t* later = old.bits.data() + row * (size_t)to.width;
    uint8_t any_now = 0, any_later = 0;
    if (!need.rows || need.row_any[row]) {
      const uint8_t* wanted = need.rows ? need.bits.data() + row * (size_t)to.width : nullptr;
      for (int x = 0; x < to.width; ++x) {
        const uint8_t pending = now[x] | later[x], keep = wanted ? wanted[x] : (uint8_t)1;
        any_now |= now[x] = pending & keep;
        any_later |= later[x] = pending & (uint8_t)(keep ^ 1);
      }
    } else {
      for (int x = 0; x < to.width; ++x) {
        any_later |= later[x] |= now[x];
        now[x] = 0;
      }
    }
    some |= (to.row_any[row] = any_now) != 0;
    left |= (old.row_any[row] = any_later) != 0;
  }
  to.count = some;
  old.count = left;
  return some;
}

void State::set_needed(int step, const uint8_t* mask) {
  Mask& need = needed.at((size_t)step);
  const Mask& grid = sites[(size_t)step];
  if (!mask) {
    need = Mask();
    return;
  }
  if (!need.rows) need.shape(grid.rows, grid.width);
  if (!stale[(size_t)step].rows) stale[(size_t)step].shape(grid.rows, grid.width);
  std::memcpy(need.bits.data(), mask, need.bits.size());
  for (int r = 0; r < need.rows; ++r) need.row_any[(size_t)r] = program->k->count(mask + (size_t)r * need.width, need.width) > 0;
  need.recount(*program->k);
}

void State::zero_sites(int step, const uint8_t* mask) {
  const int tensor = program->steps.at((size_t)step).out;
  const Tensor& t = program->tensors[(size_t)tensor];
  if (t.storage < 0) return;  // not held
  Raw* x = at(tensor);
  const int64_t element = program->k->element;
  for (int64_t p = 0; p < t.pixels(); ++p)
    if (mask[p]) std::memset(x + p * t.ld * element, 0, (size_t)(element * t.c));
}

void State::blank_frame(float value) {
  const Tensor& t = program->tensors[(size_t)program->steps[0].out];
  const std::vector<float> row((size_t)t.w * t.c, value);
  Raw* out = reinterpret_cast<Raw*>(held_frame_.data);
  for (int r = 0; r < t.n * t.h; ++r) program->k->round_row(row.data(), out + (int64_t)r * t.w * t.c * program->k->element, t.w * t.c);
}

// How many sites a step can have at most.
double State::reachable(int step) const {
  const Mask& need = needed[(size_t)step];
  return (double)(need.rows ? need.count : program->tensors[(size_t)program->steps[(size_t)step].out].pixels());
}

void State::list_sites(int step) {
  Mask& m = sites[(size_t)step];
  const Tensor& t = program->tensors[(size_t)program->steps[(size_t)step].out];
  list_.resize((size_t)t.pixels());
  int n = 0;
  for (int r = 0; r < m.rows; ++r)
    if (m.row_any[(size_t)r])
      n += program->k->list_row(m.bits.data() + (size_t)r * m.width, 0, m.width, r * m.width, (uint16_t)(r % t.h), list_.data() + n);
  list_.resize((size_t)n);
  m.count = n;
}

// Convolutions list their sites by phase (transposed) or by whether the window lies inside the row (merged rows).
void State::list_categories(int step) {
  const Step& s = program->steps[(size_t)step];
  const Tensor& t = program->tensors[(size_t)s.out];
  Mask& m = sites[(size_t)step];
  const size_t wanted = s.merged_rows ? 2 : s.phases.size();
  grow(categories_, wanted);
  if (wanted == 1) {
    list_sites(step);
    std::swap(categories_[0], list_);
    return;
  }
  for (size_t i = 0; i < wanted; ++i) categories_[i].resize((size_t)t.pixels());
  std::vector<int> n(wanted, 0);
  list_.resize((size_t)t.w);
  for (int r = 0; r < m.rows; ++r) {
    if (!m.row_any[(size_t)r]) continue;
    const uint8_t* bits = m.bits.data() + (size_t)r * m.width;
    const uint16_t y = (uint16_t)(r % t.h);
    const int32_t index0 = r * m.width;
    if (s.merged_rows) {
      const auto& list_row = program->k->list_row;
      n[0] += list_row(bits, 0, s.inner_x0, index0, y, categories_[0].data() + n[0]);
      n[1] += list_row(bits, s.inner_x0, s.inner_x1, index0, y, categories_[1].data() + n[1]);
      n[0] += list_row(bits, s.inner_x1, m.width, index0, y, categories_[0].data() + n[0]);
    } else {
      const int found = program->k->list_row(bits, 0, m.width, index0, y, list_.data());
      for (int i = 0; i < found; ++i) {
        const Site at = list_[(size_t)i];
        const size_t phase = (size_t)((at.y % s.period_y) * s.period_x + at.x % s.period_x);
        categories_[phase][(size_t)n[phase]++] = at;
      }
    }
  }
  m.count = 0;
  for (size_t i = 0; i < wanted; ++i) {
    categories_[i].resize((size_t)n[i]);
    m.count += n[i];
  }
}

}  // namespace sightline

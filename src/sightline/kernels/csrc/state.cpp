// What one stream does with a program: finds sites, lists them, computes them, publishes them.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "pool.h"
#include "program.h"
#include "state_parts.h"

namespace sightline {


void Mask::shape(int r, int w) {
  rows = r;
  width = w;
  bits.assign((size_t)r * w, 0);
  row_any.assign((size_t)r, 0);
  count = 0;
}
void Mask::clear() {
  if (!count) return;
  for (int r = 0; r < rows; ++r)
    if (row_any[(size_t)r]) std::memset(bits.data() + (size_t)r * width, 0, (size_t)width);
  std::memset(row_any.data(), 0, row_any.size());
  count = 0;
}
void Mask::fill() {
  std::memset(bits.data(), 1, bits.size());
  std::memset(row_any.data(), 1, row_any.size());
  count = (int64_t)bits.size();
}

float* State::Scratch::row_space(size_t floats) {
  grow(rows, floats + 64);
  return rows.data;
}

State::State(std::shared_ptr<const Program> p, std::vector<Raw*> given) : program(std::move(p)), storage(std::move(given)) {
  if (storage.size() != program->storages.size()) throw std::invalid_argument("state: one pointer per storage");
  changed.resize((size_t)program->masks);
  for (const Tensor& t : program->tensors)
    if (!changed[(size_t)t.mask].rows) changed[(size_t)t.mask].shape(t.n * t.h, t.w);
  const size_t n = program->steps.size();
  sites.resize(n);
  needed.resize(n);
  stale.resize(n);
  threshold.assign(n, 0.0f);
  forced.assign(n, 0);
  whole.assign(n, 0);
  busy.assign(n, 0);
  row_sums_.resize(n);
  for (size_t i = 0; i < n; ++i) {
    const Step& s = program->steps[i];
    const Tensor& t = program->tensors[(size_t)s.out];
    sites[i].shape(t.n * t.h, t.w);
    if (s.kind == Kind::kMean) {
      const Tensor& in = program->tensors[(size_t)s.links[0].tensor];
      row_sums_[i] = Aligned((size_t)in.n * in.h * ((in.c + 15) / 16 * 16) + 64);
    }
    if (s.kind == Kind::kInput) held_frame_ = Aligned(((size_t)t.pixels() * t.c + 64) * (size_t)program->k->element / sizeof(float));
  }
  zeros_ = Aligned((size_t)program->zero_elements);  // as floats, which is enough for either element
}

void State::reset() {
  for (Mask& m : changed) m.clear();
  for (Mask& m : sites) m.clear();
  for (Mask& m : stale) m.clear();
  std::fill(whole.begin(), whole.end(), (uint8_t)0);
  std::fill(busy.begin(), busy.end(), (uint8_t)0);
  fresh = true;
}

void State::set_threshold(int step, float value) {
  if (value < threshold.at((size_t)step)) whole[(size_t)step] = 1;
  threshold[(size_t)step] = value;
}

Raw* State::at(int tensor) const {
  const Tensor& t = program->tensors[(size_t)tensor];
  return storage[(size_t)t.storage] + t.offset * program->k->element;
}

// One element of a map.
float State::value(const Raw* x) const {
  uint32_t bits = 0;
  if (program->k->element == 4) {
    std::memcpy(&bits, x, 4);
  } else {
    uint16_t half;
    std::memcpy(&half, x, 2);
    bits = (uint32_t)half << 16;
  }
  float result;
  std::memcpy(&result, &bits, 4);
  return result;
}

State::Scratch& State::scratch(int worker) { return *scratch_[(size_t)worker]; }

// -- sites ------------------------------------------------------------------------------------------------

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
      } else {
        for (int x = 0; x < ax.out; ++x) {
          uint8_t any = 0;
          for (int j = 0; j < ax.taps; ++j) {
            const int at = ax.index[(size_t)x * ax.taps + j];
            if (at >= 0) any |= in[at];
          }
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
  need.count = 0;
  for (int r = 0; r < need.rows; ++r) {
    uint8_t* row = need.bits.data() + (size_t)r * need.width;
    std::memcpy(row, mask + (size_t)r * need.width, (size_t)need.width);
    const int64_t n = program->k->count(row, need.width);
    need.row_any[(size_t)r] = n > 0;
    need.count += n;
  }
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

// -- publishing --------------------------------------------------------------------------------------------

Publish State::publisher(int step) {
  const Step& s = program->steps[(size_t)step];
  const Tensor& t = program->tensors[(size_t)s.out];
  Publish p;
  p.act = s.act;
  p.p0 = s.p0;
  p.p1 = s.p1;
  p.slope = s.slope.data;
  if (s.residual >= 0) {
    p.residual = at(s.residual);
    p.residual_ld = program->tensors[(size_t)s.residual].ld;
    p.residual_after_act = s.residual_after_act;
  }
  p.threshold = threshold[(size_t)step];
  p.mode = fresh ? kAlways : p.threshold > 0 ? kWithin : kExact;
  // Where nearly everything changes, comparing costs more than it saves: publish whatever is computed, and look again now and then.
  if (busy[(size_t)step] && (double)sites[(size_t)step].count >= kBusy * reachable(step)) {
    if (--busy[(size_t)step]) p.mode = kAlways;
  } else {
    busy[(size_t)step] = 0;
  }
  p.norm = norm;
  p.held = at(s.out);
  p.ld = t.ld;
  p.c = t.c;
  return p;
}

void State::note_density(int step, const Publish& pub) {
  if (fresh || pub.mode == kAlways) return;
  const Tensor& t = program->tensors[(size_t)program->steps[(size_t)step].out];
  const double n = (double)changed[(size_t)t.mask].count;
  busy[(size_t)step] = n >= kBusy * reachable(step) && n >= 0.95 * (double)sites[(size_t)step].count ? kLookAgain : 0;
}

void State::finish(int step, const Publish& pub, float* rows, int ldr, const Site* list, int n, uint8_t* flags) {
  if (program->k->publish(pub, rows, ldr, list, n, flags)) mark_changed(step, list, n, flags);
}

void State::mark_changed(int step, const Site* list, int n, const uint8_t* flags) {
  int total = 0;
  const Tensor& t = program->tensors[(size_t)program->steps[(size_t)step].out];
  Mask& m = changed[(size_t)t.mask];
  for (int i = 0, row = -1; i < n; ++i)
    if (flags[i]) {
      ++total;
      m.bits[(size_t)list[i].index] = 1;
      const int r = t.n == 1 ? list[i].y : list[i].index / m.width;
      if (r != row) mark(m.row_any[(size_t)(row = r)]);
    }
  __atomic_fetch_add(&m.count, (int64_t)total, __ATOMIC_RELAXED);
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

// compute(sites, count, rows, ldr, scratch) fills one row of channels per site; publishing is done here.
template <class F>
void State::for_chunks(int step, int64_t work_per_site, F&& compute) {
  const Tensor& t = program->tensors[(size_t)program->steps[(size_t)step].out];
  const Publish pub = publisher(step);
  const int ldr = (t.c + 15) / 16 * 16;
  const int chunk = std::clamp(32768 / ldr, 8, 64);
  split_list(chunk, work_per_site, [&](const Site* list, int count, Scratch& s) {
    float* rows = s.row_space((size_t)chunk * ldr + 64);
    grow(s.flags, (size_t)chunk);
    compute(list, count, rows, ldr, s);
    finish(step, pub, rows, ldr, list, count, s.flags.data());
  });
  note_density(step, pub);
}

// -- convolution ------------------------------------------------------------------------------------------------

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
  const int per_image = tout.h * tout.w;
  const int ny = (int)p.ky.size(), nx = (int)p.kx.size();
  const Raw* zero = reinterpret_cast<const Raw*>(zeros_.data);
  for (int i = 0; i < n; ++i) {
    const Site at = list[i];
    const Raw* image = tin.n == 1 ? base : base + (int64_t)(at.index / per_image) * tin.h * tin.w * ld;
    const int32_t* rows = ay.index.data() + (size_t)at.y * ay.taps;
    const int32_t* cols = ax.index.data() + (size_t)at.x * ax.taps;
    for (int j = 0; j < ny; ++j) {
      const int r = rows[p.ky[(size_t)j]];
      const Raw* line = image + (int64_t)r * tin.w * ld;
      if (merged) {
        *taps++ = r < 0 ? zero : line + cols[0] * ld;
      } else {
        for (int m = 0; m < nx; ++m) {
          const int c = cols[p.kx[(size_t)m]];
          *taps++ = (r < 0 || c < 0) ? zero : line + c * ld;
        }
      }
    }
  }
}

// All panels of a convolution over pixels whose taps lie in shape.taps; published.
void State::conv_pixels(const Step& s, const Phase& p, bool merged, const ConvTile& shape, const Site* list, int count, const Publish& pub,
                        int step, Scratch& w) {
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
  if (!in_registers) return finish(step, pub, rows, s.ldo, list, count, w.flags.data());
  if (keeps_rows) k.commit(pub, rows, s.ldo, w.sums.data(), count, panels, list, count, w.flags.data());
  mark_changed(step, list, count, w.flags.data());
}

void State::conv_group(const Step& s, int phase, bool merged, const SiteList& list, const Publish& pub, int step) {
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
    return mark_changed(step, list.data(), n, big_flags_.data());
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

void State::run_depthwise(int step) {
  const Step& s = program->steps[(size_t)step];
  list_sites(step);
  const Link& l = s.links[0];
  const Tensor &tin = program->tensors[(size_t)l.tensor], &tout = program->tensors[(size_t)s.out];
  const Axis &ay = program->axes[(size_t)l.rows], &ax = program->axes[(size_t)l.cols];
  const Raw* base = at(l.tensor);
  const Raw* zero = reinterpret_cast<const Raw*>(zeros_.data);
  const Kernels& k = *program->k;
  const int64_t ld = (int64_t)tin.ld * k.element;  // bytes from pixel to pixel
  const Publish pub = publisher(step);
  const bool at_once = publishes_at_once(pub);
  constexpr int kLongest = 16;  // so that zero_elements covers a run of padding rows
  const int ldr = (tout.c + 15) / 16 * 16;
  const int chunk = std::clamp(32768 / ldr, 8, 64);
  split_list(chunk, (int64_t)s.kh * s.kw * tout.c, [&](const Site* list, int n, Scratch& w) {
    float* rows = w.row_space((size_t)chunk * ldr + 64);
    grow(w.flags, (size_t)chunk);
    grow(w.taps, (size_t)s.kh * s.kw);
    const Raw** taps = w.taps.data();
    for (int i = 0; i < n;) {
      const Site at = list[i];
      const Raw* image = tin.n == 1 ? base : base + (int64_t)(at.index / (tout.h * tout.w)) * tin.h * tin.w * ld;
      const int32_t* ry = ay.index.data() + (size_t)at.y * ay.taps;
      const int32_t* cx = ax.index.data() + (size_t)at.x * ax.taps;
      float* row = rows + (int64_t)i * ldr;
      if (at.x >= s.inner_x0 && at.x < s.inner_x1) {
        int count = 1;
        while (count < kLongest && i + count < n && list[i + count].index == at.index + count && at.x + count < s.inner_x1 &&
               list[i + count].y == at.y)
          ++count;
        for (int j = 0; j < s.kh; ++j) taps[j] = ry[j] < 0 ? zero : image + ((int64_t)ry[j] * tin.w + cx[0]) * ld;
        const DepthwiseRun run{taps, count, tin.ld, ax.stride, s.weights.data, s.cpad, s.bias.data, row, ldr, tout.c};
        if (at_once ? k.depthwise_publish(s.kh, s.kw, run, pub, at.index, w.flags.data() + i) : k.depthwise_run(s.kh, s.kw, run)) {
          i += count;
          continue;
        }
      }
      int t = 0;
      for (int j = 0; j < s.kh; ++j)
        for (int m = 0; m < s.kw; ++m)
          taps[t++] = (ry[j] < 0 || cx[m] < 0) ? zero : image + ((int64_t)ry[j] * tin.w + cx[m]) * ld;
      k.depthwise_pixel(taps, t, s.weights.data, s.cpad, s.bias.data, row, tout.c);
      if (at_once) k.publish(pub, row, ldr, list + i, 1, w.flags.data() + i);
      ++i;
    }
    if (at_once) mark_changed(step, list, n, w.flags.data());
    else finish(step, pub, rows, ldr, list, n, w.flags.data());
  });
  note_density(step, pub);
}

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
        else std::fill(out, out + ldr, -INFINITY);
      } else {
        const float d = s.divisor != 0 ? s.divisor : s.div_y[at.y] * s.div_x[at.x];
        k.weighted_pixel(w.taps.data(), ay.taps, ax.taps, s.wy.data() + (size_t)at.y * ay.taps, s.wx.data() + (size_t)at.x * ax.taps, d,
                         out, tout.c);
      }
    }
  });
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
        if (s.weights.size) k.affine_pixel(from, s.weights.data, s.bias.data, rows + (int64_t)i * ldr, tout.c);
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
        for (const ChannelRun& run : part.runs[(size_t)((site.y % part.period_y) * part.period_x + site.x % part.period_x)])
          if (run.length == 1) out[run.dst] = value(from + run.src * element);  // a call per channel would cost more than the copy
          else if (element == 4) std::memcpy(out + run.dst, from + run.src * element, sizeof(float) * (size_t)run.length);
          else for (int j = 0; j < run.length; ++j) out[run.dst + j] = value(from + (run.src + j) * element);
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

// -- the frame --------------------------------------------------------------------------------------------------

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

// -- running ----------------------------------------------------------------------------------------------------

void State::run(int first, int last) {
  for (int i = first; i < last; ++i) {
    const Step& s = program->steps[(size_t)i];
    if (s.kind == Kind::kInput || s.kind == Kind::kExternal) continue;
    if (!find_sites(i)) {
      for (int part : {s.expand, s.depthwise})
        if (part >= 0) sites[(size_t)part].clear();
      continue;
    }
    if (s.inside) {  // computed by a later step; all that can change counts as changed
      Mask& to = changed[(size_t)program->tensors[(size_t)s.out].mask];
      to.bits = sites[(size_t)i].bits;
      to.row_any = sites[(size_t)i].row_any;
      to.count = sites[(size_t)i].count;
      continue;
    }
    if (s.expand >= 0 || s.depthwise >= 0) {
      run_block(i);
      continue;
    }
    switch (s.kind) {
      case Kind::kConv: run_conv(i); break;
      case Kind::kDepthwise: run_depthwise(i); break;
      case Kind::kMaxPool:
      case Kind::kWeighted: run_windows(i); break;
      case Kind::kPointwise:
      case Kind::kBinary: run_elementwise(i); break;
      case Kind::kGather: run_gather(i); break;
      case Kind::kMean: run_mean(i); break;
      case Kind::kUnion: {
        Mask &to = changed[(size_t)program->tensors[(size_t)s.out].mask], &from = sites[(size_t)i];
        to.bits = from.bits;
        to.row_any = from.row_any;
        to.count = from.count = program->k->count(from.bits.data(), (int64_t)from.bits.size());
        break;
      }
      default: break;
    }
  }
}

bool State::wants_external(int step, bool inputs_changed) {
  Mask& to = sites[(size_t)step];
  const bool all = fresh || whole[(size_t)step] || inputs_changed;
  whole[(size_t)step] = 0;
  if (all) to.fill();
  else to.clear();
  return needed[(size_t)step].rows || stale[(size_t)step].count ? keep_needed(step) : all;
}

void State::skip_external(int step) {
  changed[(size_t)program->tensors[(size_t)program->steps[(size_t)step].out].mask].clear();
  sites[(size_t)step].clear();
}

void State::publish_external(int step, const float* data, int64_t sn, int64_t sc, int64_t sh, int64_t sw) {
  const Tensor& t = program->tensors[(size_t)program->steps[(size_t)step].out];
  changed[(size_t)t.mask].clear();
  list_sites(step);
  for_chunks(step, t.c, [&](const Site* list, int n, float* rows, int ldr, Scratch&) {
    for (int i = 0; i < n; ++i) {
      const float* x = data + (list[i].index / (t.h * t.w)) * sn + list[i].y * sh + list[i].x * sw;
      for (int c = 0; c < t.c; ++c) rows[(int64_t)i * ldr + c] = x[c * sc];
    }
  });
}

double State::tensor_std(int tensor, bool computed_only) const {
  const Tensor& t = program->tensors[(size_t)tensor];
  const Raw* x = at(tensor);
  const int64_t element = program->k->element;
  double origin = 0, sum = 0, squares = 0, n = 0;
  for (int64_t p = 0; p < t.pixels(); ++p, x += t.ld * element) {
    if (computed_only && std::isnan(value(x))) continue;
    if (n == 0) origin = value(x);  // squares of small differences: a large mean must not swallow them
    for (int c = 0; c < t.c; ++c) {
      const double d = value(x + c * element) - origin;
      sum += d;
      squares += d * d;
    }
    n += t.c;
  }
  if (n == 0) return 0;
  const double mean = sum / n;
  return std::sqrt(std::max(0.0, squares / n - mean * mean));
}

int64_t State::bytes() const {
  int64_t total = (int64_t)(zeros_.size + held_frame_.size + big_rows_.size) * 4;
  auto vec = [&](const auto& v) { total += (int64_t)(v.capacity() * sizeof(v[0])); };
  for (const auto* masks : {&changed, &sites, &needed, &stale})
    for (const Mask& m : *masks) {
      vec(m.bits);
      vec(m.row_any);
    }
  for (const auto& s : scratch_) {
    total += (int64_t)s->rows.size * 4;
    vec(s->taps);
    vec(s->sums);
    vec(s->flags);
    total += (int64_t)(s->ring.size + s->middle.size) * 4;
    vec(s->ring_row);
    vec(s->list);
    vec(s->expand_list);
    vec(s->places);
  }
  for (const auto& c : categories_) vec(c);
  for (const Aligned& a : row_sums_) total += (int64_t)a.size * 4;
  vec(list_);
  vec(row_or_);
  vec(row_in_);
  vec(row_tmp_);
  vec(big_taps_);
  vec(big_sums_);
  vec(big_flags_);
  return total;
}

}  // namespace sightline

// One stream: its masks and counters, and the run over the steps. Its other files: state_*.cpp, block.cpp.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "pool.h"
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

void Mask::recount(const Kernels& k) {
  count = 0;
  for (int r = 0; r < rows; ++r)
    if (row_any[(size_t)r]) count += k.count(bits.data() + (size_t)r * width, width);
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

void State::run(int first, int last) {
  for (int i = first; i < last; ++i) {
    const Step& s = program->steps[(size_t)i];
    if (s.kind == Kind::kInput || s.kind == Kind::kExternal) continue;
    if (!find_sites(i)) {
      for (int part : {s.expand, s.depthwise})
        if (part >= 0) sites[(size_t)part].clear();
      continue;
    }
    if (s.inside) {  // computed by a later step, which finds its sites too; all that can change counts as changed
      std::swap(changed[(size_t)program->tensors[(size_t)s.out].mask], sites[(size_t)i]);
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
      case Kind::kKnn: run_knn(i); break;
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
  for_chunks(step, t.c, [&](const Publish&, const Site* list, int n, float* rows, int ldr, Scratch&) {
    for (int i = 0; i < n; ++i) {
      const float* x = data + (list[i].index / (t.h * t.w)) * sn + list[i].y * sh + list[i].x * sw;
      for (int c = 0; c < t.c; ++c) rows[(int64_t)i * ldr + c] = x[c * sc];
    }
  });
}

void State::copy_planar(int tensor, float* out) const {
  const Tensor& t = program->tensors[(size_t)tensor];
  if (program->k->element != (int)sizeof(float)) throw std::invalid_argument("copy_planar: maps of float32 only");
  const float* x = reinterpret_cast<const float*>(at(tensor));
  const int64_t plane = (int64_t)t.h * t.w;
  constexpr int kPixels = 512;  // of an image, whose rows lie one behind the other here and there
  const int parts = (int)((plane + kPixels - 1) / kPixels);
  auto part = [&](int i, int) {
    const int64_t image = i / parts, from = (int64_t)(i % parts) * kPixels;
    program->planar->rows_to_planes(x + (image * plane + from) * t.ld, t.ld, out + image * plane * t.c + from, plane,
                                    (int)std::min<int64_t>(kPixels, plane - from), t.c);
  };
  if (t.pixels() * t.c < kSerialWork)
    for (int i = 0; i < t.n * parts; ++i) part(i, 0);
  else
    Pool::instance().run(t.n * parts, part);
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
    total += (int64_t)sizeof(Scratch);
    total += (int64_t)s->rows.size * 4;
    vec(s->taps);
    vec(s->picks);
    vec(s->lines);
    vec(s->sums);
    vec(s->flags);
    total += (int64_t)(s->ring.size + s->middle.size) * 4;
    vec(s->ring_row);
    vec(s->owners);
    vec(s->starts);
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

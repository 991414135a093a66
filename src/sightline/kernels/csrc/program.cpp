#include "program.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <utility>

namespace sightline {

Aligned::Aligned(size_t floats) : size(floats) {
  if (!floats) return;
  const size_t bytes = (floats * sizeof(float) + 63) / 64 * 64;
  constexpr size_t kHuge = size_t{1} << 21;
  void* p = std::aligned_alloc(bytes >= kHuge ? kHuge : 64, bytes >= kHuge ? (bytes + kHuge - 1) / kHuge * kHuge : bytes);
  if (!p) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  if (bytes >= kHuge) madvise(p, bytes, MADV_HUGEPAGE);
#endif
  std::memset(p, 0, bytes);
  data = static_cast<float*>(p);
}
Aligned::Aligned(Aligned&& o) noexcept : data(std::exchange(o.data, nullptr)), size(std::exchange(o.size, 0)) {}
Aligned& Aligned::operator=(Aligned&& o) noexcept {
  std::swap(data, o.data);
  std::swap(size, o.size);
  return *this;
}
Aligned::~Aligned() { std::free(data); }

void Axis::classify() {
  // Find one output whose taps all lie inside; it fixes start, stride and dilation, and the rest must follow.
  regular = false;
  auto value = [&](int o, int k) { return index[(size_t)o * taps + k]; };
  int whole = -1, second = -1;
  for (int o = 0; o < out && second < 0; ++o) {
    bool inside = true;
    for (int k = 0; k < taps; ++k) inside = inside && value(o, k) >= 0;
    if (inside) (whole < 0 ? whole : second) = o;
  }
  if (whole < 0) return reverse();
  dilation = taps > 1 ? value(whole, 1) - value(whole, 0) : 1;
  stride = second >= 0 && (value(second, 0) - value(whole, 0)) % (second - whole) == 0
               ? (value(second, 0) - value(whole, 0)) / (second - whole) : 1;
  start = value(whole, 0) - whole * stride;
  if (dilation < 1 || stride < 1) return reverse();
  for (int o = 0; o < out; ++o)
    for (int k = 0; k < taps; ++k) {
      const int want = o * stride + start + k * dilation;
      if (value(o, k) != (want >= 0 && want < in ? want : -1)) return reverse();
    }
  regular = true;
}

void Axis::reverse() {
  if (taps < 4) return;  // looking at each output's taps costs no more
  first.assign((size_t)in + 1, 0);
  for (const int32_t i : index)
    if (i >= 0) ++first[(size_t)i + 1];
  for (size_t i = 0; i < (size_t)in; ++i) first[i + 1] += first[i];
  readers.resize((size_t)first[(size_t)in]);
  std::vector<int32_t> at(first.begin(), first.end() - 1);
  for (int o = 0; o < out; ++o)
    for (int k = 0; k < taps; ++k)
      if (const int32_t i = index[(size_t)o * taps + k]; i >= 0) readers[(size_t)at[(size_t)i]++] = o;
}

Program::Program(const Kernels* kernels, const EagerKernels* moves, const KnnKernels* on_points) : k(kernels), planar(moves), points(on_points) {}

int Program::add_storage(int64_t elements) {
  storages.push_back(elements);
  return (int)storages.size() - 1;
}

int Program::add_tensor(int storage, int64_t offset, int n, int h, int w, int c, int ld, int mask_of) {
  const bool held = storage != -1;  // else a later step computes it as it goes
  if (held && (storage < 0 || storage >= (int)storages.size())) throw std::invalid_argument("tensor: no such storage");
  if (n < 1 || h < 1 || w < 1 || c < 1 || ld < c || h > 65535 || w > 65535) throw std::invalid_argument("tensor: bad shape");
  if ((int64_t)n * h * w > INT32_MAX) throw std::invalid_argument("tensor: more than 2^31 positions");
  if (held && (offset < 0 || offset + ((int64_t)n * h * w - 1) * ld + c + 64 > storages[(size_t)storage]))
    throw std::invalid_argument("tensor: does not fit its storage");
  Tensor t;
  t.storage = storage; t.offset = offset; t.n = n; t.h = h; t.w = w; t.c = c; t.ld = ld;
  t.mask = mask_of >= 0 ? tensors.at((size_t)mask_of).mask : masks++;
  tensors.push_back(t);
  zero_elements = std::max<int64_t>(zero_elements, 64 * (int64_t)ld + 64);
  return (int)tensors.size() - 1;
}

int Program::add_axis(int in, int out, int taps, const int32_t* index) {
  Axis a;
  a.in = in; a.out = out; a.taps = taps;
  a.index.assign(index, index + (size_t)out * taps);
  for (int32_t v : a.index)
    if (v < -1 || v >= in) throw std::invalid_argument("axis: index outside the input");
  a.classify();
  axes.push_back(std::move(a));
  return (int)axes.size() - 1;
}

Step& Program::push(Kind kind, int out) {
  tensors.at((size_t)out);
  Step s;
  s.kind = kind;
  s.out = out;
  steps.push_back(std::move(s));
  return steps.back();
}

Link Program::window(int in, int rows, int cols) {
  if (rows < 0) return Link{in, Reads::kSame, -1, -1};
  const Tensor& t = tensors.at((size_t)in);
  if (axes.at((size_t)rows).in != t.h || axes.at((size_t)cols).in != t.w) throw std::invalid_argument("window: axes do not fit the input");
  return Link{in, Reads::kWindow, rows, cols};
}

int Program::add_input(int tensor) {
  push(Kind::kInput, tensor);
  return (int)steps.size() - 1;
}

namespace {

// Panels of 4 vectors while they last, then 3s and 2s; a single vector only where there is no more. With 16 registers (all but AVX-512)
// a block of 4 vectors spills: 2s there, and a 3 where the number is odd.
std::vector<int> panel_widths(int vectors, int lanes) {
  std::vector<int> out;
  if (lanes < 16) {
    for (; vectors > 3; vectors -= 2) out.push_back(2);
    out.push_back(vectors);
    return out;
  }
  if (vectors % 4 && vectors % 3 == 0 && vectors <= 9) {
    out.assign((size_t)vectors / 3, 3);
    return out;
  }
  while (vectors > 0) {
    int v = std::min(vectors, 4);
    if (vectors == 5) v = 3;
    out.push_back(v);
    vectors -= v;
  }
  return out;
}

// Taps that any output of residue `r` modulo `period` reads, in the order in which they lie in the input.
std::vector<int> phase_taps(const Axis& a, int r, int period) {
  std::vector<int> taps;
  std::vector<int64_t> place;
  for (int t = 0; t < a.taps; ++t) {
    bool used = false;
    int64_t sum = 0;
    for (int o = r; o < a.out; o += period) {
      const int v = a.index[(size_t)o * a.taps + t];
      if (v >= 0) { used = true; sum = (int64_t)v - o / period; break; }
    }
    if (used) { taps.push_back(t); place.push_back(sum); }
  }
  if (period > 1) {
    std::vector<int> order(taps.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = (int)i;
    std::stable_sort(order.begin(), order.end(), [&](int x, int y) { return place[(size_t)x] < place[(size_t)y]; });
    std::vector<int> sorted;
    for (int i : order) sorted.push_back(taps[(size_t)i]);
    return sorted;
  }
  return taps;
}

uint16_t to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return (uint16_t)((bits | 0x400000) >> 16);
  return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Where one output channel's weight for term `i` of a reduction lies: terms one after the other, or two in a 32-bit lane.
void put_weight(float* panel, int element, int width, int i, int lane, float value) {
  if (element == 4) {
    panel[(size_t)i * width + lane] = value;
  } else {
    uint16_t* halves = reinterpret_cast<uint16_t*>(panel);
    halves[((size_t)(i / 2) * width + lane) * 2 + i % 2] = to_bfloat16(value);
  }
}

// Columns whose window lies inside the row: one stretch, since the axis is regular.
void set_inner_columns(Step& s, const Axis& a) {
  auto inside = [&](int x) {
    for (int j = 0; j < a.taps; ++j)
      if (a.index[(size_t)x * a.taps + j] < 0) return false;
    return true;
  };
  s.inner_x0 = 0;
  s.inner_x1 = a.out;
  while (s.inner_x0 < s.inner_x1 && !inside(s.inner_x0)) ++s.inner_x0;
  while (s.inner_x1 > s.inner_x0 && !inside(s.inner_x1 - 1)) --s.inner_x1;
}

}  // namespace

int Program::add_conv(int out, int in, int rows, int cols, const float* weight, const float* bias, int cout, int cin_group, int kh,
                      int kw, int groups, int period_y, int period_x) {
  const Link link = window(in, rows, cols);
  const Tensor tin = tensors.at((size_t)in), tout = tensors.at((size_t)out);
  if (tin.c != cin_group * groups || tout.c != cout || cout % groups) throw std::invalid_argument("conv: channels do not fit");
  if (rows < 0 && (kh != 1 || kw != 1)) throw std::invalid_argument("conv: needs axes");
  if (rows >= 0 && (axes[(size_t)rows].taps != kh || axes[(size_t)cols].taps != kw || axes[(size_t)rows].out != tout.h ||
                    axes[(size_t)cols].out != tout.w))
    throw std::invalid_argument("conv: axes do not fit the output");
  Step& s = push(Kind::kConv, out);
  s.links.push_back(link);
  const int lanes = k->lanes;
  // Narrow groups are packed together until they fill a vector; the weights between strangers are zero.
  const int cout_group = cout / groups;
  int merge = 1;
  while (merge < groups && (groups % merge || cout_group * merge < lanes)) ++merge;
  const int blocks = groups / merge, block_out = cout_group * merge, block_in = cin_group * merge;
  s.cin = block_in;
  s.kh = kh;
  s.kw = kw;
  s.period_y = period_y;
  s.period_x = period_x;
  s.panels_overlap = blocks > 1 && block_out % lanes != 0;
  if (rows >= 0) {
    const Axis& cx = axes[(size_t)cols];
    s.merged_rows = period_y == 1 && period_x == 1 && kw > 1 && cx.regular && cx.dilation == 1 && blocks == 1 && tin.ld == tin.c &&
                    block_in <= 64;
    if (s.merged_rows) set_inner_columns(s, cx);
    zero_elements = std::max<int64_t>(zero_elements, (int64_t)kw * tin.c + tin.c + 64);
  }
  // What is left over beside whole vectors takes half a vector where that is enough and the sum is short (it is added up in one go).
  const int depth = kh * kw * block_in, left = block_out % lanes;
  const bool half = k->half_panels && blocks == 1 && left > 0 && left <= lanes / 2 && depth >= 16 && depth <= 512;
  auto widths = panel_widths(half ? block_out / lanes : (block_out + lanes - 1) / lanes, lanes);
  if (half) widths.push_back(0);
  auto width_of = [&](int v) { return v ? v * lanes : lanes / 2; };
  int padded = 0;
  for (int v : widths) padded += width_of(v);
  // Whole vectors: publishing reads and writes a row up to the next multiple of the lanes.
  s.ldo = ((blocks - 1) * block_out + padded + lanes - 1) / lanes * lanes;
  size_t total = 0, total_bias = (size_t)blocks * padded;
  for (int py = 0; py < period_y; ++py)
    for (int px = 0; px < period_x; ++px) {
      Phase phase;
      if (rows < 0) {
        phase.ky = phase.kx = {0};
      } else {
        phase.ky = phase_taps(axes[(size_t)rows], py, period_y);
        phase.kx = phase_taps(axes[(size_t)cols], px, period_x);
        if (period_y == 1 && period_x == 1) {  // every tap, so that the packed layout does not depend on the map
          phase.ky.clear();
          phase.kx.clear();
          for (int i = 0; i < kh; ++i) phase.ky.push_back(i);
          for (int i = 0; i < kw; ++i) phase.kx.push_back(i);
        }
      }
      total += (size_t)blocks * padded * phase.ky.size() * phase.kx.size() * (size_t)pairs(block_in, k->element);
      if (s.merged_rows && k->element == 2 && block_in % 2) total += (size_t)padded * phase.ky.size() * (size_t)pairs(kw * block_in, 2);
      s.phases.push_back(std::move(phase));
    }
  s.weights = Aligned(total + 64);
  s.bias = Aligned(total_bias + 64);
  size_t at = 0;
  for (auto& phase : s.phases) {
    size_t bias_at = 0;
    for (int b = 0; b < blocks; ++b) {
      int c0 = b * block_out;
      for (int v : widths) {
        const int width = width_of(v), end = (b + 1) * block_out;
        phase.panels.push_back(Panel{c0, v, std::min(width, end - c0), (int64_t)b * block_in, at, bias_at, at});
        for (int l = 0; l < width; ++l)
          if (c0 + l < end && bias) s.bias.data[bias_at + (size_t)l] = bias[c0 + l];
        bias_at += (size_t)width;
        // A tap's terms; with merged rows a tap is a whole row of the kernel.
        auto pack = [&](bool merged) {
          const size_t tap_size = (size_t)pairs(merged ? kw * block_in : block_in, k->element) * (size_t)width;
          for (int ky : phase.ky) {
            for (size_t x = 0; x < phase.kx.size(); ++x) {
              const int kx = phase.kx[x];
              for (int ci = 0; ci < block_in; ++ci)
                for (int l = 0; l < width; ++l) {
                  const int co = c0 + l;
                  if (co >= end || co / cout_group != b * merge + ci / cin_group) continue;
                  const float value = weight[(((size_t)co * cin_group + (size_t)(ci % cin_group)) * kh + (size_t)ky) * kw + (size_t)kx];
                  put_weight(s.weights.data + at, k->element, width, merged ? (int)x * block_in + ci : ci, l, value);
                }
              if (!merged) at += tap_size;
            }
            if (merged) at += tap_size;
          }
        };
        pack(false);
        if (s.merged_rows && k->element == 2 && block_in % 2) {
          phase.panels.back().merged = at;
          pack(true);
        }
        c0 += width;
      }
    }
  }
  if (s.merged_rows && groups == 1 && tout.ld == cout && depth <= 512 && k->conv_narrow) narrow_conv(s, weight, bias, cout);
  return (int)steps.size() - 1;
}

// Weights once more, as several pixels in a vector take them, if their windows fit into two vectors.
void Program::narrow_conv(Step& s, const float* weight, const float* bias, int cout) {
  const int lanes = k->lanes, pixels = lanes / cout, run = s.kw * s.cin;
  if (pixels < 2 || (pixels - 1) * axes[(size_t)s.links[0].cols].stride * s.cin + run > 2 * lanes) return;
  s.narrow = true;
  s.narrow_weights = Aligned((size_t)s.kh * run * lanes + 64);
  s.narrow_bias = Aligned((size_t)lanes + 64);
  for (int l = 0; l < pixels * cout; ++l) {
    const int co = l % cout;
    if (bias) s.narrow_bias.data[l] = bias[co];
    for (int ky = 0; ky < s.kh; ++ky)
      for (int i = 0; i < run; ++i)
        s.narrow_weights.data[((size_t)ky * run + i) * lanes + l] = weight[(((size_t)co * s.cin + i % s.cin) * s.kh + ky) * s.kw + i / s.cin];
  }
}

int Program::add_depthwise(int out, int in, int rows, int cols, const float* weight, const float* bias, int kh, int kw) {
  const Link link = window(in, rows, cols);
  const Tensor tin = tensors.at((size_t)in), tout = tensors.at((size_t)out);
  if (tin.c != tout.c || rows < 0 || axes[(size_t)rows].taps != kh || axes[(size_t)cols].taps != kw || axes[(size_t)rows].out != tout.h ||
      axes[(size_t)cols].out != tout.w)
    throw std::invalid_argument("depthwise: shapes do not fit");
  Step& s = push(Kind::kDepthwise, out);
  s.links.push_back(link);
  s.kh = kh;
  s.kw = kw;
  const int c = tout.c;
  s.cpad = (c + 15) / 16 * 16;
  s.weights = Aligned((size_t)kh * kw * s.cpad + 64);
  s.bias = Aligned((size_t)s.cpad + 64);
  for (int i = 0; i < c; ++i) {
    if (bias) s.bias.data[i] = bias[i];
    for (int t = 0; t < kh * kw; ++t) s.weights.data[(size_t)t * s.cpad + i] = weight[(size_t)i * kh * kw + t];
  }
  const Axis& cx = axes[(size_t)cols];
  if (cx.regular && cx.dilation == 1 && (cx.stride == 1 || cx.stride == 2))
    set_inner_columns(s, cx);
  return (int)steps.size() - 1;
}

void Program::fuse_block(int last, int depthwise, int expand) {
  Step& end = steps.at((size_t)last);
  Step& middle = depthwise >= 0 ? steps.at((size_t)depthwise) : end;
  auto only_reads = [&](const Step& s, const Step& source) { return s.links.size() == 1 && s.links[0].tensor == source.out; };
  if (middle.kind != Kind::kDepthwise) throw std::invalid_argument("block: needs a depthwise convolution");
  if (depthwise >= 0 && (end.kind != Kind::kConv || end.links[0].how != Reads::kSame || !only_reads(end, middle) || middle.residual >= 0))
    throw std::invalid_argument("block: the last step must be a pointwise convolution of the depthwise one");
  end.depthwise = depthwise;
  end.expand = expand;
  if (depthwise >= 0) middle.inside = true;
  if (expand < 0) return;
  Step& first = steps.at((size_t)expand);
  if (first.kind != Kind::kConv || first.phases.size() != 1 || first.residual >= 0 || !only_reads(middle, first))
    throw std::invalid_argument("block: the depthwise convolution must read the first step alone");
  first.inside = true;
  const int64_t ld = (tensors[(size_t)first.out].c + 15) / 16 * 16;
  zero_elements = std::max<int64_t>(zero_elements, 64 * ld + 64);
}

Step& Program::push_knn(int out, int in, int cols, int cells, const int32_t* cell) {
  const Tensor tin = tensors.at((size_t)in), tout = tensors.at((size_t)out);
  const std::vector<int32_t>& index = axes.at((size_t)cols).index;
  if (tin.h != 1 || tout.h != 1 || tin.n != tout.n || axes[(size_t)cols].in != tin.w || axes[(size_t)cols].out != tout.w || cells < 1)
    throw std::invalid_argument("knn: shapes do not fit");
  for (size_t i = 0; i < index.size(); ++i)
    if (index[i] >= 0 && (cell[i] < 0 || cell[i] >= cells)) throw std::invalid_argument("knn: cell outside the weight");
  const size_t taps = index.size();
  const int32_t only = 0;
  const int rows = add_axis(1, 1, 1, &only);  // `index` is no longer valid
  const Link link = window(in, rows, cols);
  Step& s = push(Kind::kKnn, out);
  s.links.push_back(link);
  s.cin = tin.c;
  s.cells = cells;
  s.cell.assign(cell, cell + taps);
  return s;
}

int Program::add_knn_depthwise(int out, int in, int cols, const float* weight, int cells, const int32_t* cell) {
  const int c = tensors.at((size_t)out).c;
  if (c % tensors.at((size_t)in).c) throw std::invalid_argument("knn: channels do not fit");
  Step& s = push_knn(out, in, cols, cells, cell);
  s.cpad = (c + 15) / 16 * 16;
  s.weights = Aligned((size_t)s.cpad * (size_t)cells + 64);
  for (int i = 0; i < c; ++i)
    for (int v = 0; v < cells; ++v) s.weights.data[(size_t)v * (size_t)s.cpad + (size_t)i] = weight[(size_t)i * (size_t)cells + (size_t)v];
  return (int)steps.size() - 1;
}

int Program::add_knn(int out, int in, int cols, const float* weight, const float* bias, int cout, int cells, const int32_t* cell) {
  if (tensors.at((size_t)out).c != cout) throw std::invalid_argument("knn: channels do not fit");
  Step& s = push_knn(out, in, cols, cells, cell);
  const int lanes = k->lanes;
  const auto widths = panel_widths((cout + lanes - 1) / lanes, lanes);
  for (int v : widths) s.ldo += v * lanes;
  s.bias = Aligned((size_t)s.ldo + 64);
  if (bias) std::copy(bias, bias + cout, s.bias.data);
  if (k->element == 4) {
    s.knn = std::make_unique<KnnWeights>(KnnWeights{points, KnnShape(*points, s.cin, cout, cells), weight, s.bias.data});
    s.knn_packed = knn_pack(*s.knn);
    s.knn->packed = s.knn_packed.get();
    s.knn->raw = nullptr;  // the caller's
    return (int)steps.size() - 1;
  }
  const size_t depth = (size_t)pairs(s.cin, k->element);
  s.weights = Aligned((size_t)s.ldo * depth * (size_t)cells + 64);
  s.phases.emplace_back();
  size_t at = 0;
  int c0 = 0;
  for (int v : widths) {
    const int width = v * lanes;
    s.phases[0].panels.push_back(Panel{c0, v, std::min(width, cout - c0), 0, at, 0, at});
    for (int part = 0; part < cells; ++part, at += depth * (size_t)width)
      for (int ci = 0; ci < s.cin; ++ci)
        for (int l = 0; l < width && c0 + l < cout; ++l)
          put_weight(s.weights.data + at, k->element, width, ci, l, weight[((size_t)(c0 + l) * s.cin + (size_t)ci) * (size_t)cells + (size_t)part]);
    c0 += width;
  }
  return (int)steps.size() - 1;
}

int Program::add_max_pool(int out, int in, int rows, int cols, float empty) {
  const Link link = window(in, rows, cols);
  Step& s = push(Kind::kMaxPool, out);
  s.fill = empty;
  s.links.push_back(link);
  auto sees_nothing = [](const Axis& a) {
    for (int o = 0; o < a.out; ++o)
      if (*std::max_element(a.index.begin() + (size_t)o * a.taps, a.index.begin() + (size_t)(o + 1) * a.taps) < 0) return true;
    return false;
  };
  if (sees_nothing(axes[(size_t)rows]) || sees_nothing(axes[(size_t)cols])) {
    s.empty_pixel = Aligned((size_t)tensors[(size_t)in].c + 64);
    if (k->element == 4) std::fill_n(s.empty_pixel.data, s.empty_pixel.size, empty);
    else std::fill_n(reinterpret_cast<uint16_t*>(s.empty_pixel.data), 2 * s.empty_pixel.size, to_bfloat16(empty));
  }
  return (int)steps.size() - 1;
}

int Program::add_weighted(int out, int in, int rows, int cols, const float* wy, const float* wx, const float* div_y,
                          const float* div_x, float divisor) {
  const Link link = window(in, rows, cols);
  Step& s = push(Kind::kWeighted, out);
  s.links.push_back(link);
  const Axis &ay = axes.at((size_t)rows), &ax = axes.at((size_t)cols);
  auto fill = [](std::vector<float>& v, const float* from, size_t n) {
    if (from) v.assign(from, from + n);
    else v.assign(n, 1.0f);
  };
  fill(s.wy, wy, (size_t)ay.out * ay.taps);
  fill(s.wx, wx, (size_t)ax.out * ax.taps);
  fill(s.div_y, div_y, (size_t)ay.out);
  fill(s.div_x, div_x, (size_t)ax.out);
  s.divisor = divisor;
  if (k->upsample_narrow && ay.taps == 2 && ax.taps == 2 && divisor == 1) narrow_upsample(s);
  return (int)steps.size() - 1;
}

// Tables by output element of a row, if all taps lie inside the map and several pixels' fit into two vectors.
void Program::narrow_upsample(Step& s) {
  const Tensor &tin = tensors[(size_t)s.links[0].tensor], &tout = tensors[(size_t)s.out];
  const Axis &ay = axes[(size_t)s.links[0].rows], &ax = axes[(size_t)s.links[0].cols];
  const int lanes = k->lanes, c = tout.c, pixels = lanes / c;
  if (pixels < 2 || tin.ld != c || tout.ld != c || *std::min_element(ay.index.begin(), ay.index.end()) < 0) return;
  for (int x = 0; x < ax.out; ++x) {
    const int32_t* here = ax.index.data() + 2 * (size_t)x;
    const int last = std::min(x + pixels, ax.out) - 1;
    const int32_t from = here[0], to = std::max(ax.index[2 * (size_t)last], ax.index[2 * (size_t)last + 1]);
    if (from < 0 || here[1] < from || (x && from < here[-2]) || (to - from + 1) * c > 2 * lanes) return;
  }
  s.narrow = true;
  const size_t elements = (size_t)ax.out * c + (size_t)lanes;  // whole vectors are read
  s.left.assign(elements, 0);
  s.right.assign(elements, 0);
  s.left_weight.assign(elements, 0);
  s.right_weight.assign(elements, 0);
  for (int x = 0; x < ax.out; ++x)
    for (int i = 0; i < c; ++i) {
      const size_t at = (size_t)x * c + i, tap = 2 * (size_t)x;
      s.left[at] = ax.index[tap] * c + i;
      s.right[at] = ax.index[tap + 1] * c + i;
      s.left_weight[at] = s.wx[tap];
      s.right_weight[at] = s.wx[tap + 1];
    }
}

int Program::add_pointwise(int out, int in, const float* scale, const float* shift) {
  const Tensor tin = tensors.at((size_t)in), tout = tensors.at((size_t)out);
  if (tin.pixels() != tout.pixels() || tin.c != tout.c) throw std::invalid_argument("pointwise: shapes differ");
  Step& s = push(Kind::kPointwise, out);
  s.links.push_back(Link{in, Reads::kSame, -1, -1});
  if (scale) {
    const size_t pad = (size_t)(tout.c + 63) / 16 * 16;
    s.weights = Aligned(pad);
    s.bias = Aligned(pad);
    std::copy(scale, scale + tout.c, s.weights.data);
    std::copy(shift, shift + tout.c, s.bias.data);
  }
  return (int)steps.size() - 1;
}

int Program::add_channel_norm(int out, int in, const float* scale, const float* shift, float epsilon) {
  if (!scale || !shift || !(epsilon >= 0)) throw std::invalid_argument("channel norm: scale, shift and a positive epsilon are needed");
  const int step = add_pointwise(out, in, scale, shift);
  steps[(size_t)step].normalize = epsilon;
  return step;
}

int Program::add_softmax(int out, int in) {
  const int step = add_pointwise(out, in, nullptr, nullptr);
  steps[(size_t)step].softmax = true;
  return step;
}

int Program::add_binary(int out, int a, int b, int op) {
  const Tensor to = tensors.at((size_t)out);
  Step& s = push(Kind::kBinary, out);
  s.op = op;
  for (int i : {a, b}) {
    const Tensor& t = tensors.at((size_t)i);
    auto fits = [](int have, int want) { return have == want || have == 1; };
    if (!fits(t.n, to.n) || !fits(t.h, to.h) || !fits(t.w, to.w) || !fits(t.c, to.c)) throw std::invalid_argument("binary: shapes do not broadcast");
    const bool same = t.n == to.n && t.h == to.h && t.w == to.w;
    s.links.push_back(Link{i, same ? Reads::kSame : Reads::kImage, -1, -1});
  }
  return (int)steps.size() - 1;
}

namespace {

// Runs of channels as Kernels::gather takes them; empty if they leave channels out.
std::vector<int32_t> picks(const std::vector<ChannelRun>& runs, int channels, int lanes) {
  std::vector<int32_t> source((size_t)channels, -1), out;
  for (const ChannelRun& run : runs)
    for (int i = 0; i < run.length; ++i) source[(size_t)(run.dst + i)] = run.src + i;
  for (int at = 0; at < channels; at += lanes) {
    const int32_t* from = source.data() + at;
    const int n = std::min(lanes, channels - at);
    if (*std::min_element(from, from + n) < 0) return {};
    const int first = *std::min_element(from, from + n);
    int second = -1;
    for (int i = 0; i < n; ++i)
      if (from[i] >= first + lanes && (second < 0 || from[i] < second)) second = from[i];
    if (second < 0) second = first;
    const bool anywhere = *std::max_element(from, from + n) >= second + lanes;
    out.push_back(anywhere ? -1 : first);
    out.push_back(anywhere ? -1 : second);
    for (int i = 0; i < lanes; ++i) {
      const int from_here = i < n ? from[i] : first;
      out.push_back(anywhere ? from_here : from_here < first + lanes ? from_here - first : lanes + from_here - second);
    }
  }
  return out;
}

}  // namespace

int Program::add_gather(int out, float fill) {
  push(Kind::kGather, out).fill = fill;
  return (int)steps.size() - 1;
}

void Program::add_gather_part(int step, int in, int rows, int cols, int period_y, int period_x, const std::vector<int32_t>& runs) {
  const Link link = window(in, rows, cols);
  Step& s = steps.at((size_t)step);
  const Tensor &tin = tensors.at((size_t)in), &tout = tensors.at((size_t)s.out);
  GatherPart part;
  part.link = (int)s.links.size();
  part.period_y = period_y;
  part.period_x = period_x;
  part.runs.resize((size_t)period_y * period_x);
  if (runs.size() % 4) throw std::invalid_argument("gather: runs come as (phase, dst, src, length)");
  for (size_t i = 0; i < runs.size(); i += 4) {
    if (runs[i + 1] < 0 || runs[i + 2] < 0 || runs[i + 1] + runs[i + 3] > tout.c || runs[i + 2] + runs[i + 3] > tin.c)
      throw std::invalid_argument("gather: channels outside the map");
    part.runs.at((size_t)runs[i]).push_back(ChannelRun{runs[i + 1], runs[i + 2], runs[i + 3]});
  }
  for (const auto& list : part.runs) {
    part.picks.push_back(picks(list, tout.c, k->lanes));
    if (part.picks.back().empty()) {
      part.picks.clear();
      break;
    }
  }
  part.whole = part.runs.size() == 1 && part.runs[0].size() == 1 && part.runs[0][0].dst == 0 && part.runs[0][0].src == 0 && part.runs[0][0].length == tout.c;
  s.links.push_back(link);
  s.parts.push_back(std::move(part));
}

int Program::add_mean(int out, int in) {
  const Tensor tin = tensors.at((size_t)in), tout = tensors.at((size_t)out);
  if (tin.c != tout.c || tin.n != tout.n || tout.h != 1 || tout.w != 1) throw std::invalid_argument("mean: shapes do not fit");
  push(Kind::kMean, out).links.push_back(Link{in, Reads::kImage, -1, -1});
  return (int)steps.size() - 1;
}

int Program::add_union(int out, const std::vector<int>& parts) {
  Step& s = push(Kind::kUnion, out);
  for (int t : parts) s.links.push_back(Link{t, Reads::kSame, -1, -1});
  return (int)steps.size() - 1;
}

int Program::add_external(int out) {
  push(Kind::kExternal, out);
  return (int)steps.size() - 1;
}

void Program::set_epilogue(int step, int act, float p0, float p1, const float* slope, int slope_size, int residual, bool after_act) {
  Step& s = steps.at((size_t)step);
  const Tensor& t = tensors.at((size_t)s.out);
  if (act < 0 || act >= kActCount) throw std::invalid_argument("epilogue: unknown activation");
  s.act = act;
  s.p0 = p0;
  s.p1 = p1;
  if (act == kPrelu) {
    if (!slope || (slope_size != 1 && slope_size != t.c)) throw std::invalid_argument("epilogue: slope does not fit");
    s.slope = Aligned((size_t)t.c + 64);
    for (int i = 0; i < t.c; ++i) s.slope.data[i] = slope[slope_size == 1 ? 0 : i];
  }
  if (residual >= 0) {
    const Tensor& r = tensors.at((size_t)residual);
    if (r.pixels() != t.pixels() || r.c != t.c) throw std::invalid_argument("epilogue: residual does not fit");
    s.residual = residual;
    s.residual_after_act = after_act;
  }
}

int64_t Program::weight_bytes() const {
  int64_t total = 0;
  for (const Step& s : steps) {
    total += (int64_t)(s.weights.size + s.bias.size + s.slope.size + s.narrow_weights.size + s.narrow_bias.size + s.empty_pixel.size) * 4;
    if (s.knn) total += (int64_t)(s.knn->shape.panels * s.knn->shape.panel_floats()) * 4;
  }
  return total;
}

}  // namespace sightline

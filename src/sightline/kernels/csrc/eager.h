// Operators outside any program: one call computes one op at listed sites, or its gradients there.
//
// Maps come with arbitrary strides and no padding behind them, so nothing here reads past a pixel's last channel. Work is done
// on pixels whose channels are contiguous; a map that lies otherwise is brought into that order first, in blocks, and only where
// the sites read it. Every value is computed whole by one thread in one order: results do not depend on the number of threads.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "isa.h"

namespace sightline {

// A map (n, c, h, w) with strides in floats.
struct View { float* data; int64_t n, c, y, x; };

// A map whose channels are contiguous: all of it, or, with `slots`, blocks of kBlockPixels pixels of its rows, each in the slot that
// the table names. Neighbouring blocks lie in neighbouring slots, so what a window reads of one row is in one piece either way.
constexpr int kBlockPixels = 16;
struct Pixels {
  float* data;
  int64_t n, y, x;
  const int32_t* slots = nullptr;  // per image, row and block
  int64_t image_slots = 0, row_slots = 0;
  float* row(int image, int r) const { return slots ? data : data + image * n + r * y; }
  const int32_t* row_of_slots(int image, int r) const { return slots ? slots + image * image_slots + r * row_slots : nullptr; }
  float* at(float* row, const int32_t* in_row, int c) const {
    return in_row ? row + ((int64_t)in_row[c / kBlockPixels] * kBlockPixels + c % kBlockPixels) * x : row + c * x;
  }
};

// out[i][co] += sum over rows of taps[row * step][shift + i] * g[row * ldg + co]: the gradient of a weight at one tap.
struct GradTile {
  const float* const* taps;
  int64_t shift;
  int rows, cin;
  const float* g;
  int ldg, vectors;
  float* out;  // [cin][ldo]
  int ldo;
};

struct EagerKernels {
  void (*grad_weight)(const GradTile&);
  void (*add_row)(const float* from, float* to, int c);
  // rows[i * ld + k] <-> planes[k * plane + i]
  void (*rows_to_planes)(const float* rows, int64_t ld, float* planes, int64_t plane, int pixels, int c);
  void (*planes_to_rows)(const float* planes, int64_t plane, float* rows, int64_t ld, int pixels, int c);
  // to[offsets[j] + i] = from[i * ld + j] for i < m, j < n, where the offset is not negative; and the reverse.
  void (*pack)(const float* from, int64_t ld, int m, int n, const int64_t* offsets, float* to);
  void (*unpack)(const float* from, const int64_t* offsets, int m, int n, float* to, int64_t ld);
  // Below, a tap is null where the window reaches outside the map.
  void (*depthwise)(const float* const* taps, int ntaps, const float* weights, int ldw, const float* bias, float* out, int c);
  void (*depthwise_grad_input)(float* const* taps, int ntaps, const float* weights, int ldw, const float* g, int c);
  void (*depthwise_grad_weight)(const float* const* taps, int rows, const float* g, int ldg, float* out, int c);
  void (*max_pool)(const float* const* taps, int ntaps, float* out, int c);
  void (*max_pool_grad)(const float* const* taps, float* const* to, int ntaps, const float* g, int c);
  void (*sum_pool)(const float* const* taps, int ntaps, float divisor, float* out, int c);
  void (*sum_pool_grad)(float* const* to, int ntaps, float divisor, const float* g, int c);
  // out[f * ldo] = sum_k x[k] * weights[f * ldw + k]
  void (*dots)(const float* x, const float* weights, int64_t ldw, float* out, int64_t ldo, int filters, int c);
  // to[k] += factor * from[k]
  void (*add_scaled)(float factor, const float* from, float* to, int c);
};

const EagerKernels* eager_kernels_avx512();
const EagerKernels* eager_kernels_avx2();
const EagerKernels* eager_kernels_baseline();

// A convolution's channels, and how its weight lies: weight[group * w_group + co * w_out + ci * w_in + tap], co and ci within the group.
struct ConvShape {
  int cin, cout, groups;
  int64_t w_group, w_out, w_in;
  int in_group() const { return cin / groups; }
  int out_group() const { return cout / groups; }
  bool depthwise() const { return groups == cin && groups == cout; }
};

// A window over maps of one size: which input row (column) each tap of each output row (column) reads, -1 for none.
// Output rows o and o + period_y use the same taps (1 for a convolution, the stride for a transposed one).
class EagerWindow {
 public:
  EagerWindow(const Kernels* kernels, const EagerKernels* eager, int hin, int win, int hout, int wout, int kh, int kw, const int32_t* rows,
              const int32_t* cols, int period_y, int period_x);

  void conv(int n, View x, View out, const ConvShape& shape, const float* weight, const float* bias, const uint8_t* mask) const;
  // gx (zeroed by the caller), gw and gb may be null: not wanted.
  void conv_backward(int n, View gy, View x, const ConvShape& shape, const float* weight, const uint8_t* mask, View gx, float* gw,
                     float* gb) const;
  void max_pool(int n, int c, View x, View out, const uint8_t* mask) const;
  void max_pool_backward(int n, int c, View gy, View x, View gx, const uint8_t* mask) const;
  // Divisors per output row and column; their product is what a window's sum is divided by.
  void avg_pool(int n, int c, View x, View out, const uint8_t* mask, const float* div_y, const float* div_x) const;
  void avg_pool_backward(int n, int c, View gy, View gx, const uint8_t* mask, const float* div_y, const float* div_x) const;
  // out (n, filters, windows, kh, kw), weight (filters, c, kh, kw); all windows.
  void channel_sum(int n, int c, int filters, View x, const float* weight, float* out) const;
  void channel_sum_backward(int n, int c, int filters, const float* gy, View x, const float* weight, View gx, float* gw) const;

 private:
  struct Phase {
    std::vector<int> ky, kx;
    int taps() const { return (int)(ky.size() * kx.size()); }
    std::vector<int> kernel_taps(int kw) const;  // ky * kw + kx of each
  };
  struct Source;
  struct Panel;
  struct Panels;
  using Lists = std::vector<std::vector<Site>>;  // per phase, in order

  Lists list(const uint8_t* mask, int n) const;
  std::vector<int32_t> slots_read(const Lists& lists, int n, int& used) const;
  template <class T>
  void fill_taps(const Pixels& map, const Phase& phase, const Site* list, int count, T none, T* out) const;
  int image_of(const Site& site) const { return site.index / (hout_ * wout_); }
  void write_rows(const float* rows, int64_t ld, const Site* list, int count, const View& out, int c) const;
  std::unique_ptr<float[]> gather_rows(const View& from, const std::vector<Site>& list, int c, int64_t ld) const;
  std::unique_ptr<float[]> pack_forward(const ConvShape& shape, const float* weight, const std::vector<int>& taps, Panels& panels) const;
  std::unique_ptr<float[]> pack_backward(const ConvShape& shape, const float* weight, const std::vector<int>& taps, Panels& panels,
                                         size_t& tap_size) const;
  void depthwise(const Lists& lists, const Pixels& x, View out, const ConvShape& shape, const float* weight, const float* bias) const;
  void grad_input(const Phase& phase, const std::vector<Site>& list, const float* g, int64_t ldg, const ConvShape& shape,
                  const float* weight, const Pixels& gx) const;
  void grad_weight(const Phase& phase, const std::vector<Site>& list, const float* g, int64_t ldg, const ConvShape& shape,
                   const Pixels& x, float* sums, int64_t ldw) const;
  std::unique_ptr<float[]> depthwise_weights(const Phase& phase, const float* weight, int c) const;  // [tap][channel]
  // compute(sites, how many, row of channels to fill for site i) for each tile.
  template <class F>
  void for_rows(const std::vector<Site>& sites, int c, int taps, const View& out, F&& compute) const;
  // body(first channel, how many): threads share channels, so that gradients of overlapping windows can be added without races.
  template <class F>
  void by_channels(int c, int64_t work, F&& body) const;

  const Kernels* k_;
  const EagerKernels* e_;
  int hin_, win_, hout_, wout_, kh_, kw_, period_y_, period_x_;
  std::vector<int32_t> rows_, cols_;
  std::vector<uint8_t> inner_;  // per output column: its taps are neighbours inside the map
  std::vector<Phase> phases_;
};

}  // namespace sightline

// The table of functions that is compiled once per instruction set and element type, and the plain structs that they take.
// Nothing here knows about programs, threads or Python. All maps of a program are float32 or all are bfloat16, channels last: a pixel
// is `c` contiguous elements and pixels lie `ld` elements apart (ld > c where a map is a slice of channels of a wider one).
// Contract: every map buffer has at least 64 readable elements behind its last pixel (vector loads may run over the last channel;
// the lanes beyond it are never stored).
// Maps of bfloat16 are widened when read and rounded when published; between the two, everything is float32.
#pragma once
#include <cstdint>

namespace sightline {

// The memory of a map, byte by byte: what its elements are, the table of functions knows (`Kernels::element` bytes each).
using Raw = unsigned char;

enum Act : int {
  kNone = 0, kRelu, kClamp, kLeakyRelu, kPrelu, kSilu, kHardswish, kSigmoid, kHardsigmoid, kGelu, kGeluTanh, kTanh, kElu, kMish,
  kSoftplus, kExp, kSqrt, kAbs, kNeg, kActCount
};

enum Norm : int { kRms = 0, kMax = 1, kL2 = 2 };

enum PublishMode : int {
  kAlways = 0,  // write everything, everything counts as changed (first frame)
  kExact = 1,   // a site is changed iff any channel differs
  kWithin = 2,  // a site is changed iff not (norm(new - held) <= threshold); an unchanged site keeps the held value
};

enum Binary : int { kAdd = 0, kSub, kMul, kDiv, kMaximum, kMinimum };

// A listed output position: linear index in (n, h, w), and its row and column.
struct Site { int32_t index; uint16_t y, x; };

// What happens to freshly computed rows of channels before and while they are published.
struct Publish {
  int act = kNone;
  float p0 = 0, p1 = 0;           // parameters of the activation
  const float* slope = nullptr;   // per channel, for kPrelu
  const Raw* residual = nullptr;  // map of the same grid, or null
  int residual_ld = 0;
  bool residual_after_act = false;
  int mode = kAlways;
  int norm = kRms;
  float threshold = 0;            // absolute
  Raw* held = nullptr;            // destination map, channel offset applied
  int ld = 0;
  int c = 0;
};

// Whether results may be finished in registers, vector by vector: the activation is a clamp (or none).
static inline bool finishes_in_registers(const Publish& p) {
  return !p.residual_after_act && (p.act == kNone || p.act == kRelu || p.act == kClamp) && !(p.mode == kWithin && p.norm == kMax);
}
// Whether they may be published there too: a site's fate does not depend on all of its channels at once.
static inline bool publishes_at_once(const Publish& p) { return finishes_in_registers(p) && p.mode != kWithin; }
// The same for kernels that work pixel by pixel, which know slopes too.
static inline bool publishes_pixels(const Publish& p) { return publishes_at_once(p) || (p.act == kPrelu && !p.residual && p.mode != kWithin); }

// One block of output channels ("panel") of a convolution over some pixels.
struct ConvTile {
  const Raw* const* taps;    // [pixels][ntaps], each points at `shift + run` readable elements
  int64_t shift;             // added to every tap: first input channel of the group
  int pixels, ntaps, run;
  int vectors;               // width of the panel in vectors; 0: half a vector (where there are `half_panels`)
  const float* weights;      // [ntaps * run][vectors * lanes]; for bfloat16 [ntaps * pairs of run][vectors * lanes][2], see `pairs`
  const float* bias;         // [vectors * lanes]
  float* out;                // [pixels][ldo], unless published at once
  int ldo;
  float* sums = nullptr;     // [pixels] squared distance from what is held, under kWithin (when published at once)
  int c0 = 0, valid = 0;     // first output channel of the panel and how many of its channels exist (when published at once)
};

// `count` horizontally adjacent outputs of a depthwise convolution whose windows lie inside the map.
struct DepthwiseRun {
  const Raw* const* rows;    // [kh] leftmost input pixel of the first window
  int count, ld, stride;
  const float* weights;      // [kh * kw][cpad]
  int cpad;
  const float* bias;         // [cpad]
  float* out;                // [count][ldo]
  int ldo, c;
  int64_t ahead = 0;         // bytes to the rows that the next run below will be the first to read, to be fetched now; 0: none
  int behind = 0;            // rows of the window that the runs above have read
};

// `count` horizontally adjacent outputs of a convolution from few channels to few: several pixels share a vector. Their windows lie
// inside the map, pixels of both maps lie side by side, and W / cout windows fit into two vectors.
struct NarrowRun {
  const Raw* const* rows;  // [kh] first element of the first window; null outside the map
  int count, kh, run, pitch;  // run: elements of a window's row; pitch: from window to window
  const float* weights;    // [kh * run][W]: those of all outputs, again and again for each pixel
  const float* bias;       // [W], likewise
};

// The same for bilinear resampling; tables by output element of a row: where its two inputs lie in an input row, and their weights.
struct NarrowUpsample {
  const Raw *upper, *lower;  // input rows
  float y0, y1;              // their weights
  const int32_t *left, *right;
  const float *x0, *x1;
  int count, c;
};

// PixelTask that a kernel computes, and where they go: into rows, or, where rows is null, published at once (`publishes_pixels`).
// flags[i] = 1 where site i changed, else 0; under kAlways they are left alone, since all change.
struct PixelTask {
  const Publish* publish;
  const Site* sites;
  int count;
  uint8_t* flags;
  float* rows;
  int ldr;
};

struct Kernels {
  const char* name;
  int element;        // bytes of an element of a map: 4 float32, 2 bfloat16
  bool emulated;      // bfloat16 products without instructions for them
  int lanes;
  int max_pixels[5];  // register block height for panels of 1..4 vectors (index 0 unused)
  bool half_panels;   // panels of half a vector exist
  void (*conv)(const ConvTile&);
  // The same, finished in registers (`finishes_in_registers`). Published there where possible: under kExact flags[i] is set where site i
  // changed in this panel. Under kWithin the finished rows and their squared distances are kept, and `commit` decides once all panels
  // are there.
  void (*conv_publish)(const ConvTile&, const Publish&, const Site* sites, uint8_t* flags);
  // sums[panel * stride + i], added in the order of the panels, so that the decision does not depend on who computed them.
  void (*commit)(const Publish&, const float* rows, int ldr, const float* sums, int64_t stride, int panels, const Site* sites,
                 int pixels, uint8_t* flags);
  // Runs are supported for some kernels and strides.
  bool (*depthwise_runs)(int kh, int kw, int stride);
  void (*depthwise_run)(int kh, int kw, const DepthwiseRun&);
  // The same, published at once; `index` is that of the run's first site. Flags as in PixelTask.
  void (*depthwise_publish)(int kh, int kw, const DepthwiseRun&, const Publish&, int64_t index, uint8_t* flags);
  // taps: [pixels][ntaps]
  void (*depthwise)(const Raw* const* taps, int ntaps, const float* weights, int cpad, const float* bias, const PixelTask&);
  // Published at once, without additions; null where there is no such kernel. Flags as in PixelTask.
  void (*conv_narrow)(const NarrowRun&, const Publish&, int64_t index, uint8_t* flags);
  void (*upsample_narrow)(const NarrowUpsample&, const Publish&, int64_t index, uint8_t* flags);
  void (*max_pool)(const Raw* const* taps, int ntaps, const PixelTask&);  // taps: [pixels][ntaps], all inside the map
  // sum_i wy[y * ny + i] * sum_j wx[x * nx + j] * taps[i * nx + j], divided by `divisor`, or by div_y[y] * div_x[x] if that is 0
  void (*weighted)(const Raw* const* taps, int ny, int nx, const float* wy, const float* wx, const float* div_y, const float* div_x,
                   float divisor, const PixelTask&);
  // Channels of other pixels, picked as picks[i] says, or all in their order if picks is null. from[i] null: `fill`. A list of picks
  // holds, for each vector of channels, where two stretches of W channels begin, and W lanes (0 to 2 W - 1) to take out of them; if the
  // first is -1, the lanes are channels.
  void (*gather)(const Raw* const* from, const int32_t* const* picks, float fill, const PixelTask&);
  void (*affine)(const Raw* const* from, const float* scale, const float* shift, const PixelTask&);
  void (*binary)(int op, const Raw* const* a, const Raw* const* b, const PixelTask&);
  void (*softmax)(const Raw* const* from, const PixelTask&);  // over the channels of each pixel, into rows
  void (*sum_row)(const Raw* x, int pixels, int ld, float* out, int c);
  // Finishes and publishes `pixels` rows; changed[i] = 1 where the site changed, else 0. Returns how many changed.
  int (*publish)(const Publish&, float* rows, int ldr, const Site* sites, int pixels, uint8_t* changed);
  // Rounds float32 values to elements.
  void (*round_row)(const float* x, Raw* out, int64_t n);
  // Compares one row of an image (planar) with the held one; out[x] = 1 where changed. strides in elements between planes.
  void (*diff_row)(const Raw* frame, int64_t frame_plane, const Raw* held, int64_t held_plane, int c, int w, int mode, int norm,
                   float threshold, uint8_t* out);
  // Writes the changed pixels (bits) of one planar row to the held planes and, interleaved, to the map; returns how many.
  int (*write_row)(const Raw* frame, int64_t frame_plane, Raw* held, int64_t held_plane, Raw* out, int ld, int c, int w,
                   const uint8_t* bits);
  bool (*all_finite)(const Raw* x, int64_t n);
  bool (*equal)(const Raw* a, const Raw* b, int64_t n);
  // OR of `k` copies of a zero-padded row, `dilation` apart, taken every `stride`: out[x] = any_j in[x * stride + j * dilation]
  void (*or_row)(const uint8_t* in, int k, int dilation, int stride, int out_w, uint8_t* tmp, uint8_t* out);
  void (*or_into)(const uint8_t* in, uint8_t* out, int n);
  // Lists the sites of columns [x0, x1) of one row (mask bytes 0/1; index0 is the linear index of column 0); returns how many.
  int (*list_row)(const uint8_t* mask, int x0, int x1, int32_t index0, uint16_t y, Site* out);
  int64_t (*count)(const uint8_t* mask, int64_t n);
};

const Kernels* kernels_avx512();
const Kernels* kernels_avx2();
const Kernels* kernels_baseline();
// Maps of bfloat16.
const Kernels* kernels_avx512_bf16();
const Kernels* kernels_avx2_bf16();
const Kernels* kernels_baseline_bf16();

// Terms of a reduction that one 32-bit lane of the packed weights stands for.
static inline int pairs(int run, int element) { return element == 2 ? (run + 1) / 2 : run; }

}  // namespace sightline

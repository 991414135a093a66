// A network lowered to a flat list of steps, and the state of one stream that runs it.
//
// `Program` is what many streams share: geometry, tables, packed weights. It does not change once streams run it.
// `State` is one stream: pointers to its maps (allocated by the caller), change masks, scratch memory, counters.
// Every step does the same four things: find its sites from the change masks of its inputs, list them, compute them, publish them.
#pragma once
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "eager.h"
#include "isa.h"
#include "knn.h"

namespace sightline {

// Zeroed, 64-byte aligned memory; large blocks ask for huge pages.
struct Aligned {
  float* data = nullptr;
  size_t size = 0;
  Aligned() = default;
  explicit Aligned(size_t floats);
  Aligned(Aligned&& other) noexcept;
  Aligned& operator=(Aligned&& other) noexcept;
  ~Aligned();
};

// Which input indices each output index reads along one axis: index[o * taps + k], -1 for none.
struct Axis {
  int in = 0, out = 0, taps = 0;
  std::vector<int32_t> index;
  // index[o][k] == o * stride + start + k * dilation wherever that lies inside [0, in), else -1
  bool regular = false;
  int stride = 1, dilation = 1, start = 0;
  // Of a wide table that is not regular: the outputs that read input i are readers[first[i] .. first[i + 1]).
  std::vector<int32_t> first, readers;
  void classify();

 private:
  void reverse();
};

// A list of sites whose memory is not cleared when it grows: it is as long as a map before it is filled.
template <class T>
struct Uncleared : std::allocator<T> {
  template <class U>
  struct rebind { using other = Uncleared<U>; };
  template <class U>
  void construct(U* p) noexcept { ::new (static_cast<void*>(p)) U; }
  template <class U, class... Args>
  void construct(U* p, Args&&... args) { ::new (static_cast<void*>(p)) U(std::forward<Args>(args)...); }
};
using SiteList = std::vector<Site, Uncleared<Site>>;

struct Tensor {
  int storage = -1;
  int64_t offset = 0;  // elements
  int n = 0, h = 0, w = 0, c = 0, ld = 0;
  int mask = -1;       // index of its change mask; views share that of their base
  int64_t pixels() const { return (int64_t)n * h * w; }
};

enum class Reads { kSame, kWindow, kImage };  // pointwise; window along both axes; anything in the image reaches everything

struct Link {
  int tensor = -1;
  Reads how = Reads::kSame;
  int rows = -1, cols = -1;  // axes, for kWindow
};

enum class Kind { kInput, kConv, kDepthwise, kMaxPool, kWeighted, kPointwise, kBinary, kGather, kMean, kUnion, kKnn, kExternal };

struct Panel {
  int c0, vectors, valid;
  int64_t shift;
  size_t weights, bias;
  size_t merged;  // the weights again where they lie differently with merged rows (pairs of an odd number of channels), else `weights`
};
struct Phase {
  std::vector<int> ky, kx;
  std::vector<Panel> panels;
};
struct ChannelRun { int dst, src, length; };
struct GatherPart {
  int link = -1;
  int period_y = 1, period_x = 1;
  std::vector<std::vector<ChannelRun>> runs;  // [period_y * period_x]
  // The same as Kernels::gather takes it; empty where a part leaves channels to others.
  std::vector<std::vector<int32_t>> picks;
  bool whole = false;  // all channels in their order, from one position each
};

struct Step {
  Kind kind = Kind::kExternal;
  int out = -1;
  std::vector<Link> links;
  // epilogue
  int act = 0;
  float p0 = 0, p1 = 0;
  int residual = -1;  // tensor
  bool residual_after_act = false;
  Aligned slope;
  // convolution
  Aligned weights, bias;
  std::vector<Phase> phases;
  int period_y = 1, period_x = 1;
  int ldo = 0, cin = 0, kh = 0, kw = 0, cpad = 0;
  bool merged_rows = false;   // a kernel row is one contiguous tap
  bool panels_overlap = false;  // neighbouring panels share lanes: they must run in order
  int inner_x0 = 0, inner_x1 = 0;  // columns whose window lies inside the map
  Aligned empty_pixel;  // what a maximum gives whose window lies outside the map; none where there is no such window
  // Few channels: several pixels share a vector, see NarrowRun and NarrowUpsample.
  bool narrow = false;
  Aligned narrow_weights, narrow_bias;
  std::vector<int32_t> left, right;
  std::vector<float> left_weight, right_weight;
  // weighted windows
  std::vector<float> wy, wx, div_y, div_x;
  float divisor = 0;
  bool softmax = false;  // pointwise: over the channels of each pixel
  float normalize = -1;  // pointwise: of each pixel first subtract its mean over channels and divide by sqrt(variance + this); < 0: not
  // k nearest neighbours: part of the weights that each tap of the columns' axis meets. Weights of float32 are packed for knn.h, of bfloat16
  // as panels whose parts lie one after the other.
  std::vector<int32_t> cell;
  int cells = 0;
  KnnFloats knn_packed;
  std::unique_ptr<KnnWeights> knn;
  // A block: this step computes the maps of one or two steps before it as it goes, and they are not held.
  int expand = -1;     // step whose map the depthwise convolution reads
  int depthwise = -1;  // step whose map this convolution reads; -1 where this step is the depthwise convolution itself
  bool inside = false;  // this step is computed by a later one
  // element-wise
  int op = 0;
  std::vector<GatherPart> parts;
  float fill = 0;
};

class Program {
 public:
  Program(const Kernels* kernels, const EagerKernels* planar, const KnnKernels* points);
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  int add_storage(int64_t elements);
  int add_tensor(int storage, int64_t offset, int n, int h, int w, int c, int ld, int mask_of);
  int add_axis(int in, int out, int taps, const int32_t* index);

  int add_input(int tensor);
  int add_conv(int out, int in, int rows, int cols, const float* weight, const float* bias, int cout, int cin_group, int kh, int kw,
               int groups, int period_y, int period_x);
  int add_depthwise(int out, int in, int rows, int cols, const float* weight, const float* bias, int kh, int kw);
  // A layer on points (maps of one row): out[o] = bias + sum over taps j of the weight's part cell[o * taps + j] times in[axis[o][j]];
  // 0 where there is no tap. The weight is (cout, cin, cells).
  int add_knn(int out, int in, int cols, const float* weight, const float* bias, int cout, int cells, const int32_t* cell);
  // Likewise, each channel for itself: output channel c * g + i reads channel c. The weight is (c * g, cells), and there is no bias.
  int add_knn_depthwise(int out, int in, int cols, const float* weight, int cells, const int32_t* cell);
  // `empty`: the value where a window holds nothing.
  int add_max_pool(int out, int in, int rows, int cols, float empty);
  int add_weighted(int out, int in, int rows, int cols, const float* wy, const float* wx, const float* div_y, const float* div_x,
                   float divisor);
  int add_pointwise(int out, int in, const float* scale, const float* shift);
  // Normalizes every pixel over its channels, then scales and shifts.
  int add_channel_norm(int out, int in, const float* scale, const float* shift, float epsilon);
  int add_softmax(int out, int in);  // over the channels of every pixel
  int add_binary(int out, int a, int b, int op);
  int add_gather(int out, float fill);
  void add_gather_part(int step, int in, int rows, int cols, int period_y, int period_x, const std::vector<int32_t>& runs);
  int add_mean(int out, int in);
  int add_union(int out, const std::vector<int>& parts);
  int add_external(int out);
  void set_epilogue(int step, int act, float p0, float p1, const float* slope, int slope_size, int residual, bool after_act);

  // Lets `last` compute the steps that it is fed by: a depthwise convolution (or -1 where it is one itself), and what feeds that (or -1).
  void fuse_block(int last, int depthwise, int expand);

  int64_t weight_bytes() const;

  const Kernels* k;
  const EagerKernels* planar = nullptr;  // moves values between pixels and planes
  const KnnKernels* points = nullptr;    // layers on points, float32
  std::vector<int64_t> storages;  // elements
  std::vector<Tensor> tensors;
  std::vector<Axis> axes;
  std::vector<Step> steps;
  int masks = 0;
  int64_t zero_elements = 64;

 private:
  Step& push(Kind kind, int out);
  Step& push_knn(int out, int in, int cols, int cells, const int32_t* cell);
  Link window(int in, int rows, int cols);
  void narrow_conv(Step& s, const float* weight, const float* bias, int cout);
  void narrow_upsample(Step& s);
};

// A byte per position (0 or 1), a byte per row that says whether the row holds any 1, and the count of 1s.
struct Mask {
  int rows = 0, width = 0;
  std::vector<uint8_t> bits, row_any;
  int64_t count = 0;
  void shape(int r, int w);
  void clear();
  void fill();
  void recount(const Kernels& k);  // of the rows that are marked
};

// Strides in its own elements; columns are contiguous. Its elements are those of the maps, or float32 to be rounded (`wide`).
struct Frame { const Raw* data; int64_t image, plane, row; bool wide; };

// A map in a storage, and by how many cells it moves: the new cell (y, x) takes what (y + dy, x + dx) held.
struct MapShift { int storage, n, h, w, ld, dy, dx; };

enum class Filter : int { kNone = 0, kVote = 1, kBlock = 2 };

class State {
 public:
  State(std::shared_ptr<const Program> program, std::vector<Raw*> storages);
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  void reset();
  // Returns false, with the state untouched, if the frame holds NaN or Inf. Runs no step but the input's.
  bool begin(const Frame& frame);
  void run(int first, int last);
  // Finds the sites of an external step: all that are needed if an input changed, else those left stale. False: nothing to do.
  bool wants_external(int step, bool inputs_changed);
  void publish_external(int step, const float* data, int64_t sn, int64_t sc, int64_t sh, int64_t sw);
  void skip_external(int step);
  void end() { fresh = false; }
  // Over all positions, or over those whose first channel is not NaN (what `blank` marked and nothing has computed since).
  double tensor_std(int tensor, bool computed_only) const;
  // Writes a map of float32 to planes, (n, c, h, w) contiguous.
  void copy_planar(int tensor, float* out) const;
  // From the next frame on, a step computes only these sites (a byte each); the others are remembered as stale until they are needed.
  // Null: all of them again.
  void set_needed(int step, const uint8_t* mask);
  void zero_sites(int step, const uint8_t* mask);  // the held map becomes 0 there
  void blank_frame(float value);                   // the held frame, everywhere
  // A lower threshold holds for sites that were left alone under the old one too: the step is computed whole in the next frame.
  void set_threshold(int step, float value);
  // Moves held maps, and the held frame by (dy, dx). Cells that nothing moves to keep what they hold.
  void shift(const std::vector<MapShift>& maps, int dy, int dx);
  // After a shift: what was stale moves too, and in the next frame the step is also computed in the marked rows and columns of its map.
  void expire(int step, int dy, int dx, const uint8_t* rows, const uint8_t* cols);
  int64_t bytes() const;

  std::shared_ptr<const Program> program;
  std::vector<Raw*> storage;
  std::vector<Mask> changed;        // per mask id
  std::vector<Mask> sites;          // per step
  std::vector<float> threshold;     // per step, absolute
  std::vector<Mask> needed, stale;  // per step; no rows: everything is needed, nothing was ever stale
  std::vector<uint8_t> forced;      // per step: sites are given (bench, tests)
  std::vector<uint8_t> busy;        // per step: nearly all sites were computed and nearly all of them changed, last time it was counted
  std::vector<uint8_t> whole;       // per step: to be computed at all sites once
  int norm = kRms;
  Filter filter = Filter::kNone;
  bool fresh = true;

 private:
  struct Scratch {
    Aligned rows;
    std::vector<const Raw*> taps, lines;
    std::vector<const int32_t*> picks;
    std::vector<float> sums;
    std::vector<uint8_t> flags;
    // of blocks
    Aligned ring, middle;
    std::vector<int> ring_row;
    SiteList list, expand_list, places;
    // of layers on points: inputs and parts of the weights at listed sites; or which row each tap belongs to, taps by part
    std::vector<int32_t> owners, starts;
    float* row_space(size_t floats);
  };
  struct Block;
  Raw* at(int tensor) const;
  float value(const Raw* x) const;
  bool find_sites(int step);
  bool keep_needed(int step);
  double reachable(int step) const;
  void project(const Link& link, const Mask& from, const Tensor& tin, const Tensor& tout, Mask& to);
  void list_sites(int step);
  void list_categories(int step);
  Publish publisher(int step);
  void note_density(int step, const Publish& pub);
  void mark_changed(int step, const Publish& pub, const Site* list, int n, const uint8_t* flags);
  void finish(int step, const Publish& pub, float* rows, int ldr, const Site* list, int n, uint8_t* flags);
  template <class F>
  void split_list(int chunk, int64_t work_per_site, F&& body);
  template <class F>
  void for_pixels(int step, int64_t work_per_site, F&& compute);
  template <class F>
  void for_chunks(int step, int64_t work_per_site, F&& compute);
  void run_conv(int step);
  void conv_group(const Step& s, int phase, bool merged, const SiteList& list, const Publish& pub, int step);
  bool conv_panels(const Step& s, const Phase& p, bool merged, const ConvTile& shape, const Site* list, int count, const Publish& pub,
                   Scratch& w);
  void conv_pixels(const Step& s, const Phase& p, bool merged, const ConvTile& shape, const Site* list, int count, const Publish& pub,
                   int step, Scratch& w);
  template <class F>
  void for_runs(int step, const SiteList& list, const Publish& pub, int64_t work_per_site, F&& compute);
  void run_conv_narrow(int step, const SiteList& list, const Publish& pub);
  void run_upsample_narrow(int step);
  void fill_taps(const Step& s, int phase, bool merged, const Site* list, int n, const Raw** taps) const;
  void run_depthwise(int step);
  void depthwise_row(const Step& s, const Site* list, int n, const Site* places, int pitch, const Publish& pub, float* rows, int ldr,
                     uint8_t* flags, Scratch& w, int64_t ahead) const;
  void run_block(int step);
  void limit_to_needed(int step);
  void pull(const Link& link, const Mask& wanted, const Tensor& tin, const Tensor& tout, Mask& needed);
  void block_part(const Block& b, int item, Scratch& w);
  void block_expand(const Block& b, int row, int image, int c0, int c1, Scratch& w);
  void block_depthwise(const Block& b, const Site* list, int n, int place, int image, int c0, Scratch& w);
  void run_knn(int step);
  void run_knn_depthwise(int step);
  void knn_rows(const Step& s, const Site* list, int count, float* rows, Scratch& w) const;
  void knn_rows_float(const Step& s, const Site* list, int count, float* rows, Scratch& w) const;
  void run_windows(int step);
  void run_elementwise(int step);
  void run_gather(int step);
  void run_gather_parts(int step);
  void run_mean(int step);
  void filter_vote(Mask& m) const;
  void filter_block(Mask& m) const;
  Scratch& scratch(int worker);

  std::vector<std::unique_ptr<Scratch>> scratch_;
  SiteList list_;
  std::vector<SiteList> categories_;
  std::vector<uint8_t> row_tmp_, row_in_, row_or_, row_or_any_;
  std::vector<Aligned> row_sums_;   // per step, for means
  std::vector<uint8_t> resum_;      // images of the mean being run, any row of which may have changed unseen
  Aligned zeros_, held_frame_;
  Aligned big_rows_;
  std::vector<const Raw*> big_taps_;
  std::vector<float> big_sums_;
  std::vector<uint8_t> big_flags_;
};

}  // namespace sightline

// A block: [convolution ->] depthwise convolution [-> pointwise convolution], computed in one pass over the sites of its last step.
//
// The maps in between are wide (MobileNets widen six times) and would only travel to memory and back, so they are not held: each
// output row computes the few input rows that its windows need into a ring of rows that stays in cache, convolves them depthwise into
// a strip of pixels, and multiplies those with the last weights. Sites of the first step are what the windows read, no more.
#include <cstring>

#include "pool.h"
#include "program.h"
#include "state_parts.h"

namespace sightline {

namespace {
constexpr int kRingBytes = 384 * 1024;   // a worker's ring of rows should stay in L2 beside the weights

// Inputs [from, to) that the outputs [first, last) of an axis read; empty if they read padding only.
struct Span { int from = 0, to = 0; };
Span span(const Axis& a, int first, int last) {
  Span s{a.in, 0};
  for (int i = first * a.taps; i < last * a.taps; ++i)
    if (a.index[(size_t)i] >= 0) {
      s.from = std::min(s.from, a.index[(size_t)i]);
      s.to = std::max(s.to, a.index[(size_t)i] + 1);
    }
  return s.to > s.from ? s : Span{};
}

Raw* raw(Aligned& a) { return reinterpret_cast<Raw*>(a.data); }
}  // namespace

// One block, cut into items: bands of output rows (for threads) times strips of output columns (for the cache).
struct State::Block {
  int step = -1;                 // the last one, which publishes
  const Step* last = nullptr;
  const Step* middle = nullptr;  // the depthwise convolution
  const Step* first = nullptr;   // what it reads, or null: a held map
  Publish pub;                   // of the last step
  Publish middle_pub;            // into the strip of pixels
  Publish first_pub;             // into the ring
  int strip = 0, strips = 1;     // output columns
  int band = 0, bands = 1;       // output rows
  std::vector<Span> reads;       // of each strip: columns of the first map
  int ring_rows = 0, ring_width = 0, ring_ld = 0;
  int middle_ld = 0;
};

// The inputs that the wanted outputs read, counted.
void State::pull(const Link& link, const Mask& wanted, const Tensor& tin, const Tensor& tout, Mask& needed) {
  const Kernels& k = *program->k;
  const Axis &ay = program->axes[(size_t)link.rows], &ax = program->axes[(size_t)link.cols];
  const int spread = (ax.out - 1) * ax.stride + 1, reach = spread + (ax.taps - 1) * ax.dilation;
  const int from = ax.regular ? std::max(0, ax.start) : 0, to = ax.regular ? std::min(ax.in, reach + ax.start) : ax.in;
  grow(row_in_, (size_t)std::max(reach, ax.in) + 64);
  grow(row_tmp_, (size_t)spread + 64);
  needed.clear();
  for (int n = 0; n < tout.n; ++n)
    for (int y = 0; y < tout.h; ++y) {
      const size_t row = (size_t)n * tout.h + y;
      if (!wanted.row_any[row]) continue;
      const uint8_t* bits = wanted.bits.data() + row * tout.w;
      std::memset(row_in_.data(), 0, row_in_.size());
      const uint8_t* across = row_in_.data();  // of the input columns [from, to)
      if (ax.regular) {
        if (ax.stride > 1) {
          std::memset(row_tmp_.data(), 0, (size_t)spread);
          for (int x = 0; x < ax.out; ++x) row_tmp_[(size_t)x * ax.stride] = bits[x];
          bits = row_tmp_.data();
        }
        for (int j = 0; j < ax.taps; ++j) k.or_into(bits, row_in_.data() + (size_t)j * ax.dilation, spread);
        across += from - ax.start;
      } else {
        for (int x = 0; x < ax.out; ++x)
          for (int j = 0; j < ax.taps && bits[x]; ++j)
            if (const int c = ax.index[(size_t)x * ax.taps + j]; c >= 0) row_in_[(size_t)c] = 1;
      }
      for (int j = 0; j < ay.taps; ++j) {
        const int r = ay.index[(size_t)y * ay.taps + j];
        if (r < 0 || to <= from) continue;
        const size_t target = (size_t)n * tin.h + r;
        k.or_into(across, needed.bits.data() + target * tin.w + from, to - from);
        needed.row_any[target] = 1;
        needed.count = 1;  // so that clear() clears
      }
    }
  needed.recount(k);
}

// What is not needed of a map that is not held counts as zero, as it would lie in a map that was never computed there.
void State::limit_to_needed(int step) {
  const Mask& need = needed[(size_t)step];
  if (!need.rows) return;
  Mask& m = sites[(size_t)step];
  for (int r = 0; r < m.rows; ++r) {
    if (!m.row_any[(size_t)r]) continue;
    uint8_t* bits = m.bits.data() + (size_t)r * m.width;
    const uint8_t* wanted = need.bits.data() + (size_t)r * m.width;
    for (int x = 0; x < m.width; ++x) bits[x] &= wanted[x];
  }
  m.recount(*program->k);
}

void State::run_block(int step) {
  Block b;
  b.step = step;
  b.last = &program->steps[(size_t)step];
  b.middle = b.last->depthwise >= 0 ? &program->steps[(size_t)b.last->depthwise] : b.last;
  b.first = b.last->expand >= 0 ? &program->steps[(size_t)b.last->expand] : nullptr;
  const Tensor& tout = program->tensors[(size_t)b.last->out];
  const Link& window = b.middle->links[0];
  const Tensor& tin = program->tensors[(size_t)window.tensor];
  const Axis &ay = program->axes[(size_t)window.rows], &ax = program->axes[(size_t)window.cols];
  Mask& wanted = sites[(size_t)step];
  wanted.recount(*program->k);
  if (b.middle != b.last) sites[(size_t)b.last->depthwise] = wanted;
  b.pub = publisher(step);
  b.middle_ld = (tin.c + 15) / 16 * 16;
  b.middle_pub = finishing(*b.middle, tin.c, b.middle_ld);
  b.strip = tout.w;
  if (b.first) {
    pull(window, wanted, tin, tout, sites[(size_t)b.last->expand]);
    limit_to_needed(b.last->expand);
    b.ring_ld = b.middle_ld;
    b.first_pub = finishing(*b.first, tin.c, b.ring_ld);
    for (int y = 0; y < tout.h; ++y) {
      const Span rows = span(ay, y, y + 1);
      b.ring_rows = std::max(b.ring_rows, rows.to - rows.from);
    }
    b.ring_rows = std::max(b.ring_rows, 1);
    const int widest = std::max(1, span(ax, 0, tout.w).to);
    const int columns = std::max(8, (int)((int64_t)tout.w * kRingBytes / ((int64_t)b.ring_rows * b.ring_ld * widest * program->k->element)));
    b.strips = (tout.w + columns - 1) / columns;
    b.strip = (tout.w + b.strips - 1) / b.strips;
    for (int i = 0; i < b.strips; ++i) {
      b.reads.push_back(span(ax, std::min(tout.w, i * b.strip), std::min(tout.w, (i + 1) * b.strip)));
      b.ring_width = std::max(b.ring_width, b.reads.back().to - b.reads.back().from);
    }
  }
  const int64_t work = (int64_t)tout.c * tin.c + (int64_t)ay.taps * ax.taps * tin.c + (b.first ? (int64_t)tin.c * 16 : 0);
  const int threads = Pool::instance().threads();
  const bool parallel = threads > 1 && work * wanted.count >= kSerialWork;
  b.bands = parallel ? std::clamp(tout.h / 8, 1, 4 * threads) : 1;
  b.band = (tout.h + b.bands - 1) / b.bands;
  const int items = tout.n * b.bands * b.strips;
  auto body = [&](int i, int worker) { block_part(b, i, scratch(worker)); };
  if (parallel) Pool::instance().run(items, body);
  else
    for (int i = 0; i < items; ++i) body(i, 0);
  note_density(step, b.pub);
}

void State::block_part(const Block& b, int item, Scratch& w) {
  const Step& last = *b.last;
  const Tensor& tout = program->tensors[(size_t)last.out];
  const Axis& ay = program->axes[(size_t)b.middle->links[0].rows];
  const Mask& wanted = sites[(size_t)b.step];
  const int image = item / (b.bands * b.strips), band = item / b.strips % b.bands, strip = item % b.strips;
  const int y0 = band * b.band, y1 = std::min(tout.h, y0 + b.band), x0 = strip * b.strip, x1 = std::min(tout.w, x0 + b.strip);
  const Span reads = b.first ? b.reads[(size_t)strip] : Span{};
  const bool project = b.middle != b.last;
  if (x0 >= x1) return;
  const size_t element = (size_t)program->k->element;
  auto space = [&](Aligned& a, size_t elements) { grow(a, (elements + 64) * element / sizeof(float)); };
  grow(w.list, (size_t)(kChunk + tout.w));
  if (b.first) {
    space(w.ring, (size_t)b.ring_rows * b.ring_width * b.ring_ld);
    w.ring_row.assign((size_t)b.ring_rows, -1);
  }
  if (project) space(w.middle, (size_t)(kChunk + tout.w) * b.middle_ld);
  int count = 0;
  auto flush = [&] {
    if (project && count) {
      grow(w.taps, (size_t)count);
      for (int i = 0; i < count; ++i) w.taps[(size_t)i] = raw(w.middle) + (size_t)i * b.middle_ld * element;
      ConvTile t{};
      t.taps = w.taps.data();
      t.ntaps = 1;
      t.run = last.cin;
      conv_pixels(last, last.phases[0], false, t, w.list.data(), count, b.pub, b.step, w);
    }
    count = 0;
  };
  for (int y = y0; y < y1; ++y) {
    const int row = image * tout.h + y;
    if (!wanted.row_any[(size_t)row]) continue;
    const int found =
        program->k->list_row(wanted.bits.data() + (size_t)row * tout.w, x0, x1, row * tout.w, (uint16_t)y, w.list.data() + count);
    if (!found) continue;
    if (b.first)
      for (int j = 0; j < ay.taps; ++j) {
        const int r = ay.index[(size_t)y * ay.taps + j];
        if (r >= 0 && w.ring_row[(size_t)(r % b.ring_rows)] != r) block_expand(b, r, image, reads.from, reads.to, w);
      }
    block_depthwise(b, w.list.data() + count, found, count, image, reads.from, w);
    if (project) count += found;
    if (count >= kChunk) flush();
  }
  flush();
}

// Computes what is needed of one row of the first map, columns [c0, c1), into its place in the ring.
void State::block_expand(const Block& b, int row, int image, int c0, int c1, Scratch& w) {
  const Step& s = *b.first;
  const Tensor& t = program->tensors[(size_t)s.out];
  const Mask& wanted = sites[(size_t)b.last->expand];
  const Kernels& k = *program->k;
  w.ring_row[(size_t)(row % b.ring_rows)] = row;
  const int64_t at = (int64_t)image * t.h + row;
  Publish pub = b.first_pub;
  pub.held = raw(w.ring) + (int64_t)(row % b.ring_rows) * b.ring_width * b.ring_ld * k.element;
  if (needed[(size_t)b.last->expand].rows) std::memset(pub.held, 0, (size_t)b.ring_width * b.ring_ld * (size_t)k.element);
  if (!wanted.row_any[(size_t)at]) return;
  const uint8_t* bits = wanted.bits.data() + (size_t)at * t.w;
  grow(w.expand_list, (size_t)t.w);
  grow(w.places, (size_t)t.w);
  const Phase& p = s.phases[0];
  auto compute = [&](int x0, int x1, bool merged) {
    if (x1 <= x0) return;
    const int n = k.list_row(bits, x0, x1, (int32_t)(at * t.w), (uint16_t)row, w.expand_list.data());
    if (!n) return;
    const int ntaps = (int)(merged ? p.ky.size() : p.ky.size() * p.kx.size());
    grow(w.taps, (size_t)n * ntaps);
    fill_taps(s, 0, merged, w.expand_list.data(), n, w.taps.data());
    for (int i = 0; i < n; ++i) w.places[(size_t)i] = Site{w.expand_list[(size_t)i].x - c0, 0, 0};
    ConvTile t{};
    t.taps = w.taps.data();
    t.ntaps = ntaps;
    t.run = merged ? s.kw * s.cin : s.cin;
    conv_panels(s, p, merged, t, w.places.data(), n, pub, w);
  };
  if (!s.merged_rows) return compute(c0, c1, false);
  compute(c0, std::min(c1, s.inner_x0), false);
  compute(std::max(c0, s.inner_x0), std::min(c1, s.inner_x1), true);
  compute(std::max(c0, s.inner_x1), c1, false);
}

// The depthwise convolution at some sites of one row: into the strip of pixels, from `place` on, or published where it is the last step.
void State::block_depthwise(const Block& b, const Site* list, int n, int place, int image, int c0, Scratch& w) {
  const Step& s = *b.middle;
  const Tensor& tin = program->tensors[(size_t)s.links[0].tensor];
  const Axis& ay = program->axes[(size_t)s.links[0].rows];
  const bool ends = b.middle == b.last;
  Publish pub = ends ? b.pub : b.middle_pub;
  if (!ends) pub.held = raw(w.middle);
  const int pitch = b.first ? b.ring_ld : tin.ld;
  const int64_t ld = (int64_t)pitch * program->k->element;  // bytes from pixel to pixel
  const Raw* image_map = b.first ? nullptr : at(s.links[0].tensor) + (int64_t)image * tin.h * tin.w * ld;
  const int32_t* ry = ay.index.data() + (size_t)list[0].y * ay.taps;
  grow(w.lines, (size_t)s.kh);
  for (int j = 0; j < s.kh; ++j)
    w.lines[(size_t)j] = ry[j] < 0 ? nullptr
                         : b.first ? raw(w.ring) + ((int64_t)(ry[j] % b.ring_rows) * b.ring_width - c0) * ld
                                   : image_map + (int64_t)ry[j] * tin.w * ld;
  const int ldr = b.middle_ld;
  float* rows = publishes_pixels(pub) ? nullptr : w.row_space((size_t)n * ldr + 64);
  grow(w.flags, (size_t)n);
  grow(w.places, (size_t)n);
  if (!ends)
    for (int i = 0; i < n; ++i) w.places[(size_t)i] = Site{place + i, 0, 0};
  const Site* places = ends ? list : w.places.data();
  uint8_t* flags = w.flags.data();
  const int64_t line = (int64_t)tin.w * ld;
  const int64_t ahead = !b.first && line * tin.h * tin.n >= kFetched ? ay.stride * line : 0;
  depthwise_row(s, list, n, places, pitch, pub, rows, ldr, flags, w, ahead);
  if (!publishes_pixels(pub)) {
    if (ends) return finish(b.step, pub, rows, ldr, list, n, flags);
    program->k->publish(pub, rows, ldr, places, n, flags);
  } else if (ends) {
    mark_changed(b.step, pub, list, n, flags);
  }
}

}  // namespace sightline

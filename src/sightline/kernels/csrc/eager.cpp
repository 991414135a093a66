// Windows, lists of sites, and rows in and out of maps: what comes before and after the arithmetic.
#include <stdexcept>

#include "eager_parts.h"

namespace sightline {

namespace {

// Whether two sites are neighbours in one row: of maps of one row, the next image begins at the next index too.
bool follows(const Site& a, const Site& b) { return b.index == a.index + 1 && b.x == a.x + 1; }

}  // namespace

EagerWindow::EagerWindow(const Kernels* kernels, const EagerKernels* eager, int hin, int win, int hout, int wout, int kh, int kw,
                         const int32_t* rows, const int32_t* cols, int period_y, int period_x)
    : k_(kernels), e_(eager), hin_(hin), win_(win), hout_(hout), wout_(wout), kh_(kh), kw_(kw), period_y_(period_y), period_x_(period_x),
      rows_(rows, rows + (size_t)hout * kh), cols_(cols, cols + (size_t)wout * kw), inner_((size_t)wout) {
  if (std::min({hin, win, hout, wout, kh, kw, period_y, period_x}) < 1 || std::max(hout, wout) > 65535)
    throw std::invalid_argument("window: sizes must be between 1 and 65535");
  for (int32_t r : rows_)
    if (r < -1 || r >= hin) throw std::invalid_argument("window: row outside the input");
  for (int32_t c : cols_)
    if (c < -1 || c >= win) throw std::invalid_argument("window: column outside the input");
  for (int x = 0; x < wout; ++x) {
    const int32_t* c = &cols_[(size_t)x * kw];
    inner_[(size_t)x] = kw > 1 && c[0] >= 0;
    for (int j = 1; j < kw; ++j) inner_[(size_t)x] &= c[j] == c[0] + j;
  }
  // A tap belongs to the one residue whose outputs read it; without a period every tap belongs to every output.
  auto taps = [](const std::vector<int32_t>& table, int out, int k, int period, int residue) {
    std::vector<int> used;
    for (int t = 0; t < k; ++t) {
      bool reads = period == 1;
      for (int o = residue; o < out && !reads; o += period) reads = table[(size_t)o * k + t] >= 0;
      if (reads) used.push_back(t);
    }
    return used;
  };
  for (int y = 0; y < period_y; ++y)
    for (int x = 0; x < period_x; ++x) phases_.push_back(Phase{taps(rows_, hout, kh, period_y, y), taps(cols_, wout, kw, period_x, x)});
}

EagerWindow::Lists EagerWindow::list(const uint8_t* mask, int n) const {
  if ((int64_t)n * hout_ * wout_ > INT32_MAX) throw std::invalid_argument("mask: more than 2^31 positions");
  Lists lists(phases_.size());
  std::vector<uint8_t> all;
  if (!mask) all.assign((size_t)wout_, 1);
  std::vector<Site> row((size_t)wout_ + 8);
  lists[0].reserve(phases_.size() == 1 ? (size_t)(mask ? k_->count(mask, (int64_t)n * hout_ * wout_) : (int64_t)n * hout_ * wout_) : 0);
  for (int r = 0; r < n * hout_; ++r) {
    const uint8_t* bits = mask ? mask + (int64_t)r * wout_ : all.data();
    const int y = r % hout_, count = k_->list_row(bits, 0, wout_, r * wout_, (uint16_t)y, row.data());
    if (phases_.size() == 1) {
      lists[0].insert(lists[0].end(), row.begin(), row.begin() + count);
    } else {
      const size_t first = (size_t)(y % period_y_) * (size_t)period_x_;
      for (int i = 0; i < count; ++i) lists[first + (size_t)(row[(size_t)i].x % period_x_)].push_back(row[(size_t)i]);
    }
  }
  return lists;
}

// For each block of pixels of each input row: a number of its own if any site reads it, else -1.
std::vector<int32_t> EagerWindow::slots_read(const Lists& lists, int n, int& used) const {
  const int per_row = (win_ + kBlockPixels - 1) / kBlockPixels;
  std::vector<int32_t> slots((size_t)n * hin_ * per_row, -1);
  for (size_t p = 0; p < lists.size(); ++p)
    for (const Site& s : lists[p])
      for (int ky : phases_[p].ky) {
        const int r = rows_[(size_t)s.y * kh_ + ky];
        if (r < 0) continue;
        int32_t* line = &slots[((size_t)image_of(s) * hin_ + (size_t)r) * (size_t)per_row];
        for (int kx : phases_[p].kx) {
          const int c = cols_[(size_t)s.x * kw_ + kx];
          if (c >= 0) line[c / kBlockPixels] = 0;
        }
      }
  used = 0;
  for (int32_t& slot : slots)
    if (slot == 0) slot = used++;
  return slots;
}

void EagerWindow::write_rows(const float* rows, int64_t ld, const Site* list, int count, const View& out, int c) const {
  auto place = [&](const Site& s) { return out.data + image_of(s) * out.n + s.y * out.y + s.x * out.x; };
  if (out.c == 1 || c == 1) {
    for (int i = 0; i < count; ++i) std::memcpy(place(list[i]), rows + i * ld, (size_t)c * sizeof(float));
    return;
  }
  for (int i = 0, end; i < count; i = end) {
    // neighbours in one row go together
    for (end = i + 1; end < count && follows(list[end - 1], list[end]); ++end) {}
    if (out.x == 1) e_->rows_to_planes(rows + i * ld, ld, place(list[i]), out.c, end - i, c);
    else
      for (int j = i; j < end; ++j)
        for (int k = 0; k < c; ++k) place(list[j])[k * out.c] = rows[j * ld + k];
  }
}

// One row of channels per site, whatever the map's strides.
Floats EagerWindow::gather_rows(const View& from, const std::vector<Site>& list, int c, int64_t ld) const {
  const int n = (int)list.size();
  Floats rows = floats((size_t)n * ld);
  auto place = [&](const Site& s) { return from.data + image_of(s) * from.n + s.y * from.y + s.x * from.x; };
  for_items((n + kTile - 1) / kTile, (int64_t)n * c, [&](int item, int) {
    const int stop = std::min(n, (item + 1) * kTile);
    for (int i = item * kTile, end; i < stop; i = end) {
      end = i + 1;
      float* row = rows.get() + i * ld;
      const float* at = place(list[(size_t)i]);
      if (from.c == 1) {
        std::memcpy(row, at, (size_t)c * sizeof(float));
      } else if (from.x == 1) {
        while (end < stop && follows(list[(size_t)end - 1], list[(size_t)end])) ++end;
        e_->planes_to_rows(at, from.c, row, ld, end - i, c);
      } else {
        for (int k = 0; k < c; ++k) row[k] = at[k * from.c];
      }
      for (int j = i; j < end; ++j) std::fill(rows.get() + j * ld + c, rows.get() + (j + 1) * ld, 0.0f);
    }
  });
  std::fill(rows.get() + n * ld, rows.get() + n * ld + 64, 0.0f);
  return rows;
}

}  // namespace sightline

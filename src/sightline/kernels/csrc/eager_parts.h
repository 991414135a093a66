// What the operators of eager_*.cpp share: scratch memory, loops over the pool, maps seen as pixels. Not for other files.
#pragma once
#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "eager.h"
#include "pool.h"

namespace sightline {

constexpr int kTile = 96;                      // sites per tile: their rows stay in the first-level cache
constexpr int64_t kWorthSharing = 400'000;     // multiply-adds below which a second thread does not pay

using Floats = std::unique_ptr<float[]>;
// Not initialised: the caller writes what it reads. Vector loads may run 64 floats over.
inline Floats floats(size_t n) { return Floats(new float[n + 64]); }
inline Floats zeros(size_t n) { return Floats(new float[n + 64]()); }

template <class F>
void for_items(int items, int64_t work, F&& body) {
  if (work < kWorthSharing)
    for (int i = 0; i < items; ++i) body(i, 0);
  else
    Pool::instance().run(items, body);
}

// A map seen as pixels with contiguous channels: itself, or a copy of the blocks that the sites read. For a map to be written, the
// copy begins as zeros and `give_back` writes it.
struct EagerWindow::Source {
  Pixels pixels{};

  Source(const EagerWindow& w, int n, int c, const View& from, const Lists& lists, bool to_write)
      : w_(w), n_(n), c_(c), map_(from) {
    if (from.c == 1 || c == 1) {
      pixels = Pixels{from.data, from.n, from.y, from.x};
      return;
    }
    slots_ = w.slots_read(lists, n, used_);
    const int64_t per_row = (w.win_ + kBlockPixels - 1) / kBlockPixels;
    copy_ = floats((size_t)used_ * kBlockPixels * c);
    pixels = Pixels{copy_.get(), 0, 0, c, slots_.data(), per_row * w.hin_, per_row};
    if (to_write) std::memset(copy_.get(), 0, (size_t)used_ * kBlockPixels * (size_t)c * sizeof(float));
    else
      each_stretch([&](float* outside, float* inside, int count) {
        if (map_.x == 1) return w_.e_->planes_to_rows(outside, map_.c, inside, c_, count, c_);
        for (int i = 0; i < count; ++i)
          for (int k = 0; k < c_; ++k) inside[(int64_t)i * c_ + k] = outside[i * map_.x + k * map_.c];
      });
  }
  Source(const Source&) = delete;

  void give_back() const {
    if (!copy_) return;
    each_stretch([&](float* outside, float* inside, int count) {
      if (map_.x == 1) return w_.e_->rows_to_planes(inside, c_, outside, map_.c, count, c_);
      for (int i = 0; i < count; ++i)
        for (int k = 0; k < c_; ++k) outside[i * map_.x + k * map_.c] = inside[(int64_t)i * c_ + k];
    });
  }

 private:
  // body(first pixel of the map, of the copy, how many) for each stretch of blocks that are read.
  template <class F>
  void each_stretch(F&& body) const {
    const int per_row = (int)pixels.row_slots;
    for_items(n_ * w_.hin_, (int64_t)used_ * kBlockPixels * c_ * 4, [&](int r, int) {
      const int image = r / w_.hin_, y = r % w_.hin_;
      const int32_t* slots = &slots_[(size_t)r * (size_t)per_row];
      for (int b = 0; b < per_row; ++b) {
        if (slots[b] < 0) continue;
        int end = b + 1;
        while (end < per_row && slots[end] >= 0) ++end;
        const int x = b * kBlockPixels, count = std::min(end * kBlockPixels, w_.win_) - x;
        body(map_.data + image * map_.n + y * map_.y + x * map_.x, copy_.get() + (int64_t)slots[b] * kBlockPixels * c_, count);
        b = end;
      }
    });
  }

  const EagerWindow& w_;
  int n_, c_, used_ = 0;
  View map_;
  Floats copy_;
  std::vector<int32_t> slots_;
};

template <class T>
void EagerWindow::fill_taps(const Pixels& map, const Phase& phase, const Site* list, int count, T none, T* out) const {
  for (int i = 0; i < count; ++i) {
    const Site s = list[i];
    const int image = image_of(s);
    for (int ky : phase.ky) {
      const int r = rows_[(size_t)s.y * kh_ + ky];
      float* line = r < 0 ? nullptr : map.row(image, r);
      const int32_t* slots = r < 0 ? nullptr : map.row_of_slots(image, r);
      for (int kx : phase.kx) {
        const int c = cols_[(size_t)s.x * kw_ + kx];
        *out++ = r < 0 || c < 0 ? none : map.at(line, slots, c);
      }
    }
  }
}

// body(sites, how many) for each tile of a list; `work` is that of one site.
template <class F>
void for_tiles(const std::vector<Site>& sites, int64_t work, F&& body) {
  const int n = (int)sites.size();
  for_items((n + kTile - 1) / kTile, n * work, [&](int item, int) {
    body(sites.data() + (size_t)item * kTile, std::min(kTile, n - item * kTile));
  });
}

template <class F>
void EagerWindow::for_rows(const std::vector<Site>& sites, int c, int taps, const View& out, F&& compute) const {
  const bool direct = out.c == 1 || c == 1;
  for_tiles(sites, (int64_t)taps * c * 4, [&](const Site* here, int count) {
    const Floats rows = direct ? Floats() : floats((size_t)count * c);
    compute(here, count, [&](int i) {
      return direct ? out.data + image_of(here[i]) * out.n + here[i].y * out.y + here[i].x * out.x : rows.get() + (int64_t)i * c;
    });
    if (!direct) write_rows(rows.get(), c, here, count, out, c);
  });
}

template <class F>
void EagerWindow::by_channels(int c, int64_t work, F&& body) const {
  const int most = std::max(1, c / k_->lanes), parts = std::min(most, std::max(1, Pool::instance().threads()));
  for_items(parts, work, [&](int part, int) {
    const int c0 = (int)((int64_t)most * part / parts) * k_->lanes;
    const int c1 = part + 1 == parts ? c : (int)((int64_t)most * (part + 1) / parts) * k_->lanes;
    body(c0, c1 - c0);
  });
}

}  // namespace sightline

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
constexpr int kBlockPixels = 16;               // pixels that are brought into another layout together
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

// A map seen as pixels with contiguous channels: itself, or a copy of the blocks that are read. For a map to be written, the copy
// begins as zeros and `give_back` writes it.
struct EagerWindow::Source {
  Pixels pixels{};
  Floats copy;
  std::vector<uint8_t> blocks;

  Source(const EagerWindow& w, int n, int c, const View& from, const Lists& lists, bool to_write)
      : w_(w), n_(n), c_(c), map_(from) {
    if (from.c == 1 || c == 1) {
      pixels = Pixels{from.data, from.n, from.y, from.x};
      return;
    }
    copy = floats((size_t)n * w.hin_ * w.win_ * c);
    pixels = Pixels{copy.get(), (int64_t)w.hin_ * w.win_ * c, (int64_t)w.win_ * c, c};
    blocks = w.blocks_read(lists, n);
    each_block([&](float* outside, float* inside, int count) {
      if (to_write) std::memset(inside, 0, (size_t)count * (size_t)c * sizeof(float));
      else if (map_.x == 1) w_.e_->planes_to_rows(outside, map_.c, inside, c, count, c);
      else
        for (int i = 0; i < count; ++i)
          for (int k = 0; k < c; ++k) inside[(int64_t)i * c + k] = outside[i * map_.x + k * map_.c];
    });
  }

  void give_back() const {
    if (!copy) return;
    each_block([&](float* outside, float* inside, int count) {
      if (map_.x == 1) return w_.e_->rows_to_planes(inside, c_, outside, map_.c, count, c_);
      for (int i = 0; i < count; ++i)
        for (int k = 0; k < c_; ++k) outside[i * map_.x + k * map_.c] = inside[(int64_t)i * c_ + k];
    });
  }

 private:
  template <class F>
  void each_block(F&& body) const {
    const int per_row = (w_.win_ + kBlockPixels - 1) / kBlockPixels;
    for_items(n_ * w_.hin_, (int64_t)n_ * w_.hin_ * w_.win_ * c_, [&](int r, int) {
      const int image = r / w_.hin_, y = r % w_.hin_;
      for (int b = 0; b < per_row; ++b) {
        if (!blocks[(size_t)r * per_row + b]) continue;
        int end = b + 1;
        while (end < per_row && blocks[(size_t)r * per_row + end]) ++end;
        const int x = b * kBlockPixels, count = std::min(end * kBlockPixels, w_.win_) - x;
        body(map_.data + image * map_.n + y * map_.y + x * map_.x, pixels.data + image * pixels.n + y * pixels.y + x * pixels.x, count);
        b = end;
      }
    });
  }

  const EagerWindow& w_;
  int n_, c_;
  View map_;
};

template <class T>
void EagerWindow::fill_taps(const Pixels& map, const Phase& phase, const Site* list, int count, T none, T* out) const {
  for (int i = 0; i < count; ++i) {
    const Site s = list[i];
    float* image = map.data + image_of(s) * map.n;
    for (int ky : phase.ky) {
      const int r = rows_[(size_t)s.y * kh_ + ky];
      for (int kx : phase.kx) {
        const int c = cols_[(size_t)s.x * kw_ + kx];
        *out++ = r < 0 || c < 0 ? none : image + r * map.y + c * map.x;
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

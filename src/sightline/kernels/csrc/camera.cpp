// The temporal noise filter, band by band: pixels that left their noise are found a few rows ahead of those that are updated.
#include "camera.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "pool.h"

namespace sightline {

namespace {

constexpr int kBand = 64, kReach = 2;  // rows of an item; rows that a vote looks up and down

// The masks of one band, with rows above and below it; rows outside the picture stay 0. Of most pictures, most rows are empty.
class Band {
 public:
  Band(const CameraKernels& kernels, const CameraFrame& frame, const NoiseSettings& settings, int image, int y0, int y1)
      : k_(kernels), f_(frame), s_(settings), image_(image), y0_(y0), y1_(y1), d_(settings.dilation) {
    width_ = f_.w + 2 * (kReach + d_);
    const size_t rows = (size_t)(y1 - y0 + 2 * (kReach + d_)), size = (size_t)width_ * rows;
    thread_local std::vector<uint8_t> memory;
    memory.assign(size * 3 + 2 * rows + (size_t)f_.w, 0);
    sums_ = memory.data();
    voted_ = sums_ + size;
    fired_ = voted_ + size;
    any_fired_ = fired_ + size;
    any_voted_ = any_fired_ + rows;
    moved_ = any_voted_ + rows;
  }

  bool run(float gain, const NoiseState& from, const NoiseState& to) {
    bool finite = true;
    for (int y = y0_ - d_ - kReach; y < y1_ + d_ + kReach; ++y) {
      if (y >= 0 && y < f_.h) fire(y, from);
      const int middle = y - kReach;
      if (middle >= std::max(y0_ - d_, 0) && middle < std::min(y1_ + d_, f_.h)) vote(middle);
      const int done = middle - d_;
      if (done < y0_ || done >= y1_) continue;
      const uint8_t* moved = dilated(done);
      uint8_t* age = to.age + ((int64_t)image_ * f_.h + done) * f_.w;
      finite &= k_.noise_update(row(done, from), s_, gain, moved, fired(done) + kReach, maps(to, done), to.plane, age);
    }
    return finite;
  }

 private:
  int at(int y) const { return y - y0_ + d_ + kReach; }
  uint8_t* sums(int y) { return sums_ + (size_t)width_ * at(y); }
  uint8_t* voted(int y) { return voted_ + (size_t)width_ * at(y); }  // the row's first pixel lies d_ bytes further on
  uint8_t* fired(int y) { return fired_ + (size_t)width_ * at(y); }  // and here kReach bytes
  float* maps(const NoiseState& s, int y) const { return s.maps + (int64_t)image_ * (f_.c + 1) * s.plane + (int64_t)y * f_.w; }

  NoiseRow row(int y, const NoiseState& from) const {
    const uint8_t* age = from.age + ((int64_t)image_ * f_.h + y) * f_.w;
    return {f_.data + image_ * f_.image + y * f_.row, maps(from, y), f_.plane, from.plane, age, f_.c, f_.w};
  }

  void fire(int y, const NoiseState& from) {
    any_fired_[at(y)] = k_.noise_fire(row(y, from), s_, fired(y) + kReach);
    if (any_fired_[at(y)]) k_.sum_of_5(fired(y), f_.w, sums(y));
  }

  void vote(int y) {
    const uint8_t* rows[5];
    bool any = false;
    for (int j = 0; j < 5; ++j) {
      rows[j] = sums(y + j - kReach);
      any |= any_fired_[at(y + j - kReach)] != 0;
    }
    any_voted_[at(y)] = any && k_.vote(rows, s_.votes, f_.w, voted(y) + d_);
  }

  // What moved in a row, rims included.
  const uint8_t* dilated(int y) {
    if (dirty_) std::memset(moved_, 0, (size_t)f_.w);
    dirty_ = false;
    for (int r = y - d_; r <= y + d_; ++r) {
      if (!any_voted_[at(r)]) continue;
      dirty_ = true;
      for (int j = 0; j <= 2 * d_; ++j) k_.or_into(voted(r) + j, moved_, f_.w);
    }
    return moved_;
  }

  const CameraKernels& k_;
  const CameraFrame& f_;
  const NoiseSettings& s_;
  const int image_, y0_, y1_, d_;
  int width_;
  uint8_t *sums_, *voted_, *fired_, *any_fired_, *any_voted_, *moved_;
  bool dirty_ = false;
};

}  // namespace

bool filter_noise(const CameraKernels& kernels, const CameraFrame& frame, const NoiseSettings& settings, const float* gain,
                  const NoiseState& from, const NoiseState& to) {
  const int bands = (frame.h + kBand - 1) / kBand;
  std::atomic<bool> finite{true};
  Pool::instance().run(frame.n * bands, [&](int item, int) {
    const int image = item / bands, y0 = item % bands * kBand;
    Band band(kernels, frame, settings, image, y0, std::min(y0 + kBand, frame.h));
    if (!band.run(gain[image], from, to)) finite.store(false, std::memory_order_relaxed);
  });
  return finite.load();
}

}  // namespace sightline

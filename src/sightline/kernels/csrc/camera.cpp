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

// The masks of one band, with rows above and below it; rows outside the picture stay 0.
class Band {
 public:
  Band(const CameraKernels& kernels, const CameraFrame& frame, const NoiseSettings& settings, int image, int y0, int y1)
      : k_(kernels), f_(frame), s_(settings), image_(image), y0_(y0), y1_(y1), d_(settings.dilation) {
    width_ = f_.w + 2 * (kReach + d_);
    const int rows = y1 - y0 + 2 * (kReach + d_);
    thread_local std::vector<uint8_t> memory;
    memory.assign((size_t)width_ * 3 * (size_t)rows, 0);
    sums_ = memory.data();
    voted_ = sums_ + (size_t)width_ * rows;
    fired_ = voted_ + (size_t)width_ * rows;
  }

  bool run(float gain, const NoiseState& from, const NoiseState& to, uint8_t* moved) {
    bool finite = true;
    for (int y = y0_ - d_ - kReach; y < y1_ + d_ + kReach; ++y) {
      if (y >= 0 && y < f_.h) {
        k_.noise_fire(row(y, from), s_, fired(y) + kReach);
        k_.sum_of_5(fired(y), f_.w, sums(y));
      }
      const int middle = y - kReach;
      if (middle >= std::max(y0_ - d_, 0) && middle < std::min(y1_ + d_, f_.h)) vote(middle);
      const int done = middle - d_;
      if (done >= y0_ && done < y1_) {
        const int64_t at = ((int64_t)image_ * f_.h + done) * f_.w;
        uint8_t* out = moved + at;
        std::memset(out, 0, (size_t)f_.w);
        for (int r = done - d_; r <= done + d_; ++r)
          for (int j = 0; j <= 2 * d_; ++j) k_.or_into(voted(r) + j, out, f_.w);
        finite &= k_.noise_update(row(done, from), s_, gain, out, fired(done) + kReach, maps(to, done), to.plane, to.age + at);
      }
    }
    return finite;
  }

 private:
  uint8_t* sums(int y) { return sums_ + (size_t)width_ * (y - y0_ + d_ + kReach); }
  uint8_t* voted(int y) { return voted_ + (size_t)width_ * (y - y0_ + d_ + kReach); }  // the row's first pixel lies d_ bytes further on
  uint8_t* fired(int y) { return fired_ + (size_t)width_ * (y - y0_ + d_ + kReach); }  // and here kReach bytes
  float* maps(const NoiseState& s, int y) const { return s.maps + (int64_t)image_ * (f_.c + 1) * s.plane + (int64_t)y * f_.w; }

  NoiseRow row(int y, const NoiseState& from) const {
    const uint8_t* age = from.age + ((int64_t)image_ * f_.h + y) * f_.w;
    return {f_.data + image_ * f_.image + y * f_.row, maps(from, y), f_.plane, from.plane, age, f_.c, f_.w};
  }

  void vote(int y) {
    const uint8_t* rows[5];
    for (int j = 0; j < 5; ++j) rows[j] = sums(y + j - kReach);
    k_.vote(rows, s_.votes, f_.w, voted(y) + d_);
  }

  const CameraKernels& k_;
  const CameraFrame& f_;
  const NoiseSettings& s_;
  const int image_, y0_, y1_, d_;
  int width_;
  uint8_t *sums_, *voted_, *fired_;
};

}  // namespace

bool filter_noise(const CameraKernels& kernels, const CameraFrame& frame, const NoiseSettings& settings, const float* gain,
                  const NoiseState& from, const NoiseState& to, uint8_t* moved) {
  const int bands = (frame.h + kBand - 1) / kBand;
  std::atomic<bool> finite{true};
  Pool::instance().run(frame.n * bands, [&](int item, int) {
    const int image = item / bands, y0 = item % bands * kBand;
    Band band(kernels, frame, settings, image, y0, std::min(y0 + kBand, frame.h));
    if (!band.run(gain[image], from, to, moved)) finite.store(false, std::memory_order_relaxed);
  });
  return finite.load();
}

}  // namespace sightline

// What happens to a frame before a program sees it: plain maps in, plain maps out. Nothing here knows about programs.
//
// Every value is computed whole by one thread in one order: results do not depend on the number of threads.
#pragma once
#include <cstdint>

namespace sightline {

// Where a temporal noise filter keeps what it knows about a video; rows are contiguous.
struct NoiseState {
  float* maps;    // per image, `plane` floats apart: the mean of each channel, then the mean square deviation over channels and time
  int64_t plane;
  uint8_t* age;   // [n][h][w] frames since the pixel moved, at most 255
};

struct NoiseSettings {
  float strength;    // squared: how many spreads a deviation must exceed
  float floor;       // squared: deviations below it are noise
  float rate;        // of the spread's recursion
  int votes;         // of the 5x5 neighbourhood
  int dilation;      // rim of what moved, in pixels
};

// A row of planar pixels; strides between planes in floats.
struct NoiseRow {
  const float *frame, *maps;
  int64_t frame_plane, plane;
  const uint8_t* age;
  int c, w;
};

struct CameraKernels {
  // out[x] = 1 where a pixel is further from its mean than its noise explains.
  void (*noise_fire)(const NoiseRow&, const NoiseSettings&, uint8_t* out);
  // Takes the row over where it moved, and averages it elsewhere, at least with weight `gain`; what fired alone is young again and follows
  // from the next frame on. False: it holds NaN or Inf.
  bool (*noise_update)(const NoiseRow&, const NoiseSettings&, float gain, const uint8_t* moved, const uint8_t* fired, float* maps, int64_t plane, uint8_t* age);
  // out[x] = sum of in[x .. x + 4]
  void (*sum_of_5)(const uint8_t* in, int w, uint8_t* out);
  // out[x] = the five rows' sum at x is at least `votes`
  void (*vote)(const uint8_t* const* rows, int votes, int w, uint8_t* out);
  void (*or_into)(const uint8_t* in, uint8_t* out, int w);
};

const CameraKernels* camera_kernels_avx512();
const CameraKernels* camera_kernels_avx2();
const CameraKernels* camera_kernels_baseline();

// A planar frame (n, c, h, w) with contiguous columns; strides in floats.
struct CameraFrame {
  const float* data;
  int64_t image, plane, row;
  int n, c, h, w;
};

// One frame through the filter, from one state to another; `gain` per image, `moved` [n][h][w]. False: the frame holds NaN or Inf, and
// the new state is to be thrown away.
bool filter_noise(const CameraKernels&, const CameraFrame&, const NoiseSettings&, const float* gain, const NoiseState& from,
                  const NoiseState& to, uint8_t* moved);

}  // namespace sightline

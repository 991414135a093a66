// What `sightline.camera` calls: addresses as integers, checked on the Python side.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <tuple>

#include "camera.h"

namespace nb = nanobind;

namespace sightline {

namespace {

const CameraKernels* kernels_for(const std::string& isa) {
#if defined(__x86_64__)
  if (isa == "avx512") return camera_kernels_avx512();
  if (isa == "avx2") return camera_kernels_avx2();
#endif
  return camera_kernels_baseline();
}

// Address of the maps, floats from one to the next, address of the ages.
using Addresses = std::tuple<uintptr_t, int64_t, uintptr_t>;
NoiseState state(const Addresses& a) {
  const auto [maps, plane, age] = a;
  return {reinterpret_cast<float*>(maps), plane, reinterpret_cast<uint8_t*>(age)};
}

}  // namespace

void bind_camera(nb::module_& m) {
  m.def("filter_noise", [](const std::string& isa, uintptr_t frame, std::tuple<int64_t, int64_t, int64_t> strides,
                           std::tuple<int, int, int, int> shape, std::tuple<float, float, float, int, int> settings,
                           const std::vector<float>& gains, Addresses from, Addresses to, uintptr_t moved) {
    const auto [image, plane, row] = strides;
    const auto [n, c, h, w] = shape;
    const auto [strength, floor, rate, votes, dilation] = settings;
    const CameraFrame f{reinterpret_cast<const float*>(frame), image, plane, row, n, c, h, w};
    const NoiseSettings s{strength * strength, floor * floor, rate, votes, dilation};
    if ((int)gains.size() != n) throw std::invalid_argument("one gain per image is needed");
    nb::gil_scoped_release release;
    return filter_noise(*kernels_for(isa), f, s, gains.data(), state(from), state(to), reinterpret_cast<uint8_t*>(moved));
  }, nb::arg("isa"), nb::arg("frame"), nb::arg("strides"), nb::arg("shape"), nb::arg("settings"), nb::arg("gains"), nb::arg("source"),
     nb::arg("target"), nb::arg("moved"), "One frame through the temporal noise filter; False where it holds NaN or Inf.");
}

}  // namespace sightline

// What `sightline.fovea` calls: addresses as integers. Tables are checked here, everything else on the Python side.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <tuple>

#include "knn.h"

namespace nb = nanobind;

namespace sightline {

namespace {

const KnnKernels* kernels_for(const std::string& isa) {
#if defined(__x86_64__)
  if (isa == "avx512") return knn_kernels_avx512();
  if (isa == "avx2") return knn_kernels_avx2();
#endif
  return knn_kernels_baseline();
}

const EagerKernels* eager_kernels_for(const std::string& isa) {
#if defined(__x86_64__)
  if (isa == "avx512") return eager_kernels_avx512();
  if (isa == "avx2") return eager_kernels_avx2();
#endif
  return eager_kernels_baseline();
}

template <class T>
T* pointer(uintptr_t address) { return reinterpret_cast<T*>(address); }

// (nodes, k, nodes of the input, address of index, address of cell or 0)
using TableArgs = std::tuple<int, int, int, uintptr_t, uintptr_t>;
KnnTable table(const TableArgs& a, int cells) {
  const auto [nodes, k, sources, index, cell] = a;
  const KnnTable t{pointer<int32_t>(index), pointer<int32_t>(cell), nodes, k, sources};
  knn_check(t, cells);
  return t;
}

// (batch, input channels, output channels, cells)
using ShapeArgs = std::tuple<int, int, int, int>;
KnnWeights weights(const std::string& isa, const ShapeArgs& a, uintptr_t weight, uintptr_t bias) {
  const auto [batch, cin, cout, cells] = a;
  if (batch < 0 || cin < 1 || cout < 1 || cells < 1) throw std::invalid_argument("knn: sizes must be positive");
  const KnnKernels* k = kernels_for(isa);
  return KnnWeights{k, KnnShape(*k, cin, cout, cells), pointer<float>(weight), pointer<float>(bias)};
}

KnnMap rows(uintptr_t data, int batch, int channels) { return {pointer<float>(data), (int64_t)batch * channels, channels}; }

}  // namespace

void bind_knn(nb::module_& m) {
  using Release = nb::call_guard<nb::gil_scoped_release>;
  m.def("knn_conv", [](const std::string& isa, ShapeArgs shape, TableArgs args, uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t out) {
    const auto [batch, cin, cout, cells] = shape;
    knn_conv(weights(isa, shape, weight, bias), table(args, cells), batch, rows(x, batch, cin), rows(out, batch, cout));
  }, Release(), nb::arg("isa"), nb::arg("shape"), nb::arg("table"), nb::arg("x"), nb::arg("weight"), nb::arg("bias"), nb::arg("out"));
  m.def("knn_conv_backward", [](const std::string& isa, ShapeArgs shape, TableArgs args, uintptr_t g, uintptr_t x, uintptr_t weight, uintptr_t gx,
                                uintptr_t gw, uintptr_t gb) {
    const auto [batch, cin, cout, cells] = shape;
    knn_conv_backward(weights(isa, shape, weight, 0), table(args, cells), batch, rows(g, batch, cout), rows(x, batch, cin), pointer<float>(gx),
                      pointer<float>(gw), pointer<float>(gb));
  }, Release(), nb::arg("isa"), nb::arg("shape"), nb::arg("table"), nb::arg("grad"), nb::arg("x"), nb::arg("weight"), nb::arg("gx"),
     nb::arg("gw"), nb::arg("gb"), "Gradients; an address of 0: not wanted.");
  m.def("knn_max_pool", [](const std::string& isa, TableArgs args, int64_t count, uintptr_t x, uintptr_t out) {
    knn_max_pool(*eager_kernels_for(isa), table(args, 0), count, pointer<float>(x), pointer<float>(out));
  }, Release());
  m.def("knn_max_pool_backward", [](const std::string& isa, TableArgs args, int64_t count, uintptr_t g, uintptr_t x, uintptr_t gx) {
    knn_max_pool_backward(*eager_kernels_for(isa), table(args, 0), count, pointer<float>(g), pointer<float>(x), pointer<float>(gx));
  }, Release());
  m.def("knn_sum_pool", [](const std::string& isa, TableArgs args, uintptr_t weights, int64_t count, uintptr_t x, uintptr_t out) {
    knn_sum_pool(*eager_kernels_for(isa), table(args, 0), pointer<float>(weights), count, pointer<float>(x), pointer<float>(out));
  }, Release());
  m.def("knn_sum_pool_backward", [](const std::string& isa, TableArgs args, uintptr_t weights, int64_t count, uintptr_t g, uintptr_t gx) {
    knn_sum_pool_backward(*eager_kernels_for(isa), table(args, 0), pointer<float>(weights), count, pointer<float>(g), pointer<float>(gx));
  }, Release());
  m.def("knn_search", [](std::tuple<int, int, int, int> sizes, uintptr_t from, uintptr_t to, uintptr_t index, uintptr_t distance) {
    const auto [sources, queries, axes, k] = sizes;
    if (axes < 1 || axes > 3 || k < 1 || k > sources) throw std::invalid_argument("knn_search: 1 to 3 axes, and no more neighbours than points");
    knn_search(sources, queries, axes, k, pointer<double>(from), pointer<double>(to), pointer<int64_t>(index), pointer<double>(distance));
  }, Release(), nb::arg("sizes"), nb::arg("source"), nb::arg("target"), nb::arg("index"), nb::arg("distance"),
     "The k nearest points: (points, queries, axes, k), float64 coordinates.");
  m.def("knn_cells", [](std::tuple<int, int, int, int, int, bool> sizes, std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t> points,
                        uintptr_t candidate, uintptr_t cell) {
    const auto [candidates, nodes, k, side, axes, wraps] = sizes;
    const auto [places, node_places, cortex, node_cortex] = points;
    const int64_t* from = pointer<int64_t>(candidate);
    if (axes < 0 || axes > 3 || k < 1 || side < 1 || !std::all_of(from, from + (int64_t)nodes * k, [&](int64_t m) { return m >= 0 && m < candidates; }))
      throw std::invalid_argument("knn_cells: sizes or candidates do not fit");
    const KnnPoints p{pointer<double>(places), pointer<double>(node_places), pointer<double>(cortex), pointer<double>(node_cortex), axes, wraps};
    knn_cells(p, nodes, k, side, from, pointer<int32_t>(cell));
  }, Release(), nb::arg("sizes"), nb::arg("points"), nb::arg("candidate"), nb::arg("cell"),
     "Kernel cells of candidates: (candidates, nodes, k, side, cortical axes or 0, wraps), addresses of float64 coordinates.");
}

}  // namespace sightline

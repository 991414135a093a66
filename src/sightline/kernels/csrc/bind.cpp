// The Python module: thin wrappers, addresses as integers. Validation of tensors happens once, on the Python side
// (sightline/graph/native.py); validation of geometry happens in Program.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <cstdlib>
#include <limits>
#include <string>
#include <thread>
#include <tuple>

#include "eager.h"
#include "pool.h"
#include "program.h"

namespace nb = nanobind;
using namespace sightline;

namespace sightline {
void bind_camera(nb::module_& m);  // bind_camera.cpp
void bind_knn(nb::module_& m);     // bind_knn.cpp
}

namespace {

template <class T>
T* pointer(uintptr_t address) { return reinterpret_cast<T*>(address); }

bool cpu_has(const std::string& isa) {
#if defined(__x86_64__)
  if (isa == "avx512")
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd");
  if (isa == "avx512_bf16") return cpu_has("avx512") && __builtin_cpu_supports("avx512bf16");
  if (isa == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
  return isa == "baseline";
}

// Kernels for maps of bfloat16. An AVX-512 CPU without instructions for them emulates as an AVX2 one does.
const Kernels* bfloat16_kernels_for(const std::string& isa) {
#if defined(__x86_64__)
  if (isa == "avx512" && cpu_has("avx512_bf16")) return kernels_avx512_bf16();
  if (isa == "avx512" || isa == "avx2") return kernels_avx2_bf16();
#endif
  return kernels_baseline_bf16();
}

const Kernels* kernels_for(const std::string& isa) {
#if defined(__x86_64__)
  if (isa == "avx512") return kernels_avx512();
  if (isa == "avx2") return kernels_avx2();
#endif
  return kernels_baseline();
}

const KnnKernels* knn_kernels_for(const std::string& isa) {
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

// (address, strides of n, c, h, w in floats)
using Address = std::tuple<uintptr_t, int64_t, int64_t, int64_t, int64_t>;
View view(const Address& a) {
  const auto [data, n, c, y, x] = a;
  return View{pointer<float>(data), n, c, y, x};
}

// (cin, cout, groups, strides of group, output channel, input channel in the weight)
using Channels = std::tuple<int, int, int, int64_t, int64_t, int64_t>;
ConvShape conv_shape(const Channels& c) {
  const auto [cin, cout, groups, g, o, i] = c;
  if (groups < 1 || cin < 1 || cout < 1 || cin % groups || cout % groups) throw std::invalid_argument("conv: channels do not fit");
  return ConvShape{cin, cout, groups, g, o, i};
}

void bind_eager(nb::module_& m) {
  using Release = nb::call_guard<nb::gil_scoped_release>;
  nb::class_<EagerWindow>(m, "EagerWindow")
      .def("__init__", [](EagerWindow* self, const std::string& isa, int hin, int win, int hout, int wout, int kh, int kw, uintptr_t rows,
                          uintptr_t cols, int period_y, int period_x) {
        if (!cpu_has(isa)) throw std::invalid_argument("this CPU cannot run '" + isa + "'");
        new (self) EagerWindow(kernels_for(isa), eager_kernels_for(isa), hin, win, hout, wout, kh, kw, pointer<int32_t>(rows),
                               pointer<int32_t>(cols), period_y, period_x);
      })
      .def("conv", [](const EagerWindow& w, int n, Address x, Address out, Channels c, uintptr_t weight, uintptr_t bias, uintptr_t mask) {
        w.conv(n, view(x), view(out), conv_shape(c), pointer<float>(weight), pointer<float>(bias), pointer<uint8_t>(mask));
      }, Release())
      .def("conv_backward", [](const EagerWindow& w, int n, Address gy, Address x, Channels c, uintptr_t weight, uintptr_t mask, Address gx,
                               uintptr_t gw, uintptr_t gb) {
        w.conv_backward(n, view(gy), view(x), conv_shape(c), pointer<float>(weight), pointer<uint8_t>(mask), view(gx), pointer<float>(gw),
                        pointer<float>(gb));
      }, Release())
      .def("max_pool", [](const EagerWindow& w, int n, int c, Address x, Address out, uintptr_t mask) {
        w.max_pool(n, c, view(x), view(out), pointer<uint8_t>(mask));
      }, Release())
      .def("max_pool_backward", [](const EagerWindow& w, int n, int c, Address gy, Address x, Address gx, uintptr_t mask) {
        w.max_pool_backward(n, c, view(gy), view(x), view(gx), pointer<uint8_t>(mask));
      }, Release())
      .def("avg_pool", [](const EagerWindow& w, int n, int c, Address x, Address out, uintptr_t mask, uintptr_t div_y, uintptr_t div_x) {
        w.avg_pool(n, c, view(x), view(out), pointer<uint8_t>(mask), pointer<float>(div_y), pointer<float>(div_x));
      }, Release())
      .def("avg_pool_backward", [](const EagerWindow& w, int n, int c, Address gy, Address gx, uintptr_t mask, uintptr_t div_y, uintptr_t div_x) {
        w.avg_pool_backward(n, c, view(gy), view(gx), pointer<uint8_t>(mask), pointer<float>(div_y), pointer<float>(div_x));
      }, Release())
      .def("channel_sum", [](const EagerWindow& w, int n, int c, int filters, Address x, uintptr_t weight, uintptr_t out) {
        w.channel_sum(n, c, filters, view(x), pointer<float>(weight), pointer<float>(out));
      }, Release())
      .def("channel_sum_backward", [](const EagerWindow& w, int n, int c, int filters, uintptr_t gy, Address x, uintptr_t weight, Address gx,
                                      uintptr_t gw) {
        w.channel_sum_backward(n, c, filters, pointer<float>(gy), view(x), pointer<float>(weight), view(gx), pointer<float>(gw));
      }, Release());
}

std::vector<std::string> usable_isas() {
  std::vector<std::string> out;
  for (const char* isa : {"avx512", "avx2", "baseline"})
    if (cpu_has(isa)) out.emplace_back(isa);
  return out;
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "Native executor of Sightline: programs, states and the thread pool.";

  m.def("usable_isas", &usable_isas, "Instruction sets that this CPU can run, best first.");
  m.def("emulates_bfloat16", [](const std::string& isa) { return bfloat16_kernels_for(isa)->emulated; },
        "Whether products of bfloat16 are emulated.");
  m.def("set_num_threads", [](int n) {
    nb::gil_scoped_release release;
    Pool::instance().set_threads(n);
  });
  m.def("get_num_threads", [] { return Pool::instance().threads(); });

  nb::class_<Program>(m, "Program")
      .def("__init__", [](Program* self, const std::string& isa, bool bfloat16) {
        if (!cpu_has(isa)) throw std::invalid_argument("this CPU cannot run '" + isa + "'");
        new (self) Program(bfloat16 ? bfloat16_kernels_for(isa) : kernels_for(isa), eager_kernels_for(isa), knn_kernels_for(isa));
      }, nb::arg("isa"), nb::arg("bfloat16") = false)
      .def_prop_ro("isa", [](const Program& p) { return std::string(p.k->name); })
      .def_prop_ro("lanes", [](const Program& p) { return p.k->lanes; })
      .def_prop_ro("element", [](const Program& p) { return p.k->element; })
      .def_prop_ro("emulated", [](const Program& p) { return p.k->emulated; })
      .def("add_storage", &Program::add_storage)
      .def("add_tensor", &Program::add_tensor, nb::arg("storage"), nb::arg("offset"), nb::arg("n"), nb::arg("h"), nb::arg("w"),
           nb::arg("c"), nb::arg("ld"), nb::arg("mask_of") = -1)
      .def("add_axis", [](Program& p, int in, int out, int taps, uintptr_t index) { return p.add_axis(in, out, taps, pointer<int32_t>(index)); })
      .def("add_input", &Program::add_input)
      .def("add_conv", [](Program& p, int out, int in, int rows, int cols, uintptr_t weight, uintptr_t bias, int cout, int cin_group, int kh,
                          int kw, int groups, int period_y, int period_x) {
        return p.add_conv(out, in, rows, cols, pointer<float>(weight), pointer<float>(bias), cout, cin_group, kh, kw, groups, period_y, period_x);
      })
      .def("add_depthwise", [](Program& p, int out, int in, int rows, int cols, uintptr_t weight, uintptr_t bias, int kh, int kw) {
        return p.add_depthwise(out, in, rows, cols, pointer<float>(weight), pointer<float>(bias), kh, kw);
      })
      .def("add_knn", [](Program& p, int out, int in, int cols, uintptr_t weight, uintptr_t bias, int cout, int cells, uintptr_t cell) {
        return p.add_knn(out, in, cols, pointer<float>(weight), pointer<float>(bias), cout, cells, pointer<int32_t>(cell));
      })
      .def("add_knn_depthwise", [](Program& p, int out, int in, int cols, uintptr_t weight, int cells, uintptr_t cell) {
        return p.add_knn_depthwise(out, in, cols, pointer<float>(weight), cells, pointer<int32_t>(cell));
      })
      .def("add_max_pool", &Program::add_max_pool, nb::arg("out"), nb::arg("source"), nb::arg("rows"), nb::arg("cols"),
           nb::arg("empty") = -std::numeric_limits<float>::infinity())
      .def("add_weighted", [](Program& p, int out, int in, int rows, int cols, uintptr_t wy, uintptr_t wx, uintptr_t div_y, uintptr_t div_x,
                              float divisor) {
        return p.add_weighted(out, in, rows, cols, pointer<float>(wy), pointer<float>(wx), pointer<float>(div_y), pointer<float>(div_x), divisor);
      })
      .def("add_pointwise", [](Program& p, int out, int in, uintptr_t scale, uintptr_t shift) {
        return p.add_pointwise(out, in, pointer<float>(scale), pointer<float>(shift));
      })
      .def("add_channel_norm", [](Program& p, int out, int in, uintptr_t scale, uintptr_t shift, float epsilon) {
        return p.add_channel_norm(out, in, pointer<float>(scale), pointer<float>(shift), epsilon);
      })
      .def("add_softmax", &Program::add_softmax)
      .def("add_binary", &Program::add_binary)
      .def("add_gather", &Program::add_gather)
      .def("add_gather_part", &Program::add_gather_part)
      .def("add_mean", &Program::add_mean)
      .def("add_union", &Program::add_union)
      .def("add_external", &Program::add_external)
      .def("set_epilogue", [](Program& p, int step, int act, float p0, float p1, uintptr_t slope, int slope_size, int residual, bool after) {
        p.set_epilogue(step, act, p0, p1, pointer<float>(slope), slope_size, residual, after);
      })
      .def("fuse_block", &Program::fuse_block)
      .def_prop_ro("weight_bytes", &Program::weight_bytes)
      .def_prop_ro("storages", [](const Program& p) { return p.storages; });

  nb::class_<State>(m, "State")
      .def("__init__", [](State* self, std::shared_ptr<Program> program, const std::vector<uintptr_t>& storages) {
        std::vector<Raw*> pointers;
        for (uintptr_t a : storages) pointers.push_back(pointer<Raw>(a));
        new (self) State(std::move(program), std::move(pointers));
      })
      .def("reset", &State::reset)
      .def("begin", [](State& s, uintptr_t data, int64_t image, int64_t plane, int64_t row, bool wide) {
        nb::gil_scoped_release release;
        return s.begin(Frame{pointer<Raw>(data), image, plane, row, wide});
      }, nb::arg("data"), nb::arg("image"), nb::arg("plane"), nb::arg("row"), nb::arg("wide") = false)
      .def("run", [](State& s, int first, int last) {
        nb::gil_scoped_release release;
        s.run(first, last);
      })
      .def("end", &State::end)
      .def("publish_external", [](State& s, int step, uintptr_t data, int64_t sn, int64_t sc, int64_t sh, int64_t sw) {
        nb::gil_scoped_release release;
        s.publish_external(step, pointer<float>(data), sn, sc, sh, sw);
      })
      .def("wants_external", &State::wants_external)
      .def("skip_external", &State::skip_external)
      .def("tensor_changed", [](const State& s, int tensor) { return s.changed.at((size_t)s.program->tensors.at((size_t)tensor).mask).count > 0; })
      .def("copy_planar", [](const State& s, int tensor, uintptr_t out) {
        nb::gil_scoped_release release;
        s.copy_planar(tensor, pointer<float>(out));
      })
      .def("tensor_std", &State::tensor_std)
      .def("set_threshold", &State::set_threshold)
      .def("set_needed", [](State& s, int step, uintptr_t mask) { s.set_needed(step, pointer<uint8_t>(mask)); })
      .def("zero_sites", [](State& s, int step, uintptr_t mask) { s.zero_sites(step, pointer<uint8_t>(mask)); })
      .def("blank_frame", &State::blank_frame)
      .def("shift", [](State& s, const std::vector<std::array<int, 7>>& maps, int dy, int dx) {
        std::vector<MapShift> moves;
        for (const auto& m : maps) moves.push_back({m[0], m[1], m[2], m[3], m[4], m[5], m[6]});
        nb::gil_scoped_release release;
        s.shift(moves, dy, dx);
      })
      .def("expire", [](State& s, int step, int dy, int dx, uintptr_t rows, uintptr_t cols) {
        s.expire(step, dy, dx, pointer<uint8_t>(rows), pointer<uint8_t>(cols));
      })
      .def("set_norm", [](State& s, int norm) { s.norm = norm; })
      .def("set_filter", [](State& s, int filter) { s.filter = (Filter)filter; })
      .def("site_counts", [](const State& s) {
        std::vector<int64_t> out;
        for (const Mask& m : s.sites) out.push_back(m.count);
        return out;
      })
      .def("sites_address", [](const State& s, int step) { return reinterpret_cast<uintptr_t>(s.sites.at((size_t)step).bits.data()); })
      .def("force_sites", [](State& s, int step, uintptr_t mask) {
        // Benchmarks and tests: this step computes exactly these sites, whatever changed. 0 gives control back.
        Mask& to = s.sites.at((size_t)step);
        s.forced.at((size_t)step) = mask != 0;
        to.clear();
        if (!mask) return;
        const uint8_t* from = pointer<uint8_t>(mask);
        to.bits.assign(from, from + to.bits.size());
        for (int r = 0; r < to.rows; ++r) to.row_any[(size_t)r] = s.program->k->count(from + (size_t)r * to.width, to.width) > 0;
        to.recount(*s.program->k);
      })
      .def_prop_ro("fresh", [](const State& s) { return s.fresh; })
      .def_prop_ro("bytes", &State::bytes);

  bind_eager(m);
  bind_camera(m);
  bind_knn(m);
}

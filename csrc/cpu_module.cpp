// growtas._cpu: the C++ kernels as functions of pointers (as integers), sizes and strides. No torch.
#include <pybind11/pybind11.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "arguments.h"
#include "cpu/branch/module.h"
#include "cpu/gelu/gelu.h"
#include "cpu/layer_norm/layer_norm.h"
#include "cpu/common/level.h"
#include "cpu/gemm/module.h"
#include "cpu/relative_attention/module.h"

namespace py = pybind11;
using growtas::dtype;
using growtas::pointer;
using growtas::cpu::level_of;
using std::int64_t;
using std::uintptr_t;

namespace {

void layer_norm_forward(uintptr_t x, int x_type, int64_t x_stride, uintptr_t weight, int weight_type,
                        int64_t weight_stride, uintptr_t bias, int bias_type, int64_t bias_stride, uintptr_t y,
                        int y_type, int64_t y_stride, uintptr_t mean, uintptr_t rstd, int64_t rows, int64_t width,
                        double eps, int level) {
    growtas::require_sizes(rows, width, width);
    growtas::cpu::layer_norm_forward({pointer<void>(x), dtype(x_type), x_stride},
                                     {pointer<void>(weight), dtype(weight_type), weight_stride},
                                     {pointer<void>(bias), dtype(bias_type), bias_stride},
                                     {pointer<void>(y), dtype(y_type), y_stride}, pointer<float>(mean),
                                     pointer<float>(rstd), rows, width, static_cast<float>(eps),
                                     level_of(level));
}

void layer_norm_again(uintptr_t x, int x_type, int64_t x_stride, uintptr_t weight, int weight_type,
                      int64_t weight_stride, uintptr_t bias, int bias_type, int64_t bias_stride, uintptr_t y, int y_type,
                      int64_t y_stride, uintptr_t mean, uintptr_t rstd, int64_t rows, int64_t width, int level) {
    growtas::require_sizes(rows, width, width);
    growtas::cpu::layer_norm_again({pointer<void>(x), dtype(x_type), x_stride},
                                   {pointer<void>(weight), dtype(weight_type), weight_stride},
                                   {pointer<void>(bias), dtype(bias_type), bias_stride},
                                   {pointer<void>(y), dtype(y_type), y_stride}, pointer<const float>(mean),
                                   pointer<const float>(rstd), rows, width, level_of(level));
}

void layer_norm_backward(uintptr_t dy, int dy_type, int64_t dy_stride, uintptr_t x, int x_type, int64_t x_stride,
                         uintptr_t weight, int weight_type, int64_t weight_stride, uintptr_t mean, uintptr_t rstd,
                         uintptr_t residual, int64_t residual_stride, uintptr_t dx, int64_t dx_stride, uintptr_t dweight,
                         int dweight_type, uintptr_t dbias, int dbias_type, int64_t rows, int64_t width,
                         int64_t full_width, int level) {
    growtas::require_sizes(rows, width, full_width);
    growtas::cpu::layer_norm_backward({pointer<void>(dy), dtype(dy_type), dy_stride},
                                      {pointer<void>(x), dtype(x_type), x_stride},
                                      {pointer<void>(weight), dtype(weight_type), weight_stride},
                                      pointer<const float>(mean), pointer<const float>(rstd),
                                      {pointer<void>(residual), dtype(x_type), residual_stride},
                                      {pointer<void>(dx), dtype(x_type), dx_stride},
                                      {pointer<void>(dweight), dtype(dweight_type), 1},
                                      {pointer<void>(dbias), dtype(dbias_type), 1}, rows, width, full_width,
                                      level_of(level));
}

void gelu_forward(uintptr_t h, uintptr_t a, int type, int64_t count, int level) {
    growtas::cpu::gelu_forward(pointer<const void>(h), pointer<void>(a), dtype(type), count, level_of(level));
}

void gelu_backward(uintptr_t gradient, uintptr_t h, uintptr_t a, int type, int64_t count, int level) {
    growtas::cpu::gelu_backward(pointer<void>(gradient), pointer<const void>(h), pointer<void>(a), dtype(type), count,
                                level_of(level));
}

int threads() {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

// The clone that the loader picked on this processor.
const char* vector_level() {
    switch (growtas::cpu::best_level()) {
        case growtas::cpu::Level::kV4: return "x86-64-v4 (AVX-512)";
        case growtas::cpu::Level::kV3: return "x86-64-v3 (AVX2)";
        case growtas::cpu::Level::kBaseline: break;
    }
#if defined(__aarch64__)
    return "aarch64 (NEON)";
#else
    return "baseline";
#endif
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "growtas' C++ kernels: pointers, sizes, strides. Use them through growtas.ops.";
    m.attr("version") = GROWTAS_VERSION;
    m.attr("build_id") = GROWTAS_BUILD_ID;
    m.def("threads", &threads, "How many threads a kernel would use now.");
    m.def("vector_level", &vector_level, "The instruction set whose code runs on this processor.");
    m.def("layer_norm_forward", &layer_norm_forward, py::call_guard<py::gil_scoped_release>());
    m.def("layer_norm_again", &layer_norm_again, py::call_guard<py::gil_scoped_release>());
    m.def("layer_norm_backward", &layer_norm_backward, py::call_guard<py::gil_scoped_release>());
    m.def("gelu_forward", &gelu_forward, py::call_guard<py::gil_scoped_release>());
    m.def("gelu_backward", &gelu_backward, py::call_guard<py::gil_scoped_release>());
    growtas::cpu::bind_branch(m);
    growtas::cpu::bind_gemm(m);
    growtas::cpu::bind_relative_attention(m);
}

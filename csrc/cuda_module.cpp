// growtas._cuda: the CUDA kernels as functions of pointers (as integers), sizes, strides and a stream. No torch, and no CUDA
// header either: the runtime is linked into the module, which therefore loads on a machine without GPU or driver.
#include <pybind11/pybind11.h>

#include "arguments.h"
#include "cuda/layer_norm.h"

namespace py = pybind11;
using growtas::dtype;
using growtas::pointer;
using std::int64_t;
using std::uintptr_t;

namespace {

void require_int_width(int64_t width) {
    if (width > INT32_MAX) throw std::invalid_argument("width is " + std::to_string(width) + ", over 2^31 - 1");
}

void layer_norm_forward(uintptr_t x, int x_type, int64_t x_stride, uintptr_t weight, int weight_type,
                        int64_t weight_stride, uintptr_t bias, int bias_type, int64_t bias_stride, uintptr_t y,
                        int y_type, int64_t y_stride, uintptr_t mean, uintptr_t rstd, int64_t rows, int64_t width,
                        double eps, int device, uintptr_t stream) {
    growtas::require_sizes(rows, width, width);
    require_int_width(width);
    growtas::cuda::layer_norm_forward(
        {pointer<void>(x), dtype(x_type), x_stride}, {pointer<void>(weight), dtype(weight_type), weight_stride},
        {pointer<void>(bias), dtype(bias_type), bias_stride}, {pointer<void>(y), dtype(y_type), y_stride},
        pointer<float>(mean), pointer<float>(rstd), rows, width, static_cast<float>(eps),
        {device, pointer<void>(stream)});
}

void layer_norm_backward(uintptr_t dy, int dy_type, int64_t dy_stride, uintptr_t x, int x_type, int64_t x_stride,
                         uintptr_t weight, int weight_type, int64_t weight_stride, uintptr_t mean, uintptr_t rstd,
                         uintptr_t dx, int64_t dx_stride, uintptr_t dweight, int dweight_type, uintptr_t dbias,
                         int dbias_type, uintptr_t block_sums, int64_t rows, int64_t width, int64_t full_width,
                         int device, uintptr_t stream) {
    growtas::require_sizes(rows, width, full_width);
    require_int_width(width);
    growtas::cuda::layer_norm_backward(
        {pointer<void>(dy), dtype(dy_type), dy_stride}, {pointer<void>(x), dtype(x_type), x_stride},
        {pointer<void>(weight), dtype(weight_type), weight_stride}, pointer<const float>(mean),
        pointer<const float>(rstd), {pointer<void>(dx), dtype(x_type), dx_stride},
        {pointer<void>(dweight), dtype(dweight_type), 1}, {pointer<void>(dbias), dtype(dbias_type), 1},
        pointer<float>(block_sums), rows, width, full_width, {device, pointer<void>(stream)});
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "growtas' CUDA kernels: pointers, sizes, strides, a stream. Use them through growtas.ops.";
    m.attr("version") = GROWTAS_VERSION;
    m.attr("build_id") = GROWTAS_BUILD_ID;
    m.def("layer_norm_blocks", &growtas::cuda::layer_norm_blocks, "How many blocks a backward pass sums its rows in.");
    m.def("layer_norm_forward", &layer_norm_forward, py::call_guard<py::gil_scoped_release>());
    m.def("layer_norm_backward", &layer_norm_backward, py::call_guard<py::gil_scoped_release>());
}

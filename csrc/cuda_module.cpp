// growtas._cuda: the CUDA kernels as functions of pointers (as integers), sizes, strides and a stream. No torch, and no CUDA
// header either: the runtime is linked into the module, which therefore loads on a machine without GPU or driver.
#include <pybind11/pybind11.h>

#include <string>
#include <tuple>

#include "arguments.h"
#include "cuda/layer_norm/layer_norm.h"
#include "cuda/mlp/mlp_forward.h"
#include "cuda/gemm/linear_qkv.h"

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

// -- linear and QKV. A matrix is (address, dtype, row stride), a vector (address, dtype, stride); an address of 0 is none.

using Matrix = std::tuple<uintptr_t, int, int64_t>;
using growtas::cuda::Gradient;
using growtas::cuda::HeadSizes;
using growtas::cuda::Place;
using growtas::cuda::Plan;
using growtas::cuda::Sizes;

growtas::Rows rows_of(const Matrix& m) {
    return {pointer<void>(std::get<0>(m)), dtype(std::get<1>(m)), std::get<2>(m)};
}

growtas::Vector vector_of(const Matrix& m) {
    return {pointer<void>(std::get<0>(m)), dtype(std::get<1>(m)), std::get<2>(m)};
}

void require(const char* name, int64_t size, int64_t least) {
    constexpr int64_t kMost = INT32_MAX - 1023;  // indices run past an edge by less than a tile
    if (size < least || size > kMost)
        throw std::invalid_argument(std::string(name) + " is " + std::to_string(size) + ", and must be " +
                                    std::to_string(least) + " to " + std::to_string(kMost));
}

// rows, out, in, tokens
using SizeArguments = std::tuple<int64_t, int64_t, int64_t, int64_t>;
Sizes sizes_of(const SizeArguments& a) {
    const Sizes s{std::get<0>(a), std::get<1>(a), std::get<2>(a), std::get<3>(a)};
    require("rows", s.rows, 0);
    require("out", s.out, 1);
    require("in", s.in, 1);
    require("tokens", s.tokens, 1);
    return s;
}

// images, tokens, in, heads, head_dim, published
using HeadArguments = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, bool>;
HeadSizes head_sizes_of(const HeadArguments& a) {
    const HeadSizes s{std::get<0>(a), std::get<1>(a), std::get<2>(a), std::get<3>(a), std::get<4>(a), std::get<5>(a)};
    require("images", s.images, 0);
    require("tokens", s.tokens, 1);
    require("in", s.in, 1);
    require("heads", s.heads, 1);
    require("head_dim", s.head_dim, 1);
    require("images * tokens", s.images * s.tokens, 0);
    require("3 * heads * head_dim", 3 * s.heads * s.head_dim, 1);
    return s;
}

// tile, splits, tf32, and the addresses of partial, row_partial, counters
using PlanArguments = std::tuple<int, int, bool, uintptr_t, uintptr_t, uintptr_t>;
Plan plan_of(const PlanArguments& a) {
    const Plan p{std::get<0>(a), std::get<1>(a), std::get<2>(a), pointer<float>(std::get<3>(a)),
                 pointer<float>(std::get<4>(a)), pointer<unsigned>(std::get<5>(a))};
    if (p.tile != 64 && p.tile != 128)
        throw std::invalid_argument("tile is " + std::to_string(p.tile) + ", and must be 64 or 128");
    require("splits", p.splits, 1);
    if (p.splits > 1 && !(p.partial && p.row_partial && p.counters))
        throw std::invalid_argument("splits is " + std::to_string(p.splits) + ", and there is no memory for partial sums");
    return p;
}

// device, stream
using PlaceArguments = std::tuple<int, uintptr_t>;
Place place_of(const PlaceArguments& a) { return {std::get<0>(a), pointer<void>(std::get<1>(a))}; }

Gradient gradient_of(const Matrix& weight, const Matrix& bias, int64_t full_rows, int64_t full_cols, bool accumulate) {
    return {rows_of(weight), vector_of(bias), full_rows, full_cols, accumulate};
}

void linear_forward(int epilogue, Matrix x, Matrix weight, Matrix bias, Matrix y, Matrix other, uintptr_t scale,
                    SizeArguments sizes, PlanArguments plan, PlaceArguments place) {
    if (epilogue < 0 || epilogue > 2)
        throw std::invalid_argument("epilogue " + std::to_string(epilogue) + " is not 0, 1 or 2");
    growtas::cuda::linear_forward(static_cast<growtas::cuda::EpilogueOp>(epilogue), rows_of(x), rows_of(weight),
                                  vector_of(bias), rows_of(y), rows_of(other), pointer<const float>(scale),
                                  sizes_of(sizes), plan_of(plan), place_of(place));
}

void linear_backward_input(Matrix dy, Matrix weight, Matrix dx, uintptr_t scale, SizeArguments sizes, PlanArguments plan,
                           PlaceArguments place) {
    growtas::cuda::linear_backward_input(rows_of(dy), rows_of(weight), rows_of(dx), rows_of(dx).type,
                                         pointer<const float>(scale), sizes_of(sizes), plan_of(plan), place_of(place));
}

void linear_gelu_backward_input(Matrix dy, Matrix weight, Matrix h, Matrix dh, Matrix a, uintptr_t scale,
                                SizeArguments sizes, PlanArguments plan, PlaceArguments place) {
    growtas::cuda::linear_gelu_backward_input(rows_of(dy), rows_of(weight), rows_of(h), rows_of(dh), rows_of(a),
                                              pointer<const float>(scale), sizes_of(sizes), plan_of(plan),
                                              place_of(place));
}

void linear_backward_weight(Matrix dy, Matrix x, Matrix dweight, Matrix dbias, int64_t full_rows, int64_t full_cols,
                            bool accumulate, uintptr_t scale, SizeArguments sizes, PlanArguments plan,
                            PlaceArguments place) {
    growtas::cuda::linear_backward_weight(rows_of(dy), rows_of(x),
                                          gradient_of(dweight, dbias, full_rows, full_cols, accumulate),
                                          pointer<const float>(scale), sizes_of(sizes), plan_of(plan), place_of(place));
}

void qkv_forward(Matrix x, Matrix weight, Matrix bias, uintptr_t qkv, HeadArguments sizes, PlanArguments plan,
                 PlaceArguments place) {
    growtas::cuda::qkv_forward(rows_of(x), rows_of(weight), vector_of(bias), pointer<void>(qkv), head_sizes_of(sizes),
                               plan_of(plan), place_of(place));
}

void qkv_backward_input(uintptr_t dqkv, Matrix weight, Matrix dx, HeadArguments sizes, PlanArguments plan,
                        PlaceArguments place) {
    growtas::cuda::qkv_backward_input(pointer<void>(dqkv), rows_of(weight), rows_of(dx), head_sizes_of(sizes),
                                      plan_of(plan), place_of(place));
}

void qkv_backward_weight(uintptr_t dqkv, Matrix x, Matrix dweight, Matrix dbias, int64_t full_rows, int64_t full_cols,
                         bool accumulate, HeadArguments sizes, PlanArguments plan, PlaceArguments place) {
    growtas::cuda::qkv_backward_weight(pointer<void>(dqkv), rows_of(x),
                                       gradient_of(dweight, dbias, full_rows, full_cols, accumulate),
                                       head_sizes_of(sizes), plan_of(plan), place_of(place));
}

#ifdef GROWTAS_SM90A
// rows, width, hidden, tokens
void mlp_forward(Matrix x, Matrix norm_weight, Matrix norm_bias, double eps, Matrix w1, Matrix b1, Matrix w2, Matrix b2,
                 Matrix y, uintptr_t mean, uintptr_t rstd, uintptr_t scale, SizeArguments sizes, PlaceArguments place) {
    const growtas::cuda::MLPSizes s{std::get<0>(sizes), std::get<1>(sizes), std::get<2>(sizes), std::get<3>(sizes)};
    require("rows", s.rows, 0);
    require("width", s.width, 1);
    require("hidden", s.hidden, 1);
    require("tokens", s.tokens, 1);
    growtas::cuda::mlp_forward(rows_of(x), vector_of(norm_weight), vector_of(norm_bias), static_cast<float>(eps), rows_of(w1),
                               vector_of(b1), rows_of(w2), vector_of(b2), rows_of(y), pointer<float>(mean),
                               pointer<float>(rstd), pointer<const float>(scale), s, place_of(place));
}
#endif

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "growtas' CUDA kernels: pointers, sizes, strides, a stream. Use them through growtas.ops.";
    m.attr("version") = GROWTAS_VERSION;
    m.attr("build_id") = GROWTAS_BUILD_ID;
#ifdef GROWTAS_SM90A
    m.attr("sm90a") = true;
    m.def("mlp_forward", &mlp_forward, py::call_guard<py::gil_scoped_release>());
#else
    m.attr("sm90a") = false;
#endif
    m.def("layer_norm_blocks", &growtas::cuda::layer_norm_blocks, "How many blocks a backward pass sums its rows in.");
    m.def("layer_norm_forward", &layer_norm_forward, py::call_guard<py::gil_scoped_release>());
    m.def("layer_norm_backward", &layer_norm_backward, py::call_guard<py::gil_scoped_release>());
    m.def("linear_forward", &linear_forward, py::call_guard<py::gil_scoped_release>());
    m.def("linear_backward_input", &linear_backward_input, py::call_guard<py::gil_scoped_release>());
    m.def("linear_gelu_backward_input", &linear_gelu_backward_input, py::call_guard<py::gil_scoped_release>());
    m.def("linear_backward_weight", &linear_backward_weight, py::call_guard<py::gil_scoped_release>());
    m.def("qkv_forward", &qkv_forward, py::call_guard<py::gil_scoped_release>());
    m.def("qkv_backward_input", &qkv_backward_input, py::call_guard<py::gil_scoped_release>());
    m.def("qkv_backward_weight", &qkv_backward_weight, py::call_guard<py::gil_scoped_release>());
}

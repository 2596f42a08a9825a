// The binding of branch.cpp: two tuples, of sizes and of addresses, which cost less to read than forty arguments do.
#include "cpu/branch/module.h"

#include <pybind11/stl.h>

#include <array>

#include "arguments.h"
#include "cpu/branch/branch.h"

namespace py = pybind11;
using std::int64_t;
using std::uintptr_t;

namespace growtas::cpu {
namespace {

// images, tokens, d, hidden, full d, full hidden, row steps of fc1 and fc2
using MlpSizes = std::array<int64_t, 8>;
// norm weight and bias, fc1 weight and bias, fc2 weight and bias, scale; 0 for what is missing
using MlpWeights = std::array<uintptr_t, 7>;
// rows, n, k, full n, full k
using LinearSizes = std::array<int64_t, 5>;
// images, tokens, d, heads, head_dim, grid rows, grid columns, clamp, full d, full rows of qkv, full columns of the
// projection, row steps of qkv and of the projection, published
using AttentionSizes = std::array<int64_t, 14>;
// norm weight and bias, qkv weight and bias, key_v, key_h, value_v, value_h, projection weight and bias, scale
using AttentionWeights = std::array<uintptr_t, 11>;

const float* in(uintptr_t address) { return pointer<const float>(address); }
float* out(uintptr_t address) { return pointer<float>(address); }

Mlp mlp_of(const MlpSizes& s, const MlpWeights& w) {
    const Mlp mlp{{s[0], s[1], s[2]},
                  s[3],
                  {in(w[0]), in(w[1]), s[4]},
                  {in(w[2]), in(w[3]), s[5], s[4], s[6]},
                  {in(w[4]), in(w[5]), s[4], s[5], s[7]},
                  in(w[6])};
    require_mlp(mlp);
    return mlp;
}

Attention attention_of(const AttentionSizes& s, const AttentionWeights& w) {
    const Attention attention{{s[0], s[1], s[2]},
                              s[3],
                              s[4],
                              s[5],
                              s[6],
                              s[7],
                              s[13] != 0,
                              {in(w[0]), in(w[1]), s[8]},
                              {in(w[2]), in(w[3]), s[9], s[8], s[11]},
                              {in(w[8]), in(w[9]), s[8], s[10], s[12]},
                              in(w[4]),
                              in(w[5]),
                              in(w[6]),
                              in(w[7]),
                              in(w[10])};
    require_branch(attention);
    return attention;
}

Linear linear_of(const LinearSizes& s, const std::array<uintptr_t, 2>& w) {
    const Linear linear{s[0], s[1], s[2], {in(w[0]), in(w[1]), s[3], s[4], s[4]}};
    require_linear(linear);
    return linear;
}

// weights: weight, bias or 0; t: x, then y, which is written.
void run_linear_forward(const LinearSizes& sizes, const std::array<uintptr_t, 2>& weights,
                        const std::array<uintptr_t, 2>& t) {
    const Linear linear = linear_of(sizes, weights);
    py::gil_scoped_release released;
    linear_forward(linear, in(t[0]), out(t[1]));
}

// t: dy, x; g: dx or 0, then the gradients of the weight and of the bias.
void run_linear_backward(const LinearSizes& sizes, const std::array<uintptr_t, 2>& weights,
                         const std::array<uintptr_t, 2>& t, const std::array<uintptr_t, 3>& g) {
    const Linear linear = linear_of(sizes, weights);
    py::gil_scoped_release released;
    linear_backward(linear, in(t[0]), in(t[1]), out(g[0]), {out(g[1]), out(g[2])});
}

// t: x, then y, mean, rstd, hidden, which are written.
void run_mlp_forward(const MlpSizes& sizes, const MlpWeights& weights, const std::array<uintptr_t, 5>& t, double eps) {
    const Mlp mlp = mlp_of(sizes, weights);
    py::gil_scoped_release released;
    mlp_forward(mlp, in(t[0]), static_cast<float>(eps), out(t[1]), out(t[2]), out(t[3]), out(t[4]));
}

// t: dy, x, mean, rstd, hidden; g: dx, then the gradients of the weights in their order.
void run_mlp_backward(const MlpSizes& sizes, const MlpWeights& weights, const std::array<uintptr_t, 5>& t,
                      const std::array<uintptr_t, 7>& g) {
    const Mlp mlp = mlp_of(sizes, weights);
    py::gil_scoped_release released;
    mlp_backward(mlp, in(t[0]), in(t[1]), in(t[2]), in(t[3]), in(t[4]), out(g[0]), {out(g[1]), out(g[2])},
                 {out(g[3]), out(g[4])}, {out(g[5]), out(g[6])});
}

// t: x, then y, mean, rstd, qkv, attended, lse, which are written.
void run_attention_forward(const AttentionSizes& sizes, const AttentionWeights& weights,
                           const std::array<uintptr_t, 7>& t, double eps) {
    const Attention attention = attention_of(sizes, weights);
    py::gil_scoped_release released;
    attention_forward(attention, in(t[0]), static_cast<float>(eps), out(t[1]), out(t[2]), out(t[3]), out(t[4]), out(t[5]),
                      out(t[6]));
}

// t: dy, x, mean, rstd, qkv, attended, lse; g: dx, then the gradients of the weights in their order.
void run_attention_backward(const AttentionSizes& sizes, const AttentionWeights& weights,
                            const std::array<uintptr_t, 7>& t, const std::array<uintptr_t, 11>& g) {
    const Attention attention = attention_of(sizes, weights);
    py::gil_scoped_release released;
    attention_backward(attention, in(t[0]), in(t[1]), in(t[2]), in(t[3]), in(t[4]), in(t[5]), in(t[6]), out(g[0]),
                       {out(g[1]), out(g[2])}, {out(g[3]), out(g[4])}, {out(g[5]), out(g[6]), out(g[7]), out(g[8])},
                       {out(g[9]), out(g[10])});
}

}  // namespace

void bind_branch(py::module_& m) {
    m.def("linear_forward", &run_linear_forward);
    m.def("linear_backward", &run_linear_backward);
    m.def("mlp_forward", &run_mlp_forward);
    m.def("mlp_backward", &run_mlp_backward);
    m.def("attention_forward", &run_attention_forward);
    m.def("attention_backward", &run_attention_backward);
}

}  // namespace growtas::cpu

// The binding of gemm.cpp: addresses and strides as tuples. The GIL is released once they are read.
#include "cpu/gemm/module.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>
#include <tuple>

#include "arguments.h"
#include "cpu/gemm/gemm.h"

namespace py = pybind11;
using std::int64_t;
using std::uintptr_t;

namespace growtas::cpu {
namespace {

using MatrixView = std::tuple<uintptr_t, int64_t, int64_t>;  // address, row stride, column stride; in fp32 elements
using RowsView = std::tuple<uintptr_t, int64_t>;             // address, row stride; columns lie side by side

Operand operand(const MatrixView& view) {
    return {pointer<const float>(std::get<0>(view)), std::get<1>(view), std::get<2>(view)};
}

// op: a number of EpilogueOp. sizes: m, n, depth. level: 0, 1 or 2, at most what the processor has.
void run(const MatrixView& a, const MatrixView& b, const RowsView& out, const std::array<int64_t, 3>& sizes,
         bool accumulate, int op, uintptr_t bias, uintptr_t scale, int64_t tokens, const RowsView& hidden,
         const RowsView& other, int level) {
    const auto [m, n, depth] = sizes;
    if (std::min({m, n, depth, tokens}) < 1)
        throw std::invalid_argument("sizes " + std::to_string(m) + ", " + std::to_string(n) + ", " +
                                    std::to_string(depth) + " and tokens " + std::to_string(tokens) + " must be 1 or more");
    if (op < 0 || op > 3) throw std::invalid_argument("epilogue " + std::to_string(op) + " is not 0, 1, 2 or 3");
    const bool needs_other = op != static_cast<int>(EpilogueOp::kPlain);
    const bool needs_hidden = op == static_cast<int>(EpilogueOp::kGeluGradient);
    if ((needs_other && !std::get<0>(other)) || (needs_hidden && !std::get<0>(hidden)))
        throw std::invalid_argument("epilogue " + std::to_string(op) + " needs another matrix");
    const Epilogue epilogue{static_cast<EpilogueOp>(op),
                            pointer<const float>(bias),
                            pointer<const float>(scale),
                            tokens,
                            pointer<const float>(std::get<0>(hidden)),
                            pointer<float>(std::get<0>(other)),
                            std::get<1>(hidden),
                            std::get<1>(other)};
    py::gil_scoped_release released;
    gemm(operand(a), operand(b), pointer<float>(std::get<0>(out)), std::get<1>(out), m, n, depth, accumulate, epilogue,
         level_of(level));
}

}  // namespace

void bind_gemm(py::module_& m) { m.def("product", &run); }

}  // namespace growtas::cpu

// The binding of gemm.cpp for the CPU module.
#pragma once
#include <pybind11/pybind11.h>

namespace growtas::cpu {

void bind_gemm(pybind11::module_& m);

}  // namespace growtas::cpu

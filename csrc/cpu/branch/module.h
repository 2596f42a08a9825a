// Binds branch.cpp to Python.
#pragma once
#include <pybind11/pybind11.h>

namespace growtas::cpu {

void bind_branch(pybind11::module_& m);

}  // namespace growtas::cpu

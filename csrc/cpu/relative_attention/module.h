// Adds the functions of relative attention to the module growtas._cpu.
#pragma once
#include <pybind11/pybind11.h>

namespace growtas::cpu {

void bind_relative_attention(pybind11::module_& m);

}  // namespace growtas::cpu

// The element types both native modules know, by the numbers growtas/ops/native.py passes.
#pragma once
#include <cstdint>

namespace growtas {

enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

}  // namespace growtas

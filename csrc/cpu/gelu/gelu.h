// Exact GELU on the CPU, forward and backward, over contiguous arrays. See gelu.cpp.
#pragma once
#include <cstdint>

#include "cpu/common/level.h"
#include "views.h"

namespace growtas::cpu {

// a = gelu(h), `count` elements of one dtype.
void gelu_forward(const void* h, void* a, DType type, std::int64_t count, Level level);

// gradient (dL/da on entry) becomes dL/dh, and a = gelu(h) is made again.
void gelu_backward(void* gradient, const void* h, void* a, DType type, std::int64_t count, Level level);

}  // namespace growtas::cpu

// GEMM of fp32 slices with an epilogue, on the CPU. See gemm.cpp.
#pragma once
#include <cstdint>

#include "cpu/common/level.h"

namespace growtas::cpu {

// Element (r, c) at data + r * row + c * column, in floats.
struct Operand {
    const float* data;
    std::int64_t row, column;
};

// The epilogue of a row of the result, with v = sum + bias and s the scale of the row's image:
//   kPlain         out = s * v
//   kGelu          out = v, other = gelu(v)
//   kResidual      out = other + s * v             other is read
//   kGeluGradient  out = s * v * gelu'(hidden), other = gelu(hidden)
enum class EpilogueOp : int { kPlain = 0, kGelu = 1, kResidual = 2, kGeluGradient = 3 };

struct Epilogue {
    EpilogueOp op;
    const float* bias;    // (n), or null
    const float* scale;   // (images), or null for 1
    std::int64_t tokens;  // rows of an image: row r has scale[r / tokens]
    const float* hidden;  // (m, n), row step hidden_row: the layer before GELU, for kGeluGradient
    float* other;         // (m, n), row step other_row: see EpilogueOp
    std::int64_t hidden_row, other_row;
};

// out (m, n), row step out_row, = epilogue(A (m, depth) B (depth, n)), or with `accumulate` epilogue(out + A B).
void gemm(Operand a, Operand b, float* out, std::int64_t out_row, std::int64_t m, std::int64_t n, std::int64_t depth,
          bool accumulate, const Epilogue& epilogue, Level level);

}  // namespace growtas::cpu

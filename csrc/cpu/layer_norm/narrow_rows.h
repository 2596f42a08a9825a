// LayerNorm of fp32 rows of at most 64 floats: a row stays in registers. See narrow_rows.cpp.
#pragma once
#include <cstdint>

#include "cpu/common/level.h"

namespace growtas::cpu {

constexpr std::int64_t kNarrow = 64;

// Rows [begin, end) of matrices of fp32, `width` floats each; weight and bias have zeros up to a multiple of 16.
struct NarrowRows {
    std::int64_t begin, end, width;
    const float *x, *weight, *bias;
    std::int64_t x_row, y_row;  // floats between rows
    float *y, *mean, *rstd;     // mean and rstd are read where the pass is not the first
    float eps;
};

struct NarrowGradient {
    std::int64_t begin, end, width;
    const float *dy, *x, *residual;  // residual: null where there is none
    const float *weight, *mean, *rstd;
    std::int64_t dy_row, x_row, residual_row, dx_row;
    float *dx, *dweight, *dbias;  // dweight, dbias: of this block, padded to a multiple of 16; written
};

// Each returns false, and does nothing, where the level has no kernel for it.
bool narrow_forward(const NarrowRows& rows, Level level);
bool narrow_again(const NarrowRows& rows, Level level);
bool narrow_backward(const NarrowGradient& rows, Level level);

}  // namespace growtas::cpu

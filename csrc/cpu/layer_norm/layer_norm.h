// LayerNorm on the CPU: weight and bias are the first `width` entries of shared vectors. See layer_norm.cpp. `level` is at most
// the processor's; it holds for narrow rows, wider ones take the clone that the loader picked.
#pragma once
#include <cstdint>

#include "cpu/common/level.h"
#include "views.h"

namespace growtas::cpu {

// y = (x - mean) * rstd * weight + bias; mean and rstd (rows) are saved for the backward pass.
void layer_norm_forward(Rows x, Vector weight, Vector bias, Rows y, float* mean, float* rstd, std::int64_t rows,
                        std::int64_t width, float eps, Level level);

// y once more, from mean and rstd.
void layer_norm_again(Rows x, Vector weight, Vector bias, Rows y, const float* mean, const float* rstd,
                      std::int64_t rows, std::int64_t width, Level level);

// dx, with `residual` added unless its data is null (dtype of x), and the gradients of weight and bias at their full width:
// zero from `width` on. dweight and dbias have stride 1.
void layer_norm_backward(Rows dy, Rows x, Vector weight, const float* mean, const float* rstd, Rows residual, Rows dx,
                         Vector dweight, Vector dbias, std::int64_t rows, std::int64_t width, std::int64_t full_width,
                         Level level);

}  // namespace growtas::cpu

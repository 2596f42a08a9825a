// LayerNorm on the GPU: weight and bias are the first `width` entries of shared vectors. See layer_norm.cu.
// No CUDA header is needed to include this one: a stream is a void*, a failed call an exception.
#pragma once
#include <cstdint>

#include "cuda/common/place.h"
#include "views.h"

namespace growtas::cuda {

// y = (x - mean) * rstd * weight + bias; mean and rstd (rows) are saved for the backward pass.
void layer_norm_forward(Rows x, Vector weight, Vector bias, Rows y, float* mean, float* rstd, std::int64_t rows,
                        std::int64_t width, float eps, Place place);

// How many blocks sum the rows of a backward pass: the caller provides 2 * blocks * width floats for their sums.
std::int64_t layer_norm_blocks(std::int64_t rows);

// dx, and the gradients of weight and bias at their full width: zero from `width` on. dweight and dbias have stride 1.
void layer_norm_backward(Rows dy, Rows x, Vector weight, const float* mean, const float* rstd, Rows dx, Vector dweight,
                         Vector dbias, float* block_sums, std::int64_t rows, std::int64_t width,
                         std::int64_t full_width, Place place);

}  // namespace growtas::cuda

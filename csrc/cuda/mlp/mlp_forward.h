// The MLP branch of a block in one launch on sm_90a: see mlp_forward_sm90a.cu. No CUDA header is needed to include this one.
#pragma once
#include <cstdint>

#include "cuda/common/place.h"
#include "views.h"

namespace growtas::cuda {

// Sizes of a branch: x (rows, width), a hidden layer of `hidden` units; image = row / tokens.
struct MLPSizes {
    std::int64_t rows, width, hidden, tokens;
};

// Limits of one call.
constexpr std::int64_t kMLPMaxWidth = 256, kMLPMaxHidden = 4096;

// y = x + scale[image] * (gelu(z w1[:hidden, :width]^T + b1) w2[:width, :hidden]^T + b2), z the LayerNorm of x, whose mean and
// rstd (rows) are saved. w1 and w2 are of one 16-bit dtype, in which the GEMMs multiply; x and y of that dtype or fp32.
// b1, b2 and scale may be null. std::invalid_argument: a size, dtype, alignment or stride that the kernel does not take.
void mlp_forward(Rows x, Vector norm_weight, Vector norm_bias, float eps, Rows w1, Vector b1, Rows w2, Vector b2, Rows y,
                 float* mean, float* rstd, const float* scale, MLPSizes sizes, Place place);

}  // namespace growtas::cuda

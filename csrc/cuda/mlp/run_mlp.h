// Launches of the MLP kernels, one per dtype; each has a source file of its own, so that they compile in parallel.
#pragma once
#include <cstdint>

#include "cuda/common/place.h"
#include "views.h"

namespace growtas::cuda {

constexpr int kConsumers = 2;  // warpgroups of a block that multiply
constexpr int kRows = 64;      // of a consumer: one wgmma
constexpr int kUnits = 64;     // hidden units of a step

struct Branch {
    const void* x;  // (rows, width), row stride x_stride, fp32 or E
    void* y;        // (rows, width), row stride y_stride, of x's dtype
    std::int64_t x_stride, y_stride;
    Vector norm_weight, norm_bias;  // (width)
    Vector b1, b2;                  // (hidden), (width), or null
    float *mean, *rstd;             // (rows)
    const float* scale;             // (images), or null
    int rows, width, hidden, tokens;
    int whole_blocks;  // of 128 rows; those after them have 64
    float eps;
    bool wide;  // x and y are fp32
};

// The N of the instance for a width.
constexpr int instance(int width) { return width <= 192 ? 192 : width <= 224 ? 224 : width <= 240 ? 240 : 256; }

struct TensorMap;
void run_mlp_bf16(const Branch& p, const TensorMap& map1, const TensorMap& map2, std::int64_t blocks, Place place);
void run_mlp_fp16(const Branch& p, const TensorMap& map1, const TensorMap& map2, std::int64_t blocks, Place place);

}  // namespace growtas::cuda

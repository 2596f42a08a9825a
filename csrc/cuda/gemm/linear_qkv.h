// Sliced linear and sliced QKV on the GPU: GEMMs with the upper left corner of a shared weight, read in place. linear_qkv.cu
// maps each operation to a GEMM, gemm.cuh holds the kernel. No CUDA header is needed to include this one.
#pragma once
#include <cstdint>

#include "cuda/common/place.h"
#include "cuda/gemm/epilogue_op.h"
#include "views.h"

namespace growtas::cuda {

// How a GEMM is cut: tiles of C (64 or 128 wide) and split-K over rows (backward weight), which the caller chooses. Where
// splits > 1 the caller provides the workspace: partial, row_partial and counters. tf32: fp32 on tensor cores.
struct Plan {
    int tile, splits;
    bool tf32;
    float *partial, *row_partial;
    unsigned* counters;
};

// Sizes of a sliced linear layer: x (rows, in), y (rows, out), weight[:out, :in]; image = row / tokens.
struct Sizes {
    std::int64_t rows, out, in, tokens;
};

// Sizes of a sliced QKV layer: x (images, tokens, in), q, k, v of (heads, head_dim), weight[:3 * heads * head_dim, :in].
struct HeadSizes {
    std::int64_t images, tokens, in, heads, head_dim;
    bool published;  // the bias is q's, k's, v's one after the other; else interleaved as the weight
};

// A gradient of the shared weight's full size (full_rows, full_cols), dense, and of its bias (full_rows) or null; accumulate:
// add to them inside the slice. Else they are zero outside it.
struct Gradient {
    Rows weight;
    Vector bias;
    std::int64_t full_rows, full_cols;
    bool accumulate;
};

// y = x W^T + b (kStore). kGelu: other = that, y = gelu of it. kResidual: y = other + scale[image] * that.
void linear_forward(EpilogueOp epilogue, Rows x, Rows weight, Vector bias, Rows y, Rows other, const float* scale, Sizes sizes,
                    Plan plan, Place place);

// dx = (scale * dy) W, multiplied in `type`.
void linear_backward_input(Rows dy, Rows weight, Rows dx, DType type, const float* scale, Sizes sizes, Plan plan,
                           Place place);

// With h (rows, in) and a = gelu(h): dh = (scale * dy) W * gelu'(h), and a again; multiplied in h's dtype.
void linear_gelu_backward_input(Rows dy, Rows weight, Rows h, Rows dh, Rows a, const float* scale, Sizes sizes, Plan plan,
                                Place place);

// The gradients of weight and bias: (scale * dy)^T x and the sums of scale * dy; multiplied in x's dtype.
void linear_backward_weight(Rows dy, Rows x, Gradient gradient, const float* scale, Sizes sizes, Plan plan, Place place);

// qkv (3, images, heads, tokens, head_dim), dense.
void qkv_forward(Rows x, Rows weight, Vector bias, void* qkv, HeadSizes sizes, Plan plan, Place place);
void qkv_backward_input(void* dqkv, Rows weight, Rows dx, HeadSizes sizes, Plan plan, Place place);
void qkv_backward_weight(void* dqkv, Rows x, Gradient gradient, HeadSizes sizes, Plan plan, Place place);

}  // namespace growtas::cuda

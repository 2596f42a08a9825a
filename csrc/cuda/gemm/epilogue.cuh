// The epilogue: bias, GELU, residual or gradient, applied to a tile of sums before it is written. A tile passes through shared
// memory first, so that neighbouring threads write neighbouring columns and each epilogue exists once, in a loop over four
// columns of a row.
#pragma once
#include "cuda/gemm/epilogue_op.h"
#include "cuda/gemm/operands.cuh"

namespace growtas::cuda {

enum class Form : int { kForward, kBackwardInput, kBackwardWeight };

// One GEMM C = A B in panels: (part, head) pairs, each a matrix (rows, cols); its sums run over `depth` steps in each of
// `segments` (part, head) pairs. What is not split by part and head has one panel and one segment.
struct Gemm {
    Operand a, b, out;
    int rows, cols, depth, panels, segments;
    int row_tiles, col_tiles, splits, depth_per_split;
    Divisor tokens, head_columns;  // rows of an image; columns (of backward weight: rows) of C in a head
    EpilogueOp epilogue;
    bool packed;         // out, second and third can be reached in packs of four
    bool accumulate;     // kGradient: add to out
    Rows second, third;  // (rows, cols)
    const float* scale;  // of each image, or null
    // Forward: the bias of column c is element c * bias.row_stride of its panel. Backward weight: where the gradient goes.
    Operand bias;
    // Backward weight: the full gradients, zero but for [:active_rows, :cols] and [:active_rows].
    std::int64_t full_rows, full_cols, active_rows;
    float* partial;       // (splits, tiles, TILE * TILE), in the order of the threads' registers
    float* row_partial;   // (splits, panels * row_tiles, TILE)
    unsigned* counters;   // (tiles): how many splits of a tile are done; zero before and after
};

__device__ __forceinline__ float normal_cdf(float x) { return 0.5f * (1.0f + erff(x * 0.70710678118654752f)); }

__device__ __forceinline__ void load_four(const Rows& from, std::int64_t offset, int count, bool packed, float (&v)[4]) {
    if (!packed) {
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] = i < count ? load_any(from.data, from.type, offset + i) : 0.0f;
        return;
    }
    switch (from.type) {
        case DType::kBFloat16: return load_pack(static_cast<const __nv_bfloat16*>(from.data) + offset, v);
        case DType::kFloat16: return load_pack(static_cast<const __half*>(from.data) + offset, v);
        default: return load_pack(static_cast<const float*>(from.data) + offset, v);
    }
}

__device__ __forceinline__ void store_four(const Rows& to, std::int64_t offset, int count, bool packed,
                                           const float (&v)[4]) {
    if (!packed) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (i < count) store_any(to.data, to.type, offset + i, v[i]);
        return;
    }
    switch (to.type) {
        case DType::kBFloat16: return store_pack(static_cast<__nv_bfloat16*>(to.data) + offset, v);
        case DType::kFloat16: return store_pack(static_cast<__half*>(to.data) + offset, v);
        default: return store_pack(static_cast<float*>(to.data) + offset, v);
    }
}

// Applies the epilogue to, and writes, `count` neighbouring sums v at (row, column) of a panel of an activation.
template <Form FORM>
__device__ __forceinline__ void store_activation(const Gemm& p, int panel, int row, int column, float (&v)[4]) {
    const int count = min(p.cols - column, 4);
    const bool packed = p.packed && count == 4;
    const int image = p.tokens.divide(row);
    const float scale = p.scale ? p.scale[image] : 1.0f;
    const std::int64_t start =
        p.out.offset(panel) + image * p.out.image_stride + (row - image * p.tokens.divisor) * p.out.row_stride;
    const std::int64_t second = row * p.second.stride + column;
    float w[4];
    if (FORM == Form::kForward && p.epilogue == EpilogueOp::kGelu) {
        store_four(p.second, second, count, packed, v);
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] *= normal_cdf(v[i]);
    } else if (FORM == Form::kForward && p.epilogue == EpilogueOp::kResidual) {
        load_four(p.second, second, count, packed, w);
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] = w[i] + scale * v[i];
    } else if (FORM == Form::kBackwardInput && p.epilogue == EpilogueOp::kGeluBackward) {
        load_four(p.second, second, count, packed, w);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float cdf = normal_cdf(w[i]), density = 0.39894228040143268f * expf(-0.5f * w[i] * w[i]);
            v[i] *= scale * (cdf + w[i] * density);
            w[i] *= cdf;
        }
        store_four(p.third, row * p.third.stride + column, count, packed, w);
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] *= scale;
    }
    const Rows out{p.out.data, p.out.type, 0};
    if (packed) {  // four columns that packs may take lie in one head
        const int head = p.head_columns.divide(column);
        store_four(out, start + head * p.out.head_stride + (column - head * p.head_columns.divisor), 4, true, v);
        return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (i < count) {
            const int head = p.head_columns.divide(column + i);
            store_any(out.data, out.type,
                      start + head * p.out.head_stride + (column + i - head * p.head_columns.divisor), v[i]);
        }
}

// Writes, or adds, `count` neighbouring sums v to the gradient of a shared weight.
__device__ __forceinline__ void store_gradient(const Gemm& p, int panel, int row, int column, float (&v)[4]) {
    const int count = min(p.cols - column, 4);
    const bool packed = p.packed && count == 4;
    const Rows out{p.out.data, p.out.type, 0};
    const std::int64_t offset = p.out.offset(panel) + row * p.out.row_stride + column;
    if (p.accumulate) {
        float w[4];
        load_four(out, offset, count, packed, w);
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] += w[i];
    }
    store_four(out, offset, count, packed, v);
}

// The blocks beyond the GEMM clear the gradients outside the slice.
__device__ __forceinline__ void clear_outside(const Gemm& p, std::int64_t block, std::int64_t blocks, int threads) {
    for (std::int64_t row = block; row < p.full_rows; row += blocks)
        for (std::int64_t c = (row < p.active_rows ? p.cols : 0) + threadIdx.x; c < p.full_cols; c += threads)
            store_any(p.out.data, p.out.type, row * p.full_cols + c, 0.0f);
    if (p.bias.data && block == 0)
        for (std::int64_t row = p.active_rows + threadIdx.x; row < p.full_rows; row += threads)
            store_any(p.bias.data, p.bias.type, row, 0.0f);
}

}  // namespace growtas::cuda

// Self-attention with AutoFormer's 2-D relative position on the CPU. See relative_attention.cpp.
#pragma once
#include <cstdint>

#include "cpu/common/level.h"
#include "views.h"

namespace growtas::cpu {

// q, k, v as one tensor (3, B, h, N, e): its elements are found by five strides, in elements.
struct Heads {
    void* data;
    DType type;
    std::int64_t part, image, head, token, channel;
};

// Tokens (B, N, h * e): the channels of a token are dense.
struct Tokens {
    void* data;
    DType type;
    std::int64_t image, token;
};

// A grid of rows x columns patches, row by row, after a cls token if cls is 1: tokens = rows * columns + cls.
// The tables have 2 * clamp + 2 rows: row 0 for pairs with cls, row d + clamp + 1 for the distance d, -clamp <= d <= clamp.
struct AttentionShape {
    std::int64_t batch, heads, tokens, head_dim, rows, columns, cls, clamp;
};

// The four tables, (2 * clamp + 2, e) each: of keys and of values, for row and for column distances.
struct Tables {
    Rows key_v, key_h, value_v, value_h;
};

// Throws std::invalid_argument where the sizes do not make sense together.
void require_attention(const AttentionShape& shape);

// out (B, N, h * e) and lse (B, h, N) fp32, the natural log-sum-exp of the scaled logits. `level` must not exceed best_level().
void relative_attention_forward(const AttentionShape& shape, Heads qkv, const Tables& tables, Tokens out, float* lse,
                                Level level);

// dqkv in the strides given, every element written; dtables at full size, every element written.
void relative_attention_backward(const AttentionShape& shape, Tokens dout, Heads qkv, const Tables& tables, Tokens out,
                                 const float* lse, Heads dqkv, const Tables& dtables, Level level);

}  // namespace growtas::cpu

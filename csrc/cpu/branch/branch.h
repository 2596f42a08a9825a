// A residual branch of a block, or a linear layer, in one call, forward or backward, fp32. See branch.cpp.
#pragma once
#include <cstdint>

namespace growtas::cpu {

// The residual stream x (images, tokens, width), dense.
struct Stream {
    std::int64_t images, tokens, width;
    std::int64_t rows() const { return images * tokens; }
};

// A shared LayerNorm: weight, bias (full), dense, of which the first width entries are read.
struct SharedNorm {
    const float *weight, *bias;
    std::int64_t full;
};

// A shared linear layer: weight (rows, columns), row step `step`, of which the upper left corner is read; bias (rows) or null.
struct SharedLinear {
    const float *weight, *bias;
    std::int64_t rows, columns, step;
};

// Gradients at full size, dense, every element written: zero outside the slice. bias is null where there is none.
struct Gradient {
    float *weight, *bias;
};

// The MLP branch: y = x + scale * fc2(gelu(fc1(LayerNorm(x)))).
struct Mlp {
    Stream stream;
    std::int64_t hidden;
    SharedNorm norm;
    SharedLinear fc1, fc2;
    const float* scale;  // (images), or null for 1
};

// The attention branch: y = x + scale * proj(attention(qkv(LayerNorm(x)))).
struct Attention {
    Stream stream;
    std::int64_t heads, head_dim, rows, columns, clamp;
    bool published;  // layout of the qkv bias: q, k and v in turn, not interleaved like the rows of the weight
    SharedNorm norm;
    SharedLinear qkv, proj;
    const float *key_v, *key_h, *value_v, *value_h;  // (2 * clamp + 2, head_dim), dense
    const float* scale;
};

// Throws std::invalid_argument where a slice is larger than its weight or a size is not positive.
void require_mlp(const Mlp& mlp);
void require_branch(const Attention& attention);

// x, y (rows, width); mean, rstd (rows); hidden (rows, hidden): fc1's result, before GELU.
void mlp_forward(const Mlp& mlp, const float* x, float eps, float* y, float* mean, float* rstd, float* hidden);

// dx, with dy added: the residual.
void mlp_backward(const Mlp& mlp, const float* dy, const float* x, const float* mean, const float* rstd,
                  const float* hidden, float* dx, Gradient norm, Gradient fc1, Gradient fc2);

// qkv (images, tokens, heads, head_dim, 3), attended (rows, heads * head_dim), lse (images, heads, tokens).
void attention_forward(const Attention& attention, const float* x, float eps, float* y, float* mean, float* rstd,
                       float* qkv, float* attended, float* lse);

// y (rows, n) = x (rows, k) W[:n, :k]^T + bias[:n].
struct Linear {
    std::int64_t rows, n, k;
    SharedLinear weight;
};

void require_linear(const Linear& linear);
void linear_forward(const Linear& linear, const float* x, float* y);

// dx is null where it is not needed.
void linear_backward(const Linear& linear, const float* dy, const float* x, float* dx, Gradient gradient);

struct TableGradients {
    float *key_v, *key_h, *value_v, *value_h;
};

void attention_backward(const Attention& attention, const float* dy, const float* x, const float* mean,
                        const float* rstd, const float* qkv, const float* attended, const float* lse, float* dx,
                        Gradient norm, Gradient qkv_gradient, TableGradients tables, Gradient proj);

}  // namespace growtas::cpu

// The two residual branches of a block, each forward and backward in one call: LayerNorm, GEMMs, attention, residual.
//
// Shapes   x, y, dy, dx (B * N, d); weights, biases and tables at the full size of the supernet; all fp32. See branch.h.
// Why      in a small net a call from Python costs more than the GEMM in it. One call takes all steps of a branch: the
//          normalised tokens, the layer after GELU and every gradient between two steps lie in this thread's workspace,
//          which stays in its cache, and no tensor is made for them. A linear layer by itself (patches, head) is here for the
//          same reason.
// Steps    those of layer_norm.cpp, gemm.cpp and relative_attention.cpp, in the order of growtas/ops/*/unfused.py.
// Saved    mean and rstd; of the MLP the hidden layer before GELU; of attention qkv, its result and its log-sum-exp.
//          Recomputed: the normalised tokens, the layer after GELU and the attention matrix.
// Order    the steps are the same bits for any number of threads each, and bias gradients are summed by one thread in the
//          order of the rows: so are the branches.
#include "cpu/branch/branch.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/layer_norm/layer_norm.h"
#include "cpu/common/level.h"
#include "cpu/gemm/gemm.h"
#include "cpu/relative_attention/relative_attention.h"
#include "cpu/common/simd.h"
#include "cpu/common/workspace.h"

namespace growtas::cpu {
namespace {

thread_local Workspace branch_workspace;  // of the calling thread: the results between the steps of a branch

Rows rows(const float* data, std::int64_t stride) { return {const_cast<float*>(data), DType::kFloat32, stride}; }
Vector vector(const float* data) { return {const_cast<float*>(data), DType::kFloat32, 1}; }

Epilogue plain(const float* bias = nullptr, const float* scale = nullptr, std::int64_t tokens = 1) {
    return {EpilogueOp::kPlain, bias, scale, tokens, nullptr, nullptr, 0, 0};
}

// out (m, n) = epilogue(x (m, k) W[:n, :k]^T).
void times_weight(const float* x, std::int64_t m, std::int64_t n, std::int64_t k, const SharedLinear& w, float* out,
                  const Epilogue& epilogue) {
    gemm({x, k, 1}, {w.weight, 1, w.step}, out, n, m, n, k, false, epilogue, best_level());
}

// out (m, k) = epilogue(dy (m, n) W[:n, :k]).
void times_transposed(const float* dy, std::int64_t m, std::int64_t n, std::int64_t k, const SharedLinear& w, float* out,
                      const Epilogue& epilogue) {
    gemm({dy, n, 1}, {w.weight, w.step, 1}, out, k, m, k, n, false, epilogue, best_level());
}

// to[c] = the sum of column c of from (m, n), in the order of the rows.
GROWTAS_LEAF void column_sums(const float* from, std::int64_t m, std::int64_t n, float* to) {
    typedef float Eight __attribute__((vector_size(32)));  // one register of AVX2: a carried Lanes would pass through memory
    std::int64_t c = 0;
    for (; c + 8 <= n; c += 8) {
        Eight total{};
        for (std::int64_t r = 0; r < m; ++r) {
            Eight row;
            std::memcpy(&row, from + r * n + c, sizeof row);
            total += row;
        }
        std::memcpy(to + c, &total, sizeof total);
    }
    for (; c < n; ++c) {
        float total = 0.0f;
        for (std::int64_t r = 0; r < m; ++r) total += from[r * n + c];
        to[c] = total;
    }
}

// The gradient of a linear layer from those of its result, dy (m, n), and its input, x (m, k).
void weight_gradient(const float* dy, const float* x, std::int64_t m, std::int64_t n, std::int64_t k,
                     const SharedLinear& w, const Gradient& to) {
    for (std::int64_t r = 0; k < w.columns && r < n; ++r)
        std::fill(to.weight + r * w.columns + k, to.weight + (r + 1) * w.columns, 0.0f);
    std::fill(to.weight + n * w.columns, to.weight + w.rows * w.columns, 0.0f);
    gemm({dy, 1, n}, {x, k, 1}, to.weight, w.columns, n, k, m, false, plain(), best_level());
    if (!to.bias) return;
    column_sums(dy, m, n, to.bias);
    std::fill(to.bias + n, to.bias + w.rows, 0.0f);
}

// dy times the scale of its image; dy itself where there is none.
const float* scaled(const float* dy, const float* scale, const Stream& s, float* to) {
    if (!scale) return dy;
    const std::int64_t size = s.tokens * s.width;
    for (std::int64_t image = 0; image < s.images; ++image)
        for (std::int64_t i = image * size; i < (image + 1) * size; ++i) to[i] = dy[i] * scale[image];
    return to;
}

// From channel by channel (q, k, v of each) to all of q, of k, of v, or back.
void reorder(const float* from, std::int64_t channels, bool to_published, float* to) {
    for (std::int64_t part = 0; part < 3; ++part)
        for (std::int64_t u = 0; u < channels; ++u) {
            const std::int64_t a = 3 * u + part, b = part * channels + u;
            to[to_published ? b : a] = from[to_published ? a : b];
        }
}

AttentionShape shape_of(const Attention& a) {
    const Stream& s = a.stream;
    return {s.images, a.heads, s.tokens, a.head_dim, a.rows, a.columns, s.tokens - a.rows * a.columns, a.clamp};
}

Heads interleaved(const Attention& a, const float* qkv) {
    const std::int64_t head = 3 * a.head_dim, token = a.heads * head;
    return {const_cast<float*>(qkv), DType::kFloat32, 1, a.stream.tokens * token, head, token, 3};
}

Tokens merged(const Attention& a, const float* attended) {
    const std::int64_t width = a.heads * a.head_dim;
    return {const_cast<float*>(attended), DType::kFloat32, a.stream.tokens * width, width};
}

Tables tables_of(const Attention& a) {
    const std::int64_t e = a.head_dim;
    return {rows(a.key_v, e), rows(a.key_h, e), rows(a.value_v, e), rows(a.value_h, e)};
}

void require_positive(const char* what, std::int64_t value) {
    if (value < 1) throw std::invalid_argument(std::string(what) + " is " + std::to_string(value) + ", and must be 1 or more");
}

void require_stream(const Stream& s, const SharedNorm& norm) {
    require_positive("the number of images", s.images), require_positive("the number of tokens", s.tokens);
    require_positive("the width", s.width);
    if (s.width > norm.full)
        throw std::invalid_argument("the norm has " + std::to_string(norm.full) + " entries, and the row " +
                                    std::to_string(s.width));
}

void require_slice(const char* what, const SharedLinear& w, std::int64_t n, std::int64_t k) {
    require_positive(what, n);
    if (n > w.rows || k > w.columns || w.columns > w.step)
        throw std::invalid_argument(std::string(what) + " needs a slice of " + std::to_string(n) + " x " + std::to_string(k) +
                                    ", and the weight is " + std::to_string(w.rows) + " x " + std::to_string(w.columns) +
                                    " with rows " + std::to_string(w.step) + " apart");
}

}  // namespace

void require_mlp(const Mlp& m) {
    require_stream(m.stream, m.norm);
    require_slice("fc1", m.fc1, m.hidden, m.stream.width);
    require_slice("fc2", m.fc2, m.stream.width, m.hidden);
}

void require_branch(const Attention& a) {
    require_stream(a.stream, a.norm);
    require_attention(shape_of(a));
    require_slice("qkv", a.qkv, 3 * a.heads * a.head_dim, a.stream.width);
    require_slice("the projection", a.proj, a.stream.width, a.heads * a.head_dim);
}

void require_linear(const Linear& linear) {
    require_positive("the number of rows", linear.rows), require_positive("the input's width", linear.k);
    require_slice("the layer", linear.weight, linear.n, linear.k);
}

void linear_forward(const Linear& l, const float* x, float* y) {
    times_weight(x, l.rows, l.n, l.k, l.weight, y, plain(l.weight.bias));
}

void linear_backward(const Linear& l, const float* dy, const float* x, float* dx, Gradient gradient) {
    weight_gradient(dy, x, l.rows, l.n, l.k, l.weight, gradient);
    if (dx) times_transposed(dy, l.rows, l.n, l.k, l.weight, dx, plain());
}

void mlp_forward(const Mlp& mlp, const float* x, float eps, float* y, float* mean, float* rstd, float* hidden) {
    const std::int64_t m = mlp.stream.rows(), d = mlp.stream.width, h = mlp.hidden;
    float *normal = branch_workspace.get(m * (d + h)), *active = normal + m * d;
    layer_norm_forward(rows(x, d), vector(mlp.norm.weight), vector(mlp.norm.bias), rows(normal, d), mean, rstd, m, d, eps,
                       best_level());
    times_weight(normal, m, h, d, mlp.fc1, hidden, {EpilogueOp::kGelu, mlp.fc1.bias, nullptr, 1, nullptr, active, 0, h});
    times_weight(active, m, d, h, mlp.fc2, y,
                 {EpilogueOp::kResidual, mlp.fc2.bias, mlp.scale, mlp.stream.tokens, nullptr, const_cast<float*>(x), 0, d});
}

void mlp_backward(const Mlp& mlp, const float* dy, const float* x, const float* mean, const float* rstd,
                  const float* hidden, float* dx, Gradient norm, Gradient fc1, Gradient fc2) {
    const std::int64_t m = mlp.stream.rows(), d = mlp.stream.width, h = mlp.hidden;
    float* normal = branch_workspace.get(m * (3 * d + 2 * h));
    float *dnormal = normal + m * d, *own_dy = dnormal + m * d, *dhidden = own_dy + m * d, *active = dhidden + m * h;
    layer_norm_again(rows(x, d), vector(mlp.norm.weight), vector(mlp.norm.bias), rows(normal, d), mean, rstd, m, d,
                     best_level());
    times_transposed(dy, m, d, h, mlp.fc2, dhidden,
                     {EpilogueOp::kGeluGradient, nullptr, mlp.scale, mlp.stream.tokens, hidden, active, h, h});
    weight_gradient(scaled(dy, mlp.scale, mlp.stream, own_dy), active, m, d, h, mlp.fc2, fc2);
    weight_gradient(dhidden, normal, m, h, d, mlp.fc1, fc1);
    times_transposed(dhidden, m, h, d, mlp.fc1, dnormal, plain());
    layer_norm_backward(rows(dnormal, d), rows(x, d), vector(mlp.norm.weight), mean, rstd, rows(dy, d), rows(dx, d),
                        vector(norm.weight), vector(norm.bias), m, d, mlp.norm.full, best_level());
}

void attention_forward(const Attention& a, const float* x, float eps, float* y, float* mean, float* rstd, float* qkv,
                       float* attended, float* lse) {
    const std::int64_t m = a.stream.rows(), d = a.stream.width, channels = a.heads * a.head_dim;
    float *normal = branch_workspace.get(m * d + 3 * channels), *bias = normal + m * d;
    layer_norm_forward(rows(x, d), vector(a.norm.weight), vector(a.norm.bias), rows(normal, d), mean, rstd, m, d, eps,
                       best_level());
    if (a.qkv.bias && a.published) reorder(a.qkv.bias, channels, false, bias);
    times_weight(normal, m, 3 * channels, d, a.qkv, qkv, plain(a.published && a.qkv.bias ? bias : a.qkv.bias));
    relative_attention_forward(shape_of(a), interleaved(a, qkv), tables_of(a), merged(a, attended), lse, best_level());
    times_weight(attended, m, d, channels, a.proj, y,
                 {EpilogueOp::kResidual, a.proj.bias, a.scale, a.stream.tokens, nullptr, const_cast<float*>(x), 0, d});
}

void attention_backward(const Attention& a, const float* dy, const float* x, const float* mean, const float* rstd,
                        const float* qkv, const float* attended, const float* lse, float* dx, Gradient norm,
                        Gradient qkv_gradient, TableGradients tables, Gradient proj) {
    const std::int64_t m = a.stream.rows(), d = a.stream.width, e = a.head_dim, channels = a.heads * e;
    float* normal = branch_workspace.get(m * (3 * d + 4 * channels) + 3 * channels);
    float *dnormal = normal + m * d, *own_dy = dnormal + m * d, *dattended = own_dy + m * d;
    float *dqkv = dattended + m * channels, *dbias = dqkv + 3 * m * channels;
    weight_gradient(scaled(dy, a.scale, a.stream, own_dy), attended, m, d, channels, a.proj, proj);
    times_transposed(dy, m, d, channels, a.proj, dattended, plain(nullptr, a.scale, a.stream.tokens));
    const Tables dtables{rows(tables.key_v, e), rows(tables.key_h, e), rows(tables.value_v, e), rows(tables.value_h, e)};
    relative_attention_backward(shape_of(a), merged(a, dattended), interleaved(a, qkv), tables_of(a), merged(a, attended),
                                lse, interleaved(a, dqkv), dtables, best_level());
    layer_norm_again(rows(x, d), vector(a.norm.weight), vector(a.norm.bias), rows(normal, d), mean, rstd, m, d,
                     best_level());
    weight_gradient(dqkv, normal, m, 3 * channels, d, a.qkv, qkv_gradient);
    if (qkv_gradient.bias && a.published) {
        std::copy(qkv_gradient.bias, qkv_gradient.bias + 3 * channels, dbias);
        reorder(dbias, channels, true, qkv_gradient.bias);
    }
    times_transposed(dqkv, m, 3 * channels, d, a.qkv, dnormal, plain());
    layer_norm_backward(rows(dnormal, d), rows(x, d), vector(a.norm.weight), mean, rstd, rows(dy, d), rows(dx, d),
                        vector(norm.weight), vector(norm.bias), m, d, a.norm.full, best_level());
}

}  // namespace growtas::cpu

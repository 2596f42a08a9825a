// Sliced linear and sliced QKV as GEMMs (see gemm.cuh).
//
// Shapes   x (M, k), weight (N_max, K_max) of which [:n, :k] is active, bias (N_max), y and dy (M, n), M = images * tokens;
//          qkv, dqkv (3, images, heads, tokens, head_dim), made by rows 3u + part of the weight, u = head * head_dim + column.
// Saved    nothing but what the caller keeps: x, and before GELU its argument.
#include "cuda/gemm/linear_qkv.h"

#include <algorithm>

#include "cuda/gemm/epilogue.cuh"
#include "cuda/gemm/run_gemm.h"

namespace growtas::cuda {
namespace {

constexpr std::int64_t kMaxClearing = 132;  // blocks that clear a gradient outside the slice
constexpr std::int64_t kClearedByBlock = 1 << 14;

std::int64_t size_of(DType type) { return type == DType::kFloat32 ? 4 : 2; }

// The bytes that one copy may move, 16 to 2: what divides the address and all strides.
int access_of(const Operand& o) {
    for (int bytes = 16; bytes > 2; bytes /= 2) {
        const std::int64_t elements = std::max<std::int64_t>(1, bytes / size_of(o.type));
        if (reinterpret_cast<std::uintptr_t>(o.data) % bytes == 0 && o.row_stride % elements == 0 &&
            o.image_stride % elements == 0 && o.part_stride % elements == 0 && o.head_stride % elements == 0)
            return bytes;
    }
    return 2;
}

Operand matrix(const Rows& m, std::int64_t tokens) {
    Operand o;
    o.data = m.data;
    o.type = m.type;
    o.row_stride = m.stride;
    o.image_stride = tokens * m.stride;
    o.access = access_of(o);
    return o;
}

// Rows 3u + part of the weight, part by part; or of its gradient.
Operand interleaved(const Rows& m, std::int64_t head_dim) {
    Operand o;
    o.data = m.data;
    o.type = m.type;
    o.row_stride = 3 * m.stride;
    o.part_stride = m.stride;
    o.head_stride = 3 * head_dim * m.stride;
    o.access = access_of(o);
    return o;
}

// (3, images, heads, tokens, head_dim): row = image * tokens + token, column of a head.
Operand head_split(void* data, DType type, const HeadSizes& s) {
    Operand o;
    o.data = data;
    o.type = type;
    o.row_stride = s.head_dim;
    o.head_stride = s.tokens * s.head_dim;
    o.image_stride = s.heads * o.head_stride;
    o.part_stride = s.images * o.image_stride;
    o.regular = false;
    o.access = access_of(o);
    return o;
}

// The bias of q, k, v, or its gradient: element u of part and head.
Operand head_bias(const Vector& bias, const HeadSizes& s) {
    Operand o;
    o.data = bias.data;
    o.type = bias.type;
    o.row_stride = (s.published ? 1 : 3) * bias.stride;
    o.part_stride = (s.published ? s.heads * s.head_dim : 1) * bias.stride;
    o.head_stride = s.head_dim * o.row_stride;
    return o;
}

Operand plain_bias(const Vector& bias) {
    Operand o;
    o.data = bias.data;
    o.type = bias.type;
    o.row_stride = bias.stride;
    return o;
}

bool packs(const void* data, DType type, std::int64_t stride) {
    return reinterpret_cast<std::uintptr_t>(data) % (4 * size_of(type)) == 0 && stride % 4 == 0;
}

bool packs(const Operand& o) {
    return packs(o.data, o.type, o.row_stride) && o.image_stride % 4 == 0 && o.part_stride % 4 == 0 && o.head_stride % 4 == 0;
}

int narrow(std::int64_t size) { return static_cast<int>(size); }

// A tile is addressed in 32 bits from its first element.
void require_narrow(const Operand& o) {
    constexpr std::int64_t kMost = std::int64_t{1} << 22;
    if (o.row_stride > kMost || -o.row_stride > kMost)
        throw std::invalid_argument("a row stride of " + std::to_string(o.row_stride) + " elements is over 2^22");
}

void run(Form form, Gemm& p, DType type, const Plan& plan, Place place) {
    require_narrow(p.a);
    require_narrow(p.b);
    const int tile = type == DType::kFloat32 ? 64 : plan.tile;
    p.row_tiles = (p.rows - 1) / tile + 1;
    p.col_tiles = (p.cols - 1) / tile + 1;
    p.packed = packs(p.out) && (!p.second.data || packs(p.second.data, p.second.type, p.second.stride)) &&
               (!p.third.data || packs(p.third.data, p.third.type, p.third.stride));
    p.splits = 1;
    p.depth_per_split = p.depth;
    std::int64_t blocks = std::int64_t{p.panels} * p.row_tiles * p.col_tiles;
    if (form == Form::kBackwardWeight) {
        constexpr int STEP = 32;  // kDepth of the kernels
        const int each = (p.depth + plan.splits - 1) / plan.splits;
        p.depth_per_split = std::max(1, (each + STEP - 1) / STEP) * STEP;
        p.splits = std::max(1, (p.depth + p.depth_per_split - 1) / p.depth_per_split);
        p.partial = plan.partial;
        p.row_partial = plan.row_partial;
        p.counters = plan.counters;
        blocks *= p.splits;
        if (!p.accumulate) {
            const std::int64_t outside = p.full_rows * p.full_cols - p.active_rows * p.cols;
            if (outside || p.full_rows > p.active_rows)
                blocks += std::min(kMaxClearing, outside / kClearedByBlock + 1);
        }
    }
    check(cudaSetDevice(place.device), "set device");
    switch (type) {
        case DType::kBFloat16: return run_gemm_bf16(form, p, tile, blocks, place);
        case DType::kFloat16: return run_gemm_fp16(form, p, tile, blocks, place);
        default: return run_gemm_fp32(form, p, plan.tf32, blocks, place);
    }
}

Gemm plain(std::int64_t rows, std::int64_t cols, std::int64_t depth, std::int64_t tokens) {
    Gemm p{};
    p.rows = narrow(rows);
    p.cols = narrow(cols);
    p.depth = narrow(depth);
    p.panels = p.segments = 1;
    p.tokens = Divisor(tokens);
    p.head_columns = Divisor();
    return p;
}

void backward_input(EpilogueOp epilogue, Rows dy, Rows weight, Rows dx, Rows second, Rows third, DType type,
                    const float* scale, Sizes s, Plan plan, Place place) {
    if (s.rows == 0) return;
    Gemm p = plain(s.rows, s.in, s.out, s.tokens);
    p.a = matrix(dy, s.tokens);
    p.b = matrix(weight, 0);
    p.out = matrix(dx, s.tokens);
    p.second = second;
    p.third = third;
    p.scale = scale;
    p.epilogue = epilogue;
    run(Form::kBackwardInput, p, type, plan, place);
}

void set_gradient(Gemm& p, const Gradient& gradient, std::int64_t active_rows) {
    p.epilogue = EpilogueOp::kGradient;
    p.full_rows = gradient.full_rows;
    p.full_cols = gradient.full_cols;
    p.active_rows = active_rows;
    p.accumulate = gradient.accumulate;
}

}  // namespace

void linear_forward(EpilogueOp epilogue, Rows x, Rows weight, Vector bias, Rows y, Rows other, const float* scale, Sizes s,
                    Plan plan, Place place) {
    if (s.rows == 0) return;
    Gemm p = plain(s.rows, s.out, s.in, s.tokens);
    p.a = matrix(x, s.tokens);
    p.b = matrix(weight, 0);
    p.out = matrix(y, s.tokens);
    p.bias = plain_bias(bias);
    p.second = other;
    p.scale = scale;
    p.epilogue = epilogue;
    run(Form::kForward, p, x.type, plan, place);
}

void linear_backward_input(Rows dy, Rows weight, Rows dx, DType type, const float* scale, Sizes sizes, Plan plan,
                           Place place) {
    backward_input(EpilogueOp::kStore, dy, weight, dx, {}, {}, type, scale, sizes, plan, place);
}

void linear_gelu_backward_input(Rows dy, Rows weight, Rows h, Rows dh, Rows a, const float* scale, Sizes sizes, Plan plan,
                                Place place) {
    backward_input(EpilogueOp::kGeluBackward, dy, weight, dh, h, a, h.type, scale, sizes, plan, place);
}

void linear_backward_weight(Rows dy, Rows x, Gradient gradient, const float* scale, Sizes s, Plan plan, Place place) {
    Gemm p = plain(s.out, s.in, s.rows, s.tokens);
    p.a = matrix(dy, s.tokens);
    p.b = matrix(x, 0);
    p.out = matrix(gradient.weight, 0);
    p.bias = plain_bias(gradient.bias);
    p.scale = scale;
    set_gradient(p, gradient, s.out);
    run(Form::kBackwardWeight, p, x.type, plan, place);
}

void qkv_forward(Rows x, Rows weight, Vector bias, void* qkv, HeadSizes s, Plan plan, Place place) {
    if (s.images * s.tokens == 0) return;
    Gemm p = plain(s.images * s.tokens, s.heads * s.head_dim, s.in, s.tokens);
    p.panels = 3;
    p.a = matrix(x, s.tokens);
    p.b = interleaved(weight, s.head_dim);
    p.out = head_split(qkv, x.type, s);
    p.head_columns = Divisor(s.head_dim);
    p.bias = head_bias(bias, s);
    run(Form::kForward, p, x.type, plan, place);
}

void qkv_backward_input(void* dqkv, Rows weight, Rows dx, HeadSizes s, Plan plan, Place place) {
    if (s.images * s.tokens == 0) return;
    Gemm p = plain(s.images * s.tokens, s.in, s.head_dim, s.tokens);
    p.segments = narrow(3 * s.heads);
    p.a = head_split(dqkv, dx.type, s);
    p.b = interleaved(weight, s.head_dim);
    p.out = matrix(dx, s.tokens);
    run(Form::kBackwardInput, p, dx.type, plan, place);
}

void qkv_backward_weight(void* dqkv, Rows x, Gradient gradient, HeadSizes s, Plan plan, Place place) {
    // A copy of eight channels must not reach into the next head: where it might, each head is a panel of its own.
    const bool together = s.head_dim % 8 == 0;
    Gemm p = plain(together ? s.heads * s.head_dim : s.head_dim, s.in, s.images * s.tokens, s.tokens);
    p.panels = narrow(together ? 3 : 3 * s.heads);
    p.a = head_split(dqkv, x.type, s);
    p.b = matrix(x, 0);
    p.out = interleaved(gradient.weight, s.head_dim);
    if (together) p.head_columns = Divisor(s.head_dim);
    p.bias = head_bias(gradient.bias, s);
    set_gradient(p, gradient, 3 * s.heads * s.head_dim);
    run(Form::kBackwardWeight, p, x.type, plan, place);
}

}  // namespace growtas::cuda

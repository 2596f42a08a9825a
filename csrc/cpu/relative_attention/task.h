// Attention of one head of one image: the unit of work of a thread. See relative_attention.cpp for the algorithm.
//
// All panels are fp32 in the thread's workspace: rows of epad = e rounded up to 16 floats, or transposed with rows of
// `ld` floats, one per key. Patch p is token p + cls, at grid row p / columns and grid column p % columns.
#pragma once
#include "cpu/relative_attention/pack.h"

namespace growtas::cpu {

// Sizes that follow from the shape, in floats or rows.
struct Plan {
    AttentionShape shape;
    std::int64_t epad, npad;        // e and N rounded up to 16
    std::int64_t ld;                // row of logits: room for npad and for whole vectors behind the last grid row
    std::int64_t rpad, cpad;        // grid rows and columns rounded up to 16
    std::int64_t v_rows, h_rows;    // distances that occur: 2 * rows - 1, 2 * columns - 1
    std::int64_t v_step, h_step;    // row of the transposed tables
    std::int64_t block;             // queries whose logits exist at a time
    std::int64_t forward_workspace, backward_workspace, gradients;
};

// The tables for the distances that occur, clamped ones repeated: distance d of v at row d + rows - 1.
struct Expanded {
    const float *key_v_t, *key_h_t, *value_v_t, *value_h_t;  // (e, v_step) or (e, h_step)
    const float *key_v, *key_h, *value_v, *value_h;          // (v_rows, epad) or (h_rows, epad)
    const float *key_0, *value_0;                            // (epad): row 0 of the v table plus row 0 of the h table
};

// The gradients of the same, one set per block of tasks.
struct ExpandedGradient {
    float *key_v, *key_h, *value_v, *value_h, *key_0, *value_0;
};

// Cuts a workspace into panels; without memory it only counts.
class Cutter {
public:
    explicit Cutter(float* memory) : memory_(memory) {}
    float* take(std::int64_t floats) {
        const std::int64_t start = taken_;
        taken_ += padded(floats);
        return memory_ ? memory_ + start : nullptr;
    }
    std::int64_t taken() const { return taken_; }

private:
    float* memory_;
    std::int64_t taken_ = 0;
};

struct ForwardCall {
    const Plan* plan;
    Heads qkv;
    Tokens out;
    float* lse;
    Expanded tables;
};

struct BackwardCall {
    const Plan* plan;
    Heads qkv, dqkv;
    Tokens out, dout;
    const float* lse;
    Expanded tables;
};

// The panels of a task. Forward has the first group only; its output is in `dq`. per_token: the sum of a row's exponentials
// in the forward pass, dout . out in the backward pass.
struct Panels {
    float *q, *k, *v, *k_t, *logits, *u, *w, *by_row, *by_column, *per_token, *dq;
    float *v_t, *dlogits, *dk, *dv, *dout, *du, *dw, *d_by_row, *d_by_column;

    Panels(const Plan& p, float* memory, bool backward) {
        const std::int64_t rows = p.npad * p.epad, patches = p.shape.rows * p.shape.columns;
        Cutter cut(memory);
        q = cut.take(rows), k = cut.take(rows), v = cut.take(rows), dq = cut.take(rows);
        k_t = cut.take(p.epad * p.ld), logits = cut.take(p.block * p.ld + kLanes);
        u = cut.take(patches * p.rpad), w = cut.take(patches * p.cpad);
        by_row = cut.take(patches * p.rpad), by_column = cut.take(patches * p.cpad);
        per_token = cut.take(p.npad);
        if (backward) {
            dk = cut.take(rows), dout = cut.take(rows), dv = v;  // v is done with once it is transposed
            v_t = cut.take(p.epad * p.ld), dlogits = cut.take(p.block * p.ld + kLanes);
            du = cut.take(patches * p.rpad), dw = cut.take(patches * p.cpad);
            d_by_row = cut.take(patches * p.rpad), d_by_column = cut.take(patches * p.cpad);
        }
        floats = cut.taken();
    }
    std::int64_t floats;
};

// rows += row, for a row of epad floats.
template <typename Isa>
GROWTAS_INLINE void add_row(float* to, const float* from, float factor, std::int64_t epad) {
    using V = typename Isa::V;
    for (std::int64_t c = 0; c < epad; c += Isa::kWidth)
        store_vector(to + c, load_vector<V>(to + c) + load_vector<V>(from + c) * factor);
}

template <typename Isa>
GROWTAS_INLINE float dot_row(const float* a, const float* b, std::int64_t epad) {
    using V = typename Isa::V;
    V total{};
    for (std::int64_t c = 0; c < epad; c += Isa::kWidth) total += load_vector<V>(a + c) * load_vector<V>(b + c);
    return lane_sum(total);
}

// u (patches, rpad): x_p . table_v[r - row of p] for every grid row r; w (patches, cpad) likewise for columns. The patches
// of a grid row share the window of the table, so each is a small GEMM; so do those of a column.
template <typename Isa>
GROWTAS_INLINE void distances(const Plan& p, const float* x, const float* table_v_t, const float* table_h_t, float* u,
                              float* w) {
    const AttentionShape& s = p.shape;
    x += s.cls * p.epad;
    for (std::int64_t r = 0; r < s.rows; ++r)
        small_gemm<Isa, true>(s.columns, p.rpad, s.head_dim, x + r * s.columns * p.epad, p.epad, table_v_t + s.rows - 1 - r,
                           p.v_step, u + r * s.columns * p.rpad, p.rpad, false);
    for (std::int64_t c = 0; c < s.columns; ++c)
        small_gemm<Isa, true>(s.rows, p.cpad, s.head_dim, x + c * p.epad, s.columns * p.epad, table_h_t + s.columns - 1 - c,
                           p.h_step, w + c * p.cpad, s.columns * p.cpad, false);
}

// y_p += sum over grid rows r of by_row[p][r] * table_v[r - row of p], and the same for columns.
template <typename Isa>
GROWTAS_INLINE void add_tables(const Plan& p, const float* by_row, const float* by_column, const float* table_v,
                               const float* table_h, float* y) {
    const AttentionShape& s = p.shape;
    y += s.cls * p.epad;
    for (std::int64_t r = 0; r < s.rows; ++r)
        small_gemm<Isa, true>(s.columns, p.epad, s.rows, by_row + r * s.columns * p.rpad, p.rpad,
                           table_v + (s.rows - 1 - r) * p.epad, p.epad, y + r * s.columns * p.epad, p.epad, true);
    for (std::int64_t c = 0; c < s.columns; ++c)
        small_gemm<Isa, true>(s.rows, p.epad, s.columns, by_column + c * p.cpad, s.columns * p.cpad,
                           table_h + (s.columns - 1 - c) * p.epad, p.epad, y + c * p.epad, s.columns * p.epad, true);
}

// The transpose of add_tables with respect to the tables: dtable_v[r - row of p] += by_row[p][r] * x_p.
template <typename Isa>
GROWTAS_INLINE void add_table_gradients(const Plan& p, const float* by_row, const float* by_column, const float* x,
                                        float* dtable_v, float* dtable_h) {
    const AttentionShape& s = p.shape;
    x += s.cls * p.epad;
    for (std::int64_t r = 0; r < s.rows; ++r)
        small_gemm<Isa, false>(s.rows, p.epad, s.columns, by_row + r * s.columns * p.rpad, p.rpad,
                            x + r * s.columns * p.epad, p.epad, dtable_v + (s.rows - 1 - r) * p.epad, p.epad, true);
    for (std::int64_t c = 0; c < s.columns; ++c)
        small_gemm<Isa, false>(s.columns, p.epad, s.rows, by_column + c * p.cpad, s.columns * p.cpad, x + c * p.epad,
                            s.columns * p.epad, dtable_h + (s.columns - 1 - c) * p.epad, p.epad, true);
}

// logits (count, ld) of queries begin, begin + 1, ... = x . y + bias: a GEMM that starts from the bias.
template <typename Isa>
GROWTAS_INLINE void logits_of(const Plan& p, std::int64_t begin, std::int64_t count, const float* x, const float* y_t,
                              const float* u, const float* w, const float* table_0, float* logits) {
    const AttentionShape& s = p.shape;
    Isa::apart([&]() GROWTAS_ALWAYS {
        for (std::int64_t i = begin; i < begin + count; ++i) {
            const std::int64_t patch = i - s.cls;
            float* row = logits + (i - begin) * p.ld;
            if (patch < 0)
                bias_cls_row<Isa>(row, dot_row<Isa>(x, table_0, p.epad), p.npad);
            else
                bias_row<Isa>(row, u + patch * p.rpad, w + patch * p.cpad, s.rows, s.columns, s.cls, p.npad);
        }
    });
    small_gemm<Isa, true>(count, p.npad, s.head_dim, x + begin * p.epad, p.epad, y_t, p.ld, logits, p.ld, true);
}

// Sums of a row of P or dS over grid rows and columns, for the patches; for cls, the sum over all patches.
template <typename Isa>
GROWTAS_INLINE void sums_of(const Plan& p, std::int64_t i, const float* row, float* by_row, float* by_column, float& rest) {
    const AttentionShape& s = p.shape;
    if (i < s.cls) {
        float total = 0.0f;
        for (std::int64_t j = 1; j < s.tokens; ++j) total += row[j];
        rest = total;
        return;
    }
    sum_grid<Isa>(row + s.cls, by_row + (i - s.cls) * p.rpad, by_column + (i - s.cls) * p.cpad, s.rows, s.columns);
}

template <typename Isa>
GROWTAS_INLINE void pack(const Plan& p, const Heads& qkv, std::int64_t image, std::int64_t head, const Expanded& tables,
                         const Panels& to) {
    const AttentionShape& s = p.shape;
    dispatch(qkv.type, [&](auto t) GROWTAS_ALWAYS {
        pack_heads<Isa, decltype(t)>(qkv, image, head, s.tokens, s.head_dim, p.epad, 1.0f / std::sqrt(float(s.head_dim)),
                                     to.q, to.k, to.v);
    });
    // A key of cls meets every query with row 0 of the tables, so it carries them.
    if (s.cls) add_row<Isa>(to.k, tables.key_0, 1.0f, p.epad), add_row<Isa>(to.v, tables.value_0, 1.0f, p.epad);
    for (std::int64_t j = s.tokens * p.epad; j < p.npad * p.epad; ++j) to.k[j] = to.v[j] = 0.0f;
    transpose_panel(to.k, p.npad, p.epad, to.k_t, p.ld);
}

template <typename Isa>
GROWTAS_INLINE void forward_task(const ForwardCall& call, std::int64_t task, float* workspace) {
    const Plan& p = *call.plan;
    const AttentionShape& s = p.shape;
    const std::int64_t image = task / s.heads, head = task % s.heads;
    const Panels m(p, workspace, false);
    pack<Isa>(p, call.qkv, image, head, call.tables, m);
    distances<Isa>(p, m.q, call.tables.key_v_t, call.tables.key_h_t, m.u, m.w);
    float* lse = call.lse + task * s.tokens;
    for (std::int64_t begin = 0; begin < s.tokens; begin += p.block) {
        const std::int64_t count = std::min(p.block, s.tokens - begin);
        logits_of<Isa>(p, begin, count, m.q, m.k_t, m.u, m.w, call.tables.key_0, m.logits);
        float rest = 0.0f;
        Isa::apart([&]() GROWTAS_ALWAYS {
            for (std::int64_t i = begin; i < begin + count; ++i) {
                float* row = m.logits + (i - begin) * p.ld;
                m.per_token[i] = softmax_row<Isa>(row, s.tokens, p.npad, lse[i]);
                sums_of<Isa>(p, i, row, m.by_row, m.by_column, rest);
            }
        });
        small_gemm<Isa, true>(count, p.epad, s.tokens, m.logits, p.ld, m.v, p.epad, m.dq + begin * p.epad, p.epad, false);
        if (begin == 0 && s.cls) add_row<Isa>(m.dq, call.tables.value_0, rest, p.epad);
    }
    for (std::int64_t i = 0; i < s.tokens; ++i) lse[i] += std::log(m.per_token[i]);
    add_tables<Isa>(p, m.by_row, m.by_column, call.tables.value_v, call.tables.value_h, m.dq);
    dispatch(call.out.type, [&](auto t) GROWTAS_ALWAYS {
        using T = decltype(t);
        T* to = static_cast<T*>(call.out.data) + image * call.out.image + head * s.head_dim;
        for (std::int64_t i = 0; i < s.tokens; ++i) {
            if (i + kAhead < s.tokens) prefetch<true>(to + (i + kAhead) * call.out.token, s.head_dim);
            unpack_row(m.dq + i * p.epad, 1.0f / m.per_token[i], to + i * call.out.token, 1, s.head_dim);
        }
    });
}

// dout and delta = dout . out of every token.
template <typename Isa>
GROWTAS_INLINE void pack_gradient(const BackwardCall& call, std::int64_t image, std::int64_t head, const Panels& m) {
    const Plan& p = *call.plan;
    const AttentionShape& s = p.shape;
    dispatch(call.dout.type, [&](auto t) GROWTAS_ALWAYS {
        using T = decltype(t);
        const T* from = static_cast<const T*>(call.dout.data) + image * call.dout.image + head * s.head_dim;
        const T* out = static_cast<const T*>(call.out.data) + image * call.out.image + head * s.head_dim;
        for (std::int64_t i = 0; i < s.tokens; ++i) {
            float scratch[kMaxHeadDim];
            if (i + kAhead < s.tokens) {
                prefetch<false>(from + (i + kAhead) * call.dout.token, s.head_dim);
                prefetch<false>(out + (i + kAhead) * call.out.token, s.head_dim);
            }
            pack_row(from + i * call.dout.token, 1, 1.0f, m.dout + i * p.epad, s.head_dim, p.epad);
            pack_row(out + i * call.out.token, 1, 1.0f, scratch, s.head_dim, p.epad);
            m.per_token[i] = dot_row<Isa>(m.dout + i * p.epad, scratch, p.epad);
        }
    });
}

template <typename Isa>
GROWTAS_INLINE void backward_task(const BackwardCall& call, std::int64_t task, float* workspace, const ExpandedGradient& d) {
    const Plan& p = *call.plan;
    const AttentionShape& s = p.shape;
    const Expanded& tables = call.tables;
    const std::int64_t image = task / s.heads, head = task % s.heads;
    const Panels m(p, workspace, true);
    pack<Isa>(p, call.qkv, image, head, tables, m);
    transpose_panel(m.v, p.npad, p.epad, m.v_t, p.ld);
    pack_gradient<Isa>(call, image, head, m);
    distances<Isa>(p, m.q, tables.key_v_t, tables.key_h_t, m.u, m.w);
    distances<Isa>(p, m.dout, tables.value_v_t, tables.value_h_t, m.du, m.dw);
    const float* lse = call.lse + task * s.tokens;
    float rest = 0.0f, d_rest = 0.0f;
    for (std::int64_t begin = 0; begin < s.tokens; begin += p.block) {
        const std::int64_t count = std::min(p.block, s.tokens - begin);
        logits_of<Isa>(p, begin, count, m.q, m.k_t, m.u, m.w, tables.key_0, m.logits);
        logits_of<Isa>(p, begin, count, m.dout, m.v_t, m.du, m.dw, tables.value_0, m.dlogits);
        Isa::apart([&]() GROWTAS_ALWAYS {
            for (std::int64_t i = begin; i < begin + count; ++i) {
                float *row = m.logits + (i - begin) * p.ld, *d_row = m.dlogits + (i - begin) * p.ld;
                gradient_row<Isa>(row, d_row, p.npad, lse[i], m.per_token[i]);
                sums_of<Isa>(p, i, row, m.by_row, m.by_column, rest);
                sums_of<Isa>(p, i, d_row, m.d_by_row, m.d_by_column, d_rest);
            }
        });
        small_gemm<Isa, true>(count, p.epad, s.tokens, m.dlogits, p.ld, m.k, p.epad, m.dq + begin * p.epad, p.epad, false);
        small_gemm<Isa, false>(s.tokens, p.epad, count, m.dlogits, p.ld, m.q + begin * p.epad, p.epad, m.dk, p.epad, begin > 0);
        small_gemm<Isa, false>(s.tokens, p.epad, count, m.logits, p.ld, m.dout + begin * p.epad, p.epad, m.dv, p.epad,
                            begin > 0);
    }
    add_tables<Isa>(p, m.d_by_row, m.d_by_column, tables.key_v, tables.key_h, m.dq);
    add_table_gradients<Isa>(p, m.d_by_row, m.d_by_column, m.q, d.key_v, d.key_h);
    add_table_gradients<Isa>(p, m.by_row, m.by_column, m.dout, d.value_v, d.value_h);
    if (s.cls) {
        add_row<Isa>(m.dq, tables.key_0, d_rest, p.epad);
        add_row<Isa>(d.key_0, m.dk, 1.0f, p.epad), add_row<Isa>(d.key_0, m.q, d_rest, p.epad);
        add_row<Isa>(d.value_0, m.dv, 1.0f, p.epad), add_row<Isa>(d.value_0, m.dout, rest, p.epad);
    }
    // q was scaled when it was packed, which gives dk its scale; dq has none yet.
    dispatch(call.dqkv.type, [&](auto t) GROWTAS_ALWAYS {
        unpack_heads<Isa, decltype(t)>(m.dq, 1.0f / std::sqrt(float(s.head_dim)), m.dk, m.dv, call.dqkv, image, head,
                                       s.tokens, s.head_dim, p.epad);
    });
}

}  // namespace growtas::cpu

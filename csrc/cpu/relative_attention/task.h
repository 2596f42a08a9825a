// Attention of one head of one image: the unit of work of a thread. See relative_attention.cpp for the algorithm.
#pragma once
#include "cpu/relative_attention/position.h"

namespace growtas::cpu {

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

// logits (count, ld) of queries begin, begin + 1, ... = x . y + bias: a GEMM that starts from the bias.
template <typename Isa>
GROWTAS_INLINE void logits_of(const Plan& p, std::int64_t begin, std::int64_t count, const float* x, const float* y_t,
                              const float* u, const float* w, const float* table_0, float* logits) {
    const AttentionShape& s = p.shape;
    Isa::apart([&]() GROWTAS_ALWAYS {
        std::int64_t i = begin;
        if (i < s.cls) bias_cls_row<Isa>(logits, dot_row<Isa>(x, table_0, p.epad), p.npad), ++i;
        Place at = place_of(p, i - s.cls);
        for (; i < begin + count; ++i, at.next(p)) {
            const Distances of = distances_of(p, u, w, at);
            bias_row<Isa>(logits + (i - begin) * p.ld, of.rows, of.columns, s.rows, s.columns, s.cls, p.npad);
        }
    });
    small_gemm<Isa, true>(count, p.npad, s.head_dim, x + begin * p.row, p.row, y_t, p.ld, logits, p.ld, true);
}

template <typename Isa>
GROWTAS_INLINE void pack(const Plan& p, const Heads& qkv, std::int64_t image, std::int64_t head, const Expanded& tables,
                         const Panels& to) {
    const AttentionShape& s = p.shape;
    dispatch(qkv.type, [&](auto t) GROWTAS_ALWAYS {
        pack_heads<Isa, decltype(t)>(qkv, image, head, s.tokens, s.head_dim, p.epad, p.row,
                                     1.0f / std::sqrt(float(s.head_dim)), to.q, to.k, to.v);
    });
    // A key of cls meets every query with row 0 of the tables, so it carries them.
    if (s.cls) add_row<Isa>(to.k, tables.key_0, 1.0f, p.epad), add_row<Isa>(to.v, tables.value_0, 1.0f, p.epad);
    for (std::int64_t j = s.tokens * p.row; j < p.npad * p.row; ++j) to.k[j] = to.v[j] = 0.0f;
    transpose_panel(to.k, p.npad, p.epad, p.row, to.k_t, p.ld);
}

template <typename Isa>
GROWTAS_INLINE void forward_task(const ForwardCall& call, std::int64_t task, float* workspace) {
    const Plan& p = *call.plan;
    const AttentionShape& s = p.shape;
    const std::int64_t image = task / s.heads, head = task % s.heads;
    const Panels m(p, workspace, false);
    pack<Isa>(p, call.qkv, image, head, call.tables, m);
    if (p.joined) append_places<Isa>(p, call.tables.places, m.v);
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
                if (!p.joined) sums_of<Isa>(p, i, row, m.by_row, m.by_column, rest);
            }
        });
        float* out = m.dq + begin * p.row;
        small_gemm<Isa, true>(count, p.row, s.tokens, m.logits, p.ld, m.v, p.row, out, p.row, false);
        if (p.joined) place_sums<Isa>(p, begin, count, out + p.epad, p.row, m.by_row, rest);
        if (begin == 0 && s.cls) add_row<Isa>(m.dq, call.tables.value_0, rest, p.epad);
    }
    for (std::int64_t i = 0; i < s.tokens; ++i) lse[i] += std::log(m.per_token[i]);
    add_tables<Isa>(p, m.by_row, m.by_column, call.tables.value_v, call.tables.value_h, m.dq);
    dispatch(call.out.type, [&](auto t) GROWTAS_ALWAYS {
        using T = decltype(t);
        T* to = static_cast<T*>(call.out.data) + image * call.out.image + head * s.head_dim;
        for (std::int64_t i = 0; i < s.tokens; ++i) {
            if (i + kAhead < s.tokens) prefetch<true>(to + (i + kAhead) * call.out.token, s.head_dim);
            unpack_row(m.dq + i * p.row, 1.0f / m.per_token[i], to + i * call.out.token, 1, s.head_dim);
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
            pack_row(from + i * call.dout.token, 1, 1.0f, m.dout + i * p.row, s.head_dim, p.epad);
            pack_row(out + i * call.out.token, 1, 1.0f, scratch, s.head_dim, p.epad);
            m.per_token[i] = dot_row<Isa>(m.dout + i * p.row, scratch, p.epad);
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
    transpose_panel(m.v, p.npad, p.epad, p.row, m.v_t, p.ld);
    if (p.joined) append_places<Isa>(p, tables.places, m.k);
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
                if (p.joined) continue;
                sums_of<Isa>(p, i, row, m.by_row, m.by_column, rest);
                sums_of<Isa>(p, i, d_row, m.d_by_row, m.d_by_column, d_rest);
            }
        });
        const std::int64_t from = begin * p.row;
        small_gemm<Isa, true>(count, p.row, s.tokens, m.dlogits, p.ld, m.k, p.row, m.dq + from, p.row, false);
        if (p.joined) {
            small_gemm<Isa, true>(count, kLanes, s.tokens, m.logits, p.ld, tables.places, kLanes, m.sums, kLanes, false);
            place_sums<Isa>(p, begin, count, m.sums, kLanes, m.by_row, rest);
            place_sums<Isa>(p, begin, count, m.dq + from + p.epad, p.row, m.d_by_row, d_rest);
        }
        small_gemm<Isa, false>(s.tokens, p.epad, count, m.dlogits, p.ld, m.q + from, p.row, m.dk, p.row, begin > 0);
        small_gemm<Isa, false>(s.tokens, p.epad, count, m.logits, p.ld, m.dout + from, p.row, m.dv, p.row, begin > 0);
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
                                       s.tokens, s.head_dim, p.row);
    });
}

}  // namespace growtas::cpu

// The terms of relative position on a small grid (joined_grid), where position.h's GEMMs per grid row would be of a few
// rows each: one GEMM for all patches.
//
// Tables   those of both directions are one of J = 2 R - 1 + 2 C - 1 rows, at most 30: distance d of v at row d + R - 1, of h at
//          row 2 R - 1 + d + C - 1. They lie so in memory in any case; transposed, in rows of u_step floats.
// u        (patches, u_step) = x tables^T. Of a patch in grid row r, that to grid row s is u[s - r + R - 1].
// places   (tokens, 16), constant: key j has a 1 at lane r_j and at lane 8 + c_j, a cls key has none. They stand beside the
//          panel that P or dS is multiplied with, so that the sums of its rows over grid rows and columns come with the
//          product: the last 16 of its p.row lanes.
// sums     (patches, sums_step): these sums where u has their distances, 0 elsewhere. sums tables is the value term, and
//          sums^T x the tables' gradient.
#pragma once
#include "cpu/common/level.h"
#include "cpu/relative_attention/panels.h"

namespace growtas::cpu {

// Grid rows and columns, at most. 8 of each fill a Lanes. Measured beside position.h's GEMMs in turns, forward and backward:
// with AVX-512 0.82 to 0.88 of the time on 4 x 4 and 0.94 to 0.97 on 8 x 8; with AVX2 0.88 to 0.91, and 1.01 to 1.06.
inline std::int64_t joined_grid(Level level) { return level == Level::kV4 ? 8 : 5; }

inline std::int64_t joined_rows(const Plan& p) { return p.v_rows + p.h_rows; }

// The sizes of p that differ for a small grid.
inline void plan_joined(Plan& p) {
    p.row = p.epad + kLanes;
    p.u_step = p.v_step = p.h_step = padded(joined_rows(p));
    p.sums_step = padded(p.v_rows + p.shape.columns - 1 + kLanes / 2);
}

inline void fill_places(const Plan& p, float* places) {
    const AttentionShape& s = p.shape;
    for (std::int64_t i = 0; i < s.rows * s.columns; ++i) {
        float* own = places + (i + s.cls) * kLanes;
        own[i / s.columns] = own[kLanes / 2 + i % s.columns] = 1.0f;
    }
}

// The places beside a panel of tokens.
template <typename Isa>
GROWTAS_INLINE void append_places(const Plan& p, const float* places, float* panel) {
    using V = typename Isa::V;
    for (std::int64_t j = 0; j < p.shape.tokens; ++j)
        for (std::int64_t c = 0; c < kLanes; c += Isa::kWidth)
            store_vector(panel + j * p.row + p.epad + c, load_vector<V>(places + j * kLanes + c));
}

template <typename Isa>
GROWTAS_INLINE void distances_joined(const Plan& p, const float* x, const float* tables_t, float* u) {
    const AttentionShape& s = p.shape;
    small_gemm<Isa, true>(s.rows * s.columns, p.u_step, s.head_dim, x + s.cls * p.row, p.row, tables_t, p.u_step, u,
                          p.u_step, false);
}

template <typename Isa>
GROWTAS_INLINE void add_tables_joined(const Plan& p, const float* sums, const float* tables, float* y) {
    const AttentionShape& s = p.shape;
    small_gemm<Isa, true>(s.rows * s.columns, p.epad, joined_rows(p), sums, p.sums_step, tables, p.epad,
                          y + s.cls * p.row, p.row, true);
}

template <typename Isa>
GROWTAS_INLINE void add_table_gradients_joined(const Plan& p, const float* sums, const float* x, float* dtables) {
    const AttentionShape& s = p.shape;
    small_gemm<Isa, false>(joined_rows(p), p.epad, s.rows * s.columns, sums, p.sums_step, x + s.cls * p.row, p.row,
                           dtables, p.epad, true);
}

// The sums of queries begin, begin + 1, ..., 16 floats each and `step` apart, to where their distances are; of the cls query
// the sum over all patches.
template <typename Isa>
GROWTAS_INLINE void place_sums(const Plan& p, std::int64_t begin, std::int64_t count, const float* from, std::int64_t step,
                               float* sums, float& rest) {
    const AttentionShape& s = p.shape;
    std::int64_t i = begin;
    if (i < s.cls) {
        rest = 0.0f;
        for (std::int64_t r = 0; r < s.rows; ++r) rest += from[r];
        ++i;
    }
    std::int64_t r = (i - s.cls) / s.columns, c = (i - s.cls) % s.columns;
    for (; i < begin + count; ++i) {
        float* to = sums + (i - s.cls) * p.sums_step;
        const float* own = from + (i - begin) * step;
        for (std::int64_t j = 0; j < p.sums_step; j += Isa::kWidth) store_vector(to + j, typename Isa::V{});
        // Eight floats each, of which those beyond the grid are 0: the first end where the second begin, or are 0 there.
        store_vector(to + s.rows - 1 - r, load_vector<Eight>(own));
        store_vector(to + p.v_rows + s.columns - 1 - c, load_vector<Eight>(own + kLanes / 2));
        if (++c == s.columns) c = 0, ++r;
    }
}

}  // namespace growtas::cpu

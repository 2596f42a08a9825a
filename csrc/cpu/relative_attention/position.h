// The terms of relative position of all queries of a task: the logits' from the tables, the output's, the tables' gradients.
#pragma once
#include "cpu/relative_attention/joined.h"

namespace growtas::cpu {

// u (patches, rpad): x_p . table_v[r - row of p] for every grid row r; w (patches, cpad) likewise for columns. The patches
// of a grid row share the window of the table, so each is a small GEMM; so do those of a column.
template <typename Isa>
GROWTAS_INLINE void distances(const Plan& p, const float* x, const float* table_v_t, const float* table_h_t, float* u,
                              float* w) {
    const AttentionShape& s = p.shape;
    if (p.joined) return distances_joined<Isa>(p, x, table_v_t, u);
    x += s.cls * p.row;
    for (std::int64_t r = 0; r < s.rows; ++r)
        small_gemm<Isa, true>(s.columns, p.rpad, s.head_dim, x + r * s.columns * p.row, p.row, table_v_t + s.rows - 1 - r,
                           p.v_step, u + r * s.columns * p.rpad, p.rpad, false);
    for (std::int64_t c = 0; c < s.columns; ++c)
        small_gemm<Isa, true>(s.rows, p.cpad, s.head_dim, x + c * p.row, s.columns * p.row, table_h_t + s.columns - 1 - c,
                           p.h_step, w + c * p.cpad, s.columns * p.cpad, false);
}

// A patch's place in the grid.
struct Place {
    std::int64_t patch, row, column;

    void next(const Plan& p) {
        ++patch;
        if (++column == p.shape.columns) column = 0, ++row;
    }
};

inline Place place_of(const Plan& p, std::int64_t patch) {
    return {patch, patch / p.shape.columns, patch % p.shape.columns};
}

// What a patch's logits gain by the key's grid row and by its grid column.
struct Distances {
    const float *rows, *columns;
};

inline Distances distances_of(const Plan& p, const float* u, const float* w, const Place& at) {
    if (!p.joined) return {u + at.patch * p.rpad, w + at.patch * p.cpad};
    const float* own = u + at.patch * p.u_step;
    return {own + p.shape.rows - 1 - at.row, own + p.v_rows + p.shape.columns - 1 - at.column};
}

// y_p += sum over grid rows r of by_row[p][r] * table_v[r - row of p], and the same for columns.
template <typename Isa>
GROWTAS_INLINE void add_tables(const Plan& p, const float* by_row, const float* by_column, const float* table_v,
                               const float* table_h, float* y) {
    const AttentionShape& s = p.shape;
    if (p.joined) return add_tables_joined<Isa>(p, by_row, table_v, y);
    y += s.cls * p.row;
    for (std::int64_t r = 0; r < s.rows; ++r)
        small_gemm<Isa, true>(s.columns, p.epad, s.rows, by_row + r * s.columns * p.rpad, p.rpad,
                           table_v + (s.rows - 1 - r) * p.epad, p.epad, y + r * s.columns * p.row, p.row, true);
    for (std::int64_t c = 0; c < s.columns; ++c)
        small_gemm<Isa, true>(s.rows, p.epad, s.columns, by_column + c * p.cpad, s.columns * p.cpad,
                           table_h + (s.columns - 1 - c) * p.epad, p.epad, y + c * p.row, s.columns * p.row, true);
}

// The transpose of add_tables with respect to the tables: dtable_v[r - row of p] += by_row[p][r] * x_p.
template <typename Isa>
GROWTAS_INLINE void add_table_gradients(const Plan& p, const float* by_row, const float* by_column, const float* x,
                                        float* dtable_v, float* dtable_h) {
    const AttentionShape& s = p.shape;
    if (p.joined) return add_table_gradients_joined<Isa>(p, by_row, x, dtable_v);
    x += s.cls * p.row;
    for (std::int64_t r = 0; r < s.rows; ++r)
        small_gemm<Isa, false>(s.rows, p.epad, s.columns, by_row + r * s.columns * p.rpad, p.rpad,
                            x + r * s.columns * p.row, p.row, dtable_v + (s.rows - 1 - r) * p.epad, p.epad, true);
    for (std::int64_t c = 0; c < s.columns; ++c)
        small_gemm<Isa, false>(s.columns, p.epad, s.rows, by_column + c * p.cpad, s.columns * p.cpad, x + c * p.row,
                            s.columns * p.row, dtable_h + (s.columns - 1 - c) * p.epad, p.epad, true);
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

}  // namespace growtas::cpu

// Small GEMMs with register tiles: C (m, n) = or += A B, everything fp32.
//
// A  element (i, k) at a[i * step + k] (by rows) or at a[k * step + i] (by columns), read one float at a time and broadcast
// B  row k at b + k * b_step, n floats along the lanes, no alignment asked for
// C  row i at c + i * c_step; n is a multiple of 16, so whole vectors are written: the memory behind has to allow for it
//
// A tile is up to kTileRows rows of up to Isa::kPanels vectors, all of it in registers while k runs: 6 x 4 of AVX-512 (24 of
// 32 registers, 10 loads for 24 FMAs), 6 x 2 of AVX2 (12 of 16). Isa is a struct with
//   kWidth, kPanels       floats of a vector, vectors of a tile's row
//   V, I, U               the vector of floats, of int32 and of uint32
//   tile<rows, panels, by_rows>   a static function, compiled for that instruction set, that calls tile_body
#pragma once
#include <algorithm>
#include <cstdint>

#include "cpu/common/vectors.h"

namespace growtas::cpu {

constexpr int kTileRows = 6;

using Tile = void (*)(std::int64_t depth, const float* a, std::int64_t step, const float* b, std::int64_t b_step, float* c,
                      std::int64_t c_step, bool add);

template <typename V, int kRows, int kPanels, bool kByRows>
GROWTAS_INLINE void tile_body(std::int64_t depth, const float* a, std::int64_t step, const float* b, std::int64_t b_step,
                              float* c, std::int64_t c_step, bool add) {
    constexpr int kWidth = sizeof(V) / sizeof(float);
    V sums[kRows][kPanels];
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < kPanels; ++j) sums[i][j] = V{};
#pragma GCC unroll 2
    for (std::int64_t k = 0; k < depth; ++k) {
        V row[kPanels];
#pragma GCC unroll 8
        for (int j = 0; j < kPanels; ++j) row[j] = load_vector<V>(b + j * kWidth);
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) {
            const float x = kByRows ? a[i * step + k] : a[i];
#pragma GCC unroll 8
            for (int j = 0; j < kPanels; ++j) sums[i][j] += x * row[j];
        }
        b += b_step;
        if (!kByRows) a += step;
    }
    if (add) {  // last, not first: the terms are rounded among themselves, without what was there
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
            for (int j = 0; j < kPanels; ++j) sums[i][j] += load_vector<V>(c + i * c_step + j * kWidth);
    }
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < kPanels; ++j) store_vector(c + i * c_step + j * kWidth, sums[i][j]);
}

// The tile of `rows` (1 to kTileRows) and `panels` (1 to Isa::kPanels).
template <typename Isa, bool kByRows>
GROWTAS_INLINE Tile pick_tile(std::int64_t rows, std::int64_t panels) {
    constexpr int P2 = std::min(2, Isa::kPanels), P3 = std::min(3, Isa::kPanels), P4 = std::min(4, Isa::kPanels);
#define GROWTAS_ROW(r)                                                                                  \
    {                                                                                                   \
        &Isa::template tile<r, 1, kByRows>, &Isa::template tile<r, P2, kByRows>,                        \
            &Isa::template tile<r, P3, kByRows>, &Isa::template tile<r, P4, kByRows>                    \
    }
    static constexpr Tile kTiles[kTileRows][4] = {GROWTAS_ROW(1), GROWTAS_ROW(2), GROWTAS_ROW(3),
                                                  GROWTAS_ROW(4), GROWTAS_ROW(5), GROWTAS_ROW(6)};
#undef GROWTAS_ROW
    return kTiles[rows - 1][panels - 1];
}

// C (m, n) = A (m, depth) B (depth, n), or += with `add`. Rows and panels are cut as evenly as they go: a tile of one or two
// vectors could not hide the latency of its FMAs.
template <typename Isa, bool kByRows>
GROWTAS_INLINE void small_gemm(std::int64_t m, std::int64_t n, std::int64_t depth, const float* a, std::int64_t step,
                            const float* b, std::int64_t b_step, float* c, std::int64_t c_step, bool add) {
    const std::int64_t vectors = n / Isa::kWidth, panels = (vectors + Isa::kPanels - 1) / Isa::kPanels;
    const std::int64_t groups = (m + kTileRows - 1) / kTileRows;
    for (std::int64_t p = 0; p < panels; ++p) {
        const std::int64_t first = p * vectors / panels, width = (p + 1) * vectors / panels - first;
        for (std::int64_t g = 0; g < groups; ++g) {
            const std::int64_t i = g * m / groups, rows = (g + 1) * m / groups - i;
            pick_tile<Isa, kByRows>(rows, width)(depth, a + i * (kByRows ? step : 1), step, b + first * Isa::kWidth, b_step,
                                                 c + i * c_step + first * Isa::kWidth, c_step, add);
        }
    }
}

}  // namespace growtas::cpu

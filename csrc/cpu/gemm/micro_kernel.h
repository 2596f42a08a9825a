// The micro-kernel of gemm.cpp: C (kMR rows, kVectors vectors) = or += A B, for packed operands.
//
// A  kByRows: row i at a + i * kStep, so a row is packed by copying it; else step k at a + k * kMR, as a transposed operand
//    is packed by copying pieces of its rows. Read one float at a time and broadcast.
// B  step k at b + k * kNR, zeros where the matrix ends; a panel's last columns may need fewer vectors than it holds.
// C  row i at c + i * c_row, `rows` x `columns` of it exist; the rest of a tile at the edge is dropped.
#pragma once
#include <cstdint>
#include <cstring>

#include "cpu/gemm/small_gemm.h"

namespace growtas::cpu {

constexpr std::int64_t kStep = 528;      // floats between packed rows: an odd number of cache lines, so that they share no set
constexpr std::int64_t kKC = 512;    // depth of a block, at most

template <typename V, int kMR, int kVectors, int kNR, bool kByRows>
GROWTAS_INLINE void micro_kernel(std::int64_t depth, const float* a, const float* b, float* c, std::int64_t c_row,
                                 std::int64_t rows, std::int64_t columns, bool add) {
    constexpr int kWidth = sizeof(V) / sizeof(float), kTileColumns = kVectors * kWidth;
    V sums[kMR][kVectors];
#pragma GCC unroll 16
    for (int i = 0; i < kMR; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) sums[i][j] = V{};
#pragma GCC unroll 2
    for (std::int64_t k = 0; k < depth; ++k) {
        V row[kVectors];
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) row[j] = load_vector<V>(b + j * kWidth);
#pragma GCC unroll 16
        for (int i = 0; i < kMR; ++i) {
            const float x = a[kByRows ? i * kStep : i];
#pragma GCC unroll 4
            for (int j = 0; j < kVectors; ++j) sums[i][j] += x * row[j];
        }
        a += kByRows ? 1 : kMR;
        b += kNR;
    }
    if (rows == kMR && columns == kTileColumns) {
#pragma GCC unroll 16
        for (int i = 0; i < kMR; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < kVectors; ++j) {
                float* to = c + i * c_row + j * kWidth;
                store_vector(to, add ? load_vector<V>(to) + sums[i][j] : sums[i][j]);
            }
        return;
    }
    alignas(64) float edge[kMR * kTileColumns];
#pragma GCC unroll 16
    for (int i = 0; i < kMR; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) store_vector(edge + i * kTileColumns + j * kWidth, sums[i][j]);
    for (std::int64_t i = 0; i < rows; ++i) {
        float* to = c + i * c_row;
        const float* from = edge + i * kTileColumns;
        if (!add) {
            std::memcpy(to, from, columns * sizeof(float));
        } else {
            for (std::int64_t j = 0; j < columns; ++j) to[j] += from[j];
        }
    }
}

}  // namespace growtas::cpu

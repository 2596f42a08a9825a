// The work of attention on one row of logits beside the GEMMs: bias, softmax, its gradient, sums over the grid's rows and
// columns. A row has npad floats (a multiple of 16), of which the keys fill the first N; see task.h.
#pragma once
#include <cmath>

#include "cpu/gemm/small_gemm.h"

namespace growtas::cpu {

// e^x for x up to 88: about 1 ulp near 0, 0 below -87, NaN of NaN. x is taken to base 2; the integer part goes to the
// exponent, the rest, in [-0.5, 0.5], into a polynomial of degree 6 (Cephes, exp2f).
template <typename Isa>
GROWTAS_INLINE typename Isa::V exponential(typename Isa::V x) {
    using V = typename Isa::V;
    using U = typename Isa::U;
    const V shifted = x * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: leaves the rounded integer in the low bits
    const V f = x * 1.44269504088896341f - (shifted - 12582912.0f);
    V p = f * 1.535336188319500e-4f + 1.339887440266574e-3f;
    p = p * f + 9.618437357674640e-3f;
    p = p * f + 5.550332471162809e-2f;
    p = p * f + 2.402264791363012e-1f;
    p = p * f + 6.931472028550421e-1f;
    p = p * f + 1.0f;
    const U bits = (U)p + ((U)shifted << 23);
    return (V)(bits & ~(U)(x < -87.0f));
}

// row[j] = u[grid row of key j] + w[grid column of key j]; 0 for a cls key. Each grid row is written whole vectors at a time,
// so the next one overwrites what stands behind it; the memory behind the last has to allow for it.
template <typename Isa>
GROWTAS_INLINE void bias_row(float* row, const float* u, const float* w, std::int64_t rows, std::int64_t columns,
                             std::int64_t cls, std::int64_t npad) {
    using V = typename Isa::V;
    for (std::int64_t j = npad - kLanes; j < npad; j += Isa::kWidth) store_vector(row + j, V{});
    if (cls) row[0] = 0.0f;
    float* segment = row + cls;
    if (columns <= Isa::kWidth) {
        const V across = load_vector<V>(w);
        for (std::int64_t r = 0; r < rows; ++r, segment += columns) store_vector(segment, across + u[r]);
        return;
    }
    for (std::int64_t r = 0; r < rows; ++r, segment += columns)
        for (std::int64_t c = 0; c < columns; c += Isa::kWidth) store_vector(segment + c, load_vector<V>(w + c) + u[r]);
}

// The row of the cls query: 0 for itself, the same for all patches.
template <typename Isa>
GROWTAS_INLINE void bias_cls_row(float* row, float value, std::int64_t npad) {
    using V = typename Isa::V;
    for (std::int64_t j = 0; j < npad; j += Isa::kWidth) store_vector(row + j, V{} + value);
    row[0] = 0.0f;
}

// The first `count` lanes; -infinity in the others.
template <typename Isa>
GROWTAS_INLINE typename Isa::V keys_only(typename Isa::V v, std::int64_t count) {
    typename Isa::I lane;
    for (int i = 0; i < Isa::kWidth; ++i) lane[i] = i;
    return lane < static_cast<std::int32_t>(count) ? v : typename Isa::V{} - INFINITY;
}

// row = e^(row - max), 0 behind the keys; returns the sum, and the maximum in `most`.
template <typename Isa>
GROWTAS_INLINE float softmax_row(float* row, std::int64_t tokens, std::int64_t npad, float& most) {
    using V = typename Isa::V;
    V high = V{} - INFINITY;
    for (std::int64_t j = 0; j < npad - kLanes; j += Isa::kWidth) {
        const V v = load_vector<V>(row + j);
        high = v > high ? v : high;
    }
    for (std::int64_t j = npad - kLanes; j < npad; j += Isa::kWidth) {
        const V v = keys_only<Isa>(load_vector<V>(row + j), tokens - j);
        store_vector(row + j, v);
        high = v > high ? v : high;
    }
    most = lane_max(high);
    V total{};
    for (std::int64_t j = 0; j < npad; j += Isa::kWidth) {
        const V p = exponential<Isa>(load_vector<V>(row + j) - most);
        store_vector(row + j, p);
        total += p;
    }
    return lane_sum(total);
}

// logits to P = e^(logits - lse) and dP to dS = P * (dP - delta), both in place.
template <typename Isa>
GROWTAS_INLINE void gradient_row(float* logits, float* gradient, std::int64_t npad, float lse, float delta) {
    using V = typename Isa::V;
    for (std::int64_t j = 0; j < npad; j += Isa::kWidth) {
        const V p = exponential<Isa>(load_vector<V>(logits + j) - lse);
        store_vector(logits + j, p);
        store_vector(gradient + j, p * (load_vector<V>(gradient + j) - delta));
    }
}

// The sums of eight vectors: additions of neighbours, three times.
GROWTAS_INLINE Eight lane_sums(const Eight* v) {
    Eight pairs[4], fours[2];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
        pairs[i] = GROWTAS_SHUFFLE(v[2 * i], v[2 * i + 1], 0, 8, 1, 9, 4, 12, 5, 13) +
                   GROWTAS_SHUFFLE(v[2 * i], v[2 * i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i)
        fours[i] = GROWTAS_SHUFFLE(pairs[2 * i], pairs[2 * i + 1], 0, 1, 8, 9, 4, 5, 12, 13) +
                   GROWTAS_SHUFFLE(pairs[2 * i], pairs[2 * i + 1], 2, 3, 10, 11, 6, 7, 14, 15);
    return GROWTAS_SHUFFLE(fours[0], fours[1], 0, 1, 2, 3, 8, 9, 10, 11) +
           GROWTAS_SHUFFLE(fours[0], fours[1], 4, 5, 6, 7, 12, 13, 14, 15);
}

// Both sums of a grid of up to 8 * kChunks columns, eight grid rows at a time.
template <int kChunks>
GROWTAS_INLINE void sum_narrow_grid(const float* row, float* by_row, float* by_column, std::int64_t rows,
                                    std::int64_t columns) {
    EightInts inside{};  // all bits of the last chunk's lanes that hold a column
    for (std::int64_t i = 0; i < columns - 8 * (kChunks - 1); ++i) inside[i] = -1;
    Eight across[kChunks]{};
    for (std::int64_t r = 0; r < rows; r += 8) {
        Eight sums[8];
#pragma GCC unroll 8
        for (std::int64_t i = 0; i < 8; ++i) {
            sums[i] = Eight{};
            if (r + i >= rows) continue;
            const float* segment = row + (r + i) * columns;
            const Eight last = (Eight)((EightInts)load_vector<Eight>(segment + 8 * (kChunks - 1)) & inside);
            across[kChunks - 1] += last;
            sums[i] = last;
            if (kChunks == 1) continue;
            const Eight first = load_vector<Eight>(segment);
            across[0] += first;
            sums[i] += first;
        }
        store_vector(by_row + r, lane_sums(sums));
    }
    for (int i = 0; i < kChunks; ++i) store_vector(by_column + 8 * i, across[i]);
}

// by_row[r] = the sum over the keys of grid row r, four grid rows at a time; up to three floats behind the last are written.
GROWTAS_INLINE void sum_by_row(const float* row, float* by_row, std::int64_t rows, std::int64_t columns) {
    const std::int64_t whole = columns / 4 * 4;
    FourInts inside{};
    for (std::int64_t i = 0; i < columns - whole; ++i) inside[i] = -1;
    for (std::int64_t r = 0; r < rows; r += 4) {
        Four sums[4];
        for (std::int64_t i = 0; i < 4; ++i) {
            const float* segment = row + std::min(r + i, rows - 1) * columns;
            Four total = (Four)((FourInts)load_vector<Four>(segment + whole) & inside);
            for (std::int64_t c = 0; c < whole; c += 4) total += load_vector<Four>(segment + c);
            sums[i] = total;
        }
        transpose(sums[0], sums[1], sums[2], sums[3]);
        store_vector(by_row + r, (sums[0] + sums[1]) + (sums[2] + sums[3]));
    }
}

// by_column[c] = the sum over the keys of grid column c; what stands behind the last is undefined.
template <typename Isa>
GROWTAS_INLINE void sum_by_column(const float* row, float* by_column, std::int64_t rows, std::int64_t columns) {
    using V = typename Isa::V;
    for (std::int64_t c = 0; c < columns; c += Isa::kWidth) {
        V even{}, odd{};
        std::int64_t r = 0;
        for (; r + 1 < rows; r += 2) {
            even += load_vector<V>(row + r * columns + c);
            odd += load_vector<V>(row + (r + 1) * columns + c);
        }
        if (r < rows) even += load_vector<V>(row + r * columns + c);
        store_vector(by_column + c, even + odd);
    }
}

// The sums of a row of P or dS over the keys of each grid row and of each grid column; both are written up to a multiple of
// 8, the rest undefined.
template <typename Isa>
GROWTAS_INLINE void sum_grid(const float* row, float* by_row, float* by_column, std::int64_t rows, std::int64_t columns) {
    if (Isa::kWidth >= 8 && columns <= 8) {
        sum_narrow_grid<1>(row, by_row, by_column, rows, columns);
    } else if (Isa::kWidth >= 8 && columns <= 16) {
        sum_narrow_grid<2>(row, by_row, by_column, rows, columns);
    } else {
        sum_by_row(row, by_row, rows, columns);
        sum_by_column<Isa>(row, by_column, rows, columns);
    }
}

}  // namespace growtas::cpu

// LayerNorm of fp32 rows of at most 64 floats, forward, again and backward.
//
// Shapes   as in layer_norm.cpp, which cuts the rows into blocks and calls these for one.
// Why      a row of 24 to 64 floats is one to four vectors. layer_norm.cpp copies each row to a workspace and reads it three
//          times, which costs more than the sums where a row is so short, above all where its width is no multiple of 16.
// Forward  the row is loaded once, and its mean, its centred squares and its result are made from registers.
// Backward the block's sums of dweight and dbias are carried in registers (AVX-512) from row to row.
// Order    the lanes are added as layer_norm.cpp adds them, in the order of Lanes: low and high halves apart, then together.
#include "cpu/layer_norm/narrow_rows.h"

#include <cmath>

#include "cpu/common/vectors.h"

namespace growtas::cpu {
namespace {

// A row of kVectors vectors, the last of which holds `count` floats.
template <typename V, int kVectors>
GROWTAS_INLINE void load_row(const float* from, std::int64_t count, V* to) {
#pragma GCC unroll 8
    for (int i = 0; i + 1 < kVectors; ++i) to[i] = load_vector<V>(from + i * width_of<V>);
    to[kVectors - 1] = load_first<V>(from + (kVectors - 1) * width_of<V>, count);
}

template <typename V, int kVectors>
GROWTAS_INLINE void store_row(float* to, const V* from, std::int64_t count) {
#pragma GCC unroll 8
    for (int i = 0; i + 1 < kVectors; ++i) store_vector(to + i * width_of<V>, from[i]);
    store_first(to + (kVectors - 1) * width_of<V>, from[kVectors - 1], count);
}

GROWTAS_INLINE float sum_of_lanes(Eight e) {
    const Four f = low_half(e) + high_half(e);
    return (f[0] + f[2]) + (f[1] + f[3]);
}

// All floats of a row.
template <int kVectors>
GROWTAS_INLINE float sum_of_row(const Lanes* row) {
    Lanes total = row[0];
#pragma GCC unroll 4
    for (int i = 1; i < kVectors; ++i) total += row[i];
    return sum_of_lanes(low_half(total) + high_half(total));
}

template <int kVectors>
GROWTAS_INLINE float sum_of_row(const Eight* row) {
    Eight low = row[0], high{};
    if constexpr (kVectors > 1) high = row[1];
#pragma GCC unroll 8
    for (int i = 2; i < kVectors; ++i) (i % 2 ? high : low) += row[i];
    return sum_of_lanes(low + high);
}

// All bits of the lanes that a row's last vector holds.
template <typename V>
GROWTAS_INLINE decltype(indices_of(V{})) inside(std::int64_t count) {
    decltype(indices_of(V{})) mask{};
    for (std::int64_t i = 0; i < width_of<V>; ++i) mask[i] = i < count ? -1 : 0;
    return mask;
}

template <typename V, int kVectors, bool kAgain>
GROWTAS_INLINE void forward(const NarrowRows& s) {
    const float inverse = 1.0f / static_cast<float>(s.width);
    const std::int64_t count = s.width - (kVectors - 1) * width_of<V>;
    const auto mask = inside<V>(count);
    for (std::int64_t r = s.begin; r < s.end; ++r) {
        V row[kVectors], squares[kVectors];
        load_row<V, kVectors>(s.x + r * s.x_row, count, row);
        float mu, scale;
        if constexpr (kAgain) {
            mu = s.mean[r], scale = s.rstd[r];
        } else {
            mu = s.mean[r] = sum_of_row<kVectors>(row) * inverse;
        }
#pragma GCC unroll 8
        for (int i = 0; i < kVectors; ++i) row[i] -= mu;
        if constexpr (!kAgain) {
            row[kVectors - 1] = (V)((decltype(mask))row[kVectors - 1] & mask);  // 0 there before the mean was taken from it
#pragma GCC unroll 8
            for (int i = 0; i < kVectors; ++i) squares[i] = row[i] * row[i];
            const float variance = sum_of_row<kVectors>(squares) * inverse;
            scale = s.rstd[r] = variance < INFINITY ? 1.0f / std::sqrt(variance + s.eps) : NAN;
        }
#pragma GCC unroll 8
        for (int i = 0; i < kVectors; ++i)
            row[i] = row[i] * scale * load_vector<V>(s.weight + i * width_of<V>) + load_vector<V>(s.bias + i * width_of<V>);
        store_row<V, kVectors>(s.y + r * s.y_row, row, count);
    }
}

template <typename V, int kVectors>
GROWTAS_INLINE void backward(const NarrowGradient& s) {
    const float inverse = 1.0f / static_cast<float>(s.width);
    const std::int64_t count = s.width - (kVectors - 1) * width_of<V>;
    V weight[kVectors], dweight[kVectors]{}, dbias[kVectors]{};
    load_row<V, kVectors>(s.weight, width_of<V>, weight);
    for (std::int64_t r = s.begin; r < s.end; ++r) {
        V d[kVectors], xhat[kVectors], product[kVectors];
        load_row<V, kVectors>(s.dy + r * s.dy_row, count, d);  // 0 behind the row, so every product there is 0 too
        load_row<V, kVectors>(s.x + r * s.x_row, count, xhat);
        const float mu = s.mean[r], scale = s.rstd[r];
#pragma GCC unroll 8
        for (int i = 0; i < kVectors; ++i) {
            xhat[i] = (xhat[i] - mu) * scale;
            dweight[i] += d[i] * xhat[i];
            dbias[i] += d[i];
            d[i] *= weight[i];
            product[i] = d[i] * xhat[i];
        }
        const float mean_g = sum_of_row<kVectors>(d) * inverse, mean_gx = sum_of_row<kVectors>(product) * inverse;
#pragma GCC unroll 8
        for (int i = 0; i < kVectors; ++i) d[i] = (d[i] - mean_g - xhat[i] * mean_gx) * scale;
        if (s.residual) {
            V around[kVectors];
            load_row<V, kVectors>(s.residual + r * s.residual_row, count, around);
#pragma GCC unroll 8
            for (int i = 0; i < kVectors; ++i) d[i] += around[i];
        }
        store_row<V, kVectors>(s.dx + r * s.dx_row, d, count);
    }
    store_row<V, kVectors>(s.dweight, dweight, width_of<V>);
    store_row<V, kVectors>(s.dbias, dbias, width_of<V>);
}

struct Kernels {
    void (*forward)(const NarrowRows&);
    void (*again)(const NarrowRows&);
    void (*backward)(const NarrowGradient&);
};

#define GROWTAS_NARROW(name, target, V, vectors)                                                             \
    target void forward_##name##_##vectors(const NarrowRows& rows) { forward<V, vectors, false>(rows); }     \
    target void again_##name##_##vectors(const NarrowRows& rows) { forward<V, vectors, true>(rows); }        \
    target void backward_##name##_##vectors(const NarrowGradient& rows) { backward<V, vectors>(rows); }      \
    constexpr Kernels k_##name##_##vectors{&forward_##name##_##vectors, &again_##name##_##vectors,           \
                                           &backward_##name##_##vectors};

#ifdef GROWTAS_TARGET_V4
GROWTAS_NARROW(v3, GROWTAS_TARGET_V3, Eight, 1)
GROWTAS_NARROW(v3, GROWTAS_TARGET_V3, Eight, 2)
GROWTAS_NARROW(v3, GROWTAS_TARGET_V3, Eight, 3)
GROWTAS_NARROW(v3, GROWTAS_TARGET_V3, Eight, 4)
GROWTAS_NARROW(v3, GROWTAS_TARGET_V3, Eight, 5)
GROWTAS_NARROW(v3, GROWTAS_TARGET_V3, Eight, 6)
GROWTAS_NARROW(v3, GROWTAS_TARGET_V3, Eight, 7)
GROWTAS_NARROW(v3, GROWTAS_TARGET_V3, Eight, 8)
GROWTAS_NARROW(v4, GROWTAS_TARGET_V4, Lanes, 1)
GROWTAS_NARROW(v4, GROWTAS_TARGET_V4, Lanes, 2)
GROWTAS_NARROW(v4, GROWTAS_TARGET_V4, Lanes, 3)
GROWTAS_NARROW(v4, GROWTAS_TARGET_V4, Lanes, 4)
#endif
#undef GROWTAS_NARROW

// The kernels for rows of a width, or null.
const Kernels* kernels_for([[maybe_unused]] std::int64_t width, [[maybe_unused]] Level level) {
#ifdef GROWTAS_TARGET_V4
    static constexpr const Kernels* v3[] = {&k_v3_1, &k_v3_2, &k_v3_3, &k_v3_4, &k_v3_5, &k_v3_6, &k_v3_7, &k_v3_8};
    static constexpr const Kernels* v4[] = {&k_v4_1, &k_v4_2, &k_v4_3, &k_v4_4};
    if (width < 1 || width > kNarrow) return nullptr;
    switch (level) {
        case Level::kV4: return v4[(width - 1) / width_of<Lanes>];
        case Level::kV3: return v3[(width - 1) / width_of<Eight>];
        default: break;
    }
#endif
    return nullptr;
}

}  // namespace

bool narrow_forward(const NarrowRows& rows, Level level) {
    const Kernels* kernels = kernels_for(rows.width, level);
    if (kernels) kernels->forward(rows);
    return kernels;
}

bool narrow_again(const NarrowRows& rows, Level level) {
    const Kernels* kernels = kernels_for(rows.width, level);
    if (kernels) kernels->again(rows);
    return kernels;
}

bool narrow_backward(const NarrowGradient& rows, Level level) {
    const Kernels* kernels = kernels_for(rows.width, level);
    if (kernels) kernels->backward(rows);
    return kernels;
}

}  // namespace growtas::cpu

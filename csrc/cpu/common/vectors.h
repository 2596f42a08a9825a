// Vectors of one instruction set: four floats of SSE and NEON, eight of AVX2, sixteen of AVX-512, and their conversion from and
// to memory, also a part of one.
//
// A kernel that is a template over the vector it works in, V, is instantiated in one function per level (level.h). A value that
// is put together from parts stays in registers here. Parts that pass through memory are stored one by one and loaded as one
// vector, and such a load waits until all of them have left the store buffer: fifteen cycles or so, each time.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/common/simd.h"

namespace growtas::cpu {

typedef float Four __attribute__((vector_size(16)));
typedef float Eight __attribute__((vector_size(32)));
typedef std::int32_t FourInts __attribute__((vector_size(16)));
typedef std::int32_t EightInts __attribute__((vector_size(32)));
typedef std::int32_t LaneInts __attribute__((vector_size(64)));

inline FourInts indices_of(Four);
inline EightInts indices_of(Eight);
inline LaneInts indices_of(Lanes);

template <typename V>
constexpr std::int64_t width_of = sizeof(V) / sizeof(float);

// The lanes of a and b, numbered through, that the constants name.
#if defined(__clang__) || __GNUC__ >= 12
#define GROWTAS_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define GROWTAS_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, decltype(indices_of(a)){__VA_ARGS__})
#endif

template <typename V>
GROWTAS_INLINE V load_vector(const float* from) {
    V v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

template <typename V>
GROWTAS_INLINE void store_vector(float* to, V v) {
    std::memcpy(to, &v, sizeof v);
}

// One vector of two halves, and its halves.
#if defined(__clang__) || __GNUC__ >= 12
GROWTAS_INLINE Eight join(Four low, Four high) { return GROWTAS_SHUFFLE(low, high, 0, 1, 2, 3, 4, 5, 6, 7); }
GROWTAS_INLINE Lanes join(Eight low, Eight high) {
    return GROWTAS_SHUFFLE(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
GROWTAS_INLINE Four low_half(Eight v) { return GROWTAS_SHUFFLE(v, v, 0, 1, 2, 3); }
GROWTAS_INLINE Four high_half(Eight v) { return GROWTAS_SHUFFLE(v, v, 4, 5, 6, 7); }
GROWTAS_INLINE Eight low_half(Lanes v) { return GROWTAS_SHUFFLE(v, v, 0, 1, 2, 3, 4, 5, 6, 7); }
GROWTAS_INLINE Eight high_half(Lanes v) { return GROWTAS_SHUFFLE(v, v, 8, 9, 10, 11, 12, 13, 14, 15); }
#else  // __builtin_shuffle keeps the number of lanes
template <typename Half>
struct Pair {
    Half low, high;
};
template <typename To, typename From>
GROWTAS_INLINE To through_memory(const From& from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
GROWTAS_INLINE Eight join(Four low, Four high) { return through_memory<Eight>(Pair<Four>{low, high}); }
GROWTAS_INLINE Lanes join(Eight low, Eight high) { return through_memory<Lanes>(Pair<Eight>{low, high}); }
GROWTAS_INLINE Four low_half(Eight v) { return through_memory<Pair<Four>>(v).low; }
GROWTAS_INLINE Four high_half(Eight v) { return through_memory<Pair<Four>>(v).high; }
GROWTAS_INLINE Eight low_half(Lanes v) { return through_memory<Pair<Eight>>(v).low; }
GROWTAS_INLINE Eight high_half(Lanes v) { return through_memory<Pair<Eight>>(v).high; }
#endif

// The first `count` floats of a vector, 0 to all of them; the others read nothing and are 0.
template <typename V>
GROWTAS_INLINE V load_first(const float* from, std::int64_t count) {
    if (count >= width_of<V>) return load_vector<V>(from);
    if constexpr (sizeof(V) == sizeof(Four)) {
        switch (count) {
            case 1: return Four{from[0], 0.0f, 0.0f, 0.0f};
            case 2: return Four{from[0], from[1], 0.0f, 0.0f};
            case 3: return Four{from[0], from[1], from[2], 0.0f};
            default: return Four{};
        }
    } else {
        using Half = std::conditional_t<sizeof(V) == sizeof(Eight), Four, Eight>;
        constexpr std::int64_t half = width_of<Half>;
        if (count <= half) return join(load_first<Half>(from, count), Half{});
        return join(load_vector<Half>(from), load_first<Half>(from + half, count - half));
    }
}

template <typename V>
GROWTAS_INLINE void store_first(float* to, V v, std::int64_t count) {
    if (count >= width_of<V>) return store_vector(to, v);
    const float* from = reinterpret_cast<const float*>(&v);
    if constexpr (sizeof(V) > sizeof(Four)) {
        for (std::int64_t half = width_of<V> / 2; half >= 4; half /= 2)
            if (count >= half) {
                std::memcpy(to, from, half * sizeof(float));
                to += half, from += half, count -= half;
            }
    }
    for (std::int64_t i = 0; i < count; ++i) to[i] = from[i];
}

// Rows become columns.
GROWTAS_INLINE void transpose(Four& a, Four& b, Four& c, Four& d) {
    const Four ab_low = GROWTAS_SHUFFLE(a, b, 0, 4, 1, 5), ab_high = GROWTAS_SHUFFLE(a, b, 2, 6, 3, 7);
    const Four cd_low = GROWTAS_SHUFFLE(c, d, 0, 4, 1, 5), cd_high = GROWTAS_SHUFFLE(c, d, 2, 6, 3, 7);
    a = GROWTAS_SHUFFLE(ab_low, cd_low, 0, 1, 4, 5);
    b = GROWTAS_SHUFFLE(ab_low, cd_low, 2, 3, 6, 7);
    c = GROWTAS_SHUFFLE(ab_high, cd_high, 0, 1, 4, 5);
    d = GROWTAS_SHUFFLE(ab_high, cd_high, 2, 3, 6, 7);
}

// A vector's lanes added, or their maximum, in four steps of halves and then in order: always the same.
template <typename V>
GROWTAS_INLINE float lane_sum(V v) {
    Four parts[sizeof(V) / sizeof(Four)];
    std::memcpy(parts, &v, sizeof v);
    Four total = parts[0];
    for (std::size_t i = 1; i < sizeof(V) / sizeof(Four); ++i) total += parts[i];
    return (total[0] + total[2]) + (total[1] + total[3]);
}

template <typename V>
GROWTAS_INLINE float lane_max(V v) {
    Four parts[sizeof(V) / sizeof(Four)];
    std::memcpy(parts, &v, sizeof v);
    Four most = parts[0];
    for (std::size_t i = 1; i < sizeof(V) / sizeof(Four); ++i) most = parts[i] > most ? parts[i] : most;
    return std::max(std::max(most[0], most[2]), std::max(most[1], most[3]));
}

}  // namespace growtas::cpu

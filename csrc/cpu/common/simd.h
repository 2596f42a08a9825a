// Sixteen fp32 lanes as one value, and their conversion from and to memory in any of the three dtypes.
//
// The compiler lowers a Lanes to one AVX-512 register, two of AVX2, four of SSE or NEON, so one source serves every clone of a
// target_clones leaf. All of it is forced inline: a call would pin the code to the baseline and pass vectors through memory.
// bf16 and fp16 are converted with integer arithmetic, which vectorises on every target, rounding to nearest even.
#pragma once
#include <cstdint>
#include <cstring>

#include "views.h"

#ifdef GROWTAS_TARGET_CLONES
#define GROWTAS_LEAF __attribute__((target_clones(GROWTAS_TARGET_CLONES)))
#else
#define GROWTAS_LEAF
#endif
#define GROWTAS_ALWAYS __attribute__((always_inline))
#define GROWTAS_INLINE GROWTAS_ALWAYS inline

namespace growtas::cpu {

constexpr std::int64_t kLanes = 16;
typedef float Lanes __attribute__((vector_size(64)));
typedef std::uint32_t Bits __attribute__((vector_size(64)));
typedef std::uint16_t Halves __attribute__((vector_size(32)));

struct __attribute__((may_alias)) BFloat16 {
    std::uint16_t bits;
};
struct __attribute__((may_alias)) Float16 {
    std::uint16_t bits;
};

constexpr std::int64_t padded(std::int64_t width) { return (width + kLanes - 1) / kLanes * kLanes; }

GROWTAS_INLINE Lanes splat(float value) { return Lanes{} + value; }

GROWTAS_INLINE Lanes select(Bits mask, Lanes yes, Lanes no) {
    return (Lanes)(((Bits)yes & mask) | ((Bits)no & ~mask));
}

GROWTAS_INLINE Lanes as_float(Halves h, BFloat16) { return (Lanes)(__builtin_convertvector(h, Bits) << 16); }

GROWTAS_INLINE Lanes as_float(Halves h, Float16) {
    const Bits bits = __builtin_convertvector(h, Bits);
    // Exponent and mantissa shifted to fp32's places are 2^112 too small; the product also normalises subnormals.
    const Lanes scaled = (Lanes)((bits & 0x7fffu) << 13) * 0x1p112f;
    const Bits special = (Bits)(scaled >= splat(65536.0f));  // infinities and NaNs
    return (Lanes)((Bits)scaled | (special & 0x7f800000u) | ((bits & 0x8000u) << 16));
}

GROWTAS_INLINE Halves from_float(Lanes v, BFloat16) {
    const Bits bits = (Bits)v;
    const Bits rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    const Bits nan = (Bits)(v != v);
    return __builtin_convertvector(((rounded & ~nan) | ((bits | 0x400000u) & nan)) >> 16, Halves);
}

GROWTAS_INLINE Halves from_float(Lanes v, Float16) {
    const Bits sign = (Bits)v & 0x80000000u;
    const Bits bits = (Bits)v ^ sign;
    // Normal: rebias the exponent and round to nearest even in integers. Too large becomes infinity.
    const Bits normal = (bits - 0x38000000u + 0xfffu + ((bits >> 13) & 1u)) >> 13;
    // Subnormal: adding 0.5 lets the FPU align and round the mantissa to where fp16 keeps it.
    const Bits tiny = (Bits)((Lanes)bits + 0.5f) - 0x3f000000u;
    Bits out = (Bits)select((Bits)(bits < 0x38800000u), (Lanes)tiny, (Lanes)normal);
    out = (Bits)select((Bits)(bits >= 0x47800000u), (Lanes)(Bits{} + 0x7c00u), (Lanes)out);
    out = (Bits)select((Bits)(bits > 0x7f800000u), (Lanes)(Bits{} + 0x7e00u), (Lanes)out);
    return __builtin_convertvector(out | (sign >> 16), Halves);
}

// `count` elements to or from a row, all 16 in one move, the first eight of a row's tail in another, and the next four. Widths
// and heads are multiples of 4 in every published space, so the loop over single elements rarely runs.
template <typename E>
GROWTAS_INLINE void copy(E* to, const E* from, std::int64_t count) {
    if (count >= kLanes) {
        std::memcpy(to, from, kLanes * sizeof(E));
        return;
    }
    std::int64_t i = 0;
    if (count >= 8) {
        std::memcpy(to, from, 8 * sizeof(E));
        i = 8;
    }
    if (count - i >= 4) {
        std::memcpy(to + i, from + i, 4 * sizeof(E));
        i += 4;
    }
    for (; i < count; ++i) to[i] = from[i];
}

// Up to 16 elements from memory; the lanes beyond `count` read nothing and are 0.
GROWTAS_INLINE Lanes load(const float* from, std::int64_t count = kLanes) {
    Lanes v{};
    copy(reinterpret_cast<float*>(&v), from, count);
    return v;
}

template <typename T>
GROWTAS_INLINE Lanes load(const T* from, std::int64_t count = kLanes) {
    Halves h{};
    copy(reinterpret_cast<T*>(&h), from, count);
    return as_float(h, T{});
}

GROWTAS_INLINE void store(float* to, Lanes v, std::int64_t count = kLanes) {
    copy(to, reinterpret_cast<const float*>(&v), count);
}

template <typename T>
GROWTAS_INLINE void store(T* to, Lanes v, std::int64_t count = kLanes) {
    const Halves h = from_float(v, T{});
    copy(to, reinterpret_cast<const T*>(&h), count);
}

// The sum of all lanes, always in the same order: halves are added until one lane is left.
GROWTAS_INLINE float sum(Lanes v) {
    typedef float Eight __attribute__((vector_size(32)));
    typedef float Four __attribute__((vector_size(16)));
    Eight e[2];
    std::memcpy(e, &v, sizeof v);
    e[0] += e[1];
    Four f[2];
    std::memcpy(f, e, sizeof f);
    f[0] += f[1];
    return (f[0][0] + f[0][2]) + (f[0][1] + f[0][3]);
}

// Calls f with a value of the C++ type of a dtype.
template <typename F>
GROWTAS_INLINE void dispatch(DType type, F f) {
    switch (type) {
        case DType::kFloat32: f(float{}); return;
        case DType::kBFloat16: f(BFloat16{}); return;
        case DType::kFloat16: f(Float16{}); return;
    }
}

}  // namespace growtas::cpu

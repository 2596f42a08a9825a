// Exact GELU, h * Phi(h), forward and backward.
//
// Shapes   h, a, gradient: contiguous arrays of `count` elements of one dtype.
// Forward  a = h * Phi(h), Phi(h) = (1 + erf(h / sqrt 2)) / 2, in fp32.
// Backward one pass makes both things that the gradients of an MLP need: a again, for the weights of fc2, and
//          gradient * (Phi(h) + h * phi(h)) in the gradient's place, phi(h) = exp(-h^2 / 2) / sqrt(2 pi). So a is never saved.
// Order    every element for itself: the same bits for any number of threads.
#include "cpu/gelu/gelu.h"

#include <algorithm>
#include <cstring>

#include "cpu/gelu/gelu_lanes.h"

namespace growtas::cpu {
namespace {

constexpr std::int64_t kChunk = 16384;  // elements per task: 64 KB, so that h, a and the gradient stay in L2

// Sixteen lanes as vectors of V.
template <typename V>
struct Parts {
    static constexpr int kCount = sizeof(Lanes) / sizeof(V);
    V part[kCount];

    GROWTAS_INLINE explicit Parts(Lanes v) { std::memcpy(part, &v, sizeof v); }
    GROWTAS_INLINE Lanes whole() const {
        Lanes v;
        std::memcpy(&v, part, sizeof v);
        return v;
    }
};

template <typename V, typename T>
GROWTAS_INLINE void forward_chunk(const T* h, T* a, std::int64_t count) {
    for (std::int64_t i = 0; i < count; i += kLanes) {
        const std::int64_t lanes = std::min(kLanes, count - i);
        Parts<V> of(load(h + i, lanes));
        for (V& each : of.part) each = gelu(each);
        store(a + i, of.whole(), lanes);
    }
}

template <typename V, typename T>
GROWTAS_INLINE void backward_chunk(T* gradient, const T* h, T* a, std::int64_t count) {
    for (std::int64_t i = 0; i < count; i += kLanes) {
        const std::int64_t lanes = std::min(kLanes, count - i);
        Parts<V> value(load(h + i, lanes)), slope(Lanes{});
        for (int p = 0; p < Parts<V>::kCount; ++p) {
            const GeluAndSlope<V> at = gelu_and_slope(value.part[p]);
            value.part[p] = at.value, slope.part[p] = at.slope;
        }
        store(a + i, value.whole(), lanes);
        store(gradient + i, load(gradient + i, lanes) * slope.whole(), lanes);
    }
}

struct Kernels {
    void (*forward)(const void* h, void* a, DType type, std::int64_t begin, std::int64_t count);
    void (*backward)(void* gradient, const void* h, void* a, DType type, std::int64_t begin, std::int64_t count);
};

#define GROWTAS_ISA(name, target, V)                                                                                      \
    target void forward_##name(const void* h, void* a, DType type, std::int64_t begin, std::int64_t count) {               \
        dispatch(type, [&](auto t) GROWTAS_ALWAYS {                                                                       \
            using T = decltype(t);                                                                                        \
            forward_chunk<V>(static_cast<const T*>(h) + begin, static_cast<T*>(a) + begin, count);                        \
        });                                                                                                               \
    }                                                                                                                     \
    target void backward_##name(void* gradient, const void* h, void* a, DType type, std::int64_t begin,                   \
                                std::int64_t count) {                                                                     \
        dispatch(type, [&](auto t) GROWTAS_ALWAYS {                                                                       \
            using T = decltype(t);                                                                                        \
            backward_chunk<V>(static_cast<T*>(gradient) + begin, static_cast<const T*>(h) + begin,                        \
                              static_cast<T*>(a) + begin, count);                                                         \
        });                                                                                                               \
    }                                                                                                                     \
    constexpr Kernels k_##name{&forward_##name, &backward_##name};

GROWTAS_ISA(baseline, , Four)
#ifdef GROWTAS_TARGET_V4
GROWTAS_ISA(v3, GROWTAS_TARGET_V3, Eight)
GROWTAS_ISA(v4, GROWTAS_TARGET_V4, Lanes)
#endif
#undef GROWTAS_ISA

const Kernels& pick_kernels([[maybe_unused]] Level level) {
#ifdef GROWTAS_TARGET_V4
    if (level == Level::kV4) return k_v4;
    if (level == Level::kV3) return k_v3;
#endif
    return k_baseline;
}

}  // namespace

void gelu_forward(const void* h, void* a, DType type, std::int64_t count, Level level) {
    const Kernels& kernels = pick_kernels(level);
#pragma omp parallel for schedule(static) if (count > kChunk)
    for (std::int64_t begin = 0; begin < count; begin += kChunk)
        kernels.forward(h, a, type, begin, std::min(kChunk, count - begin));
}

void gelu_backward(void* gradient, const void* h, void* a, DType type, std::int64_t count, Level level) {
    const Kernels& kernels = pick_kernels(level);
#pragma omp parallel for schedule(static) if (count > kChunk)
    for (std::int64_t begin = 0; begin < count; begin += kChunk)
        kernels.backward(gradient, h, a, type, begin, std::min(kChunk, count - begin));
}

}  // namespace growtas::cpu

// Exact GELU, h * Phi(h), forward and backward.
//
// Shapes   h, a, gradient: contiguous arrays of `count` elements of one dtype.
// Forward  a = h * Phi(h), Phi(h) = (1 + erf(h / sqrt 2)) / 2, in fp32.
// Backward one pass makes both things that the gradients of an MLP need: a again, for the weights of fc2, and
//          gradient * (Phi(h) + h * phi(h)) in the gradient's place, phi(h) = exp(-h^2 / 2) / sqrt(2 pi). So a is never saved.
// Order    every element for itself: the same bits for any number of threads.
#include "cpu/gelu/gelu.h"

#include <algorithm>

#include "cpu/gelu/gelu_lanes.h"

namespace growtas::cpu {
namespace {

constexpr std::int64_t kChunk = 16384;  // elements per task: 64 KB, so that h, a and the gradient stay in L2

template <typename T>
GROWTAS_INLINE void forward_chunk(const T* h, T* a, std::int64_t count) {
    for (std::int64_t i = 0; i < count; i += kLanes) {
        const std::int64_t lanes = std::min(kLanes, count - i);
        store(a + i, gelu(load(h + i, lanes)), lanes);
    }
}

template <typename T>
GROWTAS_INLINE void backward_chunk(T* gradient, const T* h, T* a, std::int64_t count) {
    for (std::int64_t i = 0; i < count; i += kLanes) {
        const std::int64_t lanes = std::min(kLanes, count - i);
        const GeluAndSlope at = gelu_and_slope(load(h + i, lanes));
        store(a + i, at.value, lanes);
        store(gradient + i, load(gradient + i, lanes) * at.slope, lanes);
    }
}

GROWTAS_LEAF void forward_leaf(const void* h, void* a, DType type, std::int64_t begin, std::int64_t count) {
    dispatch(type, [&](auto t) GROWTAS_ALWAYS {
        using T = decltype(t);
        forward_chunk(static_cast<const T*>(h) + begin, static_cast<T*>(a) + begin, count);
    });
}

GROWTAS_LEAF void backward_leaf(void* gradient, const void* h, void* a, DType type, std::int64_t begin,
                                std::int64_t count) {
    dispatch(type, [&](auto t) GROWTAS_ALWAYS {
        using T = decltype(t);
        backward_chunk(static_cast<T*>(gradient) + begin, static_cast<const T*>(h) + begin,
                       static_cast<T*>(a) + begin, count);
    });
}

}  // namespace

void gelu_forward(const void* h, void* a, DType type, std::int64_t count) {
#pragma omp parallel for schedule(static) if (count > kChunk)
    for (std::int64_t begin = 0; begin < count; begin += kChunk)
        forward_leaf(h, a, type, begin, std::min(kChunk, count - begin));
}

void gelu_backward(void* gradient, const void* h, void* a, DType type, std::int64_t count) {
#pragma omp parallel for schedule(static) if (count > kChunk)
    for (std::int64_t begin = 0; begin < count; begin += kChunk)
        backward_leaf(gradient, h, a, type, begin, std::min(kChunk, count - begin));
}

}  // namespace growtas::cpu

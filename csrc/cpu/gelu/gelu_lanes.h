// Exact GELU of a vector, h * Phi(h), and its slope Phi(h) + h * phi(h): Phi the normal distribution, phi its density.
#pragma once
#include "cpu/common/simd_math.h"

namespace growtas::cpu {

template <typename V>
GROWTAS_INLINE V normal_distribution(V h) {
    return error_function(h * 0.70710678118654752f) * 0.5f + 0.5f;
}

template <typename V>
GROWTAS_INLINE V gelu(V h) {
    return h * normal_distribution(h);
}

template <typename V>
struct GeluAndSlope {
    V value, slope;
};

template <typename V>
GROWTAS_INLINE GeluAndSlope<V> gelu_and_slope(V h) {
    const V below = normal_distribution(h);
    const V density = exponential(h * h * -0.5f) * 0.39894228040143268f;
    return {h * below, below + h * density};
}

}  // namespace growtas::cpu

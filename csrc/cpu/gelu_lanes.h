// Exact GELU of sixteen lanes, h * Phi(h), and its slope Phi(h) + h * phi(h): Phi the normal distribution, phi its density.
#pragma once
#include "cpu/simd_math.h"

namespace growtas::cpu {

GROWTAS_INLINE Lanes normal_distribution(Lanes h) {
    return error_function(h * 0.70710678118654752f) * 0.5f + 0.5f;
}

GROWTAS_INLINE Lanes gelu(Lanes h) { return h * normal_distribution(h); }

struct GeluAndSlope {
    Lanes value, slope;
};

GROWTAS_INLINE GeluAndSlope gelu_and_slope(Lanes h) {
    const Lanes below = normal_distribution(h), density = exponential(h * h * -0.5f) * 0.39894228040143268f;
    return {h * below, below + h * density};
}

}  // namespace growtas::cpu

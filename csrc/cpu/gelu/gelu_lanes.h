// Exact GELU of sixteen lanes, h * Phi(h), and its slope Phi(h) + h * phi(h): Phi the normal distribution, phi its density.
#pragma once
#include "cpu/common/simd_math.h"

namespace growtas::cpu {

GROWTAS_INLINE Eight normal_distribution(Eight h) {
    return error_function(h * 0.70710678118654752f) * 0.5f + 0.5f;
}

GROWTAS_INLINE Lanes gelu(Lanes h) {
    Eight half[2];
    std::memcpy(half, &h, sizeof h);
    for (Eight& each : half) each = each * normal_distribution(each);
    std::memcpy(&h, half, sizeof h);
    return h;
}

struct GeluAndSlope {
    Lanes value, slope;
};

GROWTAS_INLINE GeluAndSlope gelu_and_slope(Lanes h) {
    Eight half[2], slope[2];
    std::memcpy(half, &h, sizeof h);
    for (int i = 0; i < 2; ++i) {
        const Eight below = normal_distribution(half[i]);
        const Eight density = exponential(half[i] * half[i] * -0.5f) * 0.39894228040143268f;
        slope[i] = below + half[i] * density;
        half[i] = half[i] * below;
    }
    GeluAndSlope to;
    std::memcpy(&to.value, half, sizeof to.value);
    std::memcpy(&to.slope, slope, sizeof to.slope);
    return to;
}

}  // namespace growtas::cpu

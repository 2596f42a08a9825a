// exp and erf, accurate to a few units in the last place. Forced inline, like all of simd.h.
//
// They take eight lanes, one register of AVX2: sixteen would be cut in two by the compiler at every step, through memory.
#pragma once
#include "cpu/common/simd.h"

namespace growtas::cpu {

typedef float Eight __attribute__((vector_size(32)));
typedef std::int32_t EightIntegers __attribute__((vector_size(32)));

GROWTAS_INLINE Eight eight(float value) { return Eight{} + value; }

// NaN becomes a bound: callers that care multiply by v.
GROWTAS_INLINE Eight clamp(Eight v, float low, float high) {
    v = v > eight(low) ? v : eight(low);
    return v < eight(high) ? v : eight(high);
}

// e^x, 0 below -87.3 and infinity above 88.7: 2^n * e^r with n the nearest integer to x / ln 2, |r| <= ln 2 / 2.
GROWTAS_INLINE Eight exponential(Eight x) {
    const Eight inside = clamp(x, -87.0f, 88.3f);
    const Eight shifted = inside * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: the sum rounds to an integer
    const Eight n = shifted - 12582912.0f;
    Eight r = inside - n * 0.693359375f;
    r -= n * -2.12194440e-4f;
    Eight p = eight(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    // The integer sits in the lowest bits of the mantissa.
    const EightIntegers power = ((EightIntegers)shifted << 23) + 0x3f800000;
    const Eight result = p * (Eight)power;
    return x < eight(-87.3f) ? Eight{} : result;
}

// erf(x) = x P(x^2) / Q(x^2) on [-4, 4], beyond which it is 1 to fp32's precision.
GROWTAS_INLINE Eight error_function(Eight x) {
    x = clamp(x, -4.0f, 4.0f);
    const Eight s = x * x;
    Eight p = eight(-2.72614225801306e-10f);
    p = p * s + 2.77068142495902e-08f;
    p = p * s - 2.10102402082508e-06f;
    p = p * s - 5.69250639462346e-05f;
    p = p * s - 7.34990630326855e-04f;
    p = p * s - 2.95459980854025e-03f;
    p = p * s - 1.60960333262415e-02f;
    Eight q = eight(-1.45660718464996e-05f);
    q = q * s - 2.13374055278905e-04f;
    q = q * s - 1.68282697438203e-03f;
    q = q * s - 7.37332916720468e-03f;
    q = q * s - 1.42647390514189e-02f;
    return x * p / q;
}

}  // namespace growtas::cpu

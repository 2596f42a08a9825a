// exp and erf of sixteen lanes, accurate to a few units in the last place. Forced inline, like all of simd.h.
#pragma once
#include "cpu/simd.h"

namespace growtas::cpu {

typedef std::int32_t Integers __attribute__((vector_size(64)));

// All ones where v is negative. A comparison of 64 bytes would be made lane by lane on AVX2: compilers split sums and shifts
// of vectors that are wider than the processor's, but not comparisons.
GROWTAS_INLINE Bits negative(Lanes v) { return (Bits)((Integers)v >> 31); }

// v between low and high; NaN stays NaN or becomes a bound: callers that care multiply by v.
GROWTAS_INLINE Lanes clamp(Lanes v, float low, float high) {
    v = select(negative(v - low), splat(low), v);
    return select(negative(high - v), splat(high), v);
}

// e^x, 0 below -87.3 and infinity above 88.7: 2^n * e^r with n the nearest integer to x / ln 2, |r| <= ln 2 / 2.
GROWTAS_INLINE Lanes exponential(Lanes x) {
    const Lanes inside = clamp(x, -87.0f, 88.3f);
    const Lanes shifted = inside * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: the sum rounds to an integer
    const Lanes n = shifted - 12582912.0f;
    Lanes r = inside - n * 0.693359375f;
    r -= n * -2.12194440e-4f;
    Lanes p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    const Bits power = ((Bits)shifted << 23) + 0x3f800000u;  // the integer sits in the lowest bits of the mantissa
    const Lanes result = p * (Lanes)power;
    return select(negative(x + 87.3f), Lanes{}, result);
}

// erf(x) = x P(x^2) / Q(x^2) on [-4, 4], beyond which it is 1 to fp32's precision.
GROWTAS_INLINE Lanes error_function(Lanes x) {
    x = clamp(x, -4.0f, 4.0f);
    const Lanes s = x * x;
    Lanes p = splat(-2.72614225801306e-10f);
    p = p * s + 2.77068142495902e-08f;
    p = p * s - 2.10102402082508e-06f;
    p = p * s - 5.69250639462346e-05f;
    p = p * s - 7.34990630326855e-04f;
    p = p * s - 2.95459980854025e-03f;
    p = p * s - 1.60960333262415e-02f;
    Lanes q = splat(-1.45660718464996e-05f);
    q = q * s - 2.13374055278905e-04f;
    q = q * s - 1.68282697438203e-03f;
    q = q * s - 7.37332916720468e-03f;
    q = q * s - 1.42647390514189e-02f;
    return x * p / q;
}

}  // namespace growtas::cpu

// exp and erf, accurate to a few units in the last place. Forced inline, like all of simd.h.
//
// Templates over the vector V (vectors.h), which must fit a register: sixteen lanes on AVX2 would be cut in two by the compiler
// at every step, through memory.
#pragma once
#include "cpu/common/vectors.h"

namespace growtas::cpu {

template <typename V>
using Integers = decltype(indices_of(V{}));

// NaN becomes a bound: callers that care multiply by v.
template <typename V>
GROWTAS_INLINE V clamp(V v, float low, float high) {
    const V least = V{} + low, most = V{} + high;
    v = v > least ? v : least;
    return v < most ? v : most;
}

// e^x, 0 below -87.3 and infinity above 88.7: 2^n * e^r with n the nearest integer to x / ln 2, |r| <= ln 2 / 2.
template <typename V>
GROWTAS_INLINE V exponential(V x) {
    const V inside = clamp(x, -87.0f, 88.3f);
    const V shifted = inside * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: the sum rounds to an integer
    const V n = shifted - 12582912.0f;
    V r = inside - n * 0.693359375f;
    r -= n * -2.12194440e-4f;
    V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    // The integer sits in the lowest bits of the mantissa.
    const Integers<V> power = ((Integers<V>)shifted << 23) + 0x3f800000;
    const V result = p * (V)power;
    return x < V{} - 87.3f ? V{} : result;
}

// erf(x) = x P(x^2) / Q(x^2) on [-4, 4], beyond which it is 1 to fp32's precision.
template <typename V>
GROWTAS_INLINE V error_function(V x) {
    x = clamp(x, -4.0f, 4.0f);
    const V s = x * x;
    V p = s * -2.72614225801306e-10f + 2.77068142495902e-08f;
    p = p * s - 2.10102402082508e-06f;
    p = p * s - 5.69250639462346e-05f;
    p = p * s - 7.34990630326855e-04f;
    p = p * s - 2.95459980854025e-03f;
    p = p * s - 1.60960333262415e-02f;
    V q = s * -1.45660718464996e-05f - 2.13374055278905e-04f;
    q = q * s - 1.68282697438203e-03f;
    q = q * s - 7.37332916720468e-03f;
    q = q * s - 1.42647390514189e-02f;
    return x * p / q;
}

}  // namespace growtas::cpu

// fp16 for cuda_runtime.h beside this file, by the C++ compiler's own type.
#pragma once

typedef _Float16 __half;

inline float __half2float(__half v) { return static_cast<float>(v); }
inline __half __float2half_rn(float v) { return static_cast<__half>(v); }

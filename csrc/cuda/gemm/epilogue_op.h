// The epilogues of a GEMM: what becomes of s, an element of A B.
#pragma once

namespace growtas::cuda {

// kStore: out = scale * (s + bias). kGelu: second = s + bias, out = gelu of it. kResidual: out = second + scale * (s + bias).
// kGeluBackward: out = scale * s * gelu'(second), third = gelu(second). kGradient: out = s, or out + s.
enum class EpilogueOp : int { kStore, kGelu, kResidual, kGeluBackward, kGradient };

}  // namespace growtas::cuda

// Launches of the GEMM kernels, one per dtype; each has a source file of its own, so that they compile in parallel.
#pragma once
#include "cuda/common/place.h"

namespace growtas::cuda {

enum class Form : int;
struct Gemm;

void run_gemm_bf16(Form form, const Gemm& p, int tile, std::int64_t blocks, Place place);
void run_gemm_fp16(Form form, const Gemm& p, int tile, std::int64_t blocks, Place place);
void run_gemm_fp32(Form form, const Gemm& p, bool tf32, std::int64_t blocks, Place place);

}  // namespace growtas::cuda

// GEMM in bfloat16. See gemm.cuh.
#include "cuda/gemm/instances.cuh"

namespace growtas::cuda {

void run_gemm_bf16(Form form, const Gemm& p, int tile, std::int64_t blocks, Place place) {
    run_16_bit<__nv_bfloat16>(form, p, tile, blocks, place);
}

}  // namespace growtas::cuda

// GEMM in fp32: exact on the FMA units or, when asked for, in tf32 on tensor cores. One tile, 64 wide. See gemm.cuh.
#include "cuda/gemm/instances.cuh"

namespace growtas::cuda {
namespace {

template <bool FMA>
void run(Form form, const Gemm& p, std::int64_t blocks, Place place) {
    switch (form) {
        case Form::kForward: return start<Form::kForward, float, float, float, FMA, 64>(p, blocks, place);
        case Form::kBackwardInput: return start<Form::kBackwardInput, float, float, float, FMA, 64>(p, blocks, place);
        case Form::kBackwardWeight: return start<Form::kBackwardWeight, float, float, float, FMA, 64>(p, blocks, place);
    }
}

}  // namespace

void run_gemm_fp32(Form form, const Gemm& p, bool tf32, std::int64_t blocks, Place place) {
    if (tf32)
        run<false>(form, p, blocks, place);
    else
        run<true>(form, p, blocks, place);
}

}  // namespace growtas::cuda

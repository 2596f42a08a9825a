// The GEMM kernels of one dtype, and the choice among them by the types in memory. Included once per dtype.
#pragma once
#include <atomic>

#include "cuda/gemm/gemm.cuh"
#include "cuda/gemm/run_gemm.h"

namespace growtas::cuda {
namespace {

template <typename E, typename A, typename B, bool FMA, int TILE>
__global__ void __launch_bounds__((Shape<Form::kForward, E, A, B, FMA, TILE>::kThreads),
                                  (Shape<Form::kForward, E, A, B, FMA, TILE>::kBlocksPerSM))
    gemm_forward(const Gemm p) {
    gemm<Form::kForward, E, A, B, FMA, TILE>(p);
}

template <typename E, typename A, typename B, bool FMA, int TILE>
__global__ void __launch_bounds__((Shape<Form::kBackwardInput, E, A, B, FMA, TILE>::kThreads),
                                  (Shape<Form::kBackwardInput, E, A, B, FMA, TILE>::kBlocksPerSM))
    gemm_backward_input(const Gemm p) {
    gemm<Form::kBackwardInput, E, A, B, FMA, TILE>(p);
}

template <typename E, typename A, typename B, bool FMA, int TILE>
__global__ void __launch_bounds__((Shape<Form::kBackwardWeight, E, A, B, FMA, TILE>::kThreads),
                                  (Shape<Form::kBackwardWeight, E, A, B, FMA, TILE>::kBlocksPerSM))
    gemm_backward_weight(const Gemm p) {
    gemm<Form::kBackwardWeight, E, A, B, FMA, TILE>(p);
}

template <Form FORM, typename E, typename A, typename B, bool FMA, int TILE>
void start(const Gemm& p, std::int64_t blocks, Place place) {
    using S = Shape<FORM, E, A, B, FMA, TILE>;
    void (*kernel)(Gemm);
    if constexpr (FORM == Form::kForward)
        kernel = &gemm_forward<E, A, B, FMA, TILE>;
    else if constexpr (FORM == Form::kBackwardInput)
        kernel = &gemm_backward_input<E, A, B, FMA, TILE>;
    else
        kernel = &gemm_backward_weight<E, A, B, FMA, TILE>;
    static std::atomic<std::uint64_t> allowed{0};  // devices that know how much shared memory this kernel takes
    const std::uint64_t device = std::uint64_t{1} << (place.device % 64);
    if (!(allowed.load() & device)) {
        check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   S::kSharedBytes),
              "ask for shared memory");
        allowed.fetch_or(device);
    }
    launch_with(S::kSharedBytes, kernel, blocks, S::kThreads, place.stream, p);
}

template <Form FORM, typename E, typename A, typename B>
void start_tile(const Gemm& p, int tile, std::int64_t blocks, Place place) {
    if (tile == 128)
        start<FORM, E, A, B, false, 128>(p, blocks, place);
    else
        start<FORM, E, A, B, false, 64>(p, blocks, place);
}

// In 16 bits an operand is of E, or of fp32 where that occurs.
template <typename E>
void run_16_bit(Form form, const Gemm& p, int tile, std::int64_t blocks, Place place) {
    const bool wide_a = p.a.type == DType::kFloat32, wide_b = p.b.type == DType::kFloat32;
    switch (form) {
        case Form::kForward:  // x of E, weight of either
            if (wide_b) return start_tile<Form::kForward, E, E, float>(p, tile, blocks, place);
            return start_tile<Form::kForward, E, E, E>(p, tile, blocks, place);
        case Form::kBackwardInput:  // dy of either; of fp32 with a weight of fp32 only
            if (wide_a) return start_tile<Form::kBackwardInput, E, float, float>(p, tile, blocks, place);
            if (wide_b) return start_tile<Form::kBackwardInput, E, E, float>(p, tile, blocks, place);
            return start_tile<Form::kBackwardInput, E, E, E>(p, tile, blocks, place);
        case Form::kBackwardWeight:  // dy of either, x of E
            if (wide_a) return start_tile<Form::kBackwardWeight, E, float, E>(p, tile, blocks, place);
            return start_tile<Form::kBackwardWeight, E, E, E>(p, tile, blocks, place);
    }
}

}  // namespace
}  // namespace growtas::cuda

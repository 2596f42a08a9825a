// The MLP branch in fp16.
#include "cuda/mlp/mlp_forward.cuh"

namespace growtas::cuda {

void run_mlp_fp16(const Branch& p, const TensorMap& map1, const TensorMap& map2, std::int64_t blocks, Place place) {
    run<__half>(p, map1, map2, blocks, place);
}

}  // namespace growtas::cuda

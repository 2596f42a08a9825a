// Elements in memory and their fp32 values, packs of them, sums over a warp, and launches that report their errors.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "views.h"

namespace growtas::cuda {

constexpr int kWarp = 32;

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }

template <typename T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ float from_float<float>(float v) { return v; }
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float v) { return __float2bfloat16_rn(v); }
template <>
__device__ __forceinline__ __half from_float<__half>(float v) { return __float2half_rn(v); }

// N neighbours in memory, moved in accesses of at most 16 bytes.
template <typename T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
    T item[N];
};

template <typename T, int N>
__device__ __forceinline__ void load_pack(const T* from, float (&to)[N]) {
    const Pack<T, N> pack = *reinterpret_cast<const Pack<T, N>*>(from);
#pragma unroll
    for (int i = 0; i < N; ++i) to[i] = to_float(pack.item[i]);
}

template <typename T, int N>
__device__ __forceinline__ void store_pack(T* to, const float (&from)[N]) {
    Pack<T, N> pack;
#pragma unroll
    for (int i = 0; i < N; ++i) pack.item[i] = from_float<T>(from[i]);
    *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

// One element whose dtype is known at run time only.
__device__ __forceinline__ float load_any(const void* data, DType type, std::int64_t index) {
    switch (type) {
        case DType::kBFloat16: return to_float(static_cast<const __nv_bfloat16*>(data)[index]);
        case DType::kFloat16: return to_float(static_cast<const __half*>(data)[index]);
        default: return static_cast<const float*>(data)[index];
    }
}

__device__ __forceinline__ void store_any(void* data, DType type, std::int64_t index, float value) {
    switch (type) {
        case DType::kBFloat16: static_cast<__nv_bfloat16*>(data)[index] = from_float<__nv_bfloat16>(value); return;
        case DType::kFloat16: static_cast<__half*>(data)[index] = from_float<__half>(value); return;
        default: static_cast<float*>(data)[index] = value;
    }
}

// The sum over a warp, the same in every lane and in every run.
__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int distance = kWarp / 2; distance; distance /= 2) v += __shfl_xor_sync(0xffffffffu, v, distance);
    return v;
}

inline void check(cudaError_t status, const char* doing) {
    if (status != cudaSuccess)
        throw std::runtime_error(std::string(doing) + ": " + cudaGetErrorString(status) + " (" +
                                 cudaGetErrorName(status) + ")");
}

// Starts a kernel on a stream with so much dynamic shared memory; a launch that fails is a std::runtime_error.
template <typename... Expected, typename... Given>
void launch_with(int shared_bytes, void (*kernel)(Expected...), std::int64_t blocks, int threads, void* stream,
                 Given... arguments) {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
    config.stream = static_cast<cudaStream_t>(stream);
    check(cudaLaunchKernelEx(&config, kernel, static_cast<Expected>(arguments)...), "launch");
}

template <typename... Expected, typename... Given>
void launch(void (*kernel)(Expected...), std::int64_t blocks, int threads, void* stream, Given... arguments) {
    launch_with(0, kernel, blocks, threads, stream, arguments...);
}

}  // namespace growtas::cuda

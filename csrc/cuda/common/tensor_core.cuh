// Wrappers of instructions without an intrinsic: asynchronous copies to shared memory, ldmatrix, mma.sync. sm_80 and newer.
//
// Fragments, for the lane 4g + q of a warp (PTX ISA, "Matrix fragments for mma.m16n8k16"):
//   A (16 x 16)  a[0] row g, a[1] row g + 8, both columns 2q, 2q+1;  a[2] row g, a[3] row g + 8, both columns 2q+8, 2q+9
//   B (16 x 8)   b[0] rows 2q, 2q+1, b[1] rows 2q+8, 2q+9; column g
//   C (16 x 8)   c[0], c[1] row g, columns 2q, 2q+1; c[2], c[3] the same of row g + 8
// of fp32 (m16n8k8, tf32): a[0] (g, q), a[1] (g + 8, q), a[2] (g, q + 4), a[3] (g + 8, q + 4); b[0] (q, g), b[1] (q + 4, g).
#pragma once
#include "cuda/common/elements.cuh"

#ifdef GROWTAS_CUDA_ON_CPU
#include "tensor_core_on_cpu.h"
#else

namespace growtas::cuda {

// The shared memory that the launch asked for.
__device__ __forceinline__ unsigned char* dynamic_shared() {
    extern __shared__ __align__(16) unsigned char memory[];
    return memory;
}

__device__ __forceinline__ std::uint32_t shared_address(const void* p) {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define GROWTAS_SM80(...) __VA_ARGS__
#else
#define GROWTAS_SM80(...) __trap()  // the wrappers refuse older GPUs; this lets the LayerNorm kernels be built for them
#endif

// Starts copying `valid` of BYTES (4, 8 or 16) bytes to shared memory; the others become zero, and are not read.
template <int BYTES>
__device__ __forceinline__ void copy_async(void* to, const void* from, int valid) {
    if constexpr (BYTES == 16)
        GROWTAS_SM80(asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                                  "r"(valid)
                                  : "memory"));
    else
        GROWTAS_SM80(asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from),
                                  "n"(BYTES), "r"(valid)
                                  : "memory"));
}

// Ends a group of copies; groups may be empty.
__device__ __forceinline__ void copy_commit() { GROWTAS_SM80(asm volatile("cp.async.commit_group;" ::: "memory")); }

// Waits until at most GROUPS of this thread's latest groups are still on their way.
template <int GROUPS>
__device__ __forceinline__ void copy_wait() {
    GROWTAS_SM80(asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory"));
}

// Four 8x8 matrices of 16-bit elements: lane 8i + j points to row j (16 bytes) of matrix i, which arrives in r[i].
template <bool TRANSPOSED>
__device__ __forceinline__ void load_matrices(std::uint32_t (&r)[4], const void* row) {
    if constexpr (TRANSPOSED)
        GROWTAS_SM80(asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                                  : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                                  : "r"(shared_address(row))));
    else
        GROWTAS_SM80(asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                                  : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                                  : "r"(shared_address(row))));
}

// c += A B for one 16 x 8 fragment; E says what the registers of A and B hold (float: tf32).
template <typename E>
__device__ __forceinline__ void multiply_add(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]);

#define GROWTAS_MMA(E, WORDS)                                                                                       \
    template <>                                                                                                     \
    __device__ __forceinline__ void multiply_add<E>(float(&c)[4], const std::uint32_t(&a)[4],                       \
                                                    const std::uint32_t(&b)[2]) {                                   \
        GROWTAS_SM80(asm volatile("mma.sync.aligned." WORDS                                                         \
                                  " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                \
                                  : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                  \
                                  : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])));             \
    }
GROWTAS_MMA(__nv_bfloat16, "m16n8k16.row.col.f32.bf16.bf16.f32")
GROWTAS_MMA(__half, "m16n8k16.row.col.f32.f16.f16.f32")
GROWTAS_MMA(float, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef GROWTAS_MMA

// Two neighbours in one register, the first in the low half.
template <typename E>
__device__ __forceinline__ std::uint32_t pack(float low, float high);
template <>
__device__ __forceinline__ std::uint32_t pack<__nv_bfloat16>(float low, float high) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<const std::uint32_t&>(both);
}
template <>
__device__ __forceinline__ std::uint32_t pack<__half>(float low, float high) {
    const __half2 both = __floats2half2_rn(low, high);
    return reinterpret_cast<const std::uint32_t&>(both);
}

template <typename E>
__device__ __forceinline__ float2 unpack(std::uint32_t both);
template <>
__device__ __forceinline__ float2 unpack<__nv_bfloat16>(std::uint32_t both) {
    return make_float2(__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u));
}
template <>
__device__ __forceinline__ float2 unpack<__half>(std::uint32_t both) {
    return __half22float2(reinterpret_cast<const __half2&>(both));
}

// fp32 to the 19 bits that tensor cores read, to nearest; ties away from zero.
__device__ __forceinline__ std::uint32_t round_tf32(std::uint32_t bits) {
    GROWTAS_SM80(asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(__uint_as_float(bits))));
    return bits;
}

// Global memory that another block has written, from the cache that all blocks share.
__device__ __forceinline__ float4 load_shared_by_blocks(const float4* from) { return __ldcg(from); }
__device__ __forceinline__ float load_shared_by_blocks(const float* from) { return __ldcg(from); }

#undef GROWTAS_SM80

}  // namespace growtas::cuda
#endif

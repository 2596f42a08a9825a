// Wrappers of sm_90a instructions without an intrinsic: wgmma, mbarriers, TMA loads, register allocation. Only a Hopper GPU
// runs them; sources named *_sm90a.cu are compiled for nothing else.
//
// Matrices in shared memory are stacks of tiles of 64 16-bit columns: a row is 128 bytes, a tile starts at a multiple of 1024,
// and the 16-byte chunk c of row r lies where chunk c ^ (r % 8) would: the 128-byte swizzle of TMA and of wgmma.
//
// Fragments, for the lane 4g + q of warp w of a warpgroup (PTX ISA, "Register Fragments for wgmma.mma_async.m64nNk16"):
//   A (64 x 16)  a[0] row 16w + g, a[1] row 16w + g + 8, both columns 2q, 2q+1; a[2], a[3] the same rows, columns 2q+8, 2q+9
//   D (64 x N)   d[4i], d[4i+1] row 16w + g, columns 8i + 2q, 8i + 2q + 1; d[4i+2], d[4i+3] the same of row 16w + g + 8
#pragma once
#include "cuda/common/tensor_core.cuh"

namespace growtas::cuda {

constexpr int kWarpgroup = 128;
constexpr int kTileColumns = 64;        // of 16-bit elements: 128 bytes
constexpr int kMostSharedBytes = 232448;  // that a block of sm_90 may ask for

// The TMA descriptor of a matrix in global memory; the driver writes it, and a kernel takes it as __grid_constant__.
struct alignas(64) TensorMap {
    std::uint64_t opaque[16];
};

}  // namespace growtas::cuda

#ifdef GROWTAS_CUDA_ON_CPU
#include "hopper_on_cpu.h"
#else

namespace growtas::cuda {

// ---------------------------------------------------------------------------------------------------------- on the host

// The map of a matrix (rows, columns) of 16-bit elements whose rows are `stride` elements apart; a load takes a box of box_rows
// rows and 64 columns, and what lies outside the matrix arrives as zeros. data is aligned to 16 bytes and stride to 8 elements.
inline TensorMap encode_map(const void* data, bool bfloat16, std::int64_t rows, std::int64_t columns, std::int64_t stride,
                            int box_rows) {
    using Encode = int (*)(TensorMap*, int type, std::uint32_t rank, void* data, const std::uint64_t* sizes,
                           const std::uint64_t* strides, const std::uint32_t* box, const std::uint32_t* steps, int interleave,
                           int swizzle, int l2_promotion, int fill);
    // From the driver that runs, so that the module loads where there is none.
    static const Encode encode = [] {
        void* found = nullptr;
        cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
        check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result),
              "find cuTensorMapEncodeTiled");
#else
        check(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result),
              "find cuTensorMapEncodeTiled");
#endif
        if (result != cudaDriverEntryPointSuccess || !found)
            throw std::runtime_error("find cuTensorMapEncodeTiled: the driver is older than CUDA 12.0");
        return reinterpret_cast<Encode>(found);
    }();
    constexpr int kFloat16 = 6, kBFloat16 = 9, kNoInterleave = 0, kSwizzle128 = 3, kPromote128 = 2, kFillZero = 0;
    const std::uint64_t sizes[2] = {static_cast<std::uint64_t>(columns), static_cast<std::uint64_t>(rows)};
    const std::uint64_t strides[1] = {static_cast<std::uint64_t>(stride) * 2};
    const std::uint32_t box[2] = {kTileColumns, static_cast<std::uint32_t>(box_rows)}, steps[2] = {1, 1};
    TensorMap map;
    const int status = encode(&map, bfloat16 ? kBFloat16 : kFloat16, 2, const_cast<void*>(data), sizes, strides, box, steps,
                              kNoInterleave, kSwizzle128, kPromote128, kFillZero);
    if (status)
        throw std::runtime_error("cuTensorMapEncodeTiled: error " + std::to_string(status) + " for " + std::to_string(rows) +
                                 " x " + std::to_string(columns) + ", row stride " + std::to_string(stride));
    return map;
}

template <typename... Arguments>
void allow_shared(void (*kernel)(Arguments...), int bytes) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, bytes),
          "allow shared memory");
}

inline int multiprocessors(int device) {
    int count = 0;
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "count multiprocessors");
    return count;
}

// ------------------------------------------------------------------------------------------------------------ in a kernel

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define GROWTAS_SM90A(...) __VA_ARGS__
#else
#define GROWTAS_SM90A(...)  // the host's pass
#endif

__device__ __forceinline__ std::uint32_t shared_place(const void* p) {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

// The shared memory that the launch asked for, from a multiple of 1024 on.
__device__ __forceinline__ unsigned char* swizzled_shared() {
    extern __shared__ __align__(1024) unsigned char swizzled_memory[];
    return swizzled_memory + (1024 - shared_place(swizzled_memory) % 1024) % 1024;
}

template <int REGISTERS>
__device__ __forceinline__ void more_registers() {
    GROWTAS_SM90A(asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS)));
}
template <int REGISTERS>
__device__ __forceinline__ void fewer_registers() {
    GROWTAS_SM90A(asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS)));
}

// A barrier of so many threads; 0 is __syncthreads.
__device__ __forceinline__ void named_barrier(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// An mbarrier: its phase ends when `arrivals` threads have arrived and all announced bytes are there.
__device__ __forceinline__ void barrier_init(std::uint64_t* barrier, int arrivals) {
    GROWTAS_SM90A(asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_place(barrier)), "r"(arrivals)
                               : "memory"));
}
// Makes initialised barriers known to TMA; a __syncthreads after it makes them known to the other threads.
__device__ __forceinline__ void barrier_init_done() {
    GROWTAS_SM90A(asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"));
    GROWTAS_SM90A(asm volatile("fence.proxy.async.shared::cta;" ::: "memory"));
}
__device__ __forceinline__ void barrier_arrive(std::uint64_t* barrier) {
    GROWTAS_SM90A(asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_place(barrier)) : "memory"));
}
// Arrives, and announces bytes that loads will bring.
__device__ __forceinline__ void barrier_expect(std::uint64_t* barrier, int bytes) {
    GROWTAS_SM90A(asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_place(barrier)),
                               "r"(bytes)
                               : "memory"));
}
// Waits for the end of a phase of this parity: 0 for the first, then 1, 0, ...; that of the phase before the first is 1.
__device__ __forceinline__ void barrier_wait(std::uint64_t* barrier, int parity) {
    std::uint32_t done = 0;
    do {
        GROWTAS_SM90A(asm volatile("{\n.reg .pred p;\n"
                                   "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                                   "selp.u32 %0, 1, 0, p;\n}"
                                   : "=r"(done)
                                   : "r"(shared_place(barrier)), "r"(parity)
                                   : "memory"));
    } while (!done);
}

// Starts the load of the box at (row, column); its bytes count for the barrier.
__device__ __forceinline__ void load_box(void* to, const TensorMap* map, std::uint64_t* barrier, int row, int column) {
    GROWTAS_SM90A(asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                               " [%0], [%1, {%3, %4}], [%2];" ::"r"(shared_place(to)),
                               "l"(reinterpret_cast<std::uint64_t>(map)), "r"(shared_place(barrier)), "r"(column), "r"(row)
                               : "memory"));
}
__device__ __forceinline__ void prefetch_map(const TensorMap* map) {
    GROWTAS_SM90A(asm volatile("prefetch.tensormap [%0];" ::"l"(reinterpret_cast<std::uint64_t>(map)) : "memory"));
}

// Makes this thread's ordinary stores to shared memory visible to wgmma; a barrier between the threads has to follow.
__device__ __forceinline__ void stores_to_mma() {
    GROWTAS_SM90A(asm volatile("fence.proxy.async.shared::cta;" ::: "memory"));
}

// Where a matrix of swizzled tiles starts, as wgmma wants it told: eight rows are 1024 bytes (bits 32 to 45), the swizzle is
// that of 128 bytes (bit 62); all in units of 16 bytes. A step of 16 columns in a tile advances it by 2.
__device__ __forceinline__ std::uint64_t describe(const void* tile) {
    return std::uint64_t{1} << 62 | std::uint64_t{64} << 32 | std::uint64_t{1} << 16 |
           (shared_place(tile) & 0x3ffff) >> 4;
}
constexpr std::uint64_t kStepOf16 = 2;

// Before the first multiply of a group: registers written since the last one are then seen.
__device__ __forceinline__ void mma_fence() { GROWTAS_SM90A(asm volatile("wgmma.fence.sync.aligned;" ::: "memory")); }
__device__ __forceinline__ void mma_commit() {
    GROWTAS_SM90A(asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"));
}
// Waits until at most GROUPS groups are in flight. What they read and write must not be touched before: keep() it after.
template <int GROUPS>
__device__ __forceinline__ void mma_wait() {
    GROWTAS_SM90A(asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(GROUPS) : "memory"));
}
// The compiler may neither use these registers for something else before this point, nor read them earlier.
template <int COUNT>
__device__ __forceinline__ void keep(float (&d)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
template <int STEPS>
__device__ __forceinline__ void keep(std::uint32_t (&a)[STEPS][4]) {
#pragma unroll
    for (int i = 0; i < STEPS; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) asm volatile("" : "+r"(a[i][j])::"memory");
}

// d = A B^T (first) or d += A B^T for A (64 x 16) and B (N x 16) in shared memory.
template <typename E, int N>
__device__ __forceinline__ void multiply_shared(float (&d)[N / 2], std::uint64_t a, std::uint64_t b, bool first);
// d += A B^T for A (64 x 16) in registers and B (N x 16) in shared memory.
template <typename E, int N>
__device__ __forceinline__ void multiply_registers(float (&d)[N / 2], const std::uint32_t (&a)[4], std::uint64_t b);

#define GROWTAS_R32                                                                                                       \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23"        \
    ", %24, %25, %26, %27, %28, %29, %30, %31"
#define GROWTAS_R96                                                                                                       \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52"           \
    ", %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73"           \
    ", %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94"           \
    ", %95"
#define GROWTAS_R112                                                                                                      \
    ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define GROWTAS_R120                                                                                                      \
    ", %112, %113, %114, %115, %116, %117, %118, %119"
#define GROWTAS_R128                                                                                                      \
    ", %120, %121, %122, %123, %124, %125, %126, %127"
#define GROWTAS_D8(b)                                                                                                     \
    "+f"(d[b]), "+f"(d[b + 1]), "+f"(d[b + 2]), "+f"(d[b + 3]), "+f"(d[b + 4]), "+f"(d[b + 5]), "+f"(d[b + 6]),           \
        "+f"(d[b + 7])
#define GROWTAS_D32(b) GROWTAS_D8(b), GROWTAS_D8(b + 8), GROWTAS_D8(b + 16), GROWTAS_D8(b + 24)

#define GROWTAS_MULTIPLY_SHARED(E, WORDS)                                                                                 \
    template <>                                                                                                           \
    __device__ __forceinline__ void multiply_shared<E, 64>(float(&d)[32], std::uint64_t a, std::uint64_t b, bool first) { \
        GROWTAS_SM90A(asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, %34, 0;\n"                                           \
                                   "wgmma.mma_async.sync.aligned.m64n64k16.f32." WORDS                                    \
                                   " {" GROWTAS_R32 "}, %32, %33, p, 1, 1, 0, 0;\n}"                                      \
                                   : GROWTAS_D32(0)                                                                       \
                                   : "l"(a), "l"(b), "r"(static_cast<int>(first))));                                      \
    }
GROWTAS_MULTIPLY_SHARED(__nv_bfloat16, "bf16.bf16")
GROWTAS_MULTIPLY_SHARED(__half, "f16.f16")

// Of N columns, in REGISTERS; A is in the four registers after them, the descriptor in the one after those.
#define GROWTAS_MULTIPLY_REGISTERS(E, WORDS, N, REGISTERS, A0, A1, A2, A3, B, ...)                                        \
    template <>                                                                                                           \
    __device__ __forceinline__ void multiply_registers<E, N>(float(&d)[N / 2], const std::uint32_t(&a)[4], std::uint64_t b) {\
        GROWTAS_SM90A(asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." WORDS " {" REGISTERS "}, {%" #A0 ", %" #A1\
                                   ", %" #A2 ", %" #A3 "}, %" #B ", 1, 1, 1, 0;\n"                                        \
                                   : __VA_ARGS__                                                                          \
                                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)));                                \
    }
#define GROWTAS_MULTIPLY_WIDE(E, WORDS)                                                                                   \
    GROWTAS_MULTIPLY_REGISTERS(E, WORDS, 192, GROWTAS_R32 GROWTAS_R96, 96, 97, 98, 99, 100, GROWTAS_D32(0), GROWTAS_D32(32),\
                               GROWTAS_D32(64))                                                                           \
    GROWTAS_MULTIPLY_REGISTERS(E, WORDS, 224, GROWTAS_R32 GROWTAS_R96 GROWTAS_R112, 112, 113, 114, 115, 116, GROWTAS_D32(0),\
                               GROWTAS_D32(32), GROWTAS_D32(64), GROWTAS_D8(96), GROWTAS_D8(104))                         \
    GROWTAS_MULTIPLY_REGISTERS(E, WORDS, 240, GROWTAS_R32 GROWTAS_R96 GROWTAS_R112 GROWTAS_R120, 120, 121, 122, 123, 124, \
                               GROWTAS_D32(0), GROWTAS_D32(32), GROWTAS_D32(64), GROWTAS_D8(96), GROWTAS_D8(104),         \
                               GROWTAS_D8(112))                                                                           \
    GROWTAS_MULTIPLY_REGISTERS(E, WORDS, 256, GROWTAS_R32 GROWTAS_R96 GROWTAS_R112 GROWTAS_R120 GROWTAS_R128, 128, 129, 130,\
                               131, 132, GROWTAS_D32(0), GROWTAS_D32(32), GROWTAS_D32(64), GROWTAS_D32(96))
GROWTAS_MULTIPLY_WIDE(__nv_bfloat16, "bf16.bf16")
GROWTAS_MULTIPLY_WIDE(__half, "f16.f16")

#undef GROWTAS_MULTIPLY_WIDE
#undef GROWTAS_MULTIPLY_REGISTERS
#undef GROWTAS_MULTIPLY_SHARED
#undef GROWTAS_D32
#undef GROWTAS_D8
#undef GROWTAS_R128
#undef GROWTAS_R120
#undef GROWTAS_R112
#undef GROWTAS_R96
#undef GROWTAS_R32

// 2^x, 1/x and 1/sqrt(x) to about 2 units in the last place.
__device__ __forceinline__ float fast_exp2(float x) {
    asm("ex2.approx.ftz.f32 %0, %0;" : "+f"(x));
    return x;
}
__device__ __forceinline__ float fast_reciprocal(float x) {
    asm("rcp.approx.ftz.f32 %0, %0;" : "+f"(x));
    return x;
}

__device__ __forceinline__ float fast_rsqrt(float x) {
    asm("rsqrt.approx.ftz.f32 %0, %0;" : "+f"(x));
    return x;
}

#undef GROWTAS_SM90A

}  // namespace growtas::cuda
#endif

// Enough of the CUDA runtime to run this project's kernels on a CPU, for machines without a GPU: the CUDA sources are compiled by
// the C++ compiler with this folder first on the include path.
//
// Every thread of a block is a fiber. The lanes of a warp take turns at each __shfl_xor_sync; a warp runs as far as it can, to a
// __syncthreads or its end, before the next one starts. So a missing barrier shows as a wrong number, not as a race that may or
// may not happen. Device 1 runs warps and lanes in reverse order: a kernel whose result depends on the order of its threads gives
// another one there. Other devices do not exist.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

typedef void* cudaStream_t;
typedef int cudaError_t;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidDevice = 101;
inline const char* cudaGetErrorString(cudaError_t) { return "invalid device ordinal"; }
inline const char* cudaGetErrorName(cudaError_t) { return "cudaErrorInvalidDevice"; }

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    std::size_t dynamicSmemBytes;
    cudaStream_t stream;
};

inline dim3 threadIdx, blockIdx, gridDim, blockDim;

namespace emulator {

inline bool reversed = false;

struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(64 * 1024);
    bool done = false;
    bool waiting = false;  // at the barrier of generation `barrier`
    unsigned barrier = 0;
    unsigned shuffles = 0;  // how many this thread has made: the lanes of a warp must agree
    float slot[2] = {};
};

struct Block {
    std::vector<Fiber> fibers;
    std::function<void()> kernel;
    ucontext_t scheduler;
    unsigned current = 0, live = 0, arrived = 0, generation = 0;

    void yield() { swapcontext(&fibers[current].context, &scheduler); }

    void open_barrier() {
        if (live && arrived == live) {
            arrived = 0;
            ++generation;
        }
    }
};

inline Block* block = nullptr;

inline void enter() {
    block->kernel();
    block->fibers[block->current].done = true;
    --block->live;
    block->open_barrier();  // a thread that has ended counts as arrived
    block->yield();
}

// Lets the lanes of a warp take turns until each has ended or waits for another warp.
inline void run_warp(Block& b, unsigned first, unsigned threads) {
    for (bool ran = true; ran;) {
        ran = false;
        for (unsigned i = 0; i < 32; ++i) {
            b.current = first + (reversed ? 31 - i : i);
            if (b.current >= threads) continue;
            Fiber& f = b.fibers[b.current];
            if (f.done || (f.waiting && f.barrier == b.generation)) continue;
            threadIdx = dim3(b.current);
            swapcontext(&b.scheduler, &f.context);
            ran = true;
        }
    }
}

inline void run(Block& b, unsigned threads) {
    block = &b;
    if (b.fibers.size() != threads) b.fibers = std::vector<Fiber>(threads);
    b.live = threads;
    b.arrived = 0;
    for (Fiber& f : b.fibers) {
        f.done = f.waiting = false;
        f.shuffles = 0;
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack.data();
        f.context.uc_stack.ss_size = f.stack.size();
        f.context.uc_link = nullptr;
        makecontext(&f.context, enter, 0);
    }
    const unsigned warps = (threads + 31) / 32;
    while (b.live)
        for (unsigned w = 0; w < warps; ++w) run_warp(b, 32 * (reversed ? warps - 1 - w : w), threads);
}

}  // namespace emulator

inline cudaError_t cudaSetDevice(int device) {
    emulator::reversed = device == 1;
    return device == 0 || device == 1 ? cudaSuccess : cudaErrorInvalidDevice;
}

inline void __syncthreads() {
    emulator::Block& b = *emulator::block;
    emulator::Fiber& self = b.fibers[b.current];
    self.barrier = b.generation;
    self.waiting = true;
    ++b.arrived;
    b.open_barrier();
    while (b.generation == self.barrier) b.yield();
    self.waiting = false;
}

inline float __shfl_xor_sync(unsigned, float value, int distance) {
    emulator::Block& b = *emulator::block;
    emulator::Fiber& self = b.fibers[b.current];
    const emulator::Fiber& other = b.fibers[b.current ^ distance];
    const unsigned count = self.shuffles++;
    self.slot[count % 2] = value;
    b.yield();
    if (other.shuffles != count + 1 && other.shuffles != count + 2) {
        std::fprintf(stderr, "threads %u and %u of a warp are at different shuffles\n", b.current, b.current ^ distance);
        std::abort();
    }
    return other.slot[count % 2];
}

template <typename... Expected, typename... Given>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Expected...), Given... arguments) {
    static emulator::Block b;
    b.kernel = [=] { kernel(arguments...); };
    gridDim = config->gridDim;
    blockDim = config->blockDim;
    for (unsigned i = 0; i < gridDim.x; ++i) {
        blockIdx = dim3(i);
        emulator::run(b, blockDim.x);
    }
    return cudaSuccess;
}

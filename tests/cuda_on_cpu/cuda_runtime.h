// Enough of the CUDA runtime to run this project's kernels on a CPU, for machines without a GPU: the CUDA sources are compiled by
// the C++ compiler with this folder first on the include path.
//
// Every thread of a block is a fiber. The lanes of a warp take turns wherever they exchange something; a warp runs as far as it
// can, to a __syncthreads or its end, before the next one starts. So a missing barrier shows as a wrong number, not as a race
// that may or may not happen. Blocks run one after the other. Device 1 runs blocks, warps and lanes in reverse order: a kernel
// whose result depends on the order of its threads gives another one there. Other devices do not exist.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <vector>

#define GROWTAS_CUDA_ON_CPU

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

typedef void* cudaStream_t;
typedef int cudaError_t;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidDevice = 101;
inline const char* cudaGetErrorString(cudaError_t e) {
    return e == cudaErrorInvalidDevice ? "invalid device ordinal" : "invalid argument";
}
inline const char* cudaGetErrorName(cudaError_t e) {
    return e == cudaErrorInvalidDevice ? "cudaErrorInvalidDevice" : "cudaErrorInvalidValue";
}

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    std::size_t dynamicSmemBytes;
    cudaStream_t stream;
};

inline dim3 threadIdx, blockIdx, gridDim, blockDim;

struct float2 {
    float x, y;
};
struct float4 {
    float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

using std::max;
using std::min;
inline std::uint32_t __float_as_uint(float v) {
    std::uint32_t bits;
    std::memcpy(&bits, &v, sizeof bits);
    return bits;
}
inline float __uint_as_float(std::uint32_t bits) {
    float v;
    std::memcpy(&v, &bits, sizeof v);
    return v;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(std::uint64_t{a} * b >> 32); }

namespace emulator {

inline bool reversed = false;
constexpr std::size_t kMaxShared = 99 * 1024, kFreeShared = 48 * 1024;  // with and without cudaFuncSetAttribute
constexpr std::size_t kHopperShared = 227 * 1024;                       // see hopper_on_cpu.h
inline std::map<const void*, std::size_t> allowed_shared;
alignas(1024) inline unsigned char shared[kHopperShared];

[[noreturn]] inline void fail(const char* what) {
    std::fprintf(stderr, "%s\n", what);
    std::abort();
}

// A copy to shared memory that is on its way; see tensor_core_on_cpu.h.
struct Copy {
    unsigned char* to;
    const unsigned char* from;
    int bytes, valid;
    unsigned group;
};

// A load of TMA that is on its way; see hopper_on_cpu.h.
struct Load {
    unsigned char* to;
    const void* map;
    std::uint64_t* barrier;
    std::int64_t row, column;
};

// bar.sync of some of the threads.
struct Named {
    int arrived, threads;
    unsigned generation;
};

struct Fiber {
    ucontext_t context;
    jmp_buf resume;
    std::vector<char> stack = std::vector<char>(64 * 1024);
    bool started = false, done = false;
    bool waiting = false;  // at the barrier of generation `barrier`
    unsigned barrier = 0;
    unsigned exchanges = 0;  // how many this thread has made: the lanes of a warp must agree
    alignas(16) unsigned char slot[2][64];
    std::vector<Copy> copies;
    unsigned group = 0;  // of copies, the one that is open
    bool stalled = false;  // waits for what another warp does
    std::deque<std::pair<unsigned, std::function<void()>>> multiplies;  // of wgmma, not made yet, with their group
    unsigned mma_group = 0;
};

struct Block {
    std::vector<Fiber> fibers;
    std::function<void()> kernel;
    ucontext_t scheduler;
    jmp_buf back;
    unsigned current = 0, live = 0, arrived = 0, generation = 0;
    std::vector<Load> loads;
    Named named[16];
    std::size_t shared_bytes = 0;
    std::uint64_t events = 0;  // waits that began or ended

    // _setjmp and _longjmp once a fiber has started: they leave the signal mask alone, which swapcontext asks the kernel for.
    void yield() {
        if (!_setjmp(fibers[current].resume)) _longjmp(back, 1);
    }
    void resume(Fiber& f) {
        if (_setjmp(back)) return;
        if (f.started) _longjmp(f.resume, 1);
        f.started = true;
        setcontext(&f.context);
    }

    // Lets others run until `done` holds.
    template <typename F>
    void wait(const F& done) {
        ++events;
        while (!done()) {
            fibers[current].stalled = true;
            yield();
        }
        fibers[current].stalled = false;
        ++events;
    }

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
    Fiber& self = block->fibers[block->current];
    if (!self.copies.empty()) fail("a thread ends while a copy of its is on the way");
    if (!self.multiplies.empty()) fail("a thread ends while a multiply of its is on the way");
    self.done = true;
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
            b.resume(f);
            if (!f.stalled) ran = true, ++b.events;
        }
    }
}

inline void run(Block& b, unsigned threads, std::size_t shared_bytes) {
    block = &b;
    b.shared_bytes = shared_bytes;
    b.loads.clear();
    std::memset(b.named, 0, sizeof b.named);
    if (b.fibers.size() != threads) b.fibers = std::vector<Fiber>(threads);
    b.live = threads;
    b.arrived = 0;
    std::memset(shared, 0xff, sizeof shared);  // NaN in every type
    for (Fiber& f : b.fibers) {
        f.started = f.done = f.waiting = f.stalled = false;
        f.exchanges = f.group = f.mma_group = 0;
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack.data();
        f.context.uc_stack.ss_size = f.stack.size();
        f.context.uc_link = nullptr;
        makecontext(&f.context, enter, 0);
    }
    const unsigned warps = (threads + 31) / 32;
    while (b.live) {
        const std::uint64_t before = b.events;
        for (unsigned w = 0; w < warps; ++w) run_warp(b, 32 * (reversed ? warps - 1 - w : w), threads);
        if (b.events == before) fail("every thread of a block waits for another");
    }
    if (!b.loads.empty()) fail("a block ends while a load of TMA is on its way");
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

inline void __threadfence() {}

inline unsigned atomicAdd(unsigned* to, unsigned value) {
    const unsigned before = *to;
    *to += value;
    return before;
}

namespace emulator {

// What one lane shows to the others of its warp, and sees of them.
template <typename T>
struct Exchange {
    static_assert(sizeof(T) <= sizeof Fiber().slot[0], "a slot holds it");
    Block& b = *block;
    const unsigned count, first = b.current / 32 * 32;

    explicit Exchange(const T& mine) : count(b.fibers[b.current].exchanges++) {
        std::memcpy(b.fibers[b.current].slot[count % 2], &mine, sizeof mine);
        b.yield();
    }

    const T& of(unsigned lane) const {
        const Fiber& other = b.fibers[first + lane];
        if (other.exchanges != count + 1 && other.exchanges != count + 2) {
            std::fprintf(stderr, "threads %u and %u of a warp are at different exchanges\n", b.current, first + lane);
            std::abort();
        }
        return *reinterpret_cast<const T*>(other.slot[count % 2]);
    }
};

}  // namespace emulator

inline float __shfl_xor_sync(unsigned, float value, int distance) {
    return emulator::Exchange<float>(value).of(emulator::block->current % 32 ^ distance);
}

constexpr int cudaFuncAttributeMaxDynamicSharedMemorySize = 8;

inline cudaError_t cudaFuncSetAttribute(const void* kernel, int, int bytes) {
    if (bytes < 0 || static_cast<std::size_t>(bytes) > emulator::kMaxShared) return cudaErrorInvalidValue;
    emulator::allowed_shared[kernel] = static_cast<std::size_t>(bytes);
    return cudaSuccess;
}

template <typename... Expected, typename... Given>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Expected...), Given... arguments) {
    const auto found = emulator::allowed_shared.find(reinterpret_cast<const void*>(kernel));
    const std::size_t most = found == emulator::allowed_shared.end() ? emulator::kFreeShared : found->second;
    if (config->dynamicSmemBytes > std::max(most, emulator::kFreeShared)) return cudaErrorInvalidValue;
    static emulator::Block b;
    b.kernel = [=] { kernel(arguments...); };
    gridDim = config->gridDim;
    blockDim = config->blockDim;
    for (unsigned i = 0; i < gridDim.x; ++i) {
        blockIdx = dim3(emulator::reversed ? gridDim.x - 1 - i : i);
        emulator::run(b, blockDim.x, config->dynamicSmemBytes);
    }
    return cudaSuccess;
}

// csrc/cuda/common/hopper.cuh on the CPU, by the layouts and rules that the PTX ISA gives.
//
// A multiply is made as late as its wait allows on device 0, from what registers and shared memory hold then (what was changed
// too early shows), and at once on device 1 (what was not there yet shows). Loads of TMA likewise: when their barrier is first
// asked, or at once. Misaligned tiles, maps and boxes end the program.
#pragma once
#include <deque>

namespace growtas::cuda {

// ---------------------------------------------------------------------------------------------------------- on the host

struct MapOnCPU {
    const unsigned char* data;
    std::int64_t rows, columns, stride;  // in elements
    int box_rows;
};
static_assert(sizeof(MapOnCPU) <= sizeof(TensorMap));

inline TensorMap encode_map(const void* data, bool, std::int64_t rows, std::int64_t columns, std::int64_t stride, int box_rows) {
    if (reinterpret_cast<std::uintptr_t>(data) % 16 || stride * 2 % 16 || stride < columns || rows < 1 || columns < 1 ||
        box_rows < 1 || box_rows > 256)
        emulator::fail("cuTensorMapEncodeTiled refuses this matrix");
    const MapOnCPU map{static_cast<const unsigned char*>(data), rows, columns, stride, box_rows};
    TensorMap out{};
    std::memcpy(&out, &map, sizeof map);
    return out;
}

template <typename... Arguments>
void allow_shared(void (*kernel)(Arguments...), int bytes) {
    if (bytes > kMostSharedBytes) emulator::fail("more shared memory than sm_90 has");
    emulator::allowed_shared[reinterpret_cast<const void*>(kernel)] = static_cast<std::size_t>(bytes);
}

inline int multiprocessors(int) { return 2; }

// ------------------------------------------------------------------------------------------------------------ in a kernel

inline unsigned char* swizzled_shared() { return emulator::shared; }

template <int REGISTERS>
void more_registers() {}
template <int REGISTERS>
void fewer_registers() {}

inline void named_barrier(int id, int threads) {
    emulator::Block& b = *emulator::block;
    emulator::Named& barrier = b.named[id];
    if (barrier.arrived && barrier.threads != threads) emulator::fail("threads disagree on the size of a named barrier");
    barrier.threads = threads;
    const unsigned generation = barrier.generation;
    if (++barrier.arrived == threads) {
        barrier.arrived = 0;
        ++barrier.generation;
    }
    b.wait([&] { return barrier.generation != generation; });
}

// An mbarrier as 64 bits of shared memory.
struct BarrierOnCPU {
    std::int32_t bytes;
    std::uint8_t arrivals, pending, phase, valid;
};
static_assert(sizeof(BarrierOnCPU) == sizeof(std::uint64_t));

inline BarrierOnCPU& barrier_of(std::uint64_t* barrier) {
    auto& found = *reinterpret_cast<BarrierOnCPU*>(barrier);
    if (reinterpret_cast<std::uintptr_t>(barrier) % 8) emulator::fail("an mbarrier is not aligned to 8 bytes");
    return found;
}
inline BarrierOnCPU& initialised(std::uint64_t* barrier) {
    BarrierOnCPU& found = barrier_of(barrier);
    if (found.valid != 42) emulator::fail("an mbarrier is used that was not initialised");
    return found;
}
inline void settle(BarrierOnCPU& b) {
    if (b.pending || b.bytes) return;
    b.phase ^= 1;
    b.pending = b.arrivals;
}
inline void barrier_init(std::uint64_t* barrier, int arrivals) {
    const auto count = static_cast<std::uint8_t>(arrivals);
    barrier_of(barrier) = {0, count, count, 0, 42};
}
inline void barrier_init_done() {}
inline void barrier_arrive(std::uint64_t* barrier) {
    BarrierOnCPU& b = initialised(barrier);
    if (!b.pending) emulator::fail("an mbarrier is arrived at too often");
    --b.pending;
    settle(b);
}
inline void barrier_expect(std::uint64_t* barrier, int bytes) {
    initialised(barrier).bytes += bytes;
    barrier_arrive(barrier);
}

inline void finish_load(const emulator::Load& load) {
    MapOnCPU map;
    std::memcpy(&map, load.map, sizeof map);
    for (int r = 0; r < map.box_rows; ++r)
        for (int c = 0; c < kTileColumns; ++c) {
            const std::int64_t row = load.row + r, column = load.column + c;
            const bool inside = row >= 0 && row < map.rows && column >= 0 && column < map.columns;
            const auto* from = reinterpret_cast<const std::uint16_t*>(map.data) + row * map.stride + column;
            unsigned char* to = load.to + r * 128 + ((c / 8) ^ (r % 8)) * 16 + c % 8 * 2;
            const std::uint16_t value = inside ? *from : 0;
            std::memcpy(to, &value, sizeof value);
        }
    BarrierOnCPU& b = initialised(load.barrier);
    b.bytes -= map.box_rows * 128;
    settle(b);
}

inline void load_box(void* to, const TensorMap* map, std::uint64_t* barrier, int row, int column) {
    auto* target = static_cast<unsigned char*>(to);
    MapOnCPU read;
    std::memcpy(&read, map, sizeof read);
    if ((target - emulator::shared) % 1024) emulator::fail("a swizzled box does not start at a multiple of 1024");
    if (target < emulator::shared || target + read.box_rows * 128 > emulator::shared + emulator::block->shared_bytes)
        emulator::fail("a load of TMA goes outside shared memory");
    const emulator::Load load{target, map, barrier, row, column};
    if (emulator::reversed) return finish_load(load);
    emulator::block->loads.push_back(load);
}
inline void prefetch_map(const TensorMap*) {}

inline void barrier_wait(std::uint64_t* barrier, int parity) {
    emulator::Block& b = *emulator::block;
    initialised(barrier);
    b.wait([&] {
        auto& loads = b.loads;
        for (std::size_t i = 0; i < loads.size();) {
            if (loads[i].barrier == barrier) {
                finish_load(loads[i]);
                loads.erase(loads.begin() + static_cast<std::ptrdiff_t>(i));
            } else {
                ++i;
            }
        }
        return initialised(barrier).phase != parity;
    });
}

inline void stores_to_mma() {}

inline std::uint64_t describe(const void* tile) {
    const std::ptrdiff_t at = static_cast<const unsigned char*>(tile) - emulator::shared;
    if (at % 1024) emulator::fail("a swizzled tile does not start at a multiple of 1024");
    return std::uint64_t{1} << 62 | std::uint64_t{64} << 32 | std::uint64_t{1} << 16 | static_cast<std::uint64_t>(at) >> 4;
}
constexpr std::uint64_t kStepOf16 = 2;

// Element (row, k) of the matrix that a descriptor describes, k < 16: its place is that of a plain matrix of rows of 128 bytes,
// eight rows (stride byte offset) apart, with bits 4 to 6 of the address changed by bits 7 to 9.
template <typename E>
float described(std::uint64_t descriptor, int row, int k) {
    const std::uint64_t start = (descriptor & 0x3fff) << 4, eight_rows = (descriptor >> 32 & 0x3fff) << 4;
    std::uint64_t at = start + static_cast<std::uint64_t>(row / 8) * eight_rows + static_cast<std::uint64_t>(row % 8 * 128 + k * 2);
    at ^= (at >> 7 & 7) << 4;
    if (at + 2 > emulator::block->shared_bytes) emulator::fail("wgmma reads outside shared memory");
    E value;
    std::memcpy(&value, emulator::shared + at, sizeof value);
    return to_float(value);
}
inline void check_descriptor(std::uint64_t descriptor) {
    if (descriptor >> 62 != 1 || (descriptor >> 49 & 7)) emulator::fail("a descriptor is not that of a 128-byte swizzle");
}

// Multiplies of this thread: those not waited for yet, and the number of the open group.
inline void mma_fence() {}
inline void mma_commit() { ++emulator::block->fibers[emulator::block->current].mma_group; }
inline void start(std::function<void()> multiply) {
    emulator::Fiber& self = emulator::block->fibers[emulator::block->current];
    if (emulator::reversed) return multiply();
    self.multiplies.push_back({self.mma_group, std::move(multiply)});
}
template <int GROUPS>
void mma_wait() {
    emulator::Fiber& self = emulator::block->fibers[emulator::block->current];
    while (!self.multiplies.empty() && self.multiplies.front().first + GROUPS < self.mma_group) {
        self.multiplies.front().second();
        self.multiplies.pop_front();
    }
}
template <int COUNT>
void keep(float (&)[COUNT]) {}
template <int STEPS>
void keep(std::uint32_t (&)[STEPS][4]) {}

template <typename E, int N>
void multiply_shared(float (&d)[N / 2], std::uint64_t a, std::uint64_t b, bool first) {
    check_descriptor(a);
    check_descriptor(b);
    float* const to = d;
    start([=] {
        const unsigned thread = emulator::block->current % 128, lane = thread % 32;
        float rows[2][16];
        for (int h = 0; h < 2; ++h)
            for (int k = 0; k < 16; ++k) rows[h][k] = described<E>(a, static_cast<int>(thread / 32 * 16 + lane / 4) + 8 * h, k);
        for (int i = 0; i < N / 2; ++i) {
            const int column = i / 4 * 8 + static_cast<int>(lane % 4) * 2 + i % 2;
            float sum = first ? 0.0f : to[i];
            for (int k = 0; k < 16; ++k) sum += rows[i / 2 % 2][k] * described<E>(b, column, k);
            to[i] = sum;
        }
    });
}

template <typename E, int N>
void multiply_registers(float (&d)[N / 2], const std::uint32_t (&a)[4], std::uint64_t b) {
    check_descriptor(b);
    float* const to = d;
    const std::uint32_t* const from = a;
    start([=] {
        struct Fragment {
            std::uint32_t r[4];
        } mine;
        std::memcpy(mine.r, from, sizeof mine.r);
        const emulator::Exchange<Fragment> all(mine);
        const unsigned lane = emulator::block->current % 32;
        float rows[2][16];
        for (unsigned h = 0; h < 2; ++h)
            for (unsigned k = 0; k < 16; ++k) {  // column k is held by lane k / 2 % 4 of the row's four
                const float2 both = unpack<E>(all.of(lane / 4 * 4 + k / 2 % 4).r[k / 8 * 2 + h]);
                rows[h][k] = k % 2 ? both.y : both.x;
            }
        for (int i = 0; i < N / 2; ++i) {
            const int column = i / 4 * 8 + static_cast<int>(lane % 4) * 2 + i % 2;
            float sum = to[i];
            for (int k = 0; k < 16; ++k) sum += rows[i / 2 % 2][k] * described<E>(b, column, k);
            to[i] = sum;
        }
    });
}

inline float fast_exp2(float x) { return std::exp2(x); }
inline float fast_reciprocal(float x) { return 1.0f / x; }
inline float fast_rsqrt(float x) { return 1.0f / std::sqrt(x); }

}  // namespace growtas::cuda

// csrc/cuda/common/tensor_core.cuh on the CPU, by the fragment layouts that the PTX ISA gives: what a lane computes comes from the
// registers of the lanes that hold it, so an index that is wrong in a kernel is wrong here.
//
// An asynchronous copy is made as late as its wait allows on device 0 (a missing wait reads NaN), and at once on device 1 (a
// copy into a stage that is still read overwrites it). Misaligned addresses, copies outside shared memory and rows of ldmatrix
// that share a bank end the program.
#pragma once

namespace growtas::cuda {

inline unsigned char* dynamic_shared() { return emulator::shared; }

inline void finish_copy(const emulator::Copy& c) {
    std::memset(c.to, 0, static_cast<std::size_t>(c.bytes));
    std::memcpy(c.to, c.from, static_cast<std::size_t>(c.valid));
}

template <int BYTES>
void copy_async(void* to, const void* from, int valid) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "what cp.async takes");
    const auto target = static_cast<unsigned char*>(to);
    if (reinterpret_cast<std::uintptr_t>(to) % BYTES || reinterpret_cast<std::uintptr_t>(from) % BYTES)
        emulator::fail("an asynchronous copy is not aligned to its size");
    if (target < emulator::shared || target + BYTES > emulator::shared + sizeof emulator::shared)
        emulator::fail("an asynchronous copy goes outside shared memory");
    if (valid < 0 || valid > BYTES) emulator::fail("an asynchronous copy reads more than it writes");
    emulator::Fiber& self = emulator::block->fibers[emulator::block->current];
    const emulator::Copy copy{target, static_cast<const unsigned char*>(from), BYTES, valid, self.group};
    if (emulator::reversed)
        finish_copy(copy);
    else
        self.copies.push_back(copy);
}

inline void copy_commit() { ++emulator::block->fibers[emulator::block->current].group; }

template <int GROUPS>
void copy_wait() {
    emulator::Fiber& self = emulator::block->fibers[emulator::block->current];
    std::vector<emulator::Copy> later;
    for (const emulator::Copy& copy : self.copies) {
        if (copy.group + GROUPS < self.group)
            finish_copy(copy);
        else
            later.push_back(copy);
    }
    self.copies.swap(later);
}

template <bool TRANSPOSED>
void load_matrices(std::uint32_t (&r)[4], const void* row) {
    const emulator::Exchange<const void*> rows(row);
    const unsigned lane = emulator::block->current % 32, g = lane / 4, q = lane % 4;
    for (unsigned i = 0; i < 4; ++i) {
        unsigned banks = 0;
        for (unsigned j = 0; j < 8; ++j) {
            const auto address = reinterpret_cast<std::uintptr_t>(rows.of(8 * i + j));
            if (address % 16) emulator::fail("a row of ldmatrix is not aligned to 16 bytes");
            banks |= 1u << (address / 16 % 8);
        }
        if (banks != 0xff) emulator::fail("two rows of ldmatrix share a bank");
        const auto element = [&](unsigned j, unsigned c) -> std::uint32_t {
            return static_cast<const std::uint16_t*>(rows.of(8 * i + j))[c];
        };
        r[i] = TRANSPOSED ? element(2 * q, g) | element(2 * q + 1, g) << 16 : element(g, 2 * q) | element(g, 2 * q + 1) << 16;
    }
}

template <typename E>
std::uint32_t pack(float low, float high) {
    const E both[2] = {from_float<E>(low), from_float<E>(high)};
    std::uint32_t bits;
    std::memcpy(&bits, both, sizeof bits);
    return bits;
}

template <typename E>
float2 unpack(std::uint32_t bits) {
    E both[2];
    std::memcpy(both, &bits, sizeof bits);
    return {to_float(both[0]), to_float(both[1])};
}

inline std::uint32_t round_tf32(std::uint32_t bits) { return (bits + 0x1000u) & ~0x1fffu; }

// What a lane brings to a product, as numbers: [register][half].
struct Registers {
    float a[4][2], b[2][2];
};

template <typename E>
void multiply_add(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
    Registers mine;
    for (int i = 0; i < 4; ++i) {
        if constexpr (sizeof(E) == 2) {
            const float2 v = unpack<E>(a[i]), w = unpack<E>(b[i % 2]);
            mine.a[i][0] = v.x, mine.a[i][1] = v.y;
            mine.b[i % 2][0] = w.x, mine.b[i % 2][1] = w.y;
        } else {  // the tensor core drops the bits that tf32 has no room for
            mine.a[i][0] = __uint_as_float(a[i] & ~0x1fffu);
            mine.b[i % 2][0] = __uint_as_float(b[i % 2] & ~0x1fffu);
        }
    }
    const emulator::Exchange<Registers> all(mine);
    const unsigned lane = emulator::block->current % 32, g = lane / 4, q = lane % 4;
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned half = i / 2, column = 2 * q + i % 2;  // of C: row g + 8 * half
        for (unsigned k = 0; k < 2; ++k)                      // the lower and the upper half of the steps
            for (unsigned j = 0; j < 4; ++j)
                for (unsigned h = 0; h < (sizeof(E) == 2 ? 2 : 1); ++h)
                    c[i] += all.of(4 * g + j).a[2 * k + half][h] * all.of(4 * column + j).b[k][h];
    }
}

inline float4 load_shared_by_blocks(const float4* from) { return *from; }
inline float load_shared_by_blocks(const float* from) { return *from; }

}  // namespace growtas::cuda

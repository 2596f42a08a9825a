// The operands of a product: where their rows lie, how a tile of one reaches shared memory, and a lane's piece of it.
//
// A tile is copied as it lies in memory, in its own dtype; what is fp32 there and 16-bit in the product is converted on the
// way from shared memory to registers, so that every copy is asynchronous. Rows in shared memory are padded such that neither
// ldmatrix nor the reads of fp32 meet a bank twice.
#pragma once
#include "cuda/tensor_core.cuh"

namespace growtas::cuda {

// Division by a number that is known before the launch only: n / divisor for 0 <= n < 2^31.
struct Divisor {
    std::int32_t divisor;
    std::uint32_t magic, shift;

    Divisor() : Divisor(INT32_MAX) {}  // of which every quotient is 0
    explicit Divisor(std::int64_t by) : divisor(static_cast<std::int32_t>(by)), magic(0), shift(0) {
        if (divisor == 1) return;
        std::uint32_t log = 0;
        while ((std::int64_t{1} << log) < divisor) ++log;
        magic = static_cast<std::uint32_t>(((std::uint64_t{1} << (31 + log)) + divisor - 1) / divisor);
        shift = log - 1;
    }

    __device__ __forceinline__ int divide(int n) const {
        return magic ? static_cast<int>(__umulhi(static_cast<unsigned>(n), magic) >> shift) : n;
    }
};

// Element (r, c) of part p of head h lies at data + p * part_stride + h * head_stride + image * image_stride
// + token * row_stride + c, where image and token are r divided by the tokens of an image, if its rows have images.
struct Operand {
    void* data = nullptr;
    DType type = DType::kFloat32;
    std::int64_t row_stride = 0, image_stride = 0, part_stride = 0, head_stride = 0;
    int access = 0;  // bytes that one copy may move at once: 16, 8, 4 or 2, by the alignment of data and strides

    // The offset of panel or segment i: part i % 3 of head i / 3.
    __device__ __forceinline__ std::int64_t offset(int i) const { return i % 3 * part_stride + i / 3 * head_stride; }
};

// Elements from one row of a tile in shared memory to the next. DEEP: its rows run along the sum.
template <typename T, bool DEEP, int COLUMNS, bool FMA>
constexpr int kPitch = COLUMNS + (sizeof(T) == 2 || (DEEP && !FMA) ? 8 : 4);

// Copies ROWS x COLUMNS elements of `from`, at (row, column), to a tile; what lies from row_end or column_end on becomes zero.
// IMAGES: its rows have images. HEADS: its columns run over heads.
template <typename T, int ROWS, int COLUMNS, int PITCH, int THREADS, int BYTES, bool IMAGES, bool HEADS>
__device__ __forceinline__ void copy_tile_by(T* tile, const T* data, const Operand& from, int row, int column, int row_end,
                                             int column_end, const Divisor& tokens, const Divisor& head_columns) {
    constexpr int N = 16 / sizeof(T), CHUNKS = COLUMNS / N, COPIES = ROWS * CHUNKS / THREADS;
    static_assert(COPIES * THREADS == ROWS * CHUNKS, "every thread copies as much as the others");
#pragma unroll
    for (int i = 0; i < COPIES; ++i) {
        const int id = threadIdx.x + i * THREADS, r = row + id / CHUNKS, c = column + id % CHUNKS * N;
        T* const to = tile + id / CHUNKS * PITCH + id % CHUNKS * N;
        const int valid = r < row_end ? min(max(column_end - c, 0), N) : 0;
        std::int64_t offset = 0;  // of something that exists, where nothing is to be read
        if (valid) {
            if constexpr (IMAGES) {
                const int image = tokens.divide(r);
                offset = image * from.image_stride + (r - image * tokens.divisor) * from.row_stride;
            } else {
                offset = r * from.row_stride;
            }
            if constexpr (HEADS) {
                const int head = head_columns.divide(c);
                offset += head * from.head_stride + (c - head * head_columns.divisor);
            } else {
                offset += c;
            }
        }
        const T* const source = data + offset;
        if constexpr (BYTES == 16) {
            copy_async<16>(to, source, valid * static_cast<int>(sizeof(T)));
        } else if constexpr (BYTES >= 4) {
            constexpr int PER = BYTES / sizeof(T);
#pragma unroll
            for (int j = 0; j < N; j += PER) {
                const int some = min(max(valid - j, 0), PER);
                copy_async<BYTES>(to + j, some ? source + j : data, some * static_cast<int>(sizeof(T)));
            }
        } else {  // too fine for an asynchronous copy
#pragma unroll
            for (int j = 0; j < N; ++j) to[j] = j < valid ? source[j] : from_float<T>(0.0f);
        }
    }
}

template <typename T, int ROWS, int COLUMNS, int PITCH, int THREADS, bool IMAGES, bool HEADS>
__device__ __forceinline__ void copy_tile(T* tile, const T* data, const Operand& from, int row, int column, int row_end,
                                          int column_end, const Divisor& tokens, const Divisor& head_columns) {
#define GROWTAS_COPY(BYTES)                                                                                              \
    copy_tile_by<T, ROWS, COLUMNS, PITCH, THREADS, BYTES, IMAGES, HEADS>(tile, data, from, row, column, row_end,         \
                                                                         column_end, tokens, head_columns)
    if (from.access == 16)
        GROWTAS_COPY(16);
    else if (from.access == 8)
        GROWTAS_COPY(8);
    else if (sizeof(T) == 4 || from.access == 4)
        GROWTAS_COPY(4);
    else if constexpr (sizeof(T) == 2)
        GROWTAS_COPY(2);
#undef GROWTAS_COPY
}

// A lane's piece of 16 outer indices (rows of C for A, columns of C for B) and of one step of the sum: r[o][k] is what the
// fragments above hold for outer index g + 8o. Of a product in 16 bits r[o][k] packs steps 2q + 8k and 2q + 8k + 1 (16 steps);
// of one in tf32 it is step 2q + k (8 steps), unrounded: the order of a sum is free as long as A and B agree on it.
// DEEP: the tile's rows are outer indices and its columns steps; else the other way around.
// SCALED: each step is multiplied by scale[step], in fp32 and before the conversion.
template <typename E, typename T, bool DEEP, int PITCH, bool SCALED>
__device__ __forceinline__ void load_fragment(const T* tile, int outer, int step, const float* scale,
                                              std::uint32_t (&r)[2][2]) {
    const int lane = threadIdx.x % kWarp, g = lane / 4, q = lane % 4;
    if constexpr (sizeof(T) == 2) {
        const int first = lane / 16 * 8, second = lane / 8 % 2 * 8, j = lane % 8;  // matrix i = 2 * (o) + (k)
        std::uint32_t m[4];
        if constexpr (DEEP)
            load_matrices<false>(m, tile + (outer + first + j) * PITCH + step + second);
        else
            load_matrices<true>(m, tile + (step + second + j) * PITCH + outer + first);
#pragma unroll
        for (int o = 0; o < 2; ++o)
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                r[o][k] = m[2 * o + k];
                if constexpr (SCALED)
                    if (scale) {
                        const float2 both = unpack<E>(r[o][k]);
                        r[o][k] = pack<E>(both.x * scale[step + 2 * q + 8 * k], both.y * scale[step + 2 * q + 8 * k + 1]);
                    }
            }
    } else {
        constexpr int PAIRS = sizeof(E) == 2 ? 2 : 1;
#pragma unroll
        for (int o = 0; o < 2; ++o)
#pragma unroll
            for (int k = 0; k < PAIRS; ++k) {
                const int at = step + 2 * q + 8 * k, row = outer + g + 8 * o;
                float2 both;
                if constexpr (DEEP)
                    both = *reinterpret_cast<const float2*>(tile + row * PITCH + at);
                else
                    both = make_float2(tile[at * PITCH + row], tile[(at + 1) * PITCH + row]);
                if constexpr (SCALED)
                    if (scale) both = make_float2(both.x * scale[at], both.y * scale[at + 1]);
                if constexpr (sizeof(E) == 2) {
                    r[o][k] = pack<E>(both.x, both.y);
                } else {
                    r[o][0] = __float_as_uint(both.x);
                    r[o][1] = __float_as_uint(both.y);
                }
            }
    }
}

}  // namespace growtas::cuda

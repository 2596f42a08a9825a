// The operands of a GEMM: where their rows lie, the copy of a tile to shared memory, and a lane's fragment of it.
//
// A tile is copied as it lies in memory, in its own dtype; what is fp32 there and 16-bit in the GEMM is converted on the
// way from shared memory to registers, so that every copy is asynchronous. Rows in shared memory are padded such that neither
// ldmatrix nor the reads of fp32 meet a bank twice.
#pragma once
#include "cuda/common/tensor_core.cuh"

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
    bool regular = true;  // the rows of an image follow those of the image before: image_stride is tokens * row_stride
    int access = 0;       // bytes that one copy may move at once: 16, 8, 4 or 2, by the alignment of data and strides

    // The offset of panel or segment i: part i % 3 of head i / 3.
    __device__ __forceinline__ std::int64_t offset(int i) const { return i % 3 * part_stride + i / 3 * head_stride; }
};

// Elements from one row of a tile in shared memory to the next. DEEP: its rows run along the sum.
template <typename T, bool DEEP, int COLUMNS, bool FMA>
constexpr int kPitch = COLUMNS + (sizeof(T) == 2 || (DEEP && !FMA) ? 8 : 4);

// Copies tiles of ROWS x COLUMNS elements of an operand to shared memory, one along the sum after the other; what does not
// exist becomes zero. Each thread copies packs of 16 bytes, all in one column of packs, and knows where they start: the loop
// over the sum has few addresses left to compute. Offsets inside a tile fit 32 bits.
// DEEP: rows are outer indices and columns run along the sum; else the other way around. IMAGES: its rows have images.
// HEADS: its columns run over heads.
template <typename T, int ROWS, int COLUMNS, int PITCH, int THREADS, bool DEEP, bool IMAGES, bool HEADS>
struct TileCopy {
    static constexpr int N = 16 / sizeof(T), PACKS = COLUMNS / N, APART = THREADS / PACKS, COPIES = ROWS / APART;
    static_assert(APART * PACKS == THREADS && COPIES * APART == ROWS, "every thread copies as much as the others");

    const T* base;  // DEEP: of the tile's first row; else of row 0. The same in every thread
    int offset[DEEP && IMAGES ? COPIES : 1];  // DEEP: of this thread's packs from there, or of the first; else of its column
    int exist;  // DEEP: how many of this thread's rows do; else how many elements of its packs

    // The tile at outer index `outer` of those below outer_end, of a panel that starts at `start`.
    __device__ __forceinline__ TileCopy(const Operand& from, const T* start, int outer, int outer_end, const Divisor& tokens,
                                        const Divisor& head_columns) {
        const int row = threadIdx.x / PACKS, column = threadIdx.x % PACKS * N;
        if constexpr (DEEP) {
            const std::int64_t first = row_offset(from, outer, tokens);
            base = start + first;
            exist = 0;
            offset[0] = row * static_cast<int>(from.row_stride) + column;
#pragma unroll
            for (int i = 0; i < COPIES; ++i) {
                const int r = outer + row + i * APART;
                if constexpr (IMAGES)
                    offset[i] = r < outer_end ? static_cast<int>(row_offset(from, r, tokens) - first) + column : 0;
                exist += r < outer_end;
            }
        } else {
            const int c = outer + column;
            base = start;
            exist = min(max(outer_end - c, 0), N);
            offset[0] = exist ? c : 0;
            if constexpr (HEADS) {
                const int head = head_columns.divide(offset[0]);
                offset[0] += head * static_cast<int>(from.head_stride - head_columns.divisor);
            }
        }
    }

    __device__ __forceinline__ static std::int64_t row_offset(const Operand& from, int r, const Divisor& tokens) {
        if constexpr (!IMAGES) return r * from.row_stride;
        const int image = tokens.divide(r);
        return image * from.image_stride + (r - image * tokens.divisor) * from.row_stride;
    }

    // Steps [at, at + the tile's) of those below `end`, of a segment that starts `further` elements on.
    __device__ __forceinline__ void copy(T* tile, const Operand& from, std::int64_t further, int at, int end,
                                         const Divisor& tokens) const {
        if (from.access == 16)
            copy_by<16>(tile, from, further, at, end, tokens);
        else if (from.access == 8)
            copy_by<8>(tile, from, further, at, end, tokens);
        else if (sizeof(T) == 4 || from.access == 4)
            copy_by<4>(tile, from, further, at, end, tokens);
        else if constexpr (sizeof(T) == 2)
            copy_by<2>(tile, from, further, at, end, tokens);
    }

    template <int BYTES>
    __device__ __forceinline__ void copy_by(T* tile, const Operand& from, std::int64_t further, int at, int end,
                                            const Divisor& tokens) const {
        const int row = threadIdx.x / PACKS, column = threadIdx.x % PACKS * N;
        T* const to = tile + row * PITCH + column;
        if constexpr (DEEP) {
            const T* const source = base + (further + at);
            const int there = min(max(end - at - column, 0), N);
#pragma unroll
            for (int i = 0; i < COPIES; ++i)
                copy_pack<BYTES>(to + i * APART * PITCH,
                                 source + (IMAGES ? offset[IMAGES ? i : 0]
                                                  : offset[0] + i * APART * static_cast<int>(from.row_stride)),
                                 i < exist ? there : 0);
        } else if (IMAGES && !from.regular) {
#pragma unroll
            for (int i = 0; i < COPIES; ++i) {
                const int r = at + row + i * APART;
                const bool there = r < end;
                copy_pack<BYTES>(to + i * APART * PITCH, base + row_offset(from, there ? r : at, tokens) + offset[0],
                                 there ? exist : 0);
            }
        } else {
            const T* const source = base + (further + at * from.row_stride);
            const int stride = static_cast<int>(from.row_stride), first = row * stride + offset[0];
#pragma unroll
            for (int i = 0; i < COPIES; ++i)
                copy_pack<BYTES>(to + i * APART * PITCH, source + (first + i * APART * stride),
                                 at + row + i * APART < end ? exist : 0);
        }
    }

    // A pack of which `valid` elements exist; the source of none need not exist.
    template <int BYTES>
    __device__ __forceinline__ static void copy_pack(T* to, const T* from, int valid) {
        if constexpr (BYTES == 16) {
            copy_async<16>(to, from, valid * static_cast<int>(sizeof(T)));
        } else if constexpr (BYTES >= 4) {
            constexpr int PER = BYTES / sizeof(T);
#pragma unroll
            for (int j = 0; j < N; j += PER)
                copy_async<BYTES>(to + j, from + j, min(max(valid - j, 0), PER) * static_cast<int>(sizeof(T)));
        } else {  // too fine for an asynchronous copy; a few at a time, for these need registers
#pragma unroll 4
            for (int j = 0; j < N; ++j) to[j] = j < valid ? from[j] : from_float<T>(0.0f);
        }
    }
};

// A lane's fragment of 16 outer indices (rows of C for A, columns of C for B) and of one step of the sum. Its elements for
// outer index g + 8o: in 16 bits, steps 2q + 8k and 2q + 8k + 1 (of 16); in tf32 step 2q + k (of 8),
// unrounded: the order of a sum is free as long as A and B agree on it. It is r[o + 2k] of A and r[2o + k] of B, which is how
// mma.sync wants the registers: one fragment of A, two of B.
// DEEP: the tile's rows are outer indices and its columns steps; else the other way around.
// SCALED: each step is multiplied by scale[step], in fp32 and before the conversion.
template <typename E, typename T, bool IS_A, bool DEEP, int PITCH, bool SCALED>
__device__ __forceinline__ void load_fragment(const T* tile, int outer, int step, const float* scale,
                                              std::uint32_t (&r)[4]) {
    const int lane = threadIdx.x % kWarp, g = lane / 4, q = lane % 4;
    const auto index = [](int o, int k) { return IS_A ? o + 2 * k : 2 * o + k; };
    if constexpr (sizeof(T) == 2) {
        const int low = lane / 8 % 2 * 8, high = lane / 16 * 8, j = lane % 8;  // row j of matrix lane / 8
        const int o = outer + (IS_A ? low : high), k = step + (IS_A ? high : low);
        if constexpr (DEEP)
            load_matrices<false>(r, tile + (o + j) * PITCH + k);
        else
            load_matrices<true>(r, tile + (k + j) * PITCH + o);
        if constexpr (SCALED)
            if (scale) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float2 both = unpack<E>(r[i]);
                    const float* const s = scale + step + 2 * q + 8 * (IS_A ? i / 2 : i % 2);
                    r[i] = pack<E>(both.x * s[0], both.y * s[1]);
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
                    r[index(o, k)] = pack<E>(both.x, both.y);
                } else {
                    r[index(o, 0)] = __float_as_uint(both.x);
                    r[index(o, 1)] = __float_as_uint(both.y);
                }
            }
    }
}

}  // namespace growtas::cuda

// The GEMM behind every sliced linear and QKV, on tensor cores (mma.sync) or, in exact fp32, on the FMA units.
//
//     C[r, c] = sum over t of A[r, t] * B[t, c]        sums in fp32
// Forms    forward          A = x (rows, depth)       B = weight (cols, depth), transposed by how it is read
//          backward input   A = dy (rows, depth)      B = weight (depth, cols)
//          backward weight  A = dy (depth, rows)      B = x (depth, cols)
// A block owns a tile TILE x TILE of C (64 by four warps, 128 by eight) and walks t in steps of 32 through a ring of stages in
// shared memory, which cp.async fills ahead. Edges are masked in the copies: a slice ends in the middle of a shared weight.
// A, B     types in memory: E, in which the GEMM multiplies, or fp32, converted between shared memory and registers.
// Split-K  a backward weight sums over all rows of the batch, and its output is small: the rows are split over blocks, each
//          writes its fp32 sums to a workspace, and the last block of a tile (an integer counter tells) adds them in the order
//          of the splits. So the bits do not depend on the order in which blocks run. It also adds up dy, the bias gradient:
//          on tensor cores an mma with a column of ones.
#pragma once
#include "cuda/gemm/epilogue.cuh"

namespace growtas::cuda {

constexpr int kDepth = 32;
constexpr int kMaxShared = 96 * 1024;  // what every GPU since sm_80 gives a block, less the static part

template <Form FORM, typename E, typename A, typename B, bool FMA, int TILE>
struct Shape {
    static_assert(TILE == 128 || TILE == 64, "tiles are 128 or 64 wide");
    static constexpr bool kDeepA = FORM != Form::kBackwardWeight, kDeepB = FORM == Form::kForward;
    static constexpr int kThreads = TILE == 128 ? 256 : 128, kWarpsDown = 2, kWarpsAcross = kThreads / kWarp / kWarpsDown;
    static constexpr int kDown = TILE / kWarpsDown / 16, kAcross = TILE / kWarpsAcross / 8;  // pieces of a warp
    static constexpr int kFragments = kDown * kAcross;                                          // of accumulators of a thread
    // That the registers must allow. One more would spill where dy is converted, or its rows are added up.
    static constexpr bool kBusy = !kDeepA || sizeof(A) != sizeof(E);
    static constexpr int kBlocksPerSM = TILE == 64 ? (kBusy ? 3 : 4) : (kBusy ? 1 : 2);
    static constexpr int kRowsA = kDeepA ? TILE : kDepth, kColsA = kDeepA ? kDepth : TILE;
    static constexpr int kRowsB = kDeepB ? TILE : kDepth, kColsB = kDeepB ? kDepth : TILE;
    static constexpr int kPitchA = kPitch<A, kDeepA, kColsA, FMA>, kPitchB = kPitch<B, kDeepB, kColsB, FMA>;
    static constexpr int kBytesA = kRowsA * kPitchA * int{sizeof(A)}, kBytesB = kRowsB * kPitchB * int{sizeof(B)};
    static constexpr int kStageBytes = kBytesA + kBytesB + (kDeepA ? 0 : kDepth * int{sizeof(float)});
    static constexpr int kFit = kMaxShared / kStageBytes, kStages = kFit < 4 ? kFit : 4;
    static_assert(kStages >= 2, "copies run ahead of the mma");
    static constexpr int kTilePitch = TILE + 8;
    static constexpr int kTileBytes = TILE * kTilePitch * int{sizeof(float)};
    static constexpr int kSharedBytes = kStages * kStageBytes > kTileBytes ? kStages * kStageBytes : kTileBytes;
};

// The accumulators of a thread, in fragments of four: as mma.sync writes them (see tensor_core.cuh), or 8 rows of 4 columns on
// the FMA units.
template <class S, bool FMA>
struct Sums {
    float fragment[S::kFragments][4];
    float row[S::kDown][4];  // backward weight: sums of A over t

    __device__ __forceinline__ static int row_of(int i, int j) {
        const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
        if constexpr (FMA) return threadIdx.x / 16 * 8 + i;
        return (warp / S::kWarpsAcross * S::kDown + i / S::kAcross) * 16 + lane / 4 + j / 2 * 8;
    }
    __device__ __forceinline__ static int column_of(int i, int j) {
        const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
        if constexpr (FMA) return S::kDeepB ? j * 16 + threadIdx.x % 16 : threadIdx.x % 16 * 4 + j;
        return (warp % S::kWarpsAcross * S::kAcross + i % S::kAcross) * 8 + lane % 4 * 2 + j % 2;
    }
};

// One stage on the tensor cores.
template <class S, typename E, typename A, typename B>
__device__ __forceinline__ void multiply_stage(const A* a_tile, const B* b_tile, const float* scale, bool sum_rows,
                                               Sums<S, false>& sums) {
    constexpr int STEP = sizeof(E) == 2 ? 16 : 8;
    const int warp = threadIdx.x / kWarp;
    const int down = warp / S::kWarpsAcross * S::kDown * 16, across = warp % S::kWarpsAcross * S::kAcross * 8;
#pragma unroll(sizeof(B) == sizeof(E) ? kDepth / STEP : 1)  // fp32 loaded ahead would take too many registers
    for (int step = 0; step < kDepth; step += STEP) {
        std::uint32_t a[S::kDown][4];
#pragma unroll
        for (int m = 0; m < S::kDown; ++m) {
            load_fragment<E, A, true, S::kDeepA, S::kPitchA, !S::kDeepA>(a_tile, down + m * 16, step, scale, a[m]);
            if constexpr (sizeof(E) == 4) {
                if (!S::kDeepA && sum_rows) {
#pragma unroll
                    for (int o = 0; o < 2; ++o) sums.row[m][o] += __uint_as_float(a[m][o]) + __uint_as_float(a[m][o + 2]);
                }
#pragma unroll
                for (int i = 0; i < 4; ++i) a[m][i] = round_tf32(a[m][i]);
            } else if (!S::kDeepA && sum_rows) {
                const std::uint32_t ones[2] = {pack<E>(1.0f, 1.0f), pack<E>(1.0f, 1.0f)};
                multiply_add<E>(sums.row[m], a[m], ones);
            }
        }
#pragma unroll
        for (int n = 0; n < S::kAcross; n += 2) {
            std::uint32_t b[4];
            load_fragment<E, B, false, S::kDeepB, S::kPitchB, false>(b_tile, across + n * 8, step, nullptr, b);
            if constexpr (sizeof(E) == 4) {
#pragma unroll
                for (int i = 0; i < 4; ++i) b[i] = round_tf32(b[i]);
            }
#pragma unroll
            for (int m = 0; m < S::kDown; ++m)
#pragma unroll
                for (int o = 0; o < 2; ++o)
                    multiply_add<E>(sums.fragment[m * S::kAcross + n + o], a[m], {b[2 * o], b[2 * o + 1]});
        }
    }
}

// One stage on the FMA units, in exact fp32: four steps of 8 rows and 4 columns at a time.
template <class S>
__device__ __forceinline__ void multiply_stage(const float* a_tile, const float* b_tile, const float* scale, bool sum_rows,
                                               Sums<S, true>& sums) {
    const int down = threadIdx.x / 16 * 8, across = threadIdx.x % 16;
#pragma unroll 1
    for (int step = 0; step < kDepth; step += 4) {
        float a[8][4], b[4][4], piece[4];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            if constexpr (S::kDeepA) {
                load_pack(a_tile + (down + i) * S::kPitchA + step, a[i]);
            } else {
                load_pack(a_tile + (step + i / 2) * S::kPitchA + down + i % 2 * 4, piece);
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    a[i % 2 * 4 + j][i / 2] = scale ? piece[j] * scale[step + i / 2] : piece[j];
                    if (sum_rows) sums.row[i % 2][j] += a[i % 2 * 4 + j][i / 2];
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if constexpr (S::kDeepB) {
                load_pack(b_tile + (i * 16 + across) * S::kPitchB + step, b[i]);
            } else {
                load_pack(b_tile + (step + i) * S::kPitchB + across * 4, piece);
#pragma unroll
                for (int j = 0; j < 4; ++j) b[j][i] = piece[j];
            }
        }
#pragma unroll
        for (int t = 0; t < 4; ++t)
#pragma unroll
            for (int i = 0; i < 8; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) sums.fragment[i][j] += a[i][t] * b[j][t];
    }
}

// The sums of the tile at (row, column) of a panel over steps [begin, end) of every segment.
template <Form FORM, typename E, typename A, typename B, bool FMA, int TILE, class S>
__device__ __forceinline__ void accumulate(const Gemm& p, int panel, int row, int column, int begin, int end,
                                             bool sum_rows, Sums<S, FMA>& sums) {
    unsigned char* const memory = dynamic_shared();
    const A* const a_data = static_cast<const A*>(p.a.data) + (FORM == Form::kBackwardWeight ? p.a.offset(panel) : 0);
    const B* const b_data = static_cast<const B*>(p.b.data) + (FORM == Form::kForward ? p.b.offset(panel) : 0);
    const int steps = (end - begin + kDepth - 1) / kDepth * (FORM == Form::kBackwardInput ? p.segments : 1);
    const TileCopy<A, S::kRowsA, S::kColsA, S::kPitchA, S::kThreads, S::kDeepA, true, !S::kDeepA> copy_a(
        p.a, a_data, row, p.rows, p.tokens, p.head_columns);
    const TileCopy<B, S::kRowsB, S::kColsB, S::kPitchB, S::kThreads, S::kDeepB, false, false> copy_b(
        p.b, b_data, column, p.cols, p.tokens, p.head_columns);
    constexpr bool SEGMENTS = FORM == Form::kBackwardInput;  // elsewhere a sum is in one piece
    int segment = 0, at = begin;

    const auto copy = [&](int slot) {  // the next stage, into a slot of the ring
        if (SEGMENTS ? segment < p.segments : at < end) {
            unsigned char* const stage = memory + slot * S::kStageBytes;
            copy_a.copy(reinterpret_cast<A*>(stage), p.a, SEGMENTS ? p.a.offset(segment) : 0, at, end, p.tokens);
            copy_b.copy(reinterpret_cast<B*>(stage + S::kBytesA), p.b, SEGMENTS ? p.b.offset(segment) : 0, at, end, p.tokens);
            if (FORM == Form::kBackwardWeight && p.scale && threadIdx.x < kDepth) {
                const int t = at + threadIdx.x;
                copy_async<4>(stage + S::kBytesA + S::kBytesB + threadIdx.x * sizeof(float),
                              p.scale + (t < end ? p.tokens.divide(t) : 0), t < end ? 4 : 0);
            }
            at += kDepth;
            if (SEGMENTS && at >= end) {
                at = begin;
                ++segment;
            }
        }
        copy_commit();  // also where nothing is left: waiting counts groups
    };

#pragma unroll
    for (int slot = 0; slot < S::kStages - 1; ++slot) copy(slot);
    int slot = 0;
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
        copy_wait<S::kStages - 2>();
        __syncthreads();  // this stage is there, and every warp is done with the one that the next copy overwrites
        copy(slot == 0 ? S::kStages - 1 : slot - 1);
        const unsigned char* const stage = memory + slot * S::kStageBytes;
        const float* const scales =
            p.scale && FORM == Form::kBackwardWeight
                ? reinterpret_cast<const float*>(stage + S::kBytesA + S::kBytesB) : nullptr;
        const A* const a_tile = reinterpret_cast<const A*>(stage);
        const B* const b_tile = reinterpret_cast<const B*>(stage + S::kBytesA);
        if constexpr (FMA)
            multiply_stage<S>(a_tile, b_tile, scales, sum_rows, sums);
        else
            multiply_stage<S, E>(a_tile, b_tile, scales, sum_rows, sums);
        slot = slot + 1 == S::kStages ? 0 : slot + 1;
    }
    copy_wait<0>();
    __syncthreads();  // the ring may be used for something else
}

// The sums of A over t, of the tile's rows, from the threads that hold them to shared memory.
template <typename E, bool FMA, class S>
__device__ __forceinline__ void gather_row_sums(Sums<S, FMA>& sums, float* to) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    if constexpr (FMA) {
        if (threadIdx.x % 16 == 0) {
#pragma unroll
            for (int i = 0; i < 8; ++i) to[threadIdx.x / 16 * 8 + i] = sums.row[i / 4][i % 4];
        }
    } else {
        if (warp % S::kWarpsAcross) return;
#pragma unroll
        for (int m = 0; m < S::kDown; ++m)
#pragma unroll
            for (int o = 0; o < 2; ++o) {
                float sum = sums.row[m][sizeof(E) == 2 ? 2 * o : o];  // of ones: the same in every column
                if constexpr (sizeof(E) == 4) {
                    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
                    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
                }
                if (lane % 4 == 0) to[(warp / S::kWarpsAcross * S::kDown + m) * 16 + lane / 4 + 8 * o] = sum;
            }
    }
}

// Writes this split's sums to the workspace. True in the last block of the tile, which then holds the sums of all splits.
template <class S, bool FMA>
__device__ __forceinline__ bool add_splits(const Gemm& p, int tile, int tiles, int split, int row_panel, bool sum_rows,
                                           Sums<S, FMA>& sums, float* row_sums) {
    constexpr int TILE = S::kThreads == 256 ? 128 : 64;
    __shared__ bool last;
    float4* const mine = reinterpret_cast<float4*>(p.partial) +
                         (static_cast<std::int64_t>(tile) * p.splits + split) * (TILE * TILE / 4) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < S::kFragments; ++i)
        mine[i * S::kThreads] = make_float4(sums.fragment[i][0], sums.fragment[i][1], sums.fragment[i][2], sums.fragment[i][3]);
    float* const rows = p.row_partial + static_cast<std::int64_t>(row_panel) * p.splits * TILE + threadIdx.x;
    if (sum_rows && threadIdx.x < TILE) rows[split * TILE] = row_sums[threadIdx.x];
    __threadfence();
    __syncthreads();  // the whole block has written
    if (threadIdx.x == 0) {
        last = atomicAdd(p.counters + tile, 1u) == static_cast<unsigned>(p.splits - 1);
        if (last) p.counters[tile] = 0;  // for the next launch
    }
    __syncthreads();
    if (!last) return false;
    __threadfence();
    const float4* const first = reinterpret_cast<const float4*>(p.partial) +
                                static_cast<std::int64_t>(tile) * p.splits * (TILE * TILE / 4) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < S::kFragments; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sums.fragment[i][j] = 0.0f;
#pragma unroll 1
    for (int s = 0; s < p.splits; ++s)
#pragma unroll
        for (int i = 0; i < S::kFragments; ++i) {
            const float4 other = load_shared_by_blocks(first + s * (TILE * TILE / 4) + i * S::kThreads);
            sums.fragment[i][0] += other.x;
            sums.fragment[i][1] += other.y;
            sums.fragment[i][2] += other.z;
            sums.fragment[i][3] += other.w;
        }
    if (sum_rows && threadIdx.x < TILE) {
        float sum = 0.0f;
        for (int s = 0; s < p.splits; ++s) sum += load_shared_by_blocks(rows + s * TILE);
        row_sums[threadIdx.x] = sum;
    }
    return true;
}

// The work of one block.
template <Form FORM, typename E, typename A, typename B, bool FMA, int TILE>
__device__ __forceinline__ void gemm(const Gemm& p) {
    using S = Shape<FORM, E, A, B, FMA, TILE>;
    constexpr bool WEIGHT = FORM == Form::kBackwardWeight;
    __shared__ float vector[TILE];  // the bias of the tile's columns, or the gradient of the bias of its rows
    const int tiles = p.panels * p.row_tiles * p.col_tiles;
    int tile = blockIdx.x, split = 0;
    if constexpr (WEIGHT) {
        const int blocks = tiles * p.splits;
        if (tile >= blocks) return clear_outside(p, tile - blocks, gridDim.x - blocks, S::kThreads);
        split = tile / tiles;
        tile -= split * tiles;
    }
    // Neighbouring blocks share rows of A in a forward pass, and the batch's rows in a backward weight.
    const int across = tile % p.col_tiles, row_panel = tile / p.col_tiles;
    const int panel = WEIGHT ? row_panel / p.row_tiles : row_panel % p.panels;
    const int row = (WEIGHT ? row_panel % p.row_tiles : row_panel / p.panels) * TILE, column = across * TILE;
    const int begin = split * p.depth_per_split, end = WEIGHT ? min(begin + p.depth_per_split, p.depth) : p.depth;
    const bool sum_rows = WEIGHT && across == 0 && p.bias.data;

    if constexpr (!WEIGHT)
        if (threadIdx.x < TILE) {
            const int c = column + threadIdx.x;
            vector[threadIdx.x] = FORM == Form::kForward && p.bias.data && c < p.cols
                                      ? load_any(p.bias.data, p.bias.type, p.bias.offset(panel) + c * p.bias.row_stride)
                                      : 0.0f;
        }
    Sums<S, FMA> sums = {};
    accumulate<FORM, E, A, B, FMA, TILE, S>(p, panel, row, column, begin, end,
                                              sum_rows && (FMA || threadIdx.x / kWarp % S::kWarpsAcross == 0), sums);
    if constexpr (WEIGHT) {
        if (sum_rows) {
            gather_row_sums<E>(sums, vector);
            __syncthreads();
        }
        if (p.splits > 1 && !add_splits(p, tile, tiles, split, row_panel, sum_rows, sums, vector)) return;
        if (sum_rows && threadIdx.x < TILE && row + static_cast<int>(threadIdx.x) < p.rows) {
            const std::int64_t at = p.bias.offset(panel) + (row + threadIdx.x) * p.bias.row_stride;
            const float before = p.accumulate ? load_any(p.bias.data, p.bias.type, at) : 0.0f;
            store_any(p.bias.data, p.bias.type, at, before + vector[threadIdx.x]);
        }
    }
    float* const c = reinterpret_cast<float*>(dynamic_shared());
#pragma unroll
    for (int i = 0; i < S::kFragments; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) c[sums.row_of(i, j) * S::kTilePitch + sums.column_of(i, j)] = sums.fragment[i][j];
    __syncthreads();
#pragma unroll 1
    for (int id = threadIdx.x; id < TILE * TILE / 4; id += S::kThreads) {
        const int r = id / (TILE / 4), k = id % (TILE / 4) * 4;
        if (row + r >= p.rows || column + k >= p.cols) continue;
        float v[4];
        load_pack(c + r * S::kTilePitch + k, v);
        if constexpr (WEIGHT) {
            store_gradient(p, panel, row + r, column + k, v);
        } else {
            if constexpr (FORM == Form::kForward) {
#pragma unroll
                for (int i = 0; i < 4; ++i) v[i] += vector[k + i];
            }
            store_activation<FORM>(p, panel, row + r, column + k, v);
        }
    }
}

}  // namespace growtas::cuda

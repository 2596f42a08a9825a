// The MLP branch of a block in one launch: y = x + scale[image] * (gelu(z W1^T + b1) W2^T + b2), z = LayerNorm(x).
//
// Shapes   x, y (rows, width) fp32 or E, width at most 256 and a multiple of 8; W1 = w1[:hidden, :width] and W2 =
//          w2[:width, :hidden] of E (bf16, fp16), read in place: the sizes of their tensor maps are the slice's, so that TMA
//          brings zeros outside it, and the strides are the shared weight's. b1 (hidden), b2 (width), scale (images).
// Saved    mean and rstd (rows) fp32. The hidden layer never leaves the multiprocessor; a backward pass computes it again.
// Blocks   128 rows each, 64 for each of two consumer warpgroups; the third warpgroup gives its registers away, and one thread
//          of it loads weights, 64 hidden units at a time, through rings of stages. Where the rows left after whole waves of
//          blocks fit one wave of 64 rows each, these blocks have one consumer: all multiprocessors share the last wave.
// Consumer normalises its rows (two passes over registers) into swizzled tiles z. Then, for each 64 hidden units j:
//              S = z W1[j]^T (64 x 64, wgmma, both from shared memory), issued before O += A W2[j-1]^T (64 x N, A from
//              registers), so that the tensor cores work on O while S goes through GELU and becomes the next A.
//          It writes x + scale * (O + b2) from its registers with ordinary stores.
// Sums     run in one order whatever the grid: the same inputs give the same bits on every GPU.
#pragma once
#include <algorithm>
#include <atomic>

#include "cuda/common/hopper.cuh"
#include "cuda/mlp/mlp_forward.h"
#include "cuda/mlp/run_mlp.h"

namespace growtas::cuda {
namespace {

constexpr int kThreads = (kConsumers + 1) * kWarpgroup;
constexpr int kTileBytes = kRows * 2 * kTileColumns;
constexpr int kConsumerRegisters = 240, kProducerRegisters = 24;  // 2 * 128 * 240 + 128 * 24 of 65,536

// N: the width, rounded up to a size there is an instance for.
template <int N>
struct Layout {
    static constexpr int kTiles = (N + kTileColumns - 1) / kTileColumns;  // of z and of a step of W1
    static constexpr int kSteps = N / 16;                                 // of the sums over the width
    static constexpr int kStages = N <= 192 ? 3 : 2;
    static constexpr int kZ = kTiles * kTileBytes;                // of a consumer
    static constexpr int kW1 = kTiles * kTileBytes;               // (64, width) of a stage
    static constexpr int kW2 = N * 2 * kUnits;                    // (width, 64) of a stage
    static constexpr int kWeights = kConsumers * kZ;              // where W1's stages start, then W2's, then the rest
    static constexpr int kRest = kWeights + kStages * (kW1 + kW2);
    static constexpr int bytes(int units) {  // barriers; gamma, beta, b2, b1 up to whole steps; what aligning the start costs
        return kRest + 4 * kStages * 8 + (3 * N + (units + kUnits - 1) / kUnits * kUnits) * 4 + 1024;
    }
};

// The parameters as fp32 in shared memory, zero beyond the slice: scale and shift of the norm (N), b2 (N), b1 (whole steps).
struct Parameters {
    float *gamma, *beta, *b2, *b1;
};

// A ring of stages: `full` ends a phase when a load has arrived, `empty` when every warp of the consumers is done with it.
struct Ring {
    std::uint64_t *full, *empty;
    int stage = 0, parity = 0;

    template <int STAGES>
    __device__ __forceinline__ void next() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

// gelu(h) = max(h, 0) - |h| Phi(-|h|), with Phi(-a) = P(t) exp(-a^2 / 2) / 2, t = 1 / (1 + p a / sqrt 2): Abramowitz and
// Stegun 7.1.26, exact to 1.5e-7 of erf; 13 instructions where erff takes twice as many.
__device__ __forceinline__ float gelu(float h) {
    const float a = fabsf(h);
    const float t = fast_reciprocal(fmaf(a, 0.231641888f, 1.0f));
    float p = fmaf(t, 0.530702715f, -0.726576014f);
    p = fmaf(p, t, 0.710706871f);
    p = fmaf(p, t, -0.142248368f);
    p = fmaf(p, t, 0.127414796f);
    const float tail = p * t * fast_exp2(h * h * -0.721347520f);
    return fmaf(-a, tail, fmaxf(h, 0.0f));
}

__device__ __forceinline__ void stage(const Vector& from, int count, float* to, int padded, int thread, int threads) {
    for (int c = thread; c < padded; c += threads)
        to[c] = from.data && c < count ? load_any(from.data, from.type, c * from.stride) : 0.0f;
}

// LayerNorm of a warp's 16 rows from `first` on into z: a lane owns 8 columns, eight rows are in flight. What lies beyond the
// width or the rows becomes zero. `local` is the first row's place among the consumer's 64, a multiple of 8. The parameters
// are brought to shared memory on the way, by all `threads` of the consumers, of which this is number `thread`.
template <typename X, typename E, int N>
__device__ __forceinline__ void normalise(const Branch& p, const Parameters& shared, int steps, unsigned char* z,
                                          std::int64_t first, int local, int thread, int threads) {
    constexpr int kGroup = 8;
    const int lane = thread % kWarp, column = 8 * lane;
    const bool inside = column < p.width;
    const float inverse = 1.0f / static_cast<float>(p.width);
    float weight[8], bias[8];
#pragma unroll
    for (int group = 0; group < 16 / kGroup; ++group) {
        float v[kGroup][8], mu[kGroup], scale[kGroup];
#pragma unroll
        for (int r = 0; r < kGroup; ++r) {
            const std::int64_t row = first + group * kGroup + r;
#pragma unroll
            for (int i = 0; i < 8; ++i) v[r][i] = 0.0f;
            if (inside && row < p.rows) load_pack(static_cast<const X*>(p.x) + row * p.x_stride + column, v[r]);
        }
        if (group == 0) {
            stage(p.norm_weight, p.width, shared.gamma, N, thread, threads);
            stage(p.norm_bias, p.width, shared.beta, N, thread, threads);
            stage(p.b2, p.width, shared.b2, N, thread, threads);
            stage(p.b1, p.hidden, shared.b1, steps * kUnits, thread, threads);
            named_barrier(1, threads);
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                weight[i] = inside ? shared.gamma[column + i] : 0.0f;
                bias[i] = inside ? shared.beta[column + i] : 0.0f;
            }
        }
#pragma unroll
        for (int r = 0; r < kGroup; ++r) {
            float total = 0.0f;
#pragma unroll
            for (int i = 0; i < 8; ++i) total += v[r][i];
            mu[r] = warp_sum(total) * inverse;
        }
#pragma unroll
        for (int r = 0; r < kGroup; ++r) {
            float squares = 0.0f;
#pragma unroll
            for (int i = 0; i < 8; ++i) squares += inside ? (v[r][i] - mu[r]) * (v[r][i] - mu[r]) : 0.0f;
            const float variance = warp_sum(squares) * inverse;
            scale[r] = variance < INFINITY ? fast_rsqrt(variance + p.eps) : NAN;  // as in layer_norm.cu
        }
#pragma unroll
        for (int r = 0; r < kGroup; ++r) {
            const int place = local + group * kGroup + r;
            const std::int64_t row = first + group * kGroup + r;
            float out[8];
#pragma unroll
            for (int i = 0; i < 8; ++i) out[i] = (v[r][i] - mu[r]) * scale[r] * weight[i] + bias[i];
            if (row >= p.rows) {
#pragma unroll
                for (int i = 0; i < 8; ++i) out[i] = 0.0f;
            } else if (lane == 0) {
                p.mean[row] = mu[r];
                p.rstd[row] = scale[r];
            }
            const int tile = lane / 8, chunk = (lane % 8) ^ (place % 8);
            if (tile < Layout<N>::kTiles) {  // beyond the width: weight and bias are 0
                E* to = reinterpret_cast<E*>(z + tile * kTileBytes + place * 128 + chunk * 16);
                store_pack(to, out);
            }
        }
    }
}

// The epilogue: y = x + scale * (o + b2) for the rows and columns of this lane's fragment of O (64 x N).
template <typename X, int N>
__device__ __forceinline__ void store_output(const Branch& p, const float (&o)[N / 2], const float* b2, std::int64_t first,
                                       int lane) {
    const int q = lane % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const std::int64_t row = first + lane / 4 + 8 * half;
        if (row >= p.rows) continue;
        const float scale = p.scale ? p.scale[static_cast<int>(row) / p.tokens] : 1.0f;
        const X* x = static_cast<const X*>(p.x) + row * p.x_stride + 2 * q;
        X* y = static_cast<X*>(p.y) + row * p.y_stride + 2 * q;
#pragma unroll
        for (int i = 0; i < N / 8; ++i)
            if (8 * i < p.width) {
                float v[2];
                load_pack(x + 8 * i, v);
                const float2 bias = *reinterpret_cast<const float2*>(b2 + 8 * i + 2 * q);
                v[0] = fmaf(scale, o[4 * i + 2 * half] + bias.x, v[0]);
                v[1] = fmaf(scale, o[4 * i + 2 * half + 1] + bias.y, v[1]);
                store_pack(y + 8 * i, v);
            }
    }
}

// The thread that loads: W1 of a step before W2 of the one before, as they are used.
template <int N>
__device__ __forceinline__ void produce(const TensorMap* map1, const TensorMap* map2, unsigned char* w1, unsigned char* w2,
                                        Ring ring1, Ring ring2, int steps) {
    using L = Layout<N>;
    prefetch_map(map1);
    prefetch_map(map2);
    for (int j = 0; j <= steps; ++j) {
        if (j < steps) {
            barrier_wait(ring1.empty + ring1.stage, ring1.parity ^ 1);
            barrier_expect(ring1.full + ring1.stage, L::kW1);
#pragma unroll
            for (int t = 0; t < L::kTiles; ++t)
                load_box(w1 + ring1.stage * L::kW1 + t * kTileBytes, map1, ring1.full + ring1.stage, j * kUnits,
                         t * kTileColumns);
            ring1.next<L::kStages>();
        }
        if (j > 0) {
            barrier_wait(ring2.empty + ring2.stage, ring2.parity ^ 1);
            barrier_expect(ring2.full + ring2.stage, L::kW2);
            load_box(w2 + ring2.stage * L::kW2, map2, ring2.full + ring2.stage, 0, (j - 1) * kUnits);
            ring2.next<L::kStages>();
        }
    }
}

// S = z W1[j]^T, started.
template <typename E, int N>
__device__ __forceinline__ void start_hidden(float (&s)[32], std::uint64_t z, const unsigned char* w1) {
    const std::uint64_t w = describe(w1);
    mma_fence();
#pragma unroll
    for (int k = 0; k < Layout<N>::kSteps; ++k) {
        const std::uint64_t at = k / 4 * (kTileBytes / 16) + k % 4 * kStepOf16;
        multiply_shared<E, kUnits>(s, z + at, w + at, k == 0);
    }
    mma_commit();
}

// O += A W2[j]^T, started.
template <typename E, int N>
__device__ __forceinline__ void start_output(float (&o)[N / 2], const std::uint32_t (&a)[4][4], const unsigned char* w2) {
    const std::uint64_t w = describe(w2);
    mma_fence();
#pragma unroll
    for (int k = 0; k < kUnits / 16; ++k) multiply_registers<E, N>(o, a[k], w + k * kStepOf16);
    mma_commit();
}

// s becomes gelu(s + b1); b1 points to the step's first entry.
__device__ __forceinline__ void activate(float (&s)[32], const float* b1, int lane) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const float2 bias = *reinterpret_cast<const float2*>(b1 + 8 * i + 2 * (lane % 4));
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            s[4 * i + 2 * h] = gelu(s[4 * i + 2 * h] + bias.x);
            s[4 * i + 2 * h + 1] = gelu(s[4 * i + 2 * h + 1] + bias.y);
        }
    }
}

// The columns of S as A wants them: a fragment of 16 is two blocks of eight, and the registers lie in the same order.
template <typename E>
__device__ __forceinline__ void fragments(std::uint32_t (&a)[4][4], const float (&s)[32]) {
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
        for (int i = 0; i < 4; ++i) a[k][i] = pack<E>(s[8 * k + 2 * i], s[8 * k + 2 * i + 1]);
}

template <typename E, int N>
__device__ __forceinline__ void consume(const Branch& p, const Parameters& shared, unsigned char* z, const unsigned char* w1,
                                        const unsigned char* w2, Ring ring1, Ring ring2, int steps, std::int64_t first,
                                        int consumers) {
    using L = Layout<N>;
    const int thread = static_cast<int>(threadIdx.x), consumer = thread / kWarpgroup, lane = thread % kWarp;
    const int local = thread % kWarpgroup / kWarp * 16;  // the warp's first row of the consumer's
    z += consumer * L::kZ;
    first += consumer * kRows + local;
    if (p.wide)
        normalise<float, E, N>(p, shared, steps, z, first, local, thread, consumers * kWarpgroup);
    else
        normalise<E, E, N>(p, shared, steps, z, first, local, thread, consumers * kWarpgroup);
    stores_to_mma();
    named_barrier(2 + consumer, kWarpgroup);

    const std::uint64_t rows = describe(z);
    float s[32], o[N / 2];
    std::uint32_t a[4][4];
#pragma unroll
    for (int i = 0; i < N / 2; ++i) o[i] = 0.0f;

    barrier_wait(ring1.full, 0);
    start_hidden<E, N>(s, rows, w1);
    mma_wait<0>();
    keep(s);
    if (lane == 0) barrier_arrive(ring1.empty);
    ring1.next<L::kStages>();
    activate(s, shared.b1, lane);
    fragments<E>(a, s);
    barrier_wait(ring2.full, 0);
#pragma unroll 1
    for (int j = 1; j < steps; ++j) {
        barrier_wait(ring1.full + ring1.stage, ring1.parity);
        start_hidden<E, N>(s, rows, w1 + ring1.stage * L::kW1);
        start_output<E, N>(o, a, w2 + ring2.stage * L::kW2);
        mma_wait<1>();  // S is there
        keep(s);
        if (lane == 0) barrier_arrive(ring1.empty + ring1.stage);
        ring1.next<L::kStages>();
        activate(s, shared.b1 + j * kUnits, lane);
        std::uint64_t* const done = ring2.empty + ring2.stage;
        ring2.next<L::kStages>();
        // The next W2 is asked for here because ptxas would wait for O before GELU, were there no branch between them.
        barrier_wait(ring2.full + ring2.stage, ring2.parity);
        mma_wait<0>();  // O has been added to, and A may change
        keep(a);
        if (lane == 0) barrier_arrive(done);
        fragments<E>(a, s);
    }
    start_output<E, N>(o, a, w2 + ring2.stage * L::kW2);
    mma_wait<0>();
    keep(o);
    keep(a);
    if (p.wide)
        store_output<float, N>(p, o, shared.b2, first, lane);
    else
        store_output<E, N>(p, o, shared.b2, first, lane);
}

template <typename E, int N>
__global__ void __launch_bounds__(kThreads, 1)
    mlp_branch(const Branch p, const __grid_constant__ TensorMap map1, const __grid_constant__ TensorMap map2) {
    using L = Layout<N>;
    unsigned char* const shared = swizzled_shared();
    unsigned char* const w1 = shared + L::kWeights;
    unsigned char* const w2 = w1 + L::kStages * L::kW1;
    auto* const barriers = reinterpret_cast<std::uint64_t*>(shared + L::kRest);
    auto* const floats = reinterpret_cast<float*>(barriers + 4 * L::kStages);
    const Parameters parameters{floats, floats + N, floats + 2 * N, floats + 3 * N};
    const Ring ring1{barriers, barriers + L::kStages}, ring2{barriers + 2 * L::kStages, barriers + 3 * L::kStages};
    const int block = static_cast<int>(blockIdx.x), group = static_cast<int>(threadIdx.x) / kWarpgroup;
    const bool whole = block < p.whole_blocks;
    const int consumers = whole ? kConsumers : 1;
    const std::int64_t first = whole ? std::int64_t{block} * kConsumers * kRows
                                     : (std::int64_t{p.whole_blocks} * (kConsumers - 1) + block) * kRows;
    const int steps = (p.hidden + kUnits - 1) / kUnits;
    if (threadIdx.x == 0) {
        for (int s = 0; s < L::kStages; ++s) {
            barrier_init(ring1.full + s, 1);
            barrier_init(ring2.full + s, 1);
            barrier_init(ring1.empty + s, consumers * kWarpgroup / kWarp);
            barrier_init(ring2.empty + s, consumers * kWarpgroup / kWarp);
        }
        barrier_init_done();
    }
    __syncthreads();
    if (group == kConsumers) {
        fewer_registers<kProducerRegisters>();
        if (threadIdx.x == kConsumers * kWarpgroup) produce<N>(&map1, &map2, w1, w2, ring1, ring2, steps);
    } else {
        more_registers<kConsumerRegisters>();
        if (group < consumers) consume<E, N>(p, parameters, shared, w1, w2, ring1, ring2, steps, first, consumers);
    }
}

template <typename E, int N>
void start(const Branch& p, const TensorMap& map1, const TensorMap& map2, std::int64_t blocks, Place place) {
    static std::atomic<std::uint64_t> allowed{0};  // devices that know how much shared memory this kernel takes
    const std::uint64_t device = std::uint64_t{1} << (place.device % 64);
    if (!(allowed.load() & device)) {
        allow_shared(&mlp_branch<E, N>, Layout<N>::bytes(kMLPMaxHidden));
        allowed.fetch_or(device);
    }
    launch_with(Layout<N>::bytes(p.hidden), &mlp_branch<E, N>, blocks, kThreads, place.stream, p, map1, map2);
}

template <typename E>
void run(const Branch& p, const TensorMap& map1, const TensorMap& map2, std::int64_t blocks, Place place) {
    static_assert(Layout<192>::bytes(kMLPMaxHidden) <= kMostSharedBytes);
    static_assert(Layout<224>::bytes(kMLPMaxHidden) <= kMostSharedBytes);
    static_assert(Layout<240>::bytes(kMLPMaxHidden) <= kMostSharedBytes);
    static_assert(Layout<256>::bytes(kMLPMaxHidden) <= kMostSharedBytes);
    switch (instance(p.width)) {
        case 192: return start<E, 192>(p, map1, map2, blocks, place);
        case 224: return start<E, 224>(p, map1, map2, blocks, place);
        case 240: return start<E, 240>(p, map1, map2, blocks, place);
        default: return start<E, 256>(p, map1, map2, blocks, place);
    }
}

}  // namespace
}  // namespace growtas::cuda

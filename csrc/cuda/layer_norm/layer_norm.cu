// LayerNorm over the first `width` entries of shared parameters, forward and backward.
//
// Shapes   x, dy, y, dx (rows, width), each with its own row stride and dtype; weight, bias (full_width), of which the first
//          `width` are read; mean, rstd (rows) fp32; dweight, dbias (full_width); block_sums (blocks, 2, width) fp32.
// Forward  a warp per row, the row in registers: sum, centred sum of squares, scale and shift. Saved: mean and rstd.
// Backward a warp per row, with g = dy * weight and xhat = (x - mean) * rstd:
//              dx = rstd * (g - (sum g + xhat * sum g*xhat) / width)
//          and, in the same pass, dweight = sum of dy * xhat and dbias = sum of dy: in registers over a warp's rows, over the
//          warps of a block through shared memory, over the blocks in a second kernel. The order depends on the number of
//          rows alone and there are no atomics, so the gradients are bitwise repeatable. Where registers allow it, a warp's
//          next row is on its way while it works on one.
// Paths    rows of up to 1024 columns that can be read in packs of 16 bytes: instances per dtype and per columns of a lane
//          (8, 16, 24, 32), so that the whole row stays in registers. Everything else: kernels that read element by element
//          and know the dtypes at run time.
#include "cuda/layer_norm/layer_norm.h"

#include <algorithm>
#include <cmath>

#include "cuda/common/elements.cuh"

namespace growtas::cuda {
namespace {

constexpr int kWarpsPerBlock = 8;
constexpr int kThreads = kWarpsPerBlock * kWarp;
// How many blocks the registers of a multiprocessor must hold. Left open, ptxas guesses more and spills to reach them.
constexpr int kBlocksPerSM = 1;
constexpr std::int64_t kMaxBlocks = 264;  // of the backward pass: two on each of 132 multiprocessors
constexpr std::int64_t kMinRowsPerWarp = 4;
constexpr int kAddingWarps = 32;  // of a block that adds up the sums of blocks,
constexpr int kAddingAhead = 8;   // and how many of them each of its warps has on the way at a time
constexpr std::int64_t kMaxForwardBlocks = 1056;  // eight on each: all the warps they can hold

// Elements of a pack: 16 bytes of the wider dtype.
template <typename A, typename B>
constexpr int kPack = sizeof(A) == 2 && sizeof(B) == 2 ? 8 : 4;

// The first `width` entries of a parameter, as fp32 in shared memory: read once per block, whatever its dtype and stride.
__device__ __forceinline__ void stage(Vector from, int width, float* to) {
    for (int c = threadIdx.x; c < width; c += kThreads) to[c] = load_any(from.data, from.type, c * from.stride);
}

// NaN where the squares overflow: 1 / infinity would make the row a plausible 0, and the run that diverged would go on.
__device__ __forceinline__ float rstd_of(float variance, float eps) {
    return variance < INFINITY ? 1.0f / sqrtf(variance + eps) : NAN;
}

// x (rows, width) of X, y (rows, width) of Y; a lane owns COLUMNS columns: packs at (p * 32 + lane) * N.
template <typename X, typename Y, int COLUMNS>
__global__ void __launch_bounds__(kThreads, kBlocksPerSM)
    forward_packed(const X* __restrict__ x, std::int64_t x_stride, Vector weight, Vector bias, Y* __restrict__ y,
                   std::int64_t y_stride, float* __restrict__ mean, float* __restrict__ rstd, std::int64_t rows,
                   int width, float eps) {
    constexpr int N = kPack<X, Y>, PACKS = COLUMNS / N;
    const int lane = threadIdx.x % kWarp;
    const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
    const float inverse = 1.0f / static_cast<float>(width);
    alignas(16) __shared__ float w[COLUMNS * kWarp], b[COLUMNS * kWarp];
    stage(weight, width, w);
    stage(bias, width, b);
    __syncthreads();
    for (std::int64_t row = first; row < rows; row += static_cast<std::int64_t>(gridDim.x) * kWarpsPerBlock) {
        float v[PACKS][N];
        float total = 0.0f;
#pragma unroll
        for (int p = 0; p < PACKS; ++p) {
            const int column = (p * kWarp + lane) * N;
            if (column < width) {
                load_pack(x + row * x_stride + column, v[p]);
#pragma unroll
                for (int i = 0; i < N; ++i) total += v[p][i];
            }
        }
        const float mu = warp_sum(total) * inverse;
        float squares = 0.0f;
#pragma unroll
        for (int p = 0; p < PACKS; ++p)
            if ((p * kWarp + lane) * N < width) {
#pragma unroll
                for (int i = 0; i < N; ++i) squares += (v[p][i] - mu) * (v[p][i] - mu);
            }
        const float scale = rstd_of(warp_sum(squares) * inverse, eps);
#pragma unroll
        for (int p = 0; p < PACKS; ++p) {
            const int column = (p * kWarp + lane) * N;
            if (column < width) {
#pragma unroll
                for (int i = 0; i < N; ++i) v[p][i] = (v[p][i] - mu) * scale * w[column + i] + b[column + i];
                store_pack(y + row * y_stride + column, v[p]);
            }
        }
        if (lane == 0) {
            mean[row] = mu;
            rstd[row] = scale;
        }
    }
}

// Any dtypes, strides and width: the row is read three times, from the cache after the first.
__global__ void __launch_bounds__(kThreads, kBlocksPerSM)
    forward_any(Rows x, Vector weight, Vector bias, Rows y, float* __restrict__ mean, float* __restrict__ rstd,
                std::int64_t rows, int width, float eps) {
    const int lane = threadIdx.x % kWarp;
    const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
    const float inverse = 1.0f / static_cast<float>(width);
    for (std::int64_t row = first; row < rows; row += static_cast<std::int64_t>(gridDim.x) * kWarpsPerBlock) {
        float total = 0.0f;
        for (int c = lane; c < width; c += kWarp) total += load_any(x.data, x.type, row * x.stride + c);
        const float mu = warp_sum(total) * inverse;
        float squares = 0.0f;
        for (int c = lane; c < width; c += kWarp) {
            const float centred = load_any(x.data, x.type, row * x.stride + c) - mu;
            squares += centred * centred;
        }
        const float scale = rstd_of(warp_sum(squares) * inverse, eps);
        for (int c = lane; c < width; c += kWarp) {
            const float xhat = (load_any(x.data, x.type, row * x.stride + c) - mu) * scale;
            store_any(y.data, y.type, row * y.stride + c,
                      xhat * load_any(weight.data, weight.type, c * weight.stride) +
                          load_any(bias.data, bias.type, c * bias.stride));
        }
        if (lane == 0) {
            mean[row] = mu;
            rstd[row] = scale;
        }
    }
}

// dy (rows, width) of G, x and dx (rows, width) of X; block_sums (gridDim.x, 2, width): dweight and dbias of a block's rows.
template <typename X, typename G, int COLUMNS>
__global__ void __launch_bounds__(kThreads, COLUMNS <= 16 ? 2 : kBlocksPerSM)
    backward_packed(const G* __restrict__ dy, std::int64_t dy_stride, const X* __restrict__ x, std::int64_t x_stride,
                    Vector weight, const float* __restrict__ mean, const float* __restrict__ rstd, X* __restrict__ dx,
                    std::int64_t dx_stride, float* __restrict__ block_sums, std::int64_t rows, int width) {
    constexpr int N = kPack<X, G>, PACKS = COLUMNS / N;
    alignas(16) __shared__ float warp_sums[kWarpsPerBlock][COLUMNS * kWarp];
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kWarpsPerBlock + warp;
    const float inverse = 1.0f / static_cast<float>(width);
    float* w = warp_sums[0];  // until the rows are done
    stage(weight, width, w);
    __syncthreads();
    float dweight[PACKS][N], dbias[PACKS][N];
#pragma unroll
    for (int p = 0; p < PACKS; ++p)
#pragma unroll
        for (int i = 0; i < N; ++i) dweight[p][i] = dbias[p][i] = 0.0f;
    constexpr bool AHEAD = COLUMNS <= 16;  // wider rows need the registers
    const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kWarpsPerBlock;
    Pack<X, N> x_read[PACKS];
    Pack<G, N> dy_read[PACKS];
    float mean_read = 0.0f, rstd_read = 0.0f;
    const auto read = [&](std::int64_t row) {
        mean_read = mean[row];
        rstd_read = rstd[row];
#pragma unroll
        for (int p = 0; p < PACKS; ++p) {
            const int column = (p * kWarp + lane) * N;
            if (column < width) {
                x_read[p] = *reinterpret_cast<const Pack<X, N>*>(x + row * x_stride + column);
                dy_read[p] = *reinterpret_cast<const Pack<G, N>*>(dy + row * dy_stride + column);
            }
        }
    };
    if (AHEAD && first < rows) read(first);
    for (std::int64_t row = first; row < rows; row += step) {
        if (!AHEAD) read(row);
        const float mu = mean_read, scale = rstd_read;
        float xhat[PACKS][N], g[PACKS][N];
#pragma unroll
        for (int p = 0; p < PACKS; ++p)
            if ((p * kWarp + lane) * N < width) {
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    xhat[p][i] = (to_float(x_read[p].item[i]) - mu) * scale;
                    g[p][i] = to_float(dy_read[p].item[i]);
                }
            }
        if (AHEAD && row + step < rows) read(row + step);
        float sum_g = 0.0f, sum_gx = 0.0f;
#pragma unroll
        for (int p = 0; p < PACKS; ++p) {
            const int column = (p * kWarp + lane) * N;
            if (column < width) {
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    dweight[p][i] += g[p][i] * xhat[p][i];
                    dbias[p][i] += g[p][i];
                    g[p][i] *= w[column + i];
                    sum_g += g[p][i];
                    sum_gx += g[p][i] * xhat[p][i];
                }
            }
        }
        const float mean_g = warp_sum(sum_g) * inverse, mean_gx = warp_sum(sum_gx) * inverse;
#pragma unroll
        for (int p = 0; p < PACKS; ++p) {
            const int column = (p * kWarp + lane) * N;
            if (column < width) {
#pragma unroll
                for (int i = 0; i < N; ++i) g[p][i] = (g[p][i] - mean_g - xhat[p][i] * mean_gx) * scale;
                store_pack(dx + row * dx_stride + column, g[p]);
            }
        }
    }
    float* out = block_sums + static_cast<std::int64_t>(blockIdx.x) * 2 * width;
#pragma unroll
    for (int which = 0; which < 2; ++which) {
        __syncthreads();  // the weight, or the other gradient's sums, have been read
#pragma unroll
        for (int p = 0; p < PACKS; ++p)
#pragma unroll
            for (int i = 0; i < N; ++i)
                warp_sums[warp][(p * kWarp + lane) * N + i] = which == 0 ? dweight[p][i] : dbias[p][i];
        __syncthreads();
        for (int c = threadIdx.x; c < width; c += kThreads) {
            float total = 0.0f;
#pragma unroll
            for (int k = 0; k < kWarpsPerBlock; ++k) total += warp_sums[k][c];
            out[which * width + c] = total;
        }
    }
}

// dx for any dtypes, strides and width.
__global__ void __launch_bounds__(kThreads, kBlocksPerSM)
    backward_any(Rows dy, Rows x, Vector weight, const float* __restrict__ mean, const float* __restrict__ rstd, Rows dx,
                 std::int64_t rows, int width) {
    const int lane = threadIdx.x % kWarp;
    const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
    const float inverse = 1.0f / static_cast<float>(width);
    for (std::int64_t row = first; row < rows; row += static_cast<std::int64_t>(gridDim.x) * kWarpsPerBlock) {
        const float mu = mean[row], scale = rstd[row];
        float sum_g = 0.0f, sum_gx = 0.0f;
        for (int c = lane; c < width; c += kWarp) {
            const float g = load_any(dy.data, dy.type, row * dy.stride + c) *
                            load_any(weight.data, weight.type, c * weight.stride);
            sum_g += g;
            sum_gx += g * (load_any(x.data, x.type, row * x.stride + c) - mu) * scale;
        }
        const float mean_g = warp_sum(sum_g) * inverse, mean_gx = warp_sum(sum_gx) * inverse;
        for (int c = lane; c < width; c += kWarp) {
            const float g = load_any(dy.data, dy.type, row * dy.stride + c) *
                            load_any(weight.data, weight.type, c * weight.stride);
            const float xhat = (load_any(x.data, x.type, row * x.stride + c) - mu) * scale;
            store_any(dx.data, dx.type, row * dx.stride + c, (g - mean_g - xhat * mean_gx) * scale);
        }
    }
}

// block_sums (gridDim.x, 2, width) for any dtypes, strides and width: a thread per column, every gridDim.x-th row.
__global__ void __launch_bounds__(kThreads, kBlocksPerSM)
    sum_columns(Rows dy, Rows x, const float* __restrict__ mean, const float* __restrict__ rstd,
                float* __restrict__ block_sums, std::int64_t rows, int width) {
    float* out = block_sums + static_cast<std::int64_t>(blockIdx.x) * 2 * width;
    for (int c = threadIdx.x; c < width; c += kThreads) {
        float dweight = 0.0f, dbias = 0.0f;
        for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
            const float d = load_any(dy.data, dy.type, row * dy.stride + c);
            dweight += d * (load_any(x.data, x.type, row * x.stride + c) - mean[row]) * rstd[row];
            dbias += d;
        }
        out[c] = dweight;
        out[width + c] = dbias;
    }
}

// dweight and dbias (full_width) from block_sums (blocks, 2, width): a block adds 32 columns of one of them, a warp of it every
// 32nd row of sums. Even blocks add dweight, odd ones dbias.
__global__ void __launch_bounds__(kAddingWarps* kWarp, 1)
    add_blocks(const float* __restrict__ block_sums, int blocks, int width, Vector dweight, Vector dbias,
               std::int64_t full_width) {
    __shared__ float warp_sums[kAddingWarps][kWarp + 1];
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, which = blockIdx.x % 2;
    const std::int64_t first = static_cast<std::int64_t>(blockIdx.x / 2) * kWarp;
    float total = 0.0f;
    if (first + lane < width) {
        const float* from = block_sums + which * width + first + lane;
        for (int b = warp; b < blocks; b += kAddingWarps * kAddingAhead) {
            float sums[kAddingAhead];
#pragma unroll
            for (int i = 0; i < kAddingAhead; ++i) {
                const int at = b + i * kAddingWarps;
                sums[i] = at < blocks ? from[static_cast<std::int64_t>(at) * 2 * width] : 0.0f;
            }
#pragma unroll
            for (int i = 0; i < kAddingAhead; ++i) total += sums[i];
        }
    }
    warp_sums[warp][lane] = total;
    __syncthreads();
    total = warp_sum(warp_sums[lane][warp]);  // of column `warp`: one value of each warp
    if (lane == 0 && first + warp < full_width) {
        const Vector to = which == 0 ? dweight : dbias;
        store_any(to.data, to.type, first + warp, total);
    }
}

bool packs(const Rows& m, int elements) {
    const std::int64_t size = m.type == DType::kFloat32 ? 4 : 2, bytes = std::min<std::int64_t>(16, size * elements);
    return reinterpret_cast<std::uintptr_t>(m.data) % bytes == 0 && m.stride % elements == 0;
}

// Calls f.run<X, O, COLUMNS>() where there is such an instance, and says whether there was. X is the dtype of the rows that
// are normalised, O the one of y and dy: the same, or half precision out of fp32 as under autocast.
template <int COLUMNS, typename F>
bool with_types(DType x, DType other, const F& f) {
    switch (static_cast<int>(x) * 3 + static_cast<int>(other)) {
        case 0: f.template run<float, float, COLUMNS>(); return true;
        case 1: f.template run<float, __nv_bfloat16, COLUMNS>(); return true;
        case 2: f.template run<float, __half, COLUMNS>(); return true;
        case 4: f.template run<__nv_bfloat16, __nv_bfloat16, COLUMNS>(); return true;
        case 8: f.template run<__half, __half, COLUMNS>(); return true;
        default: return false;
    }
}

template <typename F>
bool packed(const Rows& x, const Rows& other, const Rows& out, std::int64_t width, const F& f) {
    const int elements = x.type != DType::kFloat32 && other.type != DType::kFloat32 ? 8 : 4;
    if (width % elements || !packs(x, elements) || !packs(other, elements) || !packs(out, elements)) return false;
    if (width <= 8 * kWarp) return with_types<8>(x.type, other.type, f);
    if (width <= 16 * kWarp) return with_types<16>(x.type, other.type, f);
    if (width <= 24 * kWarp) return with_types<24>(x.type, other.type, f);
    if (width <= 32 * kWarp) return with_types<32>(x.type, other.type, f);
    return false;
}

struct Forward {
    Rows x, y;
    Vector weight, bias;
    float *mean, *rstd;
    std::int64_t rows, width, blocks;
    float eps;
    void* stream;

    template <typename X, typename Y, int COLUMNS>
    void run() const {
        launch(&forward_packed<X, Y, COLUMNS>, blocks, kThreads, stream, static_cast<const X*>(x.data), x.stride, weight,
               bias, static_cast<Y*>(y.data), y.stride, mean, rstd, rows, width, eps);
    }
};

struct Backward {
    Rows dy, x, dx;
    Vector weight;
    const float *mean, *rstd;
    float* block_sums;
    std::int64_t rows, width, blocks;
    void* stream;

    template <typename X, typename G, int COLUMNS>
    void run() const {
        launch(&backward_packed<X, G, COLUMNS>, blocks, kThreads, stream, static_cast<const G*>(dy.data), dy.stride,
               static_cast<const X*>(x.data), x.stride, weight, mean, rstd, static_cast<X*>(dx.data), dx.stride,
               block_sums, rows, width);
    }
};

}  // namespace

void layer_norm_forward(Rows x, Vector weight, Vector bias, Rows y, float* mean, float* rstd, std::int64_t rows,
                        std::int64_t width, float eps, Place place) {
    if (rows == 0) return;
    check(cudaSetDevice(place.device), "set device");
    const std::int64_t blocks = std::min(kMaxForwardBlocks, (rows + kWarpsPerBlock - 1) / kWarpsPerBlock);
    const Forward call{x, y, weight, bias, mean, rstd, rows, width, blocks, eps, place.stream};
    if (!packed(x, y, y, width, call))
        launch(&forward_any, blocks, kThreads, place.stream, x, weight, bias, y, mean, rstd, rows, width, eps);
}

std::int64_t layer_norm_blocks(std::int64_t rows) {
    const std::int64_t rows_per_block = kWarpsPerBlock * kMinRowsPerWarp;
    return std::min(kMaxBlocks, (rows + rows_per_block - 1) / rows_per_block);
}

void layer_norm_backward(Rows dy, Rows x, Vector weight, const float* mean, const float* rstd, Rows dx, Vector dweight,
                         Vector dbias, float* block_sums, std::int64_t rows, std::int64_t width,
                         std::int64_t full_width, Place place) {
    check(cudaSetDevice(place.device), "set device");
    const std::int64_t blocks = layer_norm_blocks(rows);
    const Backward call{dy, x, dx, weight, mean, rstd, block_sums, rows, width, blocks, place.stream};
    if (blocks && !packed(x, dy, dx, width, call)) {
        launch(&backward_any, blocks, kThreads, place.stream, dy, x, weight, mean, rstd, dx, rows, width);
        launch(&sum_columns, blocks, kThreads, place.stream, dy, x, mean, rstd, block_sums, rows, width);
    }
    launch(&add_blocks, (full_width + kWarp - 1) / kWarp * 2, kAddingWarps * kWarp, place.stream, block_sums,
           static_cast<int>(blocks), static_cast<int>(width), dweight, dbias, full_width);
}

}  // namespace growtas::cuda

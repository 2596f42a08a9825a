// LayerNorm over the first `width` entries of shared parameters, forward and backward.
//
// Shapes   x, dy, y, dx (rows, width), each with its own row stride and dtype; weight, bias (full_width), of which the first
//          `width` are read; mean, rstd (rows) fp32; dweight, dbias (full_width).
// Forward  one row at a time: convert to fp32 in a workspace row, sum, centred sum of squares (two passes over L1, so no
//          cancellation), scale and shift. Saved: mean and rstd. Everything else is recomputed. A row whose squares overflow
//          becomes NaN: 1 / infinity would make it a plausible 0, and the run that diverged would go on.
// Again    y once more from x, mean and rstd: what a backward pass needs where y was not saved.
// Backward with g = dy * weight and xhat = (x - mean) * rstd:  dx = rstd * (g - (sum g + xhat * sum g*xhat) / width), plus the
//          gradient of a residual stream around the norm where one is given,
//          dweight = sum over rows of dy * xhat, dbias = sum over rows of dy.
// Order    the rows are cut into blocks by their number alone. Each block sums its rows in order, and the blocks are added in
//          order, so the gradients are bitwise the same for any number of threads.
// Threads  the parallel region only calls the target_clones leaves: OpenMP moves the body of a region into a function of its
//          own, which would be compiled for the baseline.
#include "cpu/layer_norm/layer_norm.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>

#include "cpu/common/simd.h"
#include "cpu/common/workspace.h"
#include "cpu/layer_norm/narrow_rows.h"

namespace growtas::cpu {
namespace {

constexpr std::int64_t kMaxBlocks = 64;     // bounds the partial sums: kMaxBlocks * 2 * width floats
constexpr std::int64_t kMinBlockRows = 16;  // below this the sums of the blocks cost more than the rows

std::int64_t block_rows(std::int64_t rows) {
    return std::max(kMinBlockRows, (rows + kMaxBlocks - 1) / kMaxBlocks);
}

template <typename T>
GROWTAS_INLINE T* row_of(Rows m, std::int64_t row) {
    return static_cast<T*>(m.data) + row * m.stride;
}

// One lane of ones for every column of the vector that starts at `column`, zeros beyond the row's end.
GROWTAS_INLINE Lanes inside(std::int64_t column, std::int64_t width) {
    Lanes ones{};
    for (std::int64_t i = 0; i < kLanes; ++i) ones[i] = column + i < width ? 1.0f : 0.0f;
    return ones;
}

// A strided vector as fp32, zeros up to the padded width.
void gather(Vector from, std::int64_t width, float* to) {
    dispatch(from.type, [&](auto t) {
        using T = decltype(t);
        for (std::int64_t i = 0; i < width; ++i) to[i] = load(static_cast<const T*>(from.data) + i * from.stride, 1)[0];
    });
    std::fill(to + width, to + padded(width), 0.0f);
}

// Calls f(column, count) for each vector of a row; count is a constant 16 for all but the last, which may be shorter.
template <typename F>
GROWTAS_INLINE void each_vector(std::int64_t width, F f) {
    const std::int64_t whole = width / kLanes * kLanes;
    for (std::int64_t c = 0; c < whole; c += kLanes) f(c, kLanes);
    if (whole < width) f(whole, width - whole);
}

// A running sum of sixteen lanes in two halves. One Lanes carried from turn to turn would pass through memory on AVX2, where
// compilers cut it in two each time it is used; a half is one register. The lanes and their order are those of Lanes.
struct RunningSum {
    typedef float Half __attribute__((vector_size(32)));
    Half low{}, high{};

    static GROWTAS_INLINE Half half(const float* from) {
        Half h;
        std::memcpy(&h, from, sizeof h);
        return h;
    }
    GROWTAS_INLINE float total() const {
        typedef float Four __attribute__((vector_size(16)));
        const Half e = low + high;
        Four f[2];
        std::memcpy(f, &e, sizeof f);
        f[0] += f[1];
        return (f[0][0] + f[0][2]) + (f[0][1] + f[0][3]);
    }
};

template <typename X, typename Y>
GROWTAS_INLINE void forward_rows(Rows x, const float* weight, const float* bias, Rows y, float* mean, float* rstd,
                                 std::int64_t begin, std::int64_t end, std::int64_t width, float eps, float* workspace) {
    const float inverse = 1.0f / static_cast<float>(width);
    const std::int64_t pad = padded(width);
    alignas(64) float last[kLanes];  // ones for the columns of the last vector, zeros beyond
    store(last, inside(pad - kLanes, width));
    const auto low_last = RunningSum::half(last), high_last = RunningSum::half(last + 8);
    for (std::int64_t r = begin; r < end; ++r) {
        const X* from = row_of<X>(x, r);
        each_vector(width, [&](std::int64_t c, std::int64_t count) GROWTAS_ALWAYS { store(workspace + c, load(from + c, count)); });
        RunningSum sums, squares;
        for (std::int64_t c = 0; c < pad; c += kLanes) {
            sums.low += RunningSum::half(workspace + c);
            sums.high += RunningSum::half(workspace + c + 8);
        }
        const float mu = sums.total() * inverse;
        for (std::int64_t c = 0; c < pad; c += kLanes) {
            auto low = RunningSum::half(workspace + c) - mu, high = RunningSum::half(workspace + c + 8) - mu;
            if (c + kLanes == pad) low *= low_last, high *= high_last;  // the padding is not 0 once the mean is taken from it
            squares.low += low * low;
            squares.high += high * high;
        }
        const float variance = squares.total() * inverse;
        const float scale = variance < INFINITY ? 1.0f / std::sqrt(variance + eps) : NAN;
        Y* to = row_of<Y>(y, r);
        each_vector(width, [&](std::int64_t c, std::int64_t count) GROWTAS_ALWAYS {
            const Lanes xhat = (load(workspace + c) - mu) * scale;
            store(to + c, xhat * load(weight + c) + load(bias + c), count);
        });
        mean[r] = mu;
        rstd[r] = scale;
    }
}

template <typename X, typename Y>
GROWTAS_INLINE void again_rows(Rows x, const float* weight, const float* bias, Rows y, const float* mean,
                               const float* rstd, std::int64_t begin, std::int64_t end, std::int64_t width) {
    for (std::int64_t r = begin; r < end; ++r) {
        const X* from = row_of<X>(x, r);
        Y* to = row_of<Y>(y, r);
        each_vector(width, [&](std::int64_t c, std::int64_t count) GROWTAS_ALWAYS {
            const Lanes xhat = (load(from + c, count) - mean[r]) * rstd[r];
            store(to + c, xhat * load(weight + c) + load(bias + c), count);
        });
    }
}

// sums: dweight then dbias of this block, padded(width) floats each; workspace: xhat then g, likewise.
template <typename G, typename X>
GROWTAS_INLINE void backward_rows(Rows dy, Rows x, const float* weight, const float* mean, const float* rstd,
                                  Rows residual, Rows dx, std::int64_t begin, std::int64_t end, std::int64_t width,
                                  float* sums, float* workspace) {
    const std::int64_t pad = padded(width);
    const float inverse = 1.0f / static_cast<float>(width);
    float *dweight = sums, *dbias = sums + pad, *normal = workspace, *scaled = workspace + pad;
    for (std::int64_t r = begin; r < end; ++r) {
        const G* gradient = row_of<G>(dy, r);
        const X* from = row_of<X>(x, r);
        const X* around = residual.data ? row_of<X>(residual, r) : nullptr;
        X* to = row_of<X>(dx, r);
        const float mu = mean[r], scale = rstd[r];
        each_vector(width, [&](std::int64_t c, std::int64_t count) GROWTAS_ALWAYS {
            const Lanes d = load(gradient + c, count);  // 0 beyond the row, so every product there is 0 too
            const Lanes xhat = (load(from + c, count) - mu) * scale;
            const Lanes g = d * load(weight + c);
            store(dweight + c, load(dweight + c) + d * xhat);
            store(dbias + c, load(dbias + c) + d);
            store(normal + c, xhat);
            store(scaled + c, g);
        });
        RunningSum sum_g, sum_gx;
        for (std::int64_t c = 0; c < pad; c += kLanes) {
            const auto low = RunningSum::half(scaled + c), high = RunningSum::half(scaled + c + 8);
            sum_g.low += low, sum_g.high += high;
            sum_gx.low += low * RunningSum::half(normal + c), sum_gx.high += high * RunningSum::half(normal + c + 8);
        }
        const float mean_g = sum_g.total() * inverse, mean_gx = sum_gx.total() * inverse;
        each_vector(width, [&](std::int64_t c, std::int64_t count) GROWTAS_ALWAYS {
            Lanes d = (load(scaled + c) - mean_g - load(normal + c) * mean_gx) * scale;
            if (around) d += load(around + c, count);
            store(to + c, d, count);
        });
    }
}

GROWTAS_LEAF void forward_leaf(Rows x, const float* weight, const float* bias, Rows y, float* mean, float* rstd,
                               std::int64_t begin, std::int64_t end, std::int64_t width, float eps, float* workspace) {
    switch (static_cast<int>(x.type) * 3 + static_cast<int>(y.type)) {
#define GROWTAS_CASE(code, X, Y) \
    case code: forward_rows<X, Y>(x, weight, bias, y, mean, rstd, begin, end, width, eps, workspace); return;
        GROWTAS_CASE(0, float, float)
        GROWTAS_CASE(1, float, BFloat16)
        GROWTAS_CASE(2, float, Float16)
        GROWTAS_CASE(3, BFloat16, float)
        GROWTAS_CASE(4, BFloat16, BFloat16)
        GROWTAS_CASE(5, BFloat16, Float16)
        GROWTAS_CASE(6, Float16, float)
        GROWTAS_CASE(7, Float16, BFloat16)
        GROWTAS_CASE(8, Float16, Float16)
#undef GROWTAS_CASE
    }
}

GROWTAS_LEAF void again_leaf(Rows x, const float* weight, const float* bias, Rows y, const float* mean, const float* rstd,
                             std::int64_t begin, std::int64_t end, std::int64_t width) {
    dispatch(x.type, [&](auto from) GROWTAS_ALWAYS {
        dispatch(y.type, [&](auto to) GROWTAS_ALWAYS {
            again_rows<decltype(from), decltype(to)>(x, weight, bias, y, mean, rstd, begin, end, width);
        });
    });
}

GROWTAS_LEAF void backward_leaf(Rows dy, Rows x, const float* weight, const float* mean, const float* rstd,
                                Rows residual, Rows dx, std::int64_t begin, std::int64_t end, std::int64_t width,
                                float* sums, float* workspace) {
    switch (static_cast<int>(dy.type) * 3 + static_cast<int>(x.type)) {
#define GROWTAS_CASE(code, G, X) \
    case code: backward_rows<G, X>(dy, x, weight, mean, rstd, residual, dx, begin, end, width, sums, workspace); return;
        GROWTAS_CASE(0, float, float)
        GROWTAS_CASE(1, float, BFloat16)
        GROWTAS_CASE(2, float, Float16)
        GROWTAS_CASE(3, BFloat16, float)
        GROWTAS_CASE(4, BFloat16, BFloat16)
        GROWTAS_CASE(5, BFloat16, Float16)
        GROWTAS_CASE(6, Float16, float)
        GROWTAS_CASE(7, Float16, BFloat16)
        GROWTAS_CASE(8, Float16, Float16)
#undef GROWTAS_CASE
    }
}

// Adds the blocks' sums in order and writes the full-size gradient once: zero from `width` on.
GROWTAS_LEAF void add_blocks(const float* sums, std::int64_t blocks, std::int64_t step, std::int64_t width, Vector out,
                             std::int64_t full_width) {
    for (std::int64_t c = 0; c < full_width; c += kLanes) {
        Lanes total{};
        if (c < width)
            for (std::int64_t b = 0; b < blocks; ++b) total += load(sums + b * step + c);
        const std::int64_t count = std::min(kLanes, full_width - c);
        switch (out.type) {
            case DType::kFloat32: store(static_cast<float*>(out.data) + c, total, count); break;
            case DType::kBFloat16: store(static_cast<BFloat16*>(out.data) + c, total, count); break;
            case DType::kFloat16: store(static_cast<Float16*>(out.data) + c, total, count); break;
        }
    }
}

thread_local Workspace row_workspace;     // of each thread of the team: the row at hand
thread_local Workspace shared_workspace;  // of the calling thread, read and written by its team: parameters, block sums

bool all_fp32(std::initializer_list<DType> types) {
    return std::all_of(types.begin(), types.end(), [](DType type) { return type == DType::kFloat32; });
}

float* floats(Rows m) { return static_cast<float*>(m.data); }

// A block for narrow_rows.cpp; a pass after the first reads mean and rstd.
NarrowRows narrow(Rows x, const float* weight, const float* bias, Rows y, const float* mean, const float* rstd,
                  std::int64_t begin, std::int64_t end, std::int64_t width, float eps) {
    return {begin, end, width, floats(x), weight, bias, x.stride, y.stride, floats(y), const_cast<float*>(mean),
            const_cast<float*>(rstd), eps};
}

}  // namespace

void layer_norm_forward(Rows x, Vector weight, Vector bias, Rows y, float* mean, float* rstd, std::int64_t rows,
                        std::int64_t width, float eps, Level level) {
    const std::int64_t pad = padded(width), step = block_rows(rows), blocks = (rows + step - 1) / step;
    float *w = shared_workspace.get(2 * pad), *b = w + pad;
    gather(weight, width, w);
    gather(bias, width, b);
    const bool fp32 = all_fp32({x.type, y.type});
#pragma omp parallel for schedule(static) if (blocks > 1)
    for (std::int64_t i = 0; i < blocks; ++i) {
        const std::int64_t begin = i * step, end = std::min(rows, begin + step);
        if (fp32 && narrow_forward(narrow(x, w, b, y, mean, rstd, begin, end, width, eps), level)) continue;
        forward_leaf(x, w, b, y, mean, rstd, begin, end, width, eps, row_workspace.get(pad));
    }
}

void layer_norm_again(Rows x, Vector weight, Vector bias, Rows y, const float* mean, const float* rstd,
                      std::int64_t rows, std::int64_t width, Level level) {
    const std::int64_t pad = padded(width), step = block_rows(rows), blocks = (rows + step - 1) / step;
    float *w = shared_workspace.get(2 * pad), *b = w + pad;
    gather(weight, width, w);
    gather(bias, width, b);
    const bool fp32 = all_fp32({x.type, y.type});
#pragma omp parallel for schedule(static) if (blocks > 1)
    for (std::int64_t i = 0; i < blocks; ++i) {
        const std::int64_t begin = i * step, end = std::min(rows, begin + step);
        if (fp32 && narrow_again(narrow(x, w, b, y, mean, rstd, begin, end, width, 0.0f), level)) continue;
        again_leaf(x, w, b, y, mean, rstd, begin, end, width);
    }
}

void layer_norm_backward(Rows dy, Rows x, Vector weight, const float* mean, const float* rstd, Rows residual, Rows dx,
                         Vector dweight, Vector dbias, std::int64_t rows, std::int64_t width, std::int64_t full_width,
                         Level level) {
    const std::int64_t pad = padded(width), step = block_rows(rows), blocks = (rows + step - 1) / step;
    float *w = shared_workspace.get(pad * (1 + 2 * blocks)), *sums = w + pad;
    gather(weight, width, w);
    const bool fp32 = all_fp32({dy.type, x.type, dx.type, residual.data ? residual.type : DType::kFloat32});
#pragma omp parallel for schedule(static) if (blocks > 1)
    for (std::int64_t i = 0; i < blocks; ++i) {
        float* own = sums + i * 2 * pad;
        std::fill(own, own + 2 * pad, 0.0f);
        const std::int64_t begin = i * step, end = std::min(rows, begin + step);
        if (fp32 && narrow_backward({begin, end, width, floats(dy), floats(x), floats(residual), w, mean, rstd, dy.stride,
                                     x.stride, residual.stride, dx.stride, floats(dx), own, own + pad},
                                    level))
            continue;
        backward_leaf(dy, x, w, mean, rstd, residual, dx, begin, end, width, own, row_workspace.get(2 * pad));
    }
    add_blocks(sums, blocks, 2 * pad, width, dweight, full_width);
    add_blocks(sums + pad, blocks, 2 * pad, width, dbias, full_width);
}

}  // namespace growtas::cpu

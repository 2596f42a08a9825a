// GEMM of fp32 slices with an epilogue: the sliced linear layers and QKV, and their gradients.
//
// Shapes   out (m, n) = epilogue(A (m, depth) B (depth, n)); A and B in any strides, fast where one of the two is 1. A slice of
//          a shared weight is such an operand: it is packed once, while it is read, whatever its leading dimension.
// Blocks   as in BLIS: n in blocks of at most NC columns, depth in blocks of at most KC; a packed block of B stays in a core's
//          L2 cache (up to 1.6 MB, 0.4 MB in the spaces of AutoFormer-T), and is packed by all threads together. MC is a
//          thread's share of the rows, in panels of MR. A panel of A by rows is packed just before use (L1); a transposed A is
//          packed for all of a thread's panels in one walk over its rows, because its panels are narrow columns.
// Kernel   micro_kernel.h: MR x NR is 12 rows x 2 vectors of AVX-512, 6 x 2 of AVX2, 4 x 2 else; B streams from L2, A from L1.
// Epilogue bias, GELU, its gradient, drop-path scale and residual are applied to a row panel when its last block of depth is
//          added, while it is in cache: they cost no pass over memory. They are computed in the vectors of the instruction set,
//          the last of a row in part (vectors.h). See gemm.h.
// Order    the terms of an element are added by one thread, in the order of depth and in segments that depend on the sizes
//          alone: the same bits for any number of threads.
#include "cpu/gemm/gemm.h"

#include <algorithm>
#include <cstring>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "cpu/gelu/gelu_lanes.h"
#include "cpu/gemm/micro_kernel.h"
#include "cpu/common/workspace.h"

namespace growtas::cpu {
namespace {

constexpr std::int64_t kNC = 896;            // columns of a block, at most
constexpr std::int64_t kTransposedKC = 400;  // KC of a transposed A: a thread's panels of a block stay in L2 beside B's

constexpr std::int64_t kMaxSegment = 224;  // terms added in a row before their sum is: keeps the rounding error down

std::int64_t blocks(std::int64_t size, std::int64_t most) { return (size + most - 1) / most; }

// Four rows of `depth` floats, `row` apart, become four columns: step k at to + k * width.
GROWTAS_INLINE void transpose_four(const float* from, std::int64_t row, std::int64_t depth, float* to,
                                   std::int64_t width) {
    std::int64_t k = 0;
    for (; k + 4 <= depth; k += 4) {
        Four rows[4];
        for (int i = 0; i < 4; ++i) rows[i] = load_vector<Four>(from + i * row + k);
        transpose(rows[0], rows[1], rows[2], rows[3]);
        for (int i = 0; i < 4; ++i) store_vector(to + (k + i) * width, rows[i]);
    }
    for (; k < depth; ++k)
        for (std::int64_t i = 0; i < 4; ++i) to[k * width + i] = from[i * row + k];
}

// Panels of kWidth indices side by side: step k of panel p at to + p * panel + k * kWidth, zeros beyond `count`.
template <int kWidth>
GROWTAS_INLINE void pack_panels(const float* from, std::int64_t index_step, std::int64_t depth_step, std::int64_t count,
                                std::int64_t depth, std::int64_t panel, float* to) {
    const std::int64_t whole = count / kWidth, rest = count - whole * kWidth;
    if (index_step == 1) {
        for (std::int64_t k = 0; k < depth; ++k) {
            const float* row = from + k * depth_step;
            for (std::int64_t p = 0; p < whole; ++p)
                std::memcpy(to + p * panel + k * kWidth, row + p * kWidth, kWidth * sizeof(float));
            if (rest) {
                float* last = to + whole * panel + k * kWidth;
                for (std::int64_t i = 0; i < kWidth; ++i) last[i] = i < rest ? row[whole * kWidth + i] : 0.0f;
            }
        }
        return;
    }
    std::int64_t i = 0;
    for (; kWidth % 4 == 0 && depth_step == 1 && i + 4 <= count; i += 4)
        transpose_four(from + i * index_step, index_step, depth, to + i / kWidth * panel + i % kWidth, kWidth);
    for (; i < blocks(count, kWidth) * kWidth; ++i) {
        float* column = to + i / kWidth * panel + i % kWidth;
        for (std::int64_t k = 0; k < depth; ++k)
            column[k * kWidth] = i < count ? from[i * index_step + k * depth_step] : 0.0f;
    }
}

// A copy by vectors; the last one overlaps the one before. memcpy of a size that is not known is a call, or slow for short rows.
template <typename V>
GROWTAS_INLINE void copy_row(const float* from, std::int64_t count, float* to) {
    if (count < width_of<V>) return store_vector(to, load_first<V>(from, count));
    for (std::int64_t k = 0; k + width_of<V> <= count; k += width_of<V>) store_vector(to + k, load_vector<V>(from + k));
    store_vector(to + count - width_of<V>, load_vector<V>(from + count - width_of<V>));
}

// One row panel by rows: row i at to + i * kStep, zeros for rows that do not exist.
template <typename V>
GROWTAS_INLINE void pack_rows(const float* from, std::int64_t row, std::int64_t count, std::int64_t rows,
                              std::int64_t depth, float* to) {
    for (std::int64_t i = 0; i < rows; ++i) {
        if (i < count) {
            copy_row<V>(from + i * row, depth, to + i * kStep);
        } else {
            std::memset(to + i * kStep, 0, depth * sizeof(float));
        }
    }
}

// The epilogue of `count` columns of one row, at most a vector of them. Pointers that an op does not use are null.
template <typename V, EpilogueOp op>
GROWTAS_INLINE void apply_epilogue(float* out, const float* hidden, float* other, const float* bias, float scale,
                                   std::int64_t count) {
    V v = load_first<V>(out, count);
    if (bias) v += load_first<V>(bias, count);
    if constexpr (op == EpilogueOp::kPlain) {
        store_first(out, v * scale, count);
    } else if constexpr (op == EpilogueOp::kGelu) {
        store_first(out, v, count);
        store_first(other, gelu(v), count);
    } else if constexpr (op == EpilogueOp::kResidual) {
        store_first(out, load_first<V>(other, count) + v * scale, count);
    } else {
        const GeluAndSlope<V> at = gelu_and_slope(load_first<V>(hidden, count));
        store_first(out, v * scale * at.slope, count);
        store_first(other, at.value, count);
    }
}

// Part of the result: rows [row, row + rows), columns [column, column + columns).
struct Part {
    std::int64_t row, rows, column, columns;
};

template <typename V, EpilogueOp op>
GROWTAS_INLINE void apply_epilogue_to(const Epilogue& e, float* out, std::int64_t out_row, const Part& part) {
    for (std::int64_t r = part.row; r < part.row + part.rows; ++r) {
        const float scale = e.scale ? e.scale[r / e.tokens] : 1.0f;
        const auto at = [&](auto* base, std::int64_t step) GROWTAS_ALWAYS { return base ? base + r * step + part.column : nullptr; };
        float *to = at(out, out_row), *other = at(e.other, e.other_row);
        const float *hidden = at(e.hidden, e.hidden_row), *bias = e.bias ? e.bias + part.column : nullptr;
        const auto apply = [&](std::int64_t c, std::int64_t count) GROWTAS_ALWAYS {
            apply_epilogue<V, op>(to + c, hidden ? hidden + c : nullptr, other ? other + c : nullptr,
                                  bias ? bias + c : nullptr, scale, count);
        };
        std::int64_t c = 0;
        for (; c + width_of<V> <= part.columns; c += width_of<V>) apply(c, width_of<V>);
        if (c < part.columns) apply(c, part.columns - c);
    }
}

template <typename V>
GROWTAS_INLINE void apply_epilogue_to_rows(const Epilogue& e, float* out, std::int64_t out_row, const Part& part) {
    switch (e.op) {
        case EpilogueOp::kPlain:
            if (e.bias || e.scale) apply_epilogue_to<V, EpilogueOp::kPlain>(e, out, out_row, part);
            return;
        case EpilogueOp::kGelu: return apply_epilogue_to<V, EpilogueOp::kGelu>(e, out, out_row, part);
        case EpilogueOp::kResidual: return apply_epilogue_to<V, EpilogueOp::kResidual>(e, out, out_row, part);
        case EpilogueOp::kGeluGradient: return apply_epilogue_to<V, EpilogueOp::kGeluGradient>(e, out, out_row, part);
    }
}

// One block of one thread's row panels.
struct Block {
    Operand a;            // at the block's first step of depth
    const float* packed;  // B, panel after panel
    float* panels;        // workspace of this thread, for A
    float* out;
    std::int64_t out_row, m, first_panel, end_panel, column, columns, depth;
    bool add, last;
    const Epilogue* epilogue;
};

// The micro-kernel of one instruction set: see micro_kernel.
using MicroKernel = void (*)(std::int64_t, const float*, const float*, float*, std::int64_t, std::int64_t, std::int64_t, bool);

template <typename V, int kMR, int kVectors>
GROWTAS_INLINE void run_block(const Block& s, MicroKernel whole, MicroKernel half) {
    constexpr std::int64_t kNR = kVectors * (sizeof(V) / sizeof(float));
    const bool by_rows = s.a.column == 1;
    const std::int64_t segment = blocks(s.depth, blocks(s.depth, kMaxSegment));
    const std::int64_t begin = s.first_panel * kMR, end = std::min(s.m, s.end_panel * kMR);
    if (!by_rows)
        pack_panels<kMR>(s.a.data + begin * s.a.row, s.a.row, s.a.column, end - begin, s.depth, s.depth * kMR, s.panels);
    for (std::int64_t row = begin; row < end; row += kMR) {
        const std::int64_t rows = std::min<std::int64_t>(kMR, end - row);
        if (by_rows) pack_rows<V>(s.a.data + row * s.a.row, s.a.row, rows, kMR, s.depth, s.panels);
        const float* a = by_rows ? s.panels : s.panels + (row - begin) * s.depth;
        for (std::int64_t c = 0; c < s.columns; c += kNR) {
            const float* b = s.packed + c * s.depth;
            float* to = s.out + row * s.out_row + s.column + c;
            const std::int64_t columns = std::min(kNR, s.columns - c);
            for (std::int64_t k = 0; k < s.depth; k += segment) {
                const std::int64_t steps = std::min(segment, s.depth - k);
                const bool add = s.add || k > 0;
                const auto kernel = columns <= kNR / 2 ? half : whole;
                kernel(steps, a + k * (by_rows ? 1 : kMR), b + k * kNR, to, s.out_row, rows, columns, add);
            }
        }
        if (s.last) apply_epilogue_to_rows<V>(*s.epilogue, s.out, s.out_row, {row, rows, s.column, s.columns});
    }
}

// The functions of one instruction set, and the MR x NR of its micro-kernel.
struct Isa {
    std::int64_t mr, nr;
    void (*pack_b)(const float*, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, float*);
    void (*run)(const Block&);
};

#define GROWTAS_ISA(name, target, V, rows, vectors)                                                                       \
    target void pack_b_##name(const float* from, std::int64_t index_step, std::int64_t depth_step, std::int64_t count,    \
                              std::int64_t depth, std::int64_t panel, float* to) {                                        \
        pack_panels<vectors * int(sizeof(V) / sizeof(float))>(from, index_step, depth_step, count, depth, panel, to);     \
    }                                                                                                                     \
    template <int kVectors, bool kByRows>                                                                                 \
    target void kernel_##name(std::int64_t depth, const float* a, const float* b, float* c, std::int64_t c_row,           \
                            std::int64_t m, std::int64_t n, bool add) {                                                   \
        micro_kernel<V, rows, kVectors, vectors * int(sizeof(V) / sizeof(float)), kByRows>(depth, a, b, c, c_row, m, n,   \
                                                                                          add);                           \
    }                                                                                                                     \
    target void run_##name(const Block& block) {                                                                          \
        if (block.a.column == 1) {                                                                                        \
            run_block<V, rows, vectors>(block, &kernel_##name<vectors, true>, &kernel_##name<vectors / 2, true>);         \
        } else {                                                                                                          \
            run_block<V, rows, vectors>(block, &kernel_##name<vectors, false>, &kernel_##name<vectors / 2, false>);       \
        }                                                                                                                 \
    }                                                                                                                     \
    constexpr Isa k_##name{rows, vectors * int(sizeof(V) / sizeof(float)), &pack_b_##name, &run_##name};

GROWTAS_ISA(baseline, , Four, 4, 2)
#ifdef GROWTAS_TARGET_V4
GROWTAS_ISA(v3, GROWTAS_TARGET_V3, Eight, 6, 2)
GROWTAS_ISA(v4, GROWTAS_TARGET_V4, Lanes, 12, 2)
#endif
#undef GROWTAS_ISA

const Isa& pick_isa(Level level) {
#ifdef GROWTAS_TARGET_V4
    if (level == Level::kV4) return k_v4;
    if (level == Level::kV3) return k_v3;
#endif
    (void)level;
    return k_baseline;
}

thread_local Workspace packed_b_workspace;  // of the calling thread, filled and read by its team
thread_local Workspace packed_a_workspace;  // of each thread of the team

}  // namespace

void gemm(Operand a, Operand b, float* out, std::int64_t out_row, std::int64_t m, std::int64_t n, std::int64_t depth,
          bool accumulate, const Epilogue& epilogue, Level level) {
    const Isa& isa = pick_isa(level);
    const bool by_rows = a.column == 1;
    const std::int64_t panels = blocks(m, isa.mr), most = by_rows ? kKC : kTransposedKC;
    const std::int64_t step = blocks(depth, blocks(depth, most));
    const std::int64_t column_blocks = blocks(n, kNC);
    const std::int64_t width = blocks(blocks(n, column_blocks), isa.nr) * isa.nr;
    float* packed = packed_b_workspace.get(step * width);
    const std::int64_t ops = m * n * depth;
#pragma omp parallel if (ops > 200000)
    {
        std::int64_t threads = 1, thread = 0;
#ifdef _OPENMP
        threads = omp_get_num_threads(), thread = omp_get_thread_num();
#endif
        const std::int64_t first = panels * thread / threads, end = panels * (thread + 1) / threads;
        float* panels_of_a = packed_a_workspace.get(by_rows ? isa.mr * kStep : (end - first) * isa.mr * step);
        for (std::int64_t column = 0; column < n; column += width) {
            const std::int64_t columns = std::min(width, n - column), b_panels = blocks(columns, isa.nr);
            for (std::int64_t k = 0; k < depth; k += step) {
                const std::int64_t steps = std::min(step, depth - k);
                const std::int64_t from = b_panels * thread / threads * isa.nr;
                const std::int64_t to = std::min(columns, b_panels * (thread + 1) / threads * isa.nr);
                if (from < to)
                    isa.pack_b(b.data + k * b.row + (column + from) * b.column, b.column, b.row, to - from, steps,
                               steps * isa.nr, packed + from * steps);
#pragma omp barrier
                isa.run({{a.data + k * a.column, a.row, a.column}, packed, panels_of_a, out, out_row, m, first, end, column,
                         columns, steps, accumulate || k > 0, k + steps >= depth, &epilogue});
#pragma omp barrier
            }
        }
    }
}

}  // namespace growtas::cpu

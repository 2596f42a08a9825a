// Attention with 2-D relative position for keys and values, forward and backward.
//
// Shapes   qkv (3, B, h, N, e) in any strides and dtype; out, dout (B, N, h * e); four tables (2m + 2, e); N = R * C + cls.
// Formula  S_ij = scale * (q_i.k_j + u_i[r_j] + w_i[c_j]),  u_i[r] = q_i.key_v[r - r_i], w_i[c] = q_i.key_h[c - c_i],
//          O_i = sum_j P_ij v_j + sum_r A_i[r] value_v[r - r_i] + sum_c B_i[c] value_h[c - c_i], A and B the sums of P over
//          the keys of a grid row and column; a pair with cls has row 0 of both tables in place of the two.
// Tables   are copied once per call for the distances that occur, clamped ones repeated, so no kernel knows of the clamp;
//          row by row, and transposed so that u of a query is a window of one row of 16 lanes per channel.
// Task     one head of one image, in a thread's workspace (360 KB, backward 620 KB, for N = 197 and e = 64: an L2 cache
//          holds it). q, k, v are converted to fp32 panels, q times scale. All queries' u and w first; then blocks of
//          queries: the bias is written where the logits go, the GEMM with k is added (small_gemm.h), softmax in place, times
//          v. The value terms are added at the end as small GEMMs of A and B with windows of the tables.
//          A small grid takes one GEMM for all windows in place of one for each grid row and column: joined.h.
// Saved    out and lse, (B, h, N). Backward recomputes P = exp(S - lse) block by block, dP = dout.v with its bias from the
//          value tables likewise, dS = P * (dP - dout.out) without its scale (q has it), and from these dq, dk, dv and the
//          sums for the tables' gradients.
// Order    tasks are cut into blocks by their number alone; each block sums its tables' gradients in order and the blocks are
//          added in order: all results are bitwise the same for any number of threads.
#include "cpu/relative_attention/relative_attention.h"

#include <stdexcept>
#include <string>

#include "cpu/relative_attention/task.h"
#include "cpu/common/workspace.h"

namespace growtas::cpu {
namespace {

constexpr std::int64_t kMaxBlocks = 64;            // of tasks: bounds the partial gradients of the tables
constexpr std::int64_t kLogitsFloats = 16 * 1024;  // of a block of queries: a share of the L2 cache

std::int64_t divide_up(std::int64_t n, std::int64_t by) { return (n + by - 1) / by; }

Plan make_plan(const AttentionShape& s, Level level) {
    Plan p{};
    p.shape = s;
    p.epad = padded(s.head_dim), p.npad = padded(s.tokens), p.rpad = padded(s.rows), p.cpad = padded(s.columns);
    p.ld = std::max(p.npad, padded(s.cls + (s.rows - 1) * s.columns + p.cpad));
    if (p.ld / kLanes % 2 == 0) p.ld += kLanes;  // an odd number of cache lines: columns spread over all sets of the cache
    p.v_rows = 2 * s.rows - 1, p.h_rows = 2 * s.columns - 1;
    p.v_step = padded(s.rows - 1 + p.rpad), p.h_step = padded(s.columns - 1 + p.cpad);
    p.row = p.epad;
    p.joined = std::max(s.rows, s.columns) <= joined_grid(level);
    if (p.joined) plan_joined(p);
    const std::int64_t blocks = divide_up(s.tokens, std::max<std::int64_t>(2 * kTileRows, kLogitsFloats / p.ld));
    p.block = divide_up(divide_up(s.tokens, blocks), kTileRows) * kTileRows;
    p.forward_workspace = Panels(p, nullptr, false).floats;
    p.backward_workspace = Panels(p, nullptr, true).floats;
    p.gradients = 2 * (p.v_rows + p.h_rows + 1) * p.epad;
    return p;
}

// One row of a table as fp32, zeros up to epad.
void read_row(const Rows& table, std::int64_t row, const Plan& p, float* to) {
    dispatch(table.type, [&](auto t) {
        pack_row(static_cast<const decltype(t)*>(table.data) + row * table.stride, 1, 1.0f, to, p.shape.head_dim, p.epad);
    });
}

std::int64_t table_row(std::int64_t distance, std::int64_t clamp) {
    return std::min(std::max(distance, -clamp), clamp) + clamp + 1;
}

// One table for the distances 1 - size ... size - 1, row by row and, with a step, transposed.
void expand(const Rows& table, std::int64_t size, const Plan& p, float* rows, float* columns, std::int64_t step) {
    for (std::int64_t d = 1 - size; d < size; ++d) {
        float* row = rows + (d + size - 1) * p.epad;
        read_row(table, table_row(d, p.shape.clamp), p, row);
        for (std::int64_t c = 0; c < p.epad; ++c) columns[c * step + d + size - 1] = row[c];
    }
}

// Row 0 of the tables of both directions: what a pair with cls has in place of the distances.
void read_cls_row(const Rows& v, const Rows& h, const Plan& p, float* to) {
    float other[kMaxHeadDim];
    read_row(v, 0, p, to);
    read_row(h, 0, p, other);
    for (std::int64_t c = 0; c < p.epad; ++c) to[c] += other[c];
}

Expanded expand_all(const Tables& tables, const Plan& p, Workspace& memory) {
    const AttentionShape& s = p.shape;
    const std::int64_t v_size = p.epad * p.v_step, h_size = p.epad * p.h_step;
    const std::int64_t places = p.joined ? s.tokens * kLanes : 0;
    const std::int64_t floats = 2 * (v_size + h_size) + 2 * (p.v_rows + p.h_rows + 1) * p.epad + places;
    float* start = memory.get(floats);
    std::fill(start, start + floats, 0.0f);
    Cutter cut(start);
    float *key_v_t = cut.take(v_size), *key_h_t = cut.take(h_size), *value_v_t = cut.take(v_size),
          *value_h_t = cut.take(h_size);
    if (p.joined) key_h_t = key_v_t + p.v_rows, value_h_t = value_v_t + p.v_rows;  // one table of both
    float *key_v = cut.take(p.v_rows * p.epad), *key_h = cut.take(p.h_rows * p.epad),
          *value_v = cut.take(p.v_rows * p.epad), *value_h = cut.take(p.h_rows * p.epad);
    float *key_0 = cut.take(p.epad), *value_0 = cut.take(p.epad);
    float* to_places = cut.take(places);
    if (p.joined) fill_places(p, to_places);
    expand(tables.key_v, s.rows, p, key_v, key_v_t, p.v_step);
    expand(tables.key_h, s.columns, p, key_h, key_h_t, p.h_step);
    expand(tables.value_v, s.rows, p, value_v, value_v_t, p.v_step);
    expand(tables.value_h, s.columns, p, value_h, value_h_t, p.h_step);
    read_cls_row(tables.key_v, tables.key_h, p, key_0);
    read_cls_row(tables.value_v, tables.value_h, p, value_0);
    return {key_v_t, key_h_t, value_v_t, value_h_t, key_v, key_h, value_v, value_h, key_0, value_0,
            to_places};
}

// Where the gradient of one table stands in a block's sums, and where it goes.
struct Folding {
    std::int64_t first, cls_first, size;  // the row of distance 1 - size, the row for cls; size: grid rows or columns
    Rows to;
};

// One row of a table's gradient: the blocks' sums in order, distances beyond the clamp in the outermost rows.
void fold_row(const float* blocks, std::int64_t count, const Plan& p, const Folding& f, std::int64_t row) {
    const AttentionShape& s = p.shape;
    float sums[kMaxHeadDim] = {};
    const auto add = [&](std::int64_t from) {
        for (std::int64_t b = 0; b < count; ++b)
            for (std::int64_t c = 0; c < p.epad; ++c) sums[c] += blocks[b * p.gradients + from + c];
    };
    if (row == 0 && s.cls) add(f.cls_first);
    for (std::int64_t d = 1 - f.size; row > 0 && d < f.size; ++d)
        if (table_row(d, s.clamp) == row) add(f.first + (d + f.size - 1) * p.epad);
    dispatch(f.to.type, [&](auto t) {
        unpack_row(sums, 1.0f, static_cast<decltype(t)*>(f.to.data) + row * f.to.stride, 1, s.head_dim);
    });
}

// One struct per instruction set: the functions in it are compiled for it, and inline the templates. `apart` gives a loop a
// function of its own, and with it all registers.
#define GROWTAS_ISA(NAME, TARGET, WIDTH, PANELS)                                                                            \
    struct NAME {                                                                                                          \
        static constexpr int kWidth = WIDTH, kPanels = PANELS;                                                             \
        typedef float V __attribute__((vector_size(4 * WIDTH)));                                                           \
        typedef std::int32_t I __attribute__((vector_size(4 * WIDTH)));                                                    \
        typedef std::uint32_t U __attribute__((vector_size(4 * WIDTH)));                                                   \
        template <int kRows, int kColumns, bool kByRows>                                                                   \
        TARGET static void tile(std::int64_t depth, const float* a, std::int64_t step, const float* b,                     \
                                std::int64_t b_step, float* c, std::int64_t c_step, bool add) {                            \
            tile_body<V, kRows, kColumns, kByRows>(depth, a, step, b, b_step, c, c_step, add);                             \
        }                                                                                                                  \
        template <typename F>                                                                                              \
        TARGET __attribute__((noinline)) static void apart(const F& f) {                                                   \
            f();                                                                                                           \
        }                                                                                                                  \
        TARGET static void forward(const ForwardCall& call, std::int64_t task, float* workspace) {                           \
            forward_task<NAME>(call, task, workspace);                                                                       \
        }                                                                                                                  \
        TARGET static void backward(const BackwardCall& call, std::int64_t task, float* workspace,                           \
                                    const ExpandedGradient& gradient) {                                                    \
            backward_task<NAME>(call, task, workspace, gradient);                                                            \
        }                                                                                                                  \
    };

#if defined(__aarch64__)  // 32 registers
GROWTAS_ISA(Baseline, , 4, 4)
#else
GROWTAS_ISA(Baseline, , 4, 2)
#endif
#ifdef GROWTAS_TARGET_CLONES
GROWTAS_ISA(Avx2, GROWTAS_TARGET_V3, 8, 2)
GROWTAS_ISA(Avx512, GROWTAS_TARGET_V4, 16, 4)
#endif
#undef GROWTAS_ISA

struct Kernels {
    void (*forward)(const ForwardCall&, std::int64_t, float*);
    void (*backward)(const BackwardCall&, std::int64_t, float*, const ExpandedGradient&);
};

Kernels kernels([[maybe_unused]] Level level) {
#ifdef GROWTAS_TARGET_CLONES
    if (level == Level::kV4) return {&Avx512::forward, &Avx512::backward};
    if (level == Level::kV3) return {&Avx2::forward, &Avx2::backward};
#endif
    return {&Baseline::forward, &Baseline::backward};
}

thread_local Workspace task_workspace;     // of each thread of the team: the panels of the task at hand
thread_local Workspace table_workspace;     // of the calling thread, read by its team: the tables of this call
thread_local Workspace gradient_workspace;  // of the calling thread, written by its team: the tables' gradients of each block

}  // namespace

void require_attention(const AttentionShape& s) {
    const auto refuse = [](const char* what, std::int64_t value) {
        throw std::invalid_argument(std::string(what) + " is " + std::to_string(value));
    };
    if (s.batch < 0) refuse("the number of images", s.batch);
    if (s.heads < 1) refuse("the number of heads", s.heads);
    if (s.head_dim < 1 || s.head_dim > kMaxHeadDim) refuse("head_dim", s.head_dim);
    if (s.rows < 1) refuse("the grid's number of rows", s.rows);
    if (s.columns < 1) refuse("the grid's number of columns", s.columns);
    if (s.clamp < 0) refuse("the tables' clamp", s.clamp);
    if (s.cls < 0 || s.cls > 1) refuse("tokens less the grid's places, which must be 0 or 1,", s.cls);
}

void relative_attention_forward(const AttentionShape& shape, Heads qkv, const Tables& tables, Tokens out, float* lse,
                                Level level) {
    const Plan plan = make_plan(shape, level);
    const ForwardCall call{&plan, qkv, out, lse, expand_all(tables, plan, table_workspace)};
    const auto run = kernels(level).forward;
    const std::int64_t tasks = shape.batch * shape.heads;
#pragma omp parallel for schedule(static) if (tasks > 1)
    for (std::int64_t task = 0; task < tasks; ++task) run(call, task, task_workspace.get(plan.forward_workspace));
}

void relative_attention_backward(const AttentionShape& shape, Tokens dout, Heads qkv, const Tables& tables, Tokens out,
                                 const float* lse, Heads dqkv, const Tables& dtables, Level level) {
    const Plan plan = make_plan(shape, level);
    const BackwardCall call{&plan, qkv, dqkv, out, dout, lse, expand_all(tables, plan, table_workspace)};
    const auto run = kernels(level).backward;
    const std::int64_t tasks = shape.batch * shape.heads;
    const std::int64_t step = divide_up(tasks, kMaxBlocks), blocks = tasks ? divide_up(tasks, step) : 0;
    float* partial = gradient_workspace.get(blocks * plan.gradients);
#pragma omp parallel for schedule(static) if (blocks > 1)
    for (std::int64_t block = 0; block < blocks; ++block) {
        float* own = partial + block * plan.gradients;
        std::fill(own, own + plan.gradients, 0.0f);
        Cutter cut(own);
        ExpandedGradient d;
        d.key_v = cut.take(plan.v_rows * plan.epad), d.key_h = cut.take(plan.h_rows * plan.epad);
        d.value_v = cut.take(plan.v_rows * plan.epad), d.value_h = cut.take(plan.h_rows * plan.epad);
        d.key_0 = cut.take(plan.epad), d.value_0 = cut.take(plan.epad);
        for (std::int64_t task = block * step; task < std::min(tasks, (block + 1) * step); ++task)
            run(call, task, task_workspace.get(plan.backward_workspace), d);
    }
    const std::int64_t key_h = plan.v_rows * plan.epad, value_v = key_h + plan.h_rows * plan.epad;
    const std::int64_t value_h = value_v + plan.v_rows * plan.epad, key_0 = value_h + plan.h_rows * plan.epad;
    const std::int64_t value_0 = key_0 + plan.epad;
    const Folding foldings[] = {{0, key_0, shape.rows, dtables.key_v},
                                {key_h, key_0, shape.columns, dtables.key_h},
                                {value_v, value_0, shape.rows, dtables.value_v},
                                {value_h, value_0, shape.columns, dtables.value_h}};
    const std::int64_t table_rows = 2 * shape.clamp + 2;
#pragma omp parallel for schedule(static) if (blocks > 1)
    for (std::int64_t i = 0; i < 4 * table_rows; ++i)
        fold_row(partial, blocks, plan, foldings[i / table_rows], i % table_rows);
}

}  // namespace growtas::cpu

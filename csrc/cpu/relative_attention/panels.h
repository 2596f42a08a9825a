// The sizes of a call, its tables, and the panels of a task in a thread's workspace. See relative_attention.cpp.
//
// All panels are fp32 in the thread's workspace: rows of epad = e rounded up to 16 floats, `row` floats apart, or transposed
// with rows of `ld` floats, one per key. Patch p is token p + cls, at grid row p / columns and grid column p % columns.
#pragma once
#include "cpu/relative_attention/pack.h"

namespace growtas::cpu {

// Sizes that follow from the shape, in floats or rows.
struct Plan {
    AttentionShape shape;
    std::int64_t epad, npad;        // e and N rounded up to 16
    bool joined;                    // the grid is small: see joined.h, which names what else differs
    std::int64_t row;               // of a panel of tokens: epad, and room for the sums where they are joined
    std::int64_t ld;                // row of logits: room for npad and for whole vectors behind the last grid row
    std::int64_t rpad, cpad;        // grid rows and columns rounded up to 16
    std::int64_t v_rows, h_rows;    // distances that occur: 2 * rows - 1, 2 * columns - 1
    std::int64_t v_step, h_step;    // row of the transposed tables
    std::int64_t u_step, sums_step; // joined: row of u with w, and of a query's sums where its distances are
    std::int64_t block;             // queries whose logits exist at a time
    std::int64_t forward_workspace, backward_workspace, gradients;
};

// The tables for the distances that occur, clamped ones repeated: distance d of v at row d + rows - 1.
struct Expanded {
    const float *key_v_t, *key_h_t, *value_v_t, *value_h_t;  // (e, v_step) or (e, h_step)
    const float *key_v, *key_h, *value_v, *value_h;          // (v_rows, epad) or (h_rows, epad)
    const float *key_0, *value_0;                            // (epad): row 0 of the v table plus row 0 of the h table
    const float* places;                                     // (tokens, 16), joined: see joined.h
};

// The gradients of the same, one set per block of tasks.
struct ExpandedGradient {
    float *key_v, *key_h, *value_v, *value_h, *key_0, *value_0;
};

// Cuts a workspace into panels; without memory it only counts.
class Cutter {
public:
    explicit Cutter(float* memory) : memory_(memory) {}
    float* take(std::int64_t floats) {
        const std::int64_t start = taken_;
        taken_ += padded(floats);
        return memory_ ? memory_ + start : nullptr;
    }
    std::int64_t taken() const { return taken_; }

private:
    float* memory_;
    std::int64_t taken_ = 0;
};

struct ForwardCall {
    const Plan* plan;
    Heads qkv;
    Tokens out;
    float* lse;
    Expanded tables;
};

struct BackwardCall {
    const Plan* plan;
    Heads qkv, dqkv;
    Tokens out, dout;
    const float* lse;
    Expanded tables;
};

// The panels of a task. Forward has the first group only; its output is in `dq`. per_token: the sum of a row's exponentials
// in the forward pass, dout . out in the backward pass.
struct Panels {
    float *q, *k, *v, *k_t, *logits, *u, *w, *by_row, *by_column, *per_token, *dq;
    float *v_t, *dlogits, *dk, *dv, *dout, *du, *dw, *d_by_row, *d_by_column, *sums;

    Panels(const Plan& p, float* memory, bool backward) {
        const std::int64_t rows = p.npad * p.row, patches = p.shape.rows * p.shape.columns;
        Cutter cut(memory);
        const auto take_distances = [&](float*& of_rows, float*& of_columns) {
            of_rows = cut.take(p.joined ? patches * p.u_step + kLanes : patches * p.rpad);
            of_columns = p.joined ? nullptr : cut.take(patches * p.cpad);
        };
        const auto take_sums = [&](float*& by_row, float*& by_column) {
            by_row = cut.take(patches * (p.joined ? p.sums_step : p.rpad));
            by_column = p.joined ? nullptr : cut.take(patches * p.cpad);
        };
        q = cut.take(rows), k = cut.take(rows), v = cut.take(rows), dq = cut.take(rows);
        k_t = cut.take(p.epad * p.ld), logits = cut.take(p.block * p.ld + kLanes);
        take_distances(u, w), take_sums(by_row, by_column);
        per_token = cut.take(p.npad);
        if (backward) {
            dk = cut.take(rows), dout = cut.take(rows), dv = v;  // v is done with once it is transposed
            v_t = cut.take(p.epad * p.ld), dlogits = cut.take(p.block * p.ld + kLanes);
            take_distances(du, dw), take_sums(d_by_row, d_by_column);
            sums = p.joined ? cut.take(p.npad * kLanes) : nullptr;
        }
        floats = cut.taken();
    }
    std::int64_t floats;
};

}  // namespace growtas::cpu

// The bindings of relative attention: sizes, addresses and strides as tuples. The GIL is released once they are read.
#include "cpu/relative_attention/module.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <tuple>

#include "arguments.h"
#include "cpu/relative_attention/relative_attention.h"

namespace py = pybind11;
using std::int64_t;
using std::uintptr_t;

namespace growtas::cpu {
namespace {

// batch, heads, tokens, head_dim, grid rows, grid columns, clamp
using AttentionSizes = std::array<int64_t, 7>;
// address, dtype code, then the strides: of (3, B, h, N, e), of (B, N, h * e) without the last, of the rows of a table
using HeadsView = std::tuple<uintptr_t, int, std::array<int64_t, 5>>;
using TokensView = std::tuple<uintptr_t, int, std::array<int64_t, 2>>;
using TableViews = std::array<std::tuple<uintptr_t, int, int64_t>, 4>;  // key_v, key_h, value_v, value_h

AttentionShape shape_of(const AttentionSizes& sizes) {
    const auto [batch, heads, tokens, head_dim, rows, columns, clamp] = sizes;
    require_attention({batch, heads, tokens, head_dim, rows, columns, tokens - rows * columns, clamp});
    return {batch, heads, tokens, head_dim, rows, columns, tokens - rows * columns, clamp};
}

Heads heads_view(const HeadsView& view) {
    const auto& [address, type, strides] = view;
    return {pointer<void>(address), dtype(type), strides[0], strides[1], strides[2], strides[3], strides[4]};
}

Tokens tokens_view(const TokensView& view) {
    const auto& [address, type, strides] = view;
    return {pointer<void>(address), dtype(type), strides[0], strides[1]};
}

Tables table_views(const TableViews& views) {
    const auto table = [&](std::size_t i) {
        const auto& [address, type, stride] = views[i];
        return Rows{pointer<void>(address), dtype(type), stride};
    };
    return {table(0), table(1), table(2), table(3)};
}

// 0, 1 or 2, at most what the processor has; lower levels are for tests.
void forward(const AttentionSizes& sizes, const HeadsView& qkv, const TableViews& tables, const TokensView& out,
             uintptr_t lse, int level) {
    const auto shape = shape_of(sizes);
    const auto heads = heads_view(qkv);
    const auto rows = table_views(tables);
    const auto tokens = tokens_view(out);
    py::gil_scoped_release release;
    relative_attention_forward(shape, heads, rows, tokens, pointer<float>(lse), level_of(level));
}

void backward(const AttentionSizes& sizes, const TokensView& dout, const HeadsView& qkv, const TableViews& tables,
              const TokensView& out, uintptr_t lse, const HeadsView& dqkv, const TableViews& dtables, int level) {
    const auto shape = shape_of(sizes);
    const auto heads = heads_view(qkv), dheads = heads_view(dqkv);
    const auto rows = table_views(tables), drows = table_views(dtables);
    const auto tokens = tokens_view(out), dtokens = tokens_view(dout);
    py::gil_scoped_release release;
    relative_attention_backward(shape, dtokens, heads, rows, tokens, pointer<const float>(lse), dheads, drows,
                                level_of(level));
}

}  // namespace

void bind_relative_attention(py::module_& m) {
    m.def("relative_attention_forward", &forward);
    m.def("relative_attention_backward", &backward);
}

}  // namespace growtas::cpu

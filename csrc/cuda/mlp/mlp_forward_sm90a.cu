// The launcher of the MLP branch: checks, tensor maps, the grid. mlp_forward.cuh holds the kernel.
#include "cuda/mlp/mlp_forward.h"

#include <array>
#include <map>
#include <mutex>

#include "cuda/common/hopper.cuh"
#include "cuda/mlp/run_mlp.h"

namespace growtas::cuda {
namespace {

// encode_map, cached per matrix: it costs a call of the driver.
TensorMap map_of(const Rows& m, std::int64_t rows, std::int64_t columns, int box_rows) {
    using Key = std::array<std::int64_t, 6>;
    static std::mutex mutex;
    static std::map<Key, TensorMap> known;
    const Key key{static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(m.data)), static_cast<std::int64_t>(m.type), rows,
                  columns, m.stride, box_rows};
    const std::lock_guard<std::mutex> lock(mutex);
    if (const auto found = known.find(key); found != known.end()) return found->second;
    if (known.size() >= 8192) known.clear();  // memory comes and goes
    return known[key] = encode_map(m.data, m.type == DType::kBFloat16, rows, columns, m.stride, box_rows);
}

void require(bool holds, const std::string& sentence) {
    if (!holds) throw std::invalid_argument(sentence);
}

void require_packs(const Rows& m, const char* name) {
    const std::int64_t elements = m.type == DType::kFloat32 ? 4 : 8;
    require(reinterpret_cast<std::uintptr_t>(m.data) % 16 == 0, std::string(name) + " is not aligned to 16 bytes");
    require(m.stride % elements == 0 && m.stride > 0, "the row stride of " + std::string(name) + " is " +
                                                          std::to_string(m.stride) + ", and must be a multiple of " +
                                                          std::to_string(elements));
}

}  // namespace

void mlp_forward(Rows x, Vector norm_weight, Vector norm_bias, float eps, Rows w1, Vector b1, Rows w2, Vector b2, Rows y,
                 float* mean, float* rstd, const float* scale, MLPSizes s, Place place) {
    require(s.width <= kMLPMaxWidth && s.width % 8 == 0, "width is " + std::to_string(s.width) +
                                                             ", and must be a multiple of 8 up to 256");
    require(s.hidden <= kMLPMaxHidden, "hidden is " + std::to_string(s.hidden) + ", and must be at most 4096");
    require(w1.type != DType::kFloat32 && w1.type == w2.type, "w1 and w2 must be of one 16-bit dtype");
    require(x.type == y.type && (x.type == DType::kFloat32 || x.type == w1.type),
            "x and y must be float32, or of the weights' dtype");
    require_packs(x, "x");
    require_packs(y, "y");
    require_packs(w1, "w1");
    require_packs(w2, "w2");
    if (s.rows == 0) return;
    check(cudaSetDevice(place.device), "set device");
    // Whole waves of 128 rows; then, where one wave holds them, blocks of 64: all multiprocessors share the rest.
    constexpr int kBoth = kConsumers * kRows;
    const std::int64_t slots = multiprocessors(place.device), waves = s.rows / kBoth / slots * slots;
    const std::int64_t halves = (s.rows - waves * kBoth + kRows - 1) / kRows;
    const std::int64_t whole = halves <= slots ? waves : (s.rows + kBoth - 1) / kBoth;
    const std::int64_t blocks = halves <= slots ? waves + halves : whole;
    const Branch p{x.data, y.data, x.stride, y.stride, norm_weight, norm_bias, b1, b2, mean, rstd, scale,
                   static_cast<int>(s.rows), static_cast<int>(s.width), static_cast<int>(s.hidden),
                   static_cast<int>(s.tokens), static_cast<int>(whole), eps, x.type == DType::kFloat32};
    const TensorMap map1 = map_of(w1, s.hidden, s.width, kUnits), map2 = map_of(w2, s.width, s.hidden, instance(p.width));
    if (w1.type == DType::kBFloat16)
        run_mlp_bf16(p, map1, map2, blocks, place);
    else
        run_mlp_fp16(p, map1, map2, blocks, place);
}

}  // namespace growtas::cuda

// Views of memory that somebody else owns, as both native modules take them: a pointer, a dtype, a stride.
#pragma once
#include <cstdint>

namespace growtas {

// The element types, by the numbers growtas/ops/addresses.py passes.
enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// A matrix of rows: element (r, c) lies at data + r * stride + c, in elements of its dtype.
struct Rows {
    void* data;
    DType type;
    std::int64_t stride;
};

// A vector: element i lies at data + i * stride.
struct Vector {
    void* data;
    DType type;
    std::int64_t stride;
};

}  // namespace growtas

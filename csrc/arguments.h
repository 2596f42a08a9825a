// Shared by both pybind11 modules: pointers arrive as integers, sizes and strides as int64, and are checked here.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>

#include "views.h"

namespace growtas {

template <typename T>
T* pointer(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

inline DType dtype(int code) {
    if (code < 0 || code > 2) throw std::invalid_argument("dtype code " + std::to_string(code) + " is not 0, 1 or 2");
    return static_cast<DType>(code);
}

inline void require_sizes(std::int64_t rows, std::int64_t width, std::int64_t full_width) {
    if (rows < 0) throw std::invalid_argument("rows is " + std::to_string(rows) + ", and must be 0 or more");
    if (width < 1) throw std::invalid_argument("width is " + std::to_string(width) + ", and must be 1 or more");
    if (full_width < width)
        throw std::invalid_argument("the weight has " + std::to_string(full_width) + " entries, and the row " +
                                    std::to_string(width));
}

}  // namespace growtas

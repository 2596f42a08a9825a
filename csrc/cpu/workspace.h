// Memory that a thread keeps: fresh memory costs more in page faults than a kernel takes.
#pragma once
#include <cstdint>
#include <vector>

namespace growtas::cpu {

class Workspace {
public:
    // At least `floats` floats on a cache line's boundary; what they held is undefined.
    float* get(std::int64_t floats) {
        constexpr std::int64_t kLine = 16;
        if (static_cast<std::int64_t>(kept_.size()) < floats + kLine) kept_ = std::vector<float>(floats + kLine);
        const auto address = reinterpret_cast<std::uintptr_t>(kept_.data());
        return reinterpret_cast<float*>((address + 63) / 64 * 64);
    }

private:
    std::vector<float> kept_;
};

}  // namespace growtas::cpu

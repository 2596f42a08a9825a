// Memory that a thread keeps: fresh memory costs more in page faults than a kernel takes.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace growtas::cpu {

class Workspace {
public:
    Workspace() = default;
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;
    ~Workspace() { std::free(memory_); }

    // At least `floats` floats on a cache line's boundary; what they held is undefined.
    float* get(std::int64_t floats) {
        if (floats <= floats_) return memory_;
        std::free(memory_);
        floats_ = 0;
        // Large ones in huge pages: scattered small pages share sets of the L2 cache, which costs up to a tenth of the time.
        const bool large = floats * sizeof(float) >= kHugePage / 4;
        const std::size_t unit = large ? kHugePage : 64;
        const std::size_t bytes = (floats * sizeof(float) + unit - 1) / unit * unit;
        memory_ = static_cast<float*>(std::aligned_alloc(unit, bytes));
        if (!memory_) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
        if (large) madvise(memory_, bytes, MADV_HUGEPAGE);
#endif
        floats_ = static_cast<std::int64_t>(bytes / sizeof(float));
        return memory_;
    }

private:
    static constexpr std::size_t kHugePage = std::size_t{2} << 20;
    float* memory_ = nullptr;
    std::int64_t floats_ = 0;
};

}  // namespace growtas::cpu

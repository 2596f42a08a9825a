// The instruction sets that the C++ kernels are compiled for, and the one to run on this processor.
//
// A kernel whose register blocking depends on the instruction set cannot be one target_clones leaf. It is a template that is
// instantiated in one function per level, each with the attribute GROWTAS_TARGET_V4, GROWTAS_TARGET_V3 or none, and calls
// the one that best_level() names. Without target_clones (other processors, old compilers) there is only the baseline.
#pragma once
#include <algorithm>

#ifdef GROWTAS_TARGET_CLONES  // three C strings: AVX-512, AVX2, "default"
#define GROWTAS_PICK_1(a, ...) a
#define GROWTAS_PICK_2(a, b, ...) b
#define GROWTAS_PICK(n, ...) GROWTAS_PICK_##n(__VA_ARGS__)
#define GROWTAS_TARGET_V4 __attribute__((target(GROWTAS_PICK(1, GROWTAS_TARGET_CLONES))))
#define GROWTAS_TARGET_V3 __attribute__((target(GROWTAS_PICK(2, GROWTAS_TARGET_CLONES))))
#endif

namespace growtas::cpu {

// x86-64-v3: AVX2 with FMA; v4: AVX-512.
enum class Level : int { kBaseline = 0, kV3 = 1, kV4 = 2 };

inline Level best_level() {
#ifdef GROWTAS_TARGET_CLONES
    __builtin_cpu_init();
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl");
    if (v4) return Level::kV4;
    if (v3) return Level::kV3;
#endif
    return Level::kBaseline;
}

// The level of a number from Python, at most what the processor has.
inline Level level_of(int number) {
    return static_cast<Level>(std::max(0, std::min(number, static_cast<int>(best_level()))));
}

}  // namespace growtas::cpu

// Build options and instruction sets of the CPU path.
#pragma once

namespace shapmix {

#if defined(__x86_64__)
inline bool cpu_has_avx2() { return __builtin_cpu_supports("avx2"); }
inline bool cpu_has_avx512() { return __builtin_cpu_supports("avx512f"); }
#else
inline bool cpu_has_avx2() { return false; }
inline bool cpu_has_avx512() { return false; }
#endif

#ifdef _OPENMP
inline constexpr bool kHasOpenMP = true;
#else
inline constexpr bool kHasOpenMP = false;
#endif

}  // namespace shapmix

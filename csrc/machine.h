// Detection of instruction sets, for loops whose tile size depends on them (simd.h serves all other loops).
#pragma once

namespace shapmix {

#if defined(__x86_64__)
#define SHAPMIX_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#define SHAPMIX_AVX2 __attribute__((target("avx2,fma")))
inline bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}
inline bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#else
#define SHAPMIX_AVX512
#define SHAPMIX_AVX2
inline bool has_avx512() { return false; }
inline bool has_avx2() { return false; }
#endif

}  // namespace shapmix

// One source, several instruction sets: the loader picks the widest that the CPU has.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__GLIBC__)
#define SHAPMIX_SIMD_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define SHAPMIX_SIMD_CLONES
#endif

// A loop body that must end up inside each clone, so that it is compiled for the clone's instruction set.
#define SHAPMIX_SIMD_BODY __attribute__((always_inline)) inline

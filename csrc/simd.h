// Function multi-versioning: the loader selects the clone of the widest instruction set of the CPU.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__GLIBC__)
#define SHAPMIX_SIMD_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define SHAPMIX_SIMD_CLONES
#endif

// A loop body that must be inlined into each clone, to be compiled for the clone's instruction set.
#define SHAPMIX_SIMD_BODY __attribute__((always_inline)) inline

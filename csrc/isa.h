// Instruction sets of the CPU kernels: which ones the processor has, which one is used (the widest, or the one that the variable
// SHAPMIX_ISA pins), and functions compiled for each of them.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

// A function that is inlined into functions compiled for one instruction set, and so is compiled for that set.
#define SHAPMIX_SIMD_BODY __attribute__((always_inline)) inline

#if defined(__x86_64__)
#define SHAPMIX_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma")))
#define SHAPMIX_AVX2 __attribute__((target("avx2,fma")))
#endif

namespace shapmix {

enum class Isa { kBaseline, kAvx2, kAvx512 };  // ascending

// Each set as a type, with the size and the number of its vector registers.
struct Baseline {  // SSE2 or NEON
  static constexpr Isa kIsa = Isa::kBaseline;
  static constexpr int kBytes = 16;
#if defined(__aarch64__)
  static constexpr int kRegisters = 32;
#else
  static constexpr int kRegisters = 16;
#endif
};
struct Avx2 {
  static constexpr Isa kIsa = Isa::kAvx2;
  static constexpr int kBytes = 32;
  static constexpr int kRegisters = 16;
};
struct Avx512 {
  static constexpr Isa kIsa = Isa::kAvx512;
  static constexpr int kBytes = 64;
  static constexpr int kRegisters = 32;
};

inline const char* name_of(Isa set) { return set == Isa::kAvx512 ? "avx512" : set == Isa::kAvx2 ? "avx2" : "baseline"; }

// The sets that this processor has, in ascending order.
inline std::vector<Isa> processor_sets() {
  std::vector<Isa> sets = {Isa::kBaseline};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    sets.push_back(Isa::kAvx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      sets.push_back(Isa::kAvx512);
    }
  }
#endif
  return sets;
}

struct IsaChoice {
  Isa set;
  bool pinned;
};

// The set to use of a processor that has `sets`; `asked` is the value of SHAPMIX_ISA, null if it is not set. Throws
// std::invalid_argument if it is unknown or not in `sets`.
inline IsaChoice choose_isa(const char* asked, const std::vector<Isa>& sets) {
  const std::string name = asked == nullptr ? "auto" : asked;
  if (name == "auto") return {sets.back(), false};
  std::string has;
  for (const Isa set : sets) {
    if (name == name_of(set)) return {set, true};
    has += (has.empty() ? "" : ", ") + std::string(name_of(set));
  }
  const auto known = {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512};
  const bool lacked = std::any_of(known.begin(), known.end(), [&](Isa set) { return name == name_of(set); });
  throw std::invalid_argument("SHAPMIX_ISA is '" + name + "', " +
                              (lacked ? "which this processor lacks" : "which is no instruction set of the kernels") +
                              "; give auto or one that it has: " + has);
}

// The choice for this process, made on the first call. Throws std::invalid_argument on every call if SHAPMIX_ISA cannot be
// followed.
inline IsaChoice isa_choice() {
  static const IsaChoice choice = choose_isa(std::getenv("SHAPMIX_ISA"), processor_sets());
  return choice;
}
inline Isa isa() { return isa_choice().set; }

// Dot products of bfloat16 pairs, an extension of AVX-512.
inline bool has_bf16_products() {
#if defined(__x86_64__)
  return isa() == Isa::kAvx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

// Body::run<Set> as a function of each set, where `Function` is the type of the pointer to it. `run` is a SHAPMIX_SIMD_BODY.
template <class Body, class Function = decltype(&Body::template run<Baseline>)>
struct Compiled;

template <class Body, class Result, class... Arguments>
struct Compiled<Body, Result (*)(Arguments...)> {
#if defined(__x86_64__)
  SHAPMIX_AVX512 __attribute__((noinline)) static Result avx512(Arguments... arguments) {
    return Body::template run<Avx512>(arguments...);
  }
  SHAPMIX_AVX2 __attribute__((noinline)) static Result avx2(Arguments... arguments) {
    return Body::template run<Avx2>(arguments...);
  }
#endif
  __attribute__((noinline)) static Result baseline(Arguments... arguments) { return Body::template run<Baseline>(arguments...); }
};

// The function Body::run for a set. Called before a parallel loop, because `isa` may throw.
template <class Body>
auto compiled(Isa set = isa()) {
#if defined(__x86_64__)
  if (set == Isa::kAvx512) return Compiled<Body>::avx512;
  if (set == Isa::kAvx2) return Compiled<Body>::avx2;
#else
  (void)set;
#endif
  return Compiled<Body>::baseline;
}

}  // namespace shapmix

// SIMD vectors of contiguous channels, with a width per instruction set.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "element.h"
#include "isa.h"

namespace shapmix {

template <class Number, int kLanes>
struct LanesOf {
  // Memory is only aligned to one number: vectors are loaded and stored with memcpy, never through a vector pointer.
  typedef Number type __attribute__((vector_size(kLanes * sizeof(Number))));
};
template <class Number, int kLanes>
using Lanes = typename LanesOf<Number, kLanes>::type;

// Numbers in a vector register of an instruction set.
template <class Set, class Number>
inline constexpr int kLanesOf = Set::kBytes / static_cast<int>(sizeof(Number));

// Loads elements, converted to their arithmetic type.
template <int kLanes, class Element>
SHAPMIX_SIMD_BODY Lanes<Wide<Element>, kLanes> load(const Element* from) {
  Lanes<Wide<Element>, kLanes> value;
  if constexpr (std::is_same_v<Element, Bfloat16>) {
    Lanes<std::uint16_t, kLanes> stored;
    std::memcpy(&stored, from, sizeof(stored));
    const Lanes<std::uint32_t, kLanes> words = __builtin_convertvector(stored, Lanes<std::uint32_t, kLanes>) << 16;
    std::memcpy(&value, &words, sizeof(value));
  } else {
    std::memcpy(&value, from, sizeof(value));
  }
  return value;
}

template <int kLanes, class Element>
SHAPMIX_SIMD_BODY Lanes<double, kLanes> load_double(const Element* from) {
  return __builtin_convertvector(load<kLanes>(from), Lanes<double, kLanes>);
}

// Loads without conversion.
template <int kLanes, class Number>
SHAPMIX_SIMD_BODY Lanes<Number, kLanes> load_words(const Number* from) {
  Lanes<Number, kLanes> value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

template <class Number, class Vector>
SHAPMIX_SIMD_BODY void store(Number* to, const Vector& value) {
  std::memcpy(to, &value, sizeof(value));
}

// Rounds to nearest, ties to even; a NaN produced by arithmetic stays NaN.
template <class Vector>
SHAPMIX_SIMD_BODY void store(Bfloat16* to, const Vector& value) {
  constexpr int kLanes = sizeof(Vector) / sizeof(float);
  Lanes<std::uint32_t, kLanes> words;
  std::memcpy(&words, &value, sizeof(words));
  const Lanes<std::uint32_t, kLanes> is_number = (words << 1) <= 0xff000000u;
  words += (0x7fff + ((words >> 16) & 1)) & is_number;
  const auto stored = __builtin_convertvector(words >> 16, Lanes<std::uint16_t, kLanes>);
  std::memcpy(to, &stored, sizeof(stored));
}

// The vector whose lane i is lane Order::of(i) of `a` followed by `b`, both of kLanes lanes.
template <class Order, class Number, int... kLane>
SHAPMIX_SIMD_BODY Lanes<Number, sizeof...(kLane)> shuffled(const Lanes<Number, sizeof...(kLane)>& a,
                                                           const Lanes<Number, sizeof...(kLane)>& b,
                                                           std::integer_sequence<int, kLane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Order::of(kLane)...);
#else
  using Index = std::conditional_t<sizeof(Number) == 8, std::int64_t, std::int32_t>;
  return __builtin_shuffle(a, b, Lanes<Index, sizeof...(kLane)>{Order::of(kLane)...});
#endif
}

// Calls body<lanes>(channel) for whole vectors of channels, then for single channels.
template <int kLanes, class Body>
SHAPMIX_SIMD_BODY void over_channels(std::int64_t channels, const Body& body) {
  std::int64_t channel = 0;
  for (; channel + kLanes <= channels; channel += kLanes) body(channel, std::integral_constant<int, kLanes>{});
  for (; channel < channels; ++channel) body(channel, std::integral_constant<int, 1>{});
}

}  // namespace shapmix

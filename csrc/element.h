// Element types of the CPU path. Half-precision types are 16 bits in memory; every operation is done in float32 and rounded once,
// as in torch. Conversions are branch-free integer arithmetic, so that loops over them vectorise on every instruction set.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "dtype.h"
#include "isa.h"

namespace shapmix {

SHAPMIX_SIMD_BODY std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

SHAPMIX_SIMD_BODY float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// `condition ? x : y` on bits, in arithmetic: the compiler turns some conditionals into branches and then fails to vectorise.
SHAPMIX_SIMD_BODY std::uint32_t select_bits(bool condition, std::uint32_t x, std::uint32_t y) {
  const std::uint32_t mask = 0u - static_cast<std::uint32_t>(condition);
  return (x & mask) | (y & ~mask);
}

// IEEE binary16: 1 sign, 5 exponent and 10 mantissa bits.
struct Half {
  std::uint16_t bits;

  Half() = default;
  SHAPMIX_SIMD_BODY explicit Half(float value) {
    constexpr std::uint32_t kOverflow = (127 + 16) << 23;        // 2^16, above the largest half
    constexpr std::uint32_t kSmallestNormal = (127 - 14) << 23;  // 2^-14
    constexpr std::uint32_t kInfinity = 0x7f800000;
    constexpr std::uint32_t kAlign = (127 - 1) << 23;  // 0.5: adding it rounds at 2^-24, the step of subnormal halves

    const std::uint32_t sign = bits_of(value) & 0x80000000;
    const std::uint32_t magnitude = bits_of(value) ^ sign;
    const std::uint32_t special = select_bits(magnitude > kInfinity, 0x7e00, 0x7c00);
    const std::uint32_t subnormal = bits_of(float_of(magnitude) + float_of(kAlign)) - kAlign;
    const std::uint32_t normal = (magnitude - ((127 - 15) << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    const std::uint32_t finite = select_bits(magnitude < kSmallestNormal, subnormal, normal);
    bits = static_cast<std::uint16_t>(select_bits(magnitude >= kOverflow, special, finite) | sign >> 16);
  }

  SHAPMIX_SIMD_BODY explicit operator float() const {
    constexpr std::uint32_t kExponent = 0x7c00 << 13;
    constexpr std::uint32_t kSmallestNormal = (127 - 14) << 23;
    const std::uint32_t shifted = (bits & 0x7fffu) << 13;
    const std::uint32_t exponent = shifted & kExponent;
    const std::uint32_t normal = shifted + ((127 - 15) << 23) + select_bits(exponent == kExponent, (128 - 16) << 23, 0);
    const std::uint32_t subnormal = bits_of(float_of(shifted + kSmallestNormal) - float_of(kSmallestNormal));
    return float_of(select_bits(exponent == 0, subnormal, normal) | (bits & 0x8000u) << 16);
  }
};

// The upper 16 bits of a float32.
struct Bfloat16 {
  std::uint16_t bits;

  Bfloat16() = default;
  SHAPMIX_SIMD_BODY explicit Bfloat16(float value) {
    const std::uint32_t from = bits_of(value);
    const std::uint32_t rounded = (from + 0x7fff + (from >> 16 & 1)) >> 16;
    bits = static_cast<std::uint16_t>(select_bits((from & 0x7fffffff) > 0x7f800000, 0x7fc0, rounded));
  }

  SHAPMIX_SIMD_BODY explicit operator float() const { return float_of(static_cast<std::uint32_t>(bits) << 16); }
};

template <>
struct DtypeOf<Half> {
  static constexpr Dtype value = Dtype::kFloat16;
};
template <>
struct DtypeOf<Bfloat16> {
  static constexpr Dtype value = Dtype::kBfloat16;
};

// The type used for arithmetic on an element.
template <class Element>
using Wide = std::conditional_t<std::is_same_v<Element, double>, double, float>;

// The unsigned integer of the element's size, for copies.
template <class Element>
using Bits =
    std::conditional_t<sizeof(Element) == 2, std::uint16_t, std::conditional_t<sizeof(Element) == 4, std::uint32_t, std::uint64_t>>;

template <class Element>
SHAPMIX_SIMD_BODY Element rounded(Wide<Element> value) {
  return static_cast<Element>(value);
}

// Each operation is rounded to the element type.
template <class Element>
SHAPMIX_SIMD_BODY Element product(Element x, Element y) {
  return rounded<Element>(static_cast<Wide<Element>>(x) * static_cast<Wide<Element>>(y));
}

template <class Element>
SHAPMIX_SIMD_BODY Element sum(Element x, Element y) {
  return rounded<Element>(static_cast<Wide<Element>>(x) + static_cast<Wide<Element>>(y));
}

}  // namespace shapmix

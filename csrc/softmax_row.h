// The softmax of a row of logits, in the accumulation type. Reductions run over lanes in a fixed order, so the result is bitwise
// identical on every instruction set.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "element.h"
#include "exponential.h"
#include "isa.h"

namespace shapmix {

inline constexpr std::int64_t kLanes = 16;

// Rows are written to scratch in groups of this size before the first is read back: a vector load right after narrower stores to
// the same address stalls (failed store-to-load forwarding).
inline constexpr std::int64_t kRowsAhead = 8;

inline std::int64_t whole_lanes(std::int64_t classes) { return (classes + kLanes - 1) / kLanes * kLanes; }

template <class Real, class Element>
SHAPMIX_SIMD_BODY Real widened(Element logit) {
  return static_cast<Real>(static_cast<Wide<Element>>(logit));
}

// Pads a row to [whole_lanes(classes)] with -infinity, which adds nothing to a softmax.
template <class Real>
SHAPMIX_SIMD_BODY void fill_up(Real* row, std::int64_t classes) {
  for (std::int64_t k = classes; k < whole_lanes(classes); ++k) row[k] = -std::numeric_limits<Real>::infinity();
}

// Maps float bits to integers of the same order, NaN beyond infinity; an involution. Compilers vectorise an integer maximum
// reduction, but not a floating point one.
SHAPMIX_SIMD_BODY std::int32_t in_order(std::int32_t bits) { return bits ^ (bits >> 31 & INT32_MAX); }
SHAPMIX_SIMD_BODY std::int64_t in_order(std::int64_t bits) { return bits ^ (bits >> 63 & INT64_MAX); }

template <class Real>
SHAPMIX_SIMD_BODY Real largest_of(const Real* row, std::int64_t width) {
  using Integer = std::conditional_t<std::is_same_v<Real, double>, std::int64_t, std::int32_t>;
  Integer largest = std::numeric_limits<Integer>::min();
  for (std::int64_t k = 0; k < width; ++k) {
    Integer bits;
    std::memcpy(&bits, row + k, sizeof bits);
    largest = in_order(bits) > largest ? in_order(bits) : largest;
  }
  largest = in_order(largest);
  Real value;
  std::memcpy(&value, &largest, sizeof value);
  return value;
}

template <class Real>
SHAPMIX_SIMD_BODY Real sum_of(const Real* row, std::int64_t width) {
  Real lane[kLanes] = {};
  for (std::int64_t k = 0; k < width; k += kLanes) {
    for (std::int64_t i = 0; i < kLanes; ++i) lane[i] += row[k + i];
  }
  Real sum = 0;
  for (std::int64_t i = 0; i < kLanes; ++i) sum += lane[i];
  return sum;
}

// row <- exp(row - subtract)
template <class Real>
SHAPMIX_SIMD_BODY void exponentials(Real* row, Real subtract, std::int64_t width) {
  for (std::int64_t k = 0; k < width; ++k) row[k] = exponential(row[k] - subtract);
}

}  // namespace shapmix

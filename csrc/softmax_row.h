// A row of logits and its softmax, in the type of the sums. Reductions run over lanes in a fixed order, so every instruction
// set gives the same bits.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "element.h"
#include "exponential.h"
#include "simd.h"

namespace shapmix {

inline constexpr std::int64_t kLanes = 16;

// Rows are read so many at a time before the first is looked at: a vector that is loaded right after narrower stores into it
// waits until those have reached the cache.
inline constexpr std::int64_t kRowsAhead = 8;

inline std::int64_t whole_lanes(std::int64_t classes) { return (classes + kLanes - 1) / kLanes * kLanes; }

template <class Real, class Element>
SHAPMIX_SIMD_BODY Real widened(Element logit) {
  return static_cast<Real>(static_cast<Wide<Element>>(logit));
}

// Fills a row [whole_lanes(classes)] up with what adds nothing to a softmax.
template <class Real>
SHAPMIX_SIMD_BODY void fill_up(Real* row, std::int64_t classes) {
  for (std::int64_t k = classes; k < whole_lanes(classes); ++k) row[k] = -std::numeric_limits<Real>::infinity();
}

// Numbers as integers of the same order, NaN beyond infinity; applied twice, their own bits. The maximum of integers is a
// reduction that compilers vectorise, that of floating point numbers is not.
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

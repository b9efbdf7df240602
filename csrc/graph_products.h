// Building blocks of the CPU paths of graph_conv.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "graph_conv.h"
#include "lanes.h"

namespace shapmix {

// Odd rational approximation of tanh, as in Eigen and XLA: error within 3e-7. For scalars and vectors.
template <class Floats>
SHAPMIX_SIMD_BODY Floats hyperbolic_tangent_of(Floats x) {
  x = x < -7.9053111076f ? Floats{} - 7.9053111076f : x;
  x = x > 7.9053111076f ? Floats{} + 7.9053111076f : x;
  const Floats square = x * x;
  Floats top = Floats{} - 2.76076847742355e-16f;
  top = top * square + 2.00018790482477e-13f;
  top = top * square + -8.60467152213735e-11f;
  top = top * square + 5.12229709037114e-08f;
  top = top * square + 1.48572235717979e-05f;
  top = top * square + 6.37261928875436e-04f;
  top = top * square + 4.89352455891786e-03f;
  Floats bottom = Floats{} + 1.19825839466702e-06f;
  bottom = bottom * square + 1.18534705686654e-04f;
  bottom = bottom * square + 2.26843463243900e-03f;
  bottom = bottom * square + 4.89352518554385e-03f;
  return x * top / bottom;
}

// to[k] = tanh(left[k] - right[k])
SHAPMIX_SIMD_BODY void tanh_differences(const float* left, const float* right, std::int64_t count, float* to) {
  over_channels<8>(count, [&](std::int64_t k, auto lanes) __attribute__((always_inline)) {
    constexpr int kWidth = decltype(lanes)::value;
    store(to + k, hyperbolic_tangent_of<Lanes<float, kWidth>>(load<kWidth>(left + k) - load<kWidth>(right + k)));
  });
}
SHAPMIX_SIMD_BODY void tanh_differences(const double* left, const double* right, std::int64_t count, double* to) {
  for (std::int64_t k = 0; k < count; ++k) to[k] = std::tanh(left[k] - right[k]);
}

// Micro-kernel of one instruction set: lanes per vector and a tile of accumulators that fits in registers.
template <class Sum, int kBytes, int kTileRows, int kTileColumns>
struct MicroKernel {
  static constexpr int kLanes = kBytes / static_cast<int>(sizeof(Sum));
  static constexpr int kRows = kTileRows;
  static constexpr int kColumns = kTileColumns;
  using Factor = Sum;
  using Sums = Lanes<Sum, kLanes>;

  SHAPMIX_SIMD_BODY static void add_product(Sums& sums, const Sums& left, const Sums& right) { sums += left * right; }
};

// Calls emit(row, column, sum over k of a[row][k] * b[column][k]), per lane; strides are in vectors.
template <class M, class Emit>
SHAPMIX_SIMD_BODY void products(const typename M::Factor* a, std::int64_t a_row, std::int64_t a_k, std::int64_t rows,
                                const typename M::Factor* b, std::int64_t b_row, std::int64_t b_k, std::int64_t columns,
                                std::int64_t depth, const Emit& emit) {
  constexpr int kLanes = M::kLanes;
  using Factors = Lanes<typename M::Factor, kLanes>;
  for (std::int64_t row = 0; row < rows; row += M::kRows) {
    for (std::int64_t column = 0; column < columns; column += M::kColumns) {
      // A partial tile repeats the last row or column and emits it once.
      const typename M::Factor* from_a[M::kRows];
      const typename M::Factor* from_b[M::kColumns];
#pragma GCC unroll 8
      for (int i = 0; i < M::kRows; ++i) from_a[i] = a + std::min(row + i, rows - 1) * a_row * kLanes;
#pragma GCC unroll 8
      for (int j = 0; j < M::kColumns; ++j) from_b[j] = b + std::min(column + j, columns - 1) * b_row * kLanes;
      typename M::Sums sums[M::kRows][M::kColumns] = {};
      for (std::int64_t k = 0; k < depth; ++k) {
        Factors left[M::kRows];
#pragma GCC unroll 8
        for (int i = 0; i < M::kRows; ++i) left[i] = load_words<kLanes>(from_a[i] + k * a_k * kLanes);
#pragma GCC unroll 8
        for (int j = 0; j < M::kColumns; ++j) {
          const Factors right = load_words<kLanes>(from_b[j] + k * b_k * kLanes);
#pragma GCC unroll 8
          for (int i = 0; i < M::kRows; ++i) M::add_product(sums[i][j], left[i], right);
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < M::kRows; ++i) {
#pragma GCC unroll 8
        for (int j = 0; j < M::kColumns; ++j) {
          if (row + i < rows && column + j < columns) emit(row + i, column + j, sums[i][j]);
        }
      }
    }
  }
}

// Offsets of the columns (subset, joint) of a row's graphs in the features of one frame.
inline std::vector<std::int64_t> feature_columns(const GraphConvJob& job) {
  std::vector<std::int64_t> columns;
  for (std::int64_t i = 0; i < job.subsets; ++i) {
    for (std::int64_t v = 0; v < job.joints; ++v) columns.push_back(v * job.feature_stride + i * job.channels);
  }
  return columns;
}

// Offsets of the edges [u][v] of the first subset in a row's graphs [u][S V].
inline std::vector<std::int64_t> graph_places(const GraphConvJob& job) {
  std::vector<std::int64_t> places;
  for (std::int64_t u = 0; u < job.joints; ++u) {
    for (std::int64_t v = 0; v < job.joints; ++v) places.push_back(u * job.subsets * job.joints + v);
  }
  return places;
}

// Partial sums of one worker over its rows.
template <class Sum>
struct PartialSums {
  std::vector<Sum> shared;  // [V][S V] vectors of lanes
  std::vector<Sum> weight;
  std::vector<Sum> bias;
};

// Reduces each vector of lanes to one number, in place.
template <int kLanes, class Sum>
SHAPMIX_SIMD_BODY void add_lanes(std::vector<Sum>& vectors) {
  for (std::size_t at = 0; at < vectors.size() / kLanes; ++at) {
    Sum sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += vectors[at * kLanes + static_cast<std::size_t>(lane)];
    vectors[at] = sum;
  }
}

}  // namespace shapmix

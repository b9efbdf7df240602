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

// One factor of a product: rows of vectors along the reduced axis k. Strides are in vectors.
template <class Number>
struct Factor {
  const Number* from;
  std::int64_t rows;
  std::int64_t row_stride;
  std::int64_t k_stride;
};

inline std::int64_t tiles_of(std::int64_t count, std::int64_t tile) { return (count + tile - 1) / tile; }

// Number of tiles of `products`.
template <class M>
std::int64_t product_tiles(std::int64_t rows, std::int64_t columns) {
  return tiles_of(rows, M::kRows) * tiles_of(columns, M::kColumns);
}

// One tile of `products`. A partial tile repeats the last row or column and emits it once.
template <class M, bool kWhole, class Start, class Emit>
SHAPMIX_SIMD_BODY void product_tile(const Factor<typename M::Factor>& a, const Factor<typename M::Factor>& b, std::int64_t row,
                                    std::int64_t column, std::int64_t depth, const Start& start, const Emit& emit) {
  constexpr int kLanes = M::kLanes;
  using Factors = Lanes<typename M::Factor, kLanes>;
  const auto row_at = [&](int i) __attribute__((always_inline)) { return kWhole ? row + i : std::min(row + i, a.rows - 1); };
  const auto column_at = [&](int j)
                             __attribute__((always_inline)) { return kWhole ? column + j : std::min(column + j, b.rows - 1); };
  const typename M::Factor* from_a[M::kRows];
  const typename M::Factor* from_b[M::kColumns];
  typename M::Sums sums[M::kRows][M::kColumns];
#pragma GCC unroll 8
  for (int i = 0; i < M::kRows; ++i) from_a[i] = a.from + row_at(i) * a.row_stride * kLanes;
#pragma GCC unroll 8
  for (int j = 0; j < M::kColumns; ++j) from_b[j] = b.from + column_at(j) * b.row_stride * kLanes;
#pragma GCC unroll 8
  for (int i = 0; i < M::kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < M::kColumns; ++j) sums[i][j] = start(row_at(i), column_at(j));
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    Factors left[M::kRows];
#pragma GCC unroll 8
    for (int i = 0; i < M::kRows; ++i) left[i] = load_words<kLanes>(from_a[i] + k * a.k_stride * kLanes);
#pragma GCC unroll 8
    for (int j = 0; j < M::kColumns; ++j) {
      const Factors right = load_words<kLanes>(from_b[j] + k * b.k_stride * kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < M::kRows; ++i) M::add_product(sums[i][j], left[i], right);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < M::kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < M::kColumns; ++j) {
      if (kWhole || (row + i < a.rows && column + j < b.rows)) emit(row + i, column + j, sums[i][j]);
    }
  }
}

// Calls emit(row, column, start(row, column) + sum over k of a[row][k] * b[column][k]), per lane, and after_tile() once per tile.
template <class M, class Start, class Emit, class AfterTile>
SHAPMIX_SIMD_BODY void products(const Factor<typename M::Factor>& a, const Factor<typename M::Factor>& b, std::int64_t depth,
                                const Start& start, const Emit& emit, const AfterTile& after_tile) {
  for (std::int64_t row = 0; row < a.rows; row += M::kRows) {
    for (std::int64_t column = 0; column < b.rows; column += M::kColumns) {
      if (row + M::kRows <= a.rows && column + M::kColumns <= b.rows) {
        product_tile<M, true>(a, b, row, column, depth, start, emit);
      } else {
        product_tile<M, false>(a, b, row, column, depth, start, emit);
      }
      after_tile();
    }
  }
}

// Calls emit(row, column, sum over k of a[row][k] * b[column][k]), per lane.
template <class M, class Emit>
SHAPMIX_SIMD_BODY void products(const Factor<typename M::Factor>& a, const Factor<typename M::Factor>& b, std::int64_t depth,
                                const Emit& emit) {
  const auto zero = [](std::int64_t, std::int64_t) __attribute__((always_inline)) { return typename M::Sums{}; };
  products<M>(a, b, depth, zero, emit, []() __attribute__((always_inline)) {});
}

// Partial sums of one worker over its rows.
template <class Sum>
struct PartialSums {
  std::vector<Sum> shared;  // [S][V][V] vectors of lanes
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

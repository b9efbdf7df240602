// Batch normalisation of channels-last rows, fused with shortcut and ReLU.
//
//   out[row][c] = max(in[row][c] * scale[c] + shift[c] + shortcut[row][c], lowest[c])
#pragma once

#include <cstdint>

#include "dtype.h"

namespace shapmix {

// Per-channel numbers are float64 for float64 elements and float32 otherwise.
struct BatchNormJob {
  std::int64_t rows;
  std::int64_t channels;
  Dtype dtype;
  const void* in;        // [rows, channels]
  const void* shortcut;  // [rows] of `shortcut_stride` elements, or null
  std::int64_t shortcut_stride;
  const void* weight;  // [channels]
  const void* bias;    // [channels]
  const void* lowest;  // [channels], lower bound: 0 is a ReLU, -infinity none
  double eps;
};

// Writes out [rows, channels] and the batch's mean and biased variance [channels].
void batch_norm_cpu(const BatchNormJob& job, void* out, void* mean, void* variance, int threads);

// `out` is the output of the forward pass, `grad` [rows, channels]. Writes the gradients of `in`, weight and bias, and of the
// shortcut (contiguous; null without a shortcut).
void batch_norm_backward_cpu(const BatchNormJob& job, const void* out, const void* mean, const void* variance, const void* grad,
                             void* to_in, void* to_shortcut, void* to_weight, void* to_bias, int threads);

}  // namespace shapmix

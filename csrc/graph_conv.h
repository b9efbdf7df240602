// CTR-GCN's graph convolution: each channel aggregates the joints with a separate graph, which is never materialised.
//
//   graph[i][u][v][c] = shared[i][u][v] + bias[i][c] + sum_k weight[i][k][c] * tanh(left[u][i][k] - right[v][i][k])
//   out[t][u][c]      = sum_i sum_v graph[i][u][v][c] * features[t][v][i][c]                        for each row (clip, person)
#pragma once

#include <cstdint>

#include "dtype.h"

namespace shapmix {

// Accumulation, and all arguments except features, shortcut and out, are float64 for float64 features and float32 otherwise.
struct GraphConvJob {
  std::int64_t rows;
  std::int64_t frames;
  std::int64_t joints;
  std::int64_t channels;   // a multiple of 8
  std::int64_t subsets;    // i
  std::int64_t relations;  // k
  Dtype dtype;

  const void* features;         // [rows, frames, joints] of `feature_stride` channels, subset i at channel i * channels
  std::int64_t feature_stride;  // elements between joints
  const void* relation_terms;   // [rows, joints, 2, subsets, relations]: left, then right
  const void* weight;           // [subsets, relations, channels]
  const void* bias;             // [subsets, channels]
  const void* shared;           // [subsets, joints, joints]
};

// Optional fused epilogue: out = max(out + offset + shortcut, 0).
struct GraphConvEpilogue {
  const void* offset;    // [channels], or null: no epilogue
  const void* shortcut;  // [rows, frames, joints] of `shortcut_stride` channels, or null
  std::int64_t shortcut_stride;
};

// Gradients, all overwritten; `features` with the job's `feature_stride`, the others contiguous.
struct GraphConvGradients {
  void* features;
  void* relation_terms;
  void* weight;
  void* bias;
  void* shared;
};

// out, grad: [rows, frames, joints, channels], contiguous.
void graph_conv_cpu(const GraphConvJob& job, const GraphConvEpilogue& epilogue, void* out, int threads);
void graph_conv_backward_cpu(const GraphConvJob& job, const void* grad, const GraphConvGradients& gradients, int threads);

}  // namespace shapmix

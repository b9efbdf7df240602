// The fused epilogue of a temporal unit: four branches concatenated along channels, the third max-pooled over time, plus shortcut
// and ReLU.
//
//   out[n, t, v, :Q]       = relu(narrow[n, t, v] + shortcut)
//   out[n, t, v, Q:2Q]     = relu(wide[n, t, v] + shortcut)
//   out[n, t, v, 2Q:3Q]    = relu(max(middle[n, s t - 1 .. s t + 1, v]) * scale + offset + shortcut)
//   out[n, t, v, 3Q:]      = relu(skip[n, t, v] + shortcut)
#pragma once

#include <array>
#include <cstdint>

#include "dtype.h"

namespace shapmix {

// Rows of contiguous channels, `stride` elements apart.
struct Rows {
  const void* data;
  std::int64_t stride;
};

struct BranchesJob {
  std::int64_t clips;
  std::int64_t frames;        // of the middle branch's input
  std::int64_t frame_stride;  // s; the other rows have ceil(frames / s) frames
  std::int64_t joints;
  std::int64_t width;  // Q
  Dtype dtype;
  Rows narrow;
  Rows wide;
  Rows middle;
  Rows skip;
  Rows shortcut;       // null: none
  const void* scale;   // [Q], float64 for float64 elements and float32 otherwise
  const void* offset;  // [Q]
};

void join_branches_cpu(const BranchesJob& job, void* out, int threads);

}  // namespace shapmix

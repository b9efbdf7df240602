// Clip sampling: crop, resize, rotation, augmentation and bone/motion differences of ragged recordings.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace shapmix {

// One row per sample, the fields of shapmix.reference.CropPlan.
struct CropPlan {
  const std::int64_t* clip;
  const std::int64_t* start;
  const std::int64_t* length;
  const void* angles;  // [N, 3] radians about x, y, z, in the frames' type
};

// One row per sample, the fields of shapmix.reference.AugmentPlan; reals in the frames' type. Null: that change is not made.
struct AugmentPlan {
  const bool* reversed;            // [N]
  const void* pace;                // [N, 2] speed and shift
  const std::int64_t* source;      // [N, V]
  const void* linear;              // [N, C, C]
  const void* jitter;              // [N]
  const std::int64_t* jitter_key;  // [N]
  const bool* kept;                // [N, V]

  bool moves() const { return source != nullptr || linear != nullptr || jitter != nullptr; }
};

struct SampleJob {
  const void* frames;  // [F, M, V, C], contiguous
  std::int64_t recorded_frames;
  std::int64_t people;
  std::int64_t joints;
  std::int64_t channels;

  const std::int64_t* offsets;  // [recordings + 1], first frame of each recording
  std::int64_t recordings;
  CropPlan plan;
  AugmentPlan augment;
  std::int64_t samples;
  const std::int64_t* parents;  // [V]

  std::int64_t num_frames;  // T
  bool bone;
  bool motion;
  Dtype dtype;
  void* out;  // [N, C, T, V, M], contiguous
};

// Throws std::invalid_argument naming the first plan row that is out of range or rotates clips without 3 coordinates, the first
// recording whose offsets are out of range, or the first parent or source that is not a joint.
void check_crops(const SampleJob& job);

// float32 and float64, host memory. Precondition: check_crops passed.
void sample_clips_cpu(const SampleJob& job, int threads);

}  // namespace shapmix

// Clip sampling: from ragged recordings to clips, cropped, resized, turned, and differenced for the stream.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace shapmix {

// One row a sample, the fields of shapmix.reference.CropPlan.
struct CropPlan {
  const std::int64_t* clip;
  const std::int64_t* start;
  const std::int64_t* length;
  const void* angles;  // [N, 3] radians about x, y, z, of the frames' type
};

struct SampleJob {
  const void* frames;  // [F, M, V, C], contiguous
  std::int64_t recorded_frames;
  std::int64_t people;
  std::int64_t joints;
  std::int64_t channels;

  const std::int64_t* offsets;  // [recordings + 1], where each recording begins
  std::int64_t recordings;
  CropPlan plan;
  std::int64_t samples;
  const std::int64_t* parents;  // [V]

  std::int64_t num_frames;  // T
  bool bone;
  bool motion;
  Dtype dtype;
  void* out;  // [N, C, T, V, M], contiguous
};

// Throws std::invalid_argument that names the first row of the plan that points outside the recordings or turns clips that
// have no three coordinates, the recording whose offsets point outside the frames, or the parent that is no joint.
void check_crops(const SampleJob& job);

// float32 and float64, host memory. The caller has run check_crops.
void sample_clips_cpu(const SampleJob& job, int threads);

}  // namespace shapmix

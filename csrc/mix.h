// Mixing clips by body part and time window: the training batch [clean; mixed] in one pass.
#pragma once

#include <cstdint>

#include "clips.h"
#include "dtype.h"

namespace shapmix {

// One row per sample, the fields of shapmix.reference.MixPlan.
struct MixPlan {
  const std::int64_t* partner;
  const std::int64_t* parts;
  const std::int64_t* start;
  const std::int64_t* length;
  const std::int64_t* source_start;
  const std::int64_t* source_length;
  const double* lam;
  const bool* blend;
};

struct MixJob {
  ClipShape shape;
  ClipView clips;
  MixPlan plan;
  const std::int64_t* part_of_joint;  // [V]
  Dtype dtype;
  void* out;  // [2N, C, T, V, M], contiguous
};

// Throws std::invalid_argument naming the first field and row out of range of the batch, the clip or the parts. Of a blended
// row, which ignores its window, only the partner is checked. Host memory only.
void check_plan(const ClipShape& shape, const MixPlan& plan, const std::int64_t* part_of_joint);

// All four dtypes, host memory. Precondition: check_plan passed.
void mix_clips_cpu(const MixJob& job, int threads);

// All four dtypes, device memory, asynchronous on `stream`. The plan must satisfy check_plan, which is not run here, since that
// would synchronise with the host. An invalid plan reads out of bounds.
void mix_clips_cuda(const MixJob& job, int device, void* stream);

}  // namespace shapmix

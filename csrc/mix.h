// Mixing clips by body part and time window: the training batch [clean; mixed] in one pass.
#pragma once

#include <cstdint>

#include "clips.h"
#include "dtype.h"

namespace shapmix {

// One row a sample, the fields of shapmix.reference.MixPlan.
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

// Throws std::invalid_argument that names the first field and row that point outside the batch, the clip or the
// parts. A blended row uses its partner and lam alone, so only those are looked at. Host memory only.
void check_plan(const ClipShape& shape, const MixPlan& plan, const std::int64_t* part_of_joint);

// All four types, host memory. The caller has run check_plan.
void mix_clips_cpu(const MixJob& job, int threads);

// All four types, device memory, asynchronous on `stream`. Precondition, not checked because that would need a host
// read: what check_plan asks for. A plan that breaks it reads outside the clips.
void mix_clips_cuda(const MixJob& job, int device, void* stream);

}  // namespace shapmix

// Coalition inputs: clips whose parts outside a coalition show the mean motion. A byte move, whatever the element type.
#pragma once

#include <cstdint>

#include "clips.h"
#include "dtype.h"

namespace shapmix {

struct CoalitionJob {
  ClipShape shape;
  ClipView clips;
  ClipView mean_motion;  // one clip: its sample stride is not used

  // Bit sets of parts: coalition s of sample n is coalitions[s * set_stride + n * sample_stride].
  const std::int64_t* coalitions;
  std::int64_t sets;
  std::int64_t set_stride;
  std::int64_t sample_stride;

  const std::int64_t* part_of_joint;  // [V]
  std::int64_t restored_frames;       // 0..T: later frames show the mean motion in every coalition
  std::int64_t element_size;          // bytes
  void* out;                          // [sets * N, C, T, V, M], contiguous
};

// The same clips as the first layer of a graph network sees them: x * weight + bias, one row a person.
struct NormalisedJob {
  CoalitionJob coalition;  // `out` is [sets * N * M, C, T, V], contiguous
  const void* weight;      // [M, V, C]
  const void* bias;        // [M, V, C]
  Dtype dtype;
};

// Throws std::invalid_argument that names the first coalition with a bit that is no part's. Host memory only.
void check_coalitions(const CoalitionJob& job);

// Elements of 2, 4 or 8 bytes, host memory. The caller has run check_coalitions.
void coalition_inputs_cpu(const CoalitionJob& job, int threads);

// All four types, host memory; product and sum are rounded to the type one after the other. The caller has run
// check_coalitions.
void normalised_coalition_inputs_cpu(const NormalisedJob& job, int threads);

// Elements of 2, 4 or 8 bytes, device memory, asynchronous on `stream`. Nothing is checked: that would need a host
// read. A bit set with bits beyond the parts is harmless; part_of_joint must hold 0..62.
void coalition_inputs_cuda(const CoalitionJob& job, int device, void* stream);

// All four types, device memory, otherwise as coalition_inputs_cuda.
void normalised_coalition_inputs_cuda(const NormalisedJob& job, int device, void* stream);

}  // namespace shapmix

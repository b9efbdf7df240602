// Coalition inputs: clips whose parts outside a coalition are replaced by the mean motion. A pure copy, independent of dtype.
#pragma once

#include <cstdint>

#include "clips.h"
#include "dtype.h"

namespace shapmix {

struct CoalitionJob {
  ClipShape shape;
  ClipView clips;
  ClipView mean_motion;  // one clip: its sample stride is not used

  // Bit sets of parts; coalition s of sample n is coalitions[s * set_stride + n * sample_stride].
  const std::int64_t* coalitions;
  std::int64_t sets;
  std::int64_t set_stride;
  std::int64_t sample_stride;

  const std::int64_t* part_of_joint;  // [V]
  std::int64_t restored_frames;       // 0..T: frames from here on show the mean motion in every coalition
  std::int64_t element_size;          // bytes
  void* out;                          // [sets * N, C, T, V, M], contiguous
};

// Throws std::invalid_argument naming the first coalition with a bit beyond the parts. Host memory only.
void check_coalitions(const CoalitionJob& job);

// Elements of 2, 4 or 8 bytes, host memory. Precondition: check_coalitions passed.
void coalition_inputs_cpu(const CoalitionJob& job, int threads);

// Elements of 2, 4 or 8 bytes, device memory, asynchronous on `stream`. Values are not checked, since that would synchronise
// with the host. A bit set with bits beyond the parts is harmless; part_of_joint must be in 0..62.
void coalition_inputs_cuda(const CoalitionJob& job, int device, void* stream);

}  // namespace shapmix

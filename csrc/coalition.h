// Coalition inputs: clips whose parts outside a coalition show the mean motion. A byte move, whatever the element type.
#pragma once

#include <cstdint>

#include "clips.h"

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

// Throws std::invalid_argument that names the first coalition with a bit that is no part's. Host memory only.
void check_coalitions(const CoalitionJob& job);

// Elements of 4 or 8 bytes, host memory. The caller has run check_coalitions.
void coalition_inputs_cpu(const CoalitionJob& job, int threads);

// Elements of 2, 4 or 8 bytes, device memory, asynchronous on `stream`. Nothing is checked: that would need a host
// read. A bit set with bits beyond the parts is harmless; part_of_joint must hold 0..62.
void coalition_inputs_cuda(const CoalitionJob& job, int device, void* stream);

}  // namespace shapmix

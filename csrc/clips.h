// Memory layout of a batch of clips [N, C, T, V, M].
#pragma once

#include <cstdint>

#include "host_device.h"

namespace shapmix {

struct ClipShape {
  std::int64_t samples;
  std::int64_t channels;
  std::int64_t frames;
  std::int64_t joints;
  std::int64_t people;

  // Elements of one frame [V, M], of one channel [T, V, M] and of one clip.
  SHAPMIX_HOST_DEVICE std::int64_t row() const { return joints * people; }
  SHAPMIX_HOST_DEVICE std::int64_t plane() const { return frames * row(); }
  SHAPMIX_HOST_DEVICE std::int64_t sample() const { return channels * plane(); }
};

// A read-only view of clips: planes [T, V, M] are contiguous, samples and channels have arbitrary strides, in elements.
struct ClipView {
  const void* data;
  std::int64_t sample_stride;
  std::int64_t channel_stride;
};

}  // namespace shapmix

// Maps a frame of the target window to a frame of the partner's window (nearest neighbour with torch's rounding).
#pragma once

#include <cstdint>

#include "host_device.h"

namespace shapmix {

// Offset into the source window for offset `step` of the target window.
// float64 clips: floor(step * source_length / length) in integers. All others: floor of the float32 product
// step * (source_length / length), each operation rounded; the two differ at a few lengths such as 11 of 13.
template <bool kExact>
SHAPMIX_HOST_DEVICE inline std::int64_t source_offset(std::int64_t step, std::int64_t source_length, std::int64_t length) {
  std::int64_t offset;
  if constexpr (kExact) {
    offset = step * source_length / length;
  } else {
#ifdef __CUDA_ARCH__  // plain operators could be contracted or approximated, depending on nvcc's flags
    const float scale = __fdiv_rn(__ll2float_rn(source_length), __ll2float_rn(length));
    offset = static_cast<std::int64_t>(__fmul_rn(__ll2float_rn(step), scale));
#else
    const float scale = static_cast<float>(source_length) / static_cast<float>(length);
    offset = static_cast<std::int64_t>(static_cast<float>(step) * scale);
#endif
  }
  return offset < source_length ? offset : source_length - 1;
}

}  // namespace shapmix

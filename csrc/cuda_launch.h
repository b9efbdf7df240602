// Launch helpers shared by the CUDA ops: error checks, device guard, grid size and aligned packs of elements.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include "clips.h"

namespace shapmix {

inline constexpr int kPackBytes = 16;  // the widest access of one thread
inline constexpr int kBlock = 128;

inline void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + " failed: " + cudaGetErrorString(status));
}

// Device guard: makes `device` current and restores the caller's device on destruction.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check_cuda(cudaGetDevice(&before_), "cudaGetDevice");
    if (device != before_) check_cuda(cudaSetDevice(device), "cudaSetDevice");
    changed_ = device != before_;
  }
  ~DeviceGuard() {
    if (changed_) (void)cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// Consecutive elements that a thread loads and stores in one access.
template <class Element, int kLanes>
struct alignas(sizeof(Element) * kLanes) Pack {
  Element lane[kLanes];
};

// True if every plane of the view is aligned to packs and holds a whole number of them.
inline bool packs_fit(const ClipView& view, const ClipShape& shape, std::int64_t element_size) {
  const auto fits = [](std::int64_t bytes) { return bytes % kPackBytes == 0; };
  return fits(static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(view.data))) && fits(view.sample_stride * element_size) &&
         fits(view.channel_stride * element_size) && fits(shape.plane() * element_size);
}

// x covers the packs of a plane [T, V, M]; y loops over the planes (n, c), grid-stride.
inline dim3 plane_grid(const ClipShape& shape, int lanes) {
  constexpr std::int64_t kMaxGridY = 65535;
  if (shape.plane() > std::numeric_limits<int>::max() - kBlock * kPackBytes) {
    throw std::invalid_argument("clips: T * V * M is " + std::to_string(shape.plane()) +
                                "; one channel must stay below 2^31 elements");
  }
  const std::int64_t packs = (shape.plane() + lanes - 1) / lanes;
  return dim3(static_cast<unsigned>((packs + kBlock - 1) / kBlock),
              static_cast<unsigned>(std::min(shape.samples * shape.channels, kMaxGridY)));
}

}  // namespace shapmix

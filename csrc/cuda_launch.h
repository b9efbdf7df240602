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

inline std::string describe(cudaError_t status) {
  return std::string(cudaGetErrorString(status)) + " (" + cudaGetErrorName(status) + ", " + std::to_string(status) + ")";
}

inline void check_cuda(cudaError_t status, const std::string& what) {
  if (status != cudaSuccess) throw std::runtime_error(what + " failed: " + describe(status));
}

// The error of the last launch, with the sizes [N, C, T, V, M] of its clips.
inline void check_launch(const char* op, const ClipShape& shape) {
  const cudaError_t status = cudaGetLastError();
  if (status == cudaSuccess) return;
  std::string sizes;
  for (const std::int64_t size : {shape.samples, shape.channels, shape.frames, shape.joints, shape.people}) {
    sizes += (sizes.empty() ? "" : ", ") + std::to_string(size);
  }
  check_cuda(status, std::string(op) + ": the launch on clips [" + sizes + "]");
}

// Device guard: makes `device` current and restores the caller's device on destruction.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check_cuda(cudaGetDevice(&before_), "cudaGetDevice");
    if (device != before_) check_cuda(cudaSetDevice(device), "cudaSetDevice(" + std::to_string(device) + ")");
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
  constexpr std::int64_t kMostElements = std::numeric_limits<int>::max() - kBlock * kPackBytes;  // indices are int
  if (shape.plane() > kMostElements) {
    throw std::invalid_argument("clips: T * V * M is " + std::to_string(shape.plane()) + "; give at most " +
                                std::to_string(kMostElements));
  }
  const std::int64_t packs = (shape.plane() + lanes - 1) / lanes;
  return dim3(static_cast<unsigned>((packs + kBlock - 1) / kBlock),
              static_cast<unsigned>(std::min(shape.samples * shape.channels, kMaxGridY)));
}

}  // namespace shapmix

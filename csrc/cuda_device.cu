#include "cuda_device.h"
#include "cuda_launch.h"

namespace shapmix {
namespace {

// An empty kernel that loads only if the build has code for the device's architecture.
__global__ void probe_kernel() {}

}  // namespace

int device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

std::string device_error(int device) {
  if (driver_version() == 0) return "no NVIDIA driver is loaded";
  int count = 0;
  if (const cudaError_t status = cudaGetDeviceCount(&count); status != cudaSuccess) return describe(status);
  if (device < 0 || device >= count) {
    return "there are " + std::to_string(count) + " devices, none numbered " + std::to_string(device);
  }
  const DeviceGuard guard(device);
  cudaFuncAttributes attributes;
  if (const cudaError_t status = cudaFuncGetAttributes(&attributes, probe_kernel); status != cudaSuccess) {
    (void)cudaGetLastError();  // clears it, so that the next launch does not report it
    return describe(status);
  }
  return "";
}

int toolkit_version() { return CUDART_VERSION; }

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

}  // namespace shapmix

// GPU queries that also work on a machine without a GPU.
#pragma once

#include <string>

namespace shapmix {

// Number of usable devices; 0 without a GPU or driver.
int device_count();

// The reason why the kernels of this build cannot run on `device`, as reported by the CUDA runtime; empty if they can.
std::string device_error(int device);

// Versions as CUDA encodes them (13000 = 13.0); the driver's is 0 without a driver.
int toolkit_version();
int driver_version();

}  // namespace shapmix

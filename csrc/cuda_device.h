// Questions about the GPU that must be answerable on a machine without one.
#pragma once

#include <string>

namespace shapmix {

// Number of usable devices; 0 without a GPU or driver.
int device_count();

// Why no kernel of this build can run on `device`, in the CUDA runtime's words; empty where they can.
std::string device_error(int device);

// Versions as CUDA encodes them (13000 = 13.0); the driver's is 0 without a driver.
int toolkit_version();
int driver_version();

}  // namespace shapmix

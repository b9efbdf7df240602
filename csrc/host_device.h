// Marks functions callable from host and device code.
#pragma once

#ifdef __CUDACC__
#define SHAPMIX_HOST_DEVICE __host__ __device__
#else
#define SHAPMIX_HOST_DEVICE
#endif

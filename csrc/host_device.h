// Marks functions that kernels call too.
#pragma once

#ifdef __CUDACC__
#define SHAPMIX_HOST_DEVICE __host__ __device__
#else
#define SHAPMIX_HOST_DEVICE
#endif

// Arithmetic with the rounding of the reference: every product and sum is rounded to the element type, half precision via float32
// as in torch's kernels. Intrinsics keep the compiler from contracting a product and a sum to an FMA.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "dtype.h"

namespace shapmix {

template <>
struct DtypeOf<__half> {
  static constexpr Dtype value = Dtype::kFloat16;
};
template <>
struct DtypeOf<__nv_bfloat16> {
  static constexpr Dtype value = Dtype::kBfloat16;
};

// The dtype switch of every CUDA op.
template <class Body>
void switch_cuda_dtype(Dtype dtype, const char* what, const Body& body) {
  switch_dtype<float, double, __half, __nv_bfloat16>(dtype, what, body);
}

__device__ inline float product(float x, float y) { return __fmul_rn(x, y); }
__device__ inline float sum(float x, float y) { return __fadd_rn(x, y); }

__device__ inline double product(double x, double y) { return __dmul_rn(x, y); }
__device__ inline double sum(double x, double y) { return __dadd_rn(x, y); }

__device__ inline __half product(__half x, __half y) { return __float2half_rn(__fmul_rn(__half2float(x), __half2float(y))); }
__device__ inline __half sum(__half x, __half y) { return __float2half_rn(__fadd_rn(__half2float(x), __half2float(y))); }

__device__ inline __nv_bfloat16 product(__nv_bfloat16 x, __nv_bfloat16 y) {
  return __float2bfloat16_rn(__fmul_rn(__bfloat162float(x), __bfloat162float(y)));
}
__device__ inline __nv_bfloat16 sum(__nv_bfloat16 x, __nv_bfloat16 y) {
  return __float2bfloat16_rn(__fadd_rn(__bfloat162float(x), __bfloat162float(y)));
}

}  // namespace shapmix

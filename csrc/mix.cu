#include <type_traits>

#include "cuda_launch.h"
#include "cuda_rounding.h"
#include "frame_rule.h"
#include "mix.h"

namespace shapmix {
namespace {

// A blend weight, rounded to the clip's type as in the reference.
template <class Element>
__device__ Element share(double lam) {
  if constexpr (std::is_same_v<Element, double>) {
    return lam;
  } else if constexpr (std::is_same_v<Element, __half>) {
    return __float2half_rn(__double2float_rn(lam));
  } else if constexpr (std::is_same_v<Element, __nv_bfloat16>) {
    return __float2bfloat16_rn(__double2float_rn(lam));
  } else {
    return __double2float_rn(lam);
  }
}

// Each thread reads one pack of its sample and writes it to the clean half and, mixed, to the mixed half.
template <class Element, int kLanes>
__global__ void __launch_bounds__(kBlock) mix_kernel(MixJob job) {
  using Lanes = Pack<Element, kLanes>;
  constexpr bool kExact = std::is_same_v<Element, double>;
  const ClipShape shape = job.shape;
  const int plane = static_cast<int>(shape.plane());
  const int row = static_cast<int>(shape.row());
  const int people = static_cast<int>(shape.people);

  const int i = (blockIdx.x * kBlock + threadIdx.x) * kLanes;
  if (i >= plane) return;

  for (std::int64_t p = blockIdx.y; p < shape.samples * shape.channels; p += gridDim.y) {
    const std::int64_t sample = p / shape.channels;
    const std::int64_t channel = p % shape.channels;
    const Element* clips = static_cast<const Element*>(job.clips.data) + channel * job.clips.channel_stride;
    const Element* own = clips + sample * job.clips.sample_stride;
    const Element* partner = clips + job.plan.partner[sample] * job.clips.sample_stride;
    Element* clean = static_cast<Element*>(job.out) + p * plane;
    Element* mixed = clean + shape.samples * shape.sample();

    const bool blended = job.plan.blend[sample];
    const double lam = job.plan.lam[sample];
    const Element keep = share<Element>(1.0 - lam);
    const Element take = share<Element>(lam);
    const std::int64_t parts = job.plan.parts[sample];
    const std::int64_t start = job.plan.start[sample];
    const std::int64_t length = job.plan.length[sample];
    const std::int64_t source_start = job.plan.source_start[sample];
    const std::int64_t source_length = job.plan.source_length[sample];

    Lanes value = *reinterpret_cast<const Lanes*>(own + i);
    *reinterpret_cast<Lanes*>(clean + i) = value;
    if (blended) {
      const Lanes other = *reinterpret_cast<const Lanes*>(partner + i);
#pragma unroll
      for (int k = 0; k < kLanes; ++k) {
        value.lane[k] = sum(product(value.lane[k], keep), product(other.lane[k], take));
      }
    } else {
#pragma unroll
      for (int k = 0; k < kLanes; ++k) {
        const std::int64_t step = (i + k) / row - start;
        const int in_row = (i + k) % row;
        if (step >= 0 && step < length && ((parts >> job.part_of_joint[in_row / people]) & 1)) {
          value.lane[k] = partner[(source_start + source_offset<kExact>(step, source_length, length)) * row + in_row];
        }
      }
    }
    *reinterpret_cast<Lanes*>(mixed + i) = value;
  }
}

template <class Element>
void launch(const MixJob& job, cudaStream_t stream) {
  constexpr int kLanes = kPackBytes / sizeof(Element);
  const ClipView out{job.out, 0, 0};
  if (packs_fit(job.clips, job.shape, sizeof(Element)) && packs_fit(out, job.shape, sizeof(Element))) {
    mix_kernel<Element, kLanes><<<plane_grid(job.shape, kLanes), kBlock, 0, stream>>>(job);
  } else {
    mix_kernel<Element, 1><<<plane_grid(job.shape, 1), kBlock, 0, stream>>>(job);
  }
  check_launch("mix_clips", job.shape);
}

}  // namespace

void mix_clips_cuda(const MixJob& job, int device, void* stream) {
  const DeviceGuard guard(device);
  const auto queue = static_cast<cudaStream_t>(stream);
  switch_cuda_dtype(job.dtype, "mix_clips on CUDA: clips", [&](auto element) { launch<decltype(element)>(job, queue); });
}

}  // namespace shapmix

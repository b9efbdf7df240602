#include "coalition.h"
#include "cuda_launch.h"

namespace shapmix {
namespace {

// The sign bit is clear in every bit set of parts: an element with this "part" is never kept.
constexpr int kNeverKept = 63;

// Each thread loads one pack of the clip and of the mean motion and writes the selection for every coalition.
template <class Element, int kLanes>
__global__ void __launch_bounds__(kBlock) coalition_kernel(CoalitionJob job) {
  using Lanes = Pack<Element, kLanes>;
  const ClipShape shape = job.shape;
  const int plane = static_cast<int>(shape.plane());
  const int row = static_cast<int>(shape.row());
  const int people = static_cast<int>(shape.people);
  const int restored = static_cast<int>(job.restored_frames) * row;
  const std::int64_t set_size = shape.samples * shape.sample();

  const int i = (blockIdx.x * kBlock + threadIdx.x) * kLanes;
  if (i >= plane) return;
  int part[kLanes];
#pragma unroll
  for (int k = 0; k < kLanes; ++k) {
    part[k] = i + k < restored ? static_cast<int>(job.part_of_joint[(i + k) % row / people]) : kNeverKept;
  }

  for (std::int64_t p = blockIdx.y; p < shape.samples * shape.channels; p += gridDim.y) {
    const std::int64_t sample = p / shape.channels;
    const std::int64_t channel = p % shape.channels;
    const Element* clip =
        static_cast<const Element*>(job.clips.data) + sample * job.clips.sample_stride + channel * job.clips.channel_stride;
    const Element* mean = static_cast<const Element*>(job.mean_motion.data) + channel * job.mean_motion.channel_stride;
    Element* out = static_cast<Element*>(job.out) + p * plane + i;
    const Lanes own = *reinterpret_cast<const Lanes*>(clip + i);
    const Lanes rest = *reinterpret_cast<const Lanes*>(mean + i);

    for (std::int64_t set = 0; set < job.sets; ++set) {
      const std::int64_t coalition = job.coalitions[set * job.set_stride + sample * job.sample_stride] & INT64_MAX;
      Lanes shown;
#pragma unroll
      for (int k = 0; k < kLanes; ++k) {
        const auto keep = static_cast<Element>(-((coalition >> part[k]) & 1));  // all ones or zero
        shown.lane[k] = (own.lane[k] & keep) | (rest.lane[k] & ~keep);
      }
      *reinterpret_cast<Lanes*>(out + set * set_size) = shown;
    }
  }
}

template <class Element>
void launch(const CoalitionJob& job, cudaStream_t stream) {
  constexpr int kLanes = kPackBytes / sizeof(Element);
  const ClipView out{job.out, 0, 0};
  // The mean motion's sample stride is not used, so it cannot misalign anything.
  const ClipView mean{job.mean_motion.data, 0, job.mean_motion.channel_stride};
  const bool packed = packs_fit(job.clips, job.shape, sizeof(Element)) && packs_fit(mean, job.shape, sizeof(Element)) &&
                      packs_fit(out, job.shape, sizeof(Element));
  if (packed) {
    coalition_kernel<Element, kLanes><<<plane_grid(job.shape, kLanes), kBlock, 0, stream>>>(job);
  } else {
    coalition_kernel<Element, 1><<<plane_grid(job.shape, 1), kBlock, 0, stream>>>(job);
  }
  check_launch("coalition_inputs", job.shape);
}

}  // namespace

void coalition_inputs_cuda(const CoalitionJob& job, int device, void* stream) {
  const DeviceGuard guard(device);
  const auto queue = static_cast<cudaStream_t>(stream);
  switch_element_size(job.element_size, "coalition_inputs on CUDA: clips", [&](auto bits) { launch<decltype(bits)>(job, queue); });
}

}  // namespace shapmix

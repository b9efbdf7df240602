#include "coalition.h"
#include "cuda_launch.h"
#include "cuda_rounding.h"

namespace shapmix {
namespace {

// Each thread normalises one pack, in output order [M, T, V], of the clip and of the mean motion, and writes one of the two for
// every coalition.
template <class Element, int kLanes>
__global__ void __launch_bounds__(kBlock) normalised_kernel(NormalisedJob job) {
  using Lanes = Pack<Element, kLanes>;
  const CoalitionJob& coalition = job.coalition;
  const ClipShape shape = coalition.shape;
  const int plane = static_cast<int>(shape.plane());
  const int person_plane = static_cast<int>(shape.frames * shape.joints);
  const int joints = static_cast<int>(shape.joints);
  const int people = static_cast<int>(shape.people);
  const std::int64_t set_size = shape.samples * shape.sample();

  const int i = (blockIdx.x * kBlock + threadIdx.x) * kLanes;
  if (i >= plane) return;

  for (std::int64_t p = blockIdx.y; p < shape.samples * shape.channels; p += gridDim.y) {
    const std::int64_t sample = p / shape.channels;
    const std::int64_t channel = p % shape.channels;
    const Element* clip = static_cast<const Element*>(coalition.clips.data) + sample * coalition.clips.sample_stride +
                          channel * coalition.clips.channel_stride;
    const Element* mean = static_cast<const Element*>(coalition.mean_motion.data) + channel * coalition.mean_motion.channel_stride;

    Lanes own, rest;
    int part[kLanes];
    bool restored[kLanes];
#pragma unroll
    for (int k = 0; k < kLanes; ++k) {
      const int person = (i + k) / person_plane;
      const int frame = (i + k) % person_plane / joints;
      const int joint = (i + k) % joints;
      const int source = (frame * joints + joint) * people + person;
      const std::int64_t norm = (person * joints + joint) * shape.channels + channel;
      const Element weight = static_cast<const Element*>(job.weight)[norm];
      const Element bias = static_cast<const Element*>(job.bias)[norm];
      own.lane[k] = sum(product(clip[source], weight), bias);
      rest.lane[k] = sum(product(mean[source], weight), bias);
      part[k] = static_cast<int>(coalition.part_of_joint[joint]);
      restored[k] = frame < coalition.restored_frames;
    }

    // a pack lies within one person: people are aligned to packs, or packs hold one element
    const std::int64_t row = sample * people + i / person_plane;
    Element* out = static_cast<Element*>(coalition.out) + (row * shape.channels + channel) * person_plane + i % person_plane;
    // bound by stores: unrolling is no faster and spills registers
#pragma unroll 1
    for (std::int64_t set = 0; set < coalition.sets; ++set) {
      const std::int64_t bits = coalition.coalitions[set * coalition.set_stride + sample * coalition.sample_stride];
      Lanes shown;
#pragma unroll
      for (int k = 0; k < kLanes; ++k) shown.lane[k] = restored[k] && ((bits >> part[k]) & 1) ? own.lane[k] : rest.lane[k];
      *reinterpret_cast<Lanes*>(out + set * set_size) = shown;
    }
  }
}

template <class Element>
void launch(const NormalisedJob& job, cudaStream_t stream) {
  constexpr int kLanes = kPackBytes / sizeof(Element);
  const ClipShape& shape = job.coalition.shape;
  const bool aligned = reinterpret_cast<std::uintptr_t>(job.coalition.out) % kPackBytes == 0;
  if (aligned && shape.frames * shape.joints % kLanes == 0) {
    normalised_kernel<Element, kLanes><<<plane_grid(shape, kLanes), kBlock, 0, stream>>>(job);
  } else {
    normalised_kernel<Element, 1><<<plane_grid(shape, 1), kBlock, 0, stream>>>(job);
  }
  check_launch("normalised_coalition_inputs", shape);
}

}  // namespace

void normalised_coalition_inputs_cuda(const NormalisedJob& job, int device, void* stream) {
  const DeviceGuard guard(device);
  const auto queue = static_cast<cudaStream_t>(stream);
  switch_cuda_dtype(job.dtype, "normalised_coalition_inputs on CUDA: clips",
                    [&](auto element) { launch<decltype(element)>(job, queue); });
}

}  // namespace shapmix

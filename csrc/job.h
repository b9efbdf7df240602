// Builds jobs from Python arguments: addresses, sizes and strides in elements. Without torch headers, so that one build works
// with every torch version.
#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "coalition.h"
#include "mix.h"

namespace shapmix {

using Address = std::uintptr_t;
using Sizes = std::array<std::int64_t, 5>;    // [N, C, T, V, M]
using Strides = std::array<std::int64_t, 2>;  // of two axes

template <class T>
T* into(Address address) {
  if (address == 0) throw std::invalid_argument("an argument is a tensor without memory; give tensors that hold their values");
  return reinterpret_cast<T*>(address);
}

template <class T>
const T* at(Address address) {
  return into<const T>(address);
}

// Optional argument: address 0 if absent.
template <class T>
const T* if_any(Address address) {
  return reinterpret_cast<const T*>(address);
}

inline ClipShape clip_shape(const Sizes& sizes) { return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]}; }

inline ClipView clip_view(Address data, const Strides& strides) { return {at<void>(data), strides[0], strides[1]}; }

// partner, parts, start, length, source_start, source_length, lam, blend
inline MixPlan mix_plan(const std::array<Address, 8>& field) {
  return {at<std::int64_t>(field[0]), at<std::int64_t>(field[1]), at<std::int64_t>(field[2]), at<std::int64_t>(field[3]),
          at<std::int64_t>(field[4]), at<std::int64_t>(field[5]), at<double>(field[6]),       at<bool>(field[7])};
}

// `mean_channel_stride`: channel stride of the mean motion. `coalition_strides`: strides of sets and samples.
inline CoalitionJob coalition_job(Address out, Address clips, const Sizes& sizes, const Strides& strides, Address mean_motion,
                                  std::int64_t mean_channel_stride, Address coalitions, std::int64_t sets,
                                  const Strides& coalition_strides, Address part_of_joint, std::int64_t restored_frames,
                                  std::int64_t element_size) {
  CoalitionJob job{};
  job.shape = clip_shape(sizes);
  job.clips = clip_view(clips, strides);
  job.mean_motion = clip_view(mean_motion, {0, mean_channel_stride});
  job.coalitions = at<std::int64_t>(coalitions);
  job.sets = sets;
  job.set_stride = coalition_strides[0];
  job.sample_stride = coalition_strides[1];
  job.part_of_joint = at<std::int64_t>(part_of_joint);
  job.restored_frames = restored_frames;
  job.element_size = element_size;
  job.out = into<void>(out);
  return job;
}

inline MixJob mix_job(Address out, Address clips, const Sizes& sizes, const Strides& strides, const std::array<Address, 8>& plan,
                      Address part_of_joint, const std::string& dtype) {
  return {clip_shape(sizes), clip_view(clips, strides), mix_plan(plan), at<std::int64_t>(part_of_joint), dtype_named(dtype),
          into<void>(out)};
}

}  // namespace shapmix

#include "mix.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "frame_rule.h"
#include "parallel.h"
#include "parts.h"
#include "simd.h"

namespace shapmix {
namespace {

// Frames of the target window: `take` [row] is all ones where the partner's frame source[t] is shown.
template <class Bits>
SHAPMIX_SIMD_BODY void paste_rows(Bits* __restrict out, const Bits* own, const Bits* partner, const std::int64_t* source,
                                  const Bits* take, std::int64_t row, std::int64_t frames) {
  for (std::int64_t t = 0; t < frames; ++t) {
    const Bits* from = partner + source[t] * row;
    for (std::int64_t i = 0; i < row; ++i) {
      out[t * row + i] = (from[i] & take[i]) | (own[t * row + i] & ~take[i]);
    }
  }
}

SHAPMIX_SIMD_CLONES void paste(std::uint32_t* out, const std::uint32_t* own, const std::uint32_t* partner,
                               const std::int64_t* source, const std::uint32_t* take, std::int64_t row, std::int64_t frames) {
  paste_rows(out, own, partner, source, take, row, frames);
}

SHAPMIX_SIMD_CLONES void paste(std::uint64_t* out, const std::uint64_t* own, const std::uint64_t* partner,
                               const std::int64_t* source, const std::uint64_t* take, std::int64_t row, std::int64_t frames) {
  paste_rows(out, own, partner, source, take, row, frames);
}

// Both products are rounded before the sum, as in the reference: this file is compiled with -ffp-contract=off.
template <class Real>
SHAPMIX_SIMD_BODY void blend_elements(Real* __restrict out, const Real* own, const Real* partner, Real keep, Real take,
                                      std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    out[i] = own[i] * keep + partner[i] * take;
  }
}

SHAPMIX_SIMD_CLONES void blend(float* out, const float* own, const float* partner, float keep, float take, std::int64_t count) {
  blend_elements(out, own, partner, keep, take, count);
}

SHAPMIX_SIMD_CLONES void blend(double* out, const double* own, const double* partner, double keep, double take,
                               std::int64_t count) {
  blend_elements(out, own, partner, keep, take, count);
}

template <class Element>
void copy(Element* to, const Element* from, std::int64_t count) {
  std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(Element));
}

template <class Real>
void blend_sample(const MixJob& job, std::int64_t sample, Real* mixed) {
  const auto* clips = static_cast<const Real*>(job.clips.data);
  const Real* own = clips + sample * job.clips.sample_stride;
  const Real* partner = clips + job.plan.partner[sample] * job.clips.sample_stride;
  const auto keep = static_cast<Real>(1.0 - job.plan.lam[sample]);
  const auto take = static_cast<Real>(job.plan.lam[sample]);
  for (std::int64_t channel = 0; channel < job.shape.channels; ++channel) {
    const std::int64_t offset = channel * job.clips.channel_stride;
    blend(mixed + channel * job.shape.plane(), own + offset, partner + offset, keep, take, job.shape.plane());
  }
}

// `source` [T] and `take` [row] are scratch.
template <class Real, class Bits>
void paste_sample(const MixJob& job, std::int64_t sample, Bits* mixed, std::int64_t* source, Bits* take) {
  const MixPlan& plan = job.plan;
  const std::int64_t row = job.shape.row();
  const std::int64_t start = plan.start[sample];
  const std::int64_t length = plan.length[sample];

  for (std::int64_t step = 0; step < length; ++step) {
    constexpr bool kExact = std::is_same_v<Real, double>;
    source[step] = plan.source_start[sample] + source_offset<kExact>(step, plan.source_length[sample], length);
  }
  Bits* next = take;
  for (std::int64_t joint = 0; joint < job.shape.joints; ++joint) {
    const bool taken = (plan.parts[sample] >> job.part_of_joint[joint]) & 1;
    next = std::fill_n(next, job.shape.people, taken ? ~Bits{0} : Bits{0});
  }

  const auto* clips = static_cast<const Bits*>(job.clips.data);
  for (std::int64_t channel = 0; channel < job.shape.channels; ++channel) {
    const Bits* own = clips + sample * job.clips.sample_stride + channel * job.clips.channel_stride;
    const Bits* partner = clips + plan.partner[sample] * job.clips.sample_stride + channel * job.clips.channel_stride;
    Bits* out = mixed + channel * job.shape.plane();
    const std::int64_t begin = start * row;
    const std::int64_t end = (start + length) * row;
    copy(out, own, begin);
    paste(out + begin, own + begin, partner, source, take, row, length);
    copy(out + end, own + end, job.shape.plane() - end);
  }
}

template <class Real>
void run(const MixJob& job, int threads) {
  using Bits = std::conditional_t<std::is_same_v<Real, double>, std::uint64_t, std::uint32_t>;
  static_assert(sizeof(Bits) == sizeof(Real));
  const ClipShape& shape = job.shape;
  const auto* clips = static_cast<const Real*>(job.clips.data);
  auto* clean = static_cast<Real*>(job.out);
  auto* mixed = clean + shape.samples * shape.sample();

  const auto bytes = 2 * shape.samples * shape.sample() * static_cast<std::int64_t>(sizeof(Real));
  const int workers = workers_for(shape.samples, bytes, threads);
  std::vector<std::int64_t> sources(static_cast<std::size_t>(workers * shape.frames));
  std::vector<Bits> takes(static_cast<std::size_t>(workers * shape.row()));

  parallel_for(shape.samples, workers, [&](std::int64_t worker, std::int64_t begin, std::int64_t end) {
    for (std::int64_t sample = begin; sample < end; ++sample) {
      for (std::int64_t channel = 0; channel < shape.channels; ++channel) {
        const Real* own = clips + sample * job.clips.sample_stride + channel * job.clips.channel_stride;
        copy(clean + sample * shape.sample() + channel * shape.plane(), own, shape.plane());
      }
      Real* out = mixed + sample * shape.sample();
      if (job.plan.blend[sample]) {
        blend_sample<Real>(job, sample, out);
      } else {
        paste_sample<Real>(job, sample, reinterpret_cast<Bits*>(out), sources.data() + worker * shape.frames,
                           takes.data() + worker * shape.row());
      }
    }
  });
}

void check_range(const char* field, std::int64_t row, std::int64_t value, std::int64_t low, std::int64_t high, const char* what) {
  if (value >= low && value <= high) return;
  throw std::invalid_argument(std::string("plan.") + field + "[" + std::to_string(row) + "] is " + std::to_string(value) + "; " +
                              what + " must be in " + std::to_string(low) + ".." + std::to_string(high));
}

}  // namespace

void check_plan(const ClipShape& shape, const MixPlan& plan, const std::int64_t* part_of_joint) {
  const std::int64_t parts = count_parts(part_of_joint, shape.joints);
  const std::int64_t frames = shape.frames;
  for (std::int64_t row = 0; row < shape.samples; ++row) {
    check_range("partner", row, plan.partner[row], 0, shape.samples - 1, "a sample of the batch");
    if (plan.blend[row]) continue;
    check_range("start", row, plan.start[row], 0, frames - 1, "the window's first frame");
    check_range("length", row, plan.length[row], 1, frames - plan.start[row], "the window's length from its start");
    check_range("source_start", row, plan.source_start[row], 0, frames - 1, "the partner window's first frame");
    check_range("source_length", row, plan.source_length[row], 1, frames - plan.source_start[row],
                "the partner window's length from its start");
    if (!holds_only_parts(plan.parts[row], parts)) {
      throw std::invalid_argument(not_a_part_set("plan.parts[" + std::to_string(row) + "]", plan.parts[row], parts));
    }
  }
}

void mix_clips_cpu(const MixJob& job, int threads) {
  switch (job.dtype) {
    case Dtype::kFloat32: return run<float>(job, threads);
    case Dtype::kFloat64: return run<double>(job, threads);
    default: throw std::invalid_argument("the CPU path mixes float32 and float64 clips only");
  }
}

}  // namespace shapmix

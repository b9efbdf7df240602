#include "mix.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "checks.h"
#include "element.h"
#include "frame_rule.h"
#include "isa.h"
#include "parallel.h"
#include "parts.h"
#include "scratch.h"

namespace shapmix {
namespace {

// Frames of the target window: `take` [row] is a bit mask, all ones where the partner's frame source[t] is pasted.
template <class Lane>
struct Paste {
  template <class>
  SHAPMIX_SIMD_BODY static void run(Lane* __restrict out, const Lane* own, const Lane* partner, const std::int64_t* source,
                                    const Lane* take, std::int64_t row, std::int64_t frames) {
    for (std::int64_t t = 0; t < frames; ++t) {
      const Lane* from = partner + source[t] * row;
      for (std::int64_t i = 0; i < row; ++i) {
        out[t * row + i] = (from[i] & take[i]) | (own[t * row + i] & ~take[i]);
      }
    }
  }
};

// Both products are rounded before the sum, as in the reference; this file is compiled with -ffp-contract=off.
template <class Element>
struct Blend {
  template <class>
  SHAPMIX_SIMD_BODY static void run(Element* __restrict out, const Element* own, const Element* partner, Element keep, Element take,
                                    std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) out[i] = sum(product(own[i], keep), product(partner[i], take));
  }
};

template <class Element>
struct Loops {
  decltype(compiled<Paste<Bits<Element>>>()) paste = compiled<Paste<Bits<Element>>>();
  decltype(compiled<Blend<Element>>()) blend = compiled<Blend<Element>>();
};

template <class Element>
void copy(Element* to, const Element* from, std::int64_t count) {
  std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(Element));
}

template <class Element>
void blend_sample(const MixJob& job, const Loops<Element>& loops, std::int64_t sample, Element* mixed) {
  const auto* clips = static_cast<const Element*>(job.clips.data);
  const Element* own = clips + sample * job.clips.sample_stride;
  const Element* partner = clips + job.plan.partner[sample] * job.clips.sample_stride;
  const auto keep = static_cast<Element>(static_cast<Wide<Element>>(1.0 - job.plan.lam[sample]));
  const auto take = static_cast<Element>(static_cast<Wide<Element>>(job.plan.lam[sample]));
  for (std::int64_t channel = 0; channel < job.shape.channels; ++channel) {
    const std::int64_t offset = channel * job.clips.channel_stride;
    loops.blend(mixed + channel * job.shape.plane(), own + offset, partner + offset, keep, take, job.shape.plane());
  }
}

// `source` [T] and `take` [row] are scratch memory.
template <class Element>
void paste_sample(const MixJob& job, const Loops<Element>& loops, std::int64_t sample, Bits<Element>* mixed, std::int64_t* source,
                  Bits<Element>* take) {
  using Lane = Bits<Element>;
  const MixPlan& plan = job.plan;
  const std::int64_t row = job.shape.row();
  const std::int64_t start = plan.start[sample];
  const std::int64_t length = plan.length[sample];

  for (std::int64_t step = 0; step < length; ++step) {
    constexpr bool kExact = std::is_same_v<Element, double>;
    source[step] = plan.source_start[sample] + source_offset<kExact>(step, plan.source_length[sample], length);
  }
  Lane* next = take;
  for (std::int64_t joint = 0; joint < job.shape.joints; ++joint) {
    const bool taken = (plan.parts[sample] >> job.part_of_joint[joint]) & 1;
    next = std::fill_n(next, job.shape.people, taken ? static_cast<Lane>(~Lane{0}) : Lane{0});
  }

  const auto* clips = static_cast<const Lane*>(job.clips.data);
  for (std::int64_t channel = 0; channel < job.shape.channels; ++channel) {
    const Lane* own = clips + sample * job.clips.sample_stride + channel * job.clips.channel_stride;
    const Lane* partner = clips + plan.partner[sample] * job.clips.sample_stride + channel * job.clips.channel_stride;
    Lane* out = mixed + channel * job.shape.plane();
    const std::int64_t begin = start * row;
    const std::int64_t end = (start + length) * row;
    copy(out, own, begin);
    loops.paste(out + begin, own + begin, partner, source, take, row, length);
    copy(out + end, own + end, job.shape.plane() - end);
  }
}

template <class Element>
void run(const MixJob& job, int threads) {
  using Lane = Bits<Element>;
  const ClipShape& shape = job.shape;
  const auto* clips = static_cast<const Element*>(job.clips.data);
  auto* clean = static_cast<Element*>(job.out);
  auto* mixed = clean + shape.samples * shape.sample();

  const auto bytes = 2 * shape.samples * shape.sample() * static_cast<std::int64_t>(sizeof(Element));
  const int workers = workers_for(shape.samples, bytes, threads);
  const Scratch<std::int64_t> sources(workers, shape.frames);
  const Scratch<Lane> takes(workers, shape.row());
  const Loops<Element> loops;

  parallel_for(shape.samples, workers, [&](std::int64_t worker, std::int64_t begin, std::int64_t end) {
    for (std::int64_t sample = begin; sample < end; ++sample) {
      for (std::int64_t channel = 0; channel < shape.channels; ++channel) {
        const Element* own = clips + sample * job.clips.sample_stride + channel * job.clips.channel_stride;
        copy(clean + sample * shape.sample() + channel * shape.plane(), own, shape.plane());
      }
      Element* out = mixed + sample * shape.sample();
      if (job.plan.blend[sample]) {
        blend_sample<Element>(job, loops, sample, out);
      } else {
        paste_sample<Element>(job, loops, sample, reinterpret_cast<Lane*>(out), sources.of(worker), takes.of(worker));
      }
    }
  });
}

}  // namespace

void check_plan(const ClipShape& shape, const MixPlan& plan, const std::int64_t* part_of_joint) {
  const std::int64_t parts = count_parts(part_of_joint, shape.joints);
  const std::int64_t frames = shape.frames;
  for (std::int64_t row = 0; row < shape.samples; ++row) {
    check_range("plan.partner", row, plan.partner[row], 0, shape.samples - 1, "a sample of the batch");
    if (plan.blend[row]) continue;
    check_range("plan.start", row, plan.start[row], 0, frames - 1, "the window's first frame");
    check_range("plan.length", row, plan.length[row], 1, frames - plan.start[row], "the window's length from its start");
    check_range("plan.source_start", row, plan.source_start[row], 0, frames - 1, "the partner window's first frame");
    check_range("plan.source_length", row, plan.source_length[row], 1, frames - plan.source_start[row],
                "the partner window's length from its start");
    if (!holds_only_parts(plan.parts[row], parts)) {
      throw std::invalid_argument(not_a_part_set("plan.parts[" + std::to_string(row) + "]", plan.parts[row], parts));
    }
  }
}

void mix_clips_cpu(const MixJob& job, int threads) {
  switch_dtype<float, double, Half, Bfloat16>(job.dtype, "mix_clips on the CPU: clips",
                                              [&](auto element) { run<decltype(element)>(job, threads); });
}

}  // namespace shapmix

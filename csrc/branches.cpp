#include "branches.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <type_traits>

#include "element.h"
#include "isa.h"
#include "lanes.h"
#include "parallel.h"

namespace shapmix {
namespace {

template <class Element>
const Element* row_of(const Rows& rows, std::int64_t row) {
  return static_cast<const Element*>(rows.data) + row * rows.stride;
}

// Maximum that propagates NaN, as in torch. It selects bits, because GCC 12 scalarises two nested vector conditionals.
template <class Vector>
SHAPMIX_SIMD_BODY Vector nan_maximum(const Vector& x, const Vector& y) {
  const Vector most = x < y ? y : x;
  const auto is_nan = y != y;
  std::decay_t<decltype(is_nan)> chosen;
  std::decay_t<decltype(is_nan)> nan;
  std::memcpy(&chosen, &most, sizeof chosen);
  std::memcpy(&nan, &y, sizeof nan);
  chosen = (chosen & ~is_nan) | (nan & is_nan);
  Vector result;
  std::memcpy(&result, &chosen, sizeof result);
  return result;
}

template <int kLanes, class Element>
SHAPMIX_SIMD_BODY void join_rows(const BranchesJob& job, Element* out, std::int64_t begin, std::int64_t end) {
  const std::int64_t joints = job.joints;
  const std::int64_t width = job.width;
  const std::int64_t frames_out = (job.frames + job.frame_stride - 1) / job.frame_stride;
  const auto* scale = static_cast<const Wide<Element>*>(job.scale);
  const auto* offset = static_cast<const Wide<Element>*>(job.offset);
  for (std::int64_t frame = begin; frame < end; ++frame) {
    const std::int64_t clip = frame / frames_out;
    const std::int64_t centre = frame % frames_out * job.frame_stride;
    const std::int64_t before = (clip * job.frames + std::max<std::int64_t>(centre - 1, 0)) * joints;
    const std::int64_t at = (clip * job.frames + centre) * joints;
    const std::int64_t after = (clip * job.frames + std::min(centre + 1, job.frames - 1)) * joints;
    for (std::int64_t v = 0; v < joints; ++v) {
      const std::int64_t row = frame * joints + v;
      const Element* narrow = row_of<Element>(job.narrow, row);
      const Element* wide = row_of<Element>(job.wide, row);
      const Element* skip = row_of<Element>(job.skip, row);
      const Element* shortcut = job.shortcut.data == nullptr ? nullptr : row_of<Element>(job.shortcut, row);
      const Element* early = row_of<Element>(job.middle, before + v);
      const Element* now = row_of<Element>(job.middle, at + v);
      const Element* late = row_of<Element>(job.middle, after + v);
      Element* to = out + row * 4 * width;
      over_channels<kLanes>(width, [&](std::int64_t channel, auto lanes) __attribute__((always_inline)) {
        constexpr int kWidth = decltype(lanes)::value;
        const auto finish = [&](int branch, auto value) __attribute__((always_inline)) {
          const std::int64_t column = branch * width + channel;
          if (shortcut != nullptr) value += load<kWidth>(shortcut + column);
          store(to + column, value < 0 ? decltype(value){} : value);  // keeps NaN, as torch's ReLU
        };
        finish(0, load<kWidth>(narrow + channel));
        finish(1, load<kWidth>(wide + channel));
        const auto most =
            nan_maximum(nan_maximum(load<kWidth>(early + channel), load<kWidth>(now + channel)), load<kWidth>(late + channel));
        finish(2, most * load<kWidth>(scale + channel) + load<kWidth>(offset + channel));
        finish(3, load<kWidth>(skip + channel));
      });
    }
  }
}

template <class Element>
struct Join {
  template <class Set>
  SHAPMIX_SIMD_BODY static void run(const BranchesJob& job, Element* out, std::int64_t begin, std::int64_t end) {
    join_rows<kLanesOf<Set, Wide<Element>>>(job, out, begin, end);
  }
};

template <class Element>
void join(const BranchesJob& job, void* out, int threads) {
  const bool wide = job.width % kLanesOf<Avx512, Wide<Element>> == 0;
  const auto rows = compiled<Join<Element>>(isa() == Isa::kAvx512 && !wide ? Isa::kAvx2 : isa());
  const std::int64_t frames = job.clips * ((job.frames + job.frame_stride - 1) / job.frame_stride);
  const std::int64_t bytes = frames * job.joints * 4 * job.width * static_cast<std::int64_t>(sizeof(Element));
  parallel_for(frames, workers_for(frames, bytes, threads),
               [&](std::int64_t, std::int64_t begin, std::int64_t end) { rows(job, static_cast<Element*>(out), begin, end); });
}

}  // namespace

void join_branches_cpu(const BranchesJob& job, void* out, int threads) {
  switch_dtype<float, double, Bfloat16>(job.dtype, "join_branches on the CPU: narrow",
                                        [&](auto element) { join<decltype(element)>(job, out, threads); });
}

}  // namespace shapmix

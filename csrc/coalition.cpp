#include "coalition.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "parallel.h"
#include "parts.h"
#include "simd.h"

namespace shapmix {
namespace {

// The joints to keep repeat from frame to frame. A tile of this many frames is a whole number of 64-byte vectors for any
// V and M, so the inner loop below has no remainder except at the end of a plane.
template <class Lane>
constexpr std::int64_t kFramesPerTile = 64 / sizeof(Lane);

template <class Lane>
SHAPMIX_SIMD_BODY void select_tiles(Lane* __restrict out, const Lane* clip, const Lane* mean, const Lane* keep,
                                    std::int64_t tile, std::int64_t count) {
  for (std::int64_t begin = 0; begin < count; begin += tile) {
    const std::int64_t end = std::min(begin + tile, count);
    for (std::int64_t i = begin; i < end; ++i) {
      out[i] = (clip[i] & keep[i - begin]) | (mean[i] & ~keep[i - begin]);
    }
  }
}

// Ordinary stores: streaming ones were no faster at 100 MB and half as fast at batch sizes that stay in the cache.
SHAPMIX_SIMD_CLONES void select(std::uint32_t* out, const std::uint32_t* clip, const std::uint32_t* mean,
                                const std::uint32_t* keep, std::int64_t tile, std::int64_t count) {
  select_tiles(out, clip, mean, keep, tile, count);
}

SHAPMIX_SIMD_CLONES void select(std::uint64_t* out, const std::uint64_t* clip, const std::uint64_t* mean,
                                const std::uint64_t* keep, std::int64_t tile, std::int64_t count) {
  select_tiles(out, clip, mean, keep, tile, count);
}

// keep [tile]: all ones on the elements of the coalition's joints, zero elsewhere.
template <class Lane>
void fill_tile(Lane* keep, const CoalitionJob& job, std::int64_t coalition, std::int64_t tile) {
  Lane* next = keep;
  for (std::int64_t joint = 0; joint < job.shape.joints; ++joint) {
    const bool kept = (coalition >> job.part_of_joint[joint]) & 1;
    next = std::fill_n(next, job.shape.people, kept ? ~Lane{0} : Lane{0});
  }
  for (std::int64_t filled = job.shape.row(); filled < tile; filled *= 2) {
    std::memcpy(keep + filled, keep, static_cast<std::size_t>(std::min(filled, tile - filled)) * sizeof(Lane));
  }
}

template <class Lane>
void run(const CoalitionJob& job, int threads) {
  const ClipShape& shape = job.shape;
  const auto* clips = static_cast<const Lane*>(job.clips.data);
  const auto* mean_motion = static_cast<const Lane*>(job.mean_motion.data);
  auto* out = static_cast<Lane*>(job.out);

  const std::int64_t tile = kFramesPerTile<Lane> * shape.row();
  const std::int64_t restored = job.restored_frames * shape.row();
  const auto unrestored_bytes = static_cast<std::size_t>(shape.plane() - restored) * sizeof(Lane);

  const std::int64_t jobs = shape.samples * job.sets;
  const int workers = workers_for(jobs, jobs * shape.sample() * job.element_size, threads);
  std::vector<Lane> tiles(static_cast<std::size_t>(workers * tile));

  // Sets run fastest: a sample and the mean motion stay in the cache while all its coalitions are written.
  parallel_for(jobs, workers, [&](std::int64_t worker, std::int64_t begin, std::int64_t end) {
    Lane* keep = tiles.data() + worker * tile;
    for (std::int64_t index = begin; index < end; ++index) {
      const std::int64_t sample = index / job.sets;
      const std::int64_t set = index % job.sets;
      fill_tile(keep, job, job.coalitions[set * job.set_stride + sample * job.sample_stride], tile);
      for (std::int64_t channel = 0; channel < shape.channels; ++channel) {
        const Lane* clip = clips + sample * job.clips.sample_stride + channel * job.clips.channel_stride;
        const Lane* mean = mean_motion + channel * job.mean_motion.channel_stride;
        Lane* to = out + (set * shape.samples + sample) * shape.sample() + channel * shape.plane();
        select(to, clip, mean, keep, tile, restored);
        std::memcpy(to + restored, mean + restored, unrestored_bytes);
      }
    }
  });
}

}  // namespace

void check_coalitions(const CoalitionJob& job) {
  const std::int64_t parts = count_parts(job.part_of_joint, job.shape.joints);
  const bool shared = job.sample_stride == 0;
  for (std::int64_t set = 0; set < job.sets; ++set) {
    for (std::int64_t sample = 0; sample < (shared ? 1 : job.shape.samples); ++sample) {
      const std::int64_t bits = job.coalitions[set * job.set_stride + sample * job.sample_stride];
      if (holds_only_parts(bits, parts)) continue;
      const std::string column = shared ? "" : ", " + std::to_string(sample);
      throw std::invalid_argument(not_a_part_set("coalitions[" + std::to_string(set) + column + "]", bits, parts));
    }
  }
}

void coalition_inputs_cpu(const CoalitionJob& job, int threads) {
  switch (job.element_size) {
    case 4: return run<std::uint32_t>(job, threads);
    case 8: return run<std::uint64_t>(job, threads);
    default:
      throw std::invalid_argument("element_size is " + std::to_string(job.element_size) + "; the CPU path takes 4 or 8 bytes");
  }
}

}  // namespace shapmix

#include "coalition.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "element.h"
#include "isa.h"
#include "parallel.h"
#include "parts.h"
#include "scratch.h"

namespace shapmix {
namespace {

// The mask of kept joints is the same in every frame. A tile of this many frames is a whole number of 64-byte vectors for any
// V and M, so the inner loop below has a remainder only at the end of a plane.
template <class Lane>
constexpr std::int64_t kFramesPerTile = 64 / sizeof(Lane);

// Writes up to a tile of elements of several coalitions, whose outputs are `step` apart and whose masks are `tile` apart. Pairs of
// coalitions share the loads of clip and mean motion. Regular stores: non-temporal stores were no faster at 100 MB, and half as
// fast for batches that fit in the cache.
template <class Lane>
struct Select {
  template <class>
  SHAPMIX_SIMD_BODY static void run(Lane* out, std::int64_t step, std::int64_t sets, const Lane* __restrict clip,
                                    const Lane* __restrict mean, const Lane* __restrict keep, std::int64_t tile,
                                    std::int64_t count) {
    std::int64_t set = 0;
    for (; set + 2 <= sets; set += 2) {
      Lane* __restrict even = out + set * step;
      Lane* __restrict odd = even + step;
      const Lane* __restrict keep_even = keep + set * tile;
      const Lane* __restrict keep_odd = keep_even + tile;
      for (std::int64_t i = 0; i < count; ++i) {
        const Lane shown = clip[i], absent = mean[i];
        even[i] = static_cast<Lane>((shown & keep_even[i]) | (absent & ~keep_even[i]));
        odd[i] = static_cast<Lane>((shown & keep_odd[i]) | (absent & ~keep_odd[i]));
      }
    }
    if (set == sets) return;
    Lane* __restrict last = out + set * step;
    const Lane* __restrict keep_last = keep + set * tile;
    for (std::int64_t i = 0; i < count; ++i) {
      last[i] = static_cast<Lane>((clip[i] & keep_last[i]) | (mean[i] & ~keep_last[i]));
    }
  }
};

// Repeats the first `row` elements until the tile is full.
template <class Element>
void repeat_row(Element* first, std::int64_t row, std::int64_t tile) {
  for (std::int64_t filled = row; filled < tile; filled *= 2) {
    std::memcpy(first + filled, first, static_cast<std::size_t>(std::min(filled, tile - filled)) * sizeof(Element));
  }
}

// keep [tile]: bit mask, all ones on the elements of the coalition's joints, zero elsewhere.
template <class Lane>
void fill_tile(Lane* keep, const CoalitionJob& job, std::int64_t coalition, std::int64_t tile) {
  Lane* next = keep;
  for (std::int64_t joint = 0; joint < job.shape.joints; ++joint) {
    const bool kept = (coalition >> job.part_of_joint[joint]) & 1;
    next = std::fill_n(next, job.shape.people, kept ? static_cast<Lane>(~Lane{0}) : Lane{0});
  }
  repeat_row(keep, job.shape.row(), tile);
}

// Coalitions of a sample written per pass over its planes.
constexpr std::int64_t kSetsAtOnce = 8;

// keep [kSetsAtOnce, tile]: the masks of the sample's sets first..last.
template <class Lane>
void fill_tiles(Lane* keep, const CoalitionJob& job, std::int64_t sample, std::int64_t first, std::int64_t last,
                std::int64_t tile) {
  for (std::int64_t set = first; set < last; ++set) {
    const std::int64_t coalition = job.coalitions[set * job.set_stride + sample * job.sample_stride];
    fill_tile(keep + (set - first) * tile, job, coalition, tile);
  }
}

// Calls body(worker, sample, first, last) for every sample and its sets first..last, at most kSetsAtOnce of them. Bodies loop
// over planes, with sets inside, so that a plane of the clip and of the mean motion stay in the cache.
template <class Body>
void for_sets(const CoalitionJob& job, int workers, const Body& body) {
  parallel_for(job.shape.samples * job.sets, workers, [&](std::int64_t worker, std::int64_t begin, std::int64_t end) {
    while (begin < end) {
      const std::int64_t first = begin % job.sets;
      const std::int64_t last = std::min({job.sets, first + kSetsAtOnce, first + end - begin});
      body(worker, begin / job.sets, first, last);
      begin += last - first;
    }
  });
}

int workers_of(const CoalitionJob& job, int threads) {
  const std::int64_t jobs = job.shape.samples * job.sets;
  return workers_for(jobs, jobs * job.shape.sample() * job.element_size, threads);
}

template <class Lane>
void run(const CoalitionJob& job, int threads) {
  const ClipShape& shape = job.shape;
  const std::int64_t tile = kFramesPerTile<Lane> * shape.row();
  const std::int64_t restored = job.restored_frames * shape.row();
  const auto unrestored_bytes = static_cast<std::size_t>(shape.plane() - restored) * sizeof(Lane);
  const int workers = workers_of(job, threads);
  const Scratch<Lane> tiles(workers, kSetsAtOnce * tile);
  const std::int64_t step = shape.samples * shape.sample();  // to the next set
  const auto select = compiled<Select<Lane>>();

  for_sets(job, workers, [&](std::int64_t worker, std::int64_t sample, std::int64_t first, std::int64_t last) {
    Lane* keep = tiles.of(worker);
    fill_tiles(keep, job, sample, first, last, tile);
    for (std::int64_t channel = 0; channel < shape.channels; ++channel) {
      const Lane* clip =
          static_cast<const Lane*>(job.clips.data) + sample * job.clips.sample_stride + channel * job.clips.channel_stride;
      const Lane* mean = static_cast<const Lane*>(job.mean_motion.data) + channel * job.mean_motion.channel_stride;
      Lane* out = static_cast<Lane*>(job.out) + (first * shape.samples + sample) * shape.sample() + channel * shape.plane();
      for (std::int64_t pair = 0; pair < last - first; pair += 2) {
        const std::int64_t sets = std::min<std::int64_t>(2, last - first - pair);
        for (std::int64_t begin = 0; begin < restored; begin += tile) {
          select(out + pair * step + begin, step, sets, clip + begin, mean + begin, keep + pair * tile, tile,
                 std::min(tile, restored - begin));
        }
      }
      for (std::int64_t set = 0; set < last - first; ++set) {
        std::memcpy(out + set * step + restored, mean + restored, unrestored_bytes);
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
  switch_element_size(job.element_size, "coalition_inputs on the CPU: clips",
                      [&](auto bits) { run<decltype(bits)>(job, threads); });
}

}  // namespace shapmix

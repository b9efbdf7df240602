// The mixing plan of a step: partners, windows and parts to paste, from counter-based random numbers.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace shapmix {

struct DrawJob {
  const std::int64_t* labels;  // [N]
  std::int64_t samples;        // N, at least 3

  const void* saliency;  // [K, Q]
  Dtype dtype;           // float32 or float64
  std::int64_t classes;
  std::int64_t columns;
  const std::int64_t* priority;       // [K], larger = more training samples
  const std::int64_t* combinations;   // [Q] bit sets
  const std::int64_t* part_of_joint;  // [V]
  std::int64_t joints;

  std::int64_t num_frames;  // T
  std::int64_t shortest;    // window, in units of 4 frames
  std::int64_t longest;

  std::uint64_t seed;
  std::uint32_t step;
  bool guided;
  double temperature;
  double blend_probability;

  std::int64_t* fields;  // [6, N]: partner, parts, start, length, source_start, source_length
  double* lam;           // [N]
  bool* blend;           // [N]
};

// Throws std::invalid_argument naming the first label that is not a class, or the first combination with a bit beyond the parts.
void check_draw(const DrawJob& job);

// The same plan as shapmix.reference.draw_plan. Precondition: check_draw passed.
void draw_plan_cpu(const DrawJob& job);

}  // namespace shapmix

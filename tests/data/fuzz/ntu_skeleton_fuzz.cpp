// Coverage-guided fuzzing of the .skeleton parser, with clang and its sanitizers:
//   clang++ -std=c++17 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -Icsrc \
//     csrc/ntu_skeleton.cpp tests/data/fuzz/ntu_skeleton_fuzz.cpp -o ntu_skeleton_fuzz
//   mkdir -p corpus && python tests/data/fuzz/seeds.py corpus && ./ntu_skeleton_fuzz -max_total_time=600 corpus
#include "ntu_skeleton.h"

#include <cmath>
#include <cstdint>
#include <cstdlib>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const auto found = shapmix::parse_ntu_skeleton(reinterpret_cast<const char*>(data), size);
    // What is accepted keeps its promises.
    if (found.frame_of.size() != found.body.size()) std::abort();
    if (found.joints.size() != found.body.size() * shapmix::kNtuJoints * 3) std::abort();
    std::int64_t before = 0;
    for (const auto frame : found.frame_of) {
      if (frame < before || frame > before + 1 || frame >= found.frames) std::abort();
      before = frame;
    }
    for (const float value : found.joints) {
      if (!std::isfinite(value)) std::abort();
    }
  } catch (const shapmix::NtuSkeletonError& error) {
    if (error.line < 0) std::abort();
  }
  return 0;
}

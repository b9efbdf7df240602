// Parser of NTU RGB+D's .skeleton text files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace shapmix {

constexpr int kNtuJoints = 25;

// The bodies of a recording, in file order. Frames without a body are not numbered.
struct NtuSkeleton {
  std::int64_t frames = 0;             // frame count in the file header
  std::vector<std::int64_t> frame_of;  // [B] index among the frames with a body
  std::vector<std::uint64_t> body;     // [B] ids; too large for double
  std::vector<float> joints;           // [B, 25, 3] metres
};

// A parse error with its line, counted from 1.
struct NtuSkeletonError : std::runtime_error {
  NtuSkeletonError(std::int64_t line, const std::string& reason)
      : std::runtime_error("line " + std::to_string(line) + ": " + reason), line(line) {}
  std::int64_t line;
};

// Lines end with LF or CRLF; a UTF-8 byte order mark is accepted. Numbers are read as double and rounded to float, as in NumPy.
NtuSkeleton parse_ntu_skeleton(const char* text, std::size_t size);

}  // namespace shapmix

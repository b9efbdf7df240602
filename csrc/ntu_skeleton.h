// The text of NTU RGB+D's .skeleton files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace shapmix {

constexpr int kNtuJoints = 25;

// The bodies of a recording, in the order of the file. Frames without a body have no number.
struct NtuSkeleton {
  std::int64_t frames = 0;             // as the file counts them
  std::vector<std::int64_t> frame_of;  // [B] among the frames that hold a body
  std::vector<std::uint64_t> body;     // [B] ids, which double cannot hold
  std::vector<float> joints;           // [B, 25, 3] metres
};

// What is wrong with the text, and on which line (from 1).
struct NtuSkeletonError : std::runtime_error {
  NtuSkeletonError(std::int64_t line, const std::string& reason)
      : std::runtime_error("line " + std::to_string(line) + ": " + reason), line(line) {}
  std::int64_t line;
};

// Lines end with LF or CRLF; a byte order mark of UTF-8 may come first. Numbers are read as double and rounded to float, as NumPy reads text.
NtuSkeleton parse_ntu_skeleton(const char* text, std::size_t size);

}  // namespace shapmix

// Bit sets of body parts on the host.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace shapmix {

inline constexpr std::int64_t kMaxParts = 63;  // a bit set is one int64 with a clear sign bit

// Number of parts in part_of_joint [joints]. Throws std::invalid_argument for an index that does not fit in a bit set.
inline std::int64_t count_parts(const std::int64_t* part_of_joint, std::int64_t joints) {
  std::int64_t parts = 0;
  for (std::int64_t joint = 0; joint < joints; ++joint) {
    if (part_of_joint[joint] < 0 || part_of_joint[joint] >= kMaxParts) {
      throw std::invalid_argument("part_of_joint[" + std::to_string(joint) + "] is " + std::to_string(part_of_joint[joint]) +
                                  "; give each joint the index of its part, 0 to " + std::to_string(kMaxParts - 1));
    }
    parts = std::max(parts, part_of_joint[joint] + 1);
  }
  return parts;
}

inline bool holds_only_parts(std::int64_t bits, std::int64_t parts) { return bits >= 0 && bits >> parts == 0; }

inline std::string not_a_part_set(const std::string& name, std::int64_t bits, std::int64_t parts) {
  return name + " is " + std::to_string(bits) + "; part_of_joint names " + std::to_string(parts) +
         " parts, so give a bit set in 0.." + std::to_string((std::uint64_t{1} << parts) - 1);
}

}  // namespace shapmix

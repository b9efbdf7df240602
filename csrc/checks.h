// Error messages for values out of range.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace shapmix {

[[noreturn]] inline void throw_out_of_range(const std::string& name, std::int64_t value, std::int64_t low, std::int64_t high,
                                            const char* what) {
  throw std::invalid_argument(name + " is " + std::to_string(value) + "; " + what + " must be in " + std::to_string(low) + ".." +
                              std::to_string(high));
}

inline void check_range(const char* name, std::int64_t row, std::int64_t value, std::int64_t low, std::int64_t high,
                        const char* what) {
  if (value < low || value > high) throw_out_of_range(std::string(name) + "[" + std::to_string(row) + "]", value, low, high, what);
}

}  // namespace shapmix

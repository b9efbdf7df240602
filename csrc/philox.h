// Counter-based random numbers, identical to shapmix.draws.philox: Philox-4x32-10 keyed by the seed.
#pragma once

#include <cstdint>

#include "isa.h"

namespace shapmix {

struct RandomWords {
  std::uint32_t word[4];
};

// Purpose of a random word; same values as in shapmix.draws.purposes.
inline constexpr std::uint32_t kWindowDraw = 1;
inline constexpr std::uint32_t kCombinationDraw = 2;

inline RandomWords random_words(std::uint64_t seed, std::uint32_t purpose, std::uint32_t step, std::uint32_t row,
                                std::uint32_t block) {
  RandomWords c = {{row, block, step, purpose}};
  auto key0 = static_cast<std::uint32_t>(seed);
  auto key1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53} * c.word[0];
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57} * c.word[2];
    c = {{static_cast<std::uint32_t>(p1 >> 32) ^ c.word[1] ^ key0, static_cast<std::uint32_t>(p1),
          static_cast<std::uint32_t>(p0 >> 32) ^ c.word[3] ^ key1, static_cast<std::uint32_t>(p0)}};
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return c;
}

// Words of kWordLanes consecutive rows, with loops over the lanes, which compilers vectorise.
inline constexpr int kWordLanes = 64;
struct WordLanes {
  std::uint32_t word[4][kWordLanes];
};

SHAPMIX_SIMD_BODY void random_word_lanes(WordLanes& c, std::uint64_t seed, std::uint32_t purpose, std::uint32_t step,
                                         std::uint32_t row, std::uint32_t block) {
  for (int lane = 0; lane < kWordLanes; ++lane) {
    c.word[0][lane] = row + static_cast<std::uint32_t>(lane);
    c.word[1][lane] = block;
    c.word[2][lane] = step;
    c.word[3][lane] = purpose;
  }
  auto key0 = static_cast<std::uint32_t>(seed);
  auto key1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int lane = 0; lane < kWordLanes; ++lane) {
      const std::uint64_t p0 = std::uint64_t{0xD2511F53} * c.word[0][lane];
      const std::uint64_t p1 = std::uint64_t{0xCD9E8D57} * c.word[2][lane];
      c.word[0][lane] = static_cast<std::uint32_t>(p1 >> 32) ^ c.word[1][lane] ^ key0;
      c.word[1][lane] = static_cast<std::uint32_t>(p1);
      c.word[2][lane] = static_cast<std::uint32_t>(p0 >> 32) ^ c.word[3][lane] ^ key1;
      c.word[3][lane] = static_cast<std::uint32_t>(p0);
    }
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
}

// Sum of the four bytes of a word.
SHAPMIX_SIMD_BODY std::int32_t byte_sum(std::uint32_t word) {
  const std::uint32_t pairs = (word & 0x00FF00FF) + (word >> 8 & 0x00FF00FF);
  return static_cast<std::int32_t>((pairs & 0xFFFF) + (pairs >> 16));
}

// Uniform in the open interval (0, 1).
inline double uniform(std::uint32_t word) { return (word + 0.5) * 0x1p-32; }

// Uniform on low..high, both inclusive, for ranges below 2^31.
inline std::int64_t uniform_integer(std::uint32_t word, std::int64_t low, std::int64_t high) {
  return low + (static_cast<std::int64_t>(word) * (high - low + 1) >> 32);
}

}  // namespace shapmix

#include "sample.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "checks.h"
#include "isa.h"
#include "lanes.h"
#include "parallel.h"
#include "philox.h"
#include "scratch.h"

namespace shapmix {
namespace {

// A clip passes through two layouts. Resizing reads recorded frames [M, V, C] as whole rows and writes one block per person,
// [M][T, V, C]; rotation and augmentation then run over T x V contiguous joints and write planes [C][T, V, M].

struct Layout {
  std::int64_t frames;
  std::int64_t people;
  std::int64_t joints;
  std::int64_t channels;

  std::int64_t row() const { return joints * people; }     // one frame of one channel
  std::int64_t plane() const { return frames * row(); }    // one channel
  std::int64_t body() const { return joints * channels; }  // one frame of one person
  std::int64_t person() const { return frames * body(); }  // one person
  std::int64_t recorded_frame() const { return people * body(); }
  std::int64_t clip() const { return channels * plane(); }
};

Layout layout(const SampleJob& job) { return {job.num_frames, job.people, job.joints, job.channels}; }

template <class Real>
struct Rotation {
  Real row[3][3];
};

template <class Real>
struct Crop {
  const Real* first;  // frame
  std::int64_t length;
};

// A sample's row of the augmentation plan; null and defaults: that change is not made.
template <class Real>
struct Augment {
  bool reversed = false;
  const Real* pace = nullptr;            // speed and shift
  const std::int64_t* source = nullptr;  // [V]
  const Real* linear = nullptr;          // [C, C]
  bool jitter = false;
  Real unit = 0;  // factor of the noise, which are whole numbers
  std::uint64_t jitter_key = 0;
  bool moves = false;          // whether joints are swapped, multiplied or jittered
  const bool* kept = nullptr;  // [V]
};

// Some consecutive frames of a clip.
struct Frames {
  std::int64_t begin;
  std::int64_t end;

  std::int64_t count() const { return end - begin; }
};

// The last vector overlaps the one before it.
template <class Set, class Real>
SHAPMIX_SIMD_BODY void blend_rows(Real* __restrict out, const Real* before, const Real* after, Real weight_before,
                                  Real weight_after, std::int64_t count) {
  constexpr int kLanes = kLanesOf<Set, Real>;
  const auto blend = [&](std::int64_t i) {
    store(out + i, load<kLanes>(before + i) * weight_before + load<kLanes>(after + i) * weight_after);
  };
  if (count < kLanes) {
    for (std::int64_t i = 0; i < count; ++i) out[i] = before[i] * weight_before + after[i] * weight_after;
    return;
  }
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) blend(i);
  if (i < count) blend(count - kLanes);
}

// Half-pixel centres (align_corners=False), with positions and weights as in torch's CPU kernel. A crop of the clip's length at its
// own speed is copied without arithmetic. `people`: [M][frames, V, C].
template <class Set, class Real>
SHAPMIX_SIMD_BODY void resize(Real* people, const Crop<Real>& crop, const Augment<Real>& augment, const Layout& clip,
                              const Frames& frames) {
  const std::int64_t width = clip.body();
  const std::int64_t person = frames.count() * width;
  const Real scale = static_cast<Real>(crop.length) / static_cast<Real>(clip.frames);
  for (std::int64_t t = frames.begin; t < frames.end; ++t) {
    Real* to = people + (t - frames.begin) * width;
    const std::int64_t shown = augment.reversed ? clip.frames - 1 - t : t;
    if (crop.length == clip.frames && augment.pace == nullptr) {
      const Real* from = crop.first + shown * clip.recorded_frame();
      for (std::int64_t m = 0; m < clip.people; ++m) {
        std::memcpy(to + m * person, from + m * width, static_cast<std::size_t>(width) * sizeof(Real));
      }
      continue;
    }
    const Real middle = scale * (static_cast<Real>(shown) + Real(0.5));
    const Real centre = (augment.pace ? augment.pace[0] * middle + augment.pace[1] : middle) - Real(0.5);
    const Real position = centre < 0 ? Real(0) : std::min(centre, static_cast<Real>(crop.length - 1));
    const std::int64_t before = std::min(static_cast<std::int64_t>(position), crop.length - 1);
    const std::int64_t after = std::min(before + 1, crop.length - 1);
    const Real weight = std::min(position - static_cast<Real>(before), Real(1));
    for (std::int64_t m = 0; m < clip.people; ++m) {
      blend_rows<Set>(to + m * person, crop.first + before * clip.recorded_frame() + m * width,
                      crop.first + after * clip.recorded_frame() + m * width, Real(1) - weight, weight, width);
    }
  }
}

// Orders of lanes that split kLanes joints of three coordinates. One coordinate's elements lie at different lanes of the three
// vectors: two selections collect them, and a permutation puts them in the order of joints.
// The vector (0 to 2) that holds the axis at a lane.
constexpr int vector_at(int axis, int lane, int lanes) { return lane % 3 == axis ? 0 : (lane + lanes) % 3 == axis ? 1 : 2; }

template <int kLanes, int kAxis>
struct FirstOrSecond {
  static constexpr int of(int lane) { return vector_at(kAxis, lane, kLanes) == 0 ? lane : kLanes + lane; }
};

template <int kLanes, int kAxis>
struct EarlierOrThird {
  static constexpr int of(int lane) { return vector_at(kAxis, lane, kLanes) == 2 ? kLanes + lane : lane; }
};

// Pairs of people are interleaved within blocks of 16 bytes, the only order in which all instruction sets have one instruction for
// it. So a block has joints of the first half, then joints of the second.
template <int kLanes, int kBlock>
constexpr int joint_at(int lane) {
  const int block = lane / kBlock, place = lane % kBlock, half = kBlock / 2;
  return block * half + (place < half ? place : kLanes / 2 + place - half);
}

template <int kLanes, int kBlock, int kPeople, int kAxis>
struct ByJoint {
  static constexpr int of(int lane) { return (3 * (kPeople == 2 ? joint_at<kLanes, kBlock>(lane) : lane) + kAxis) % kLanes; }
};

template <int kLanes, int kBlock, int kHalf>
struct Interleave {
  static constexpr int of(int lane) {
    const int place = lane % kBlock;
    return lane - place + kHalf * kBlock / 2 + place / 2 + (place % 2) * kLanes;
  }
};

// One coordinate of kLanes joints.
template <int kPeople, int kAxis, int kLanes, class Real>
SHAPMIX_SIMD_BODY Lanes<Real, kLanes> coordinate(const Real* joints) {
  constexpr int kBlock = 16 / sizeof(Real);
  constexpr std::make_integer_sequence<int, kLanes> kAll{};
  const auto first = load<kLanes>(joints), second = load<kLanes>(joints + kLanes), third = load<kLanes>(joints + 2 * kLanes);
  const auto earlier = shuffled<FirstOrSecond<kLanes, kAxis>, Real>(first, second, kAll);
  const auto mixed = shuffled<EarlierOrThird<kLanes, kAxis>, Real>(earlier, third, kAll);
  return shuffled<ByJoint<kLanes, kBlock, kPeople, kAxis>, Real>(mixed, mixed, kAll);
}

// Writes the three coordinates of kLanes joints of one or two people to their planes, rotated if there is a rotation.
template <int kPeople, bool kTurned, int kLanes, class Real>
SHAPMIX_SIMD_BODY void spread_lanes(Real* planes, std::int64_t plane, const Real* people, std::int64_t person,
                                    const Rotation<Real>& rotation) {
  constexpr int kBlock = 16 / sizeof(Real);
  constexpr std::make_integer_sequence<int, kLanes> kAll{};
  Lanes<Real, kLanes> joint[kPeople][3];
  for (int m = 0; m < kPeople; ++m) {
    const Real* from = people + m * person;
    joint[m][0] = coordinate<kPeople, 0, kLanes>(from);
    joint[m][1] = coordinate<kPeople, 1, kLanes>(from);
    joint[m][2] = coordinate<kPeople, 2, kLanes>(from);
  }
  for (int axis = 0; axis < 3; ++axis) {
    const Real* row = rotation.row[axis];
    Lanes<Real, kLanes> shown[kPeople];
    for (int m = 0; m < kPeople; ++m) {
      const auto& of = joint[m];
      shown[m] = kTurned ? row[0] * of[0] + row[1] * of[1] + row[2] * of[2] : of[axis];
    }
    Real* to = planes + axis * plane;
    if constexpr (kPeople == 2) {
      store(to, shuffled<Interleave<kLanes, kBlock, 0>, Real>(shown[0], shown[1], kAll));
      store(to + kLanes, shuffled<Interleave<kLanes, kBlock, 1>, Real>(shown[0], shown[1], kAll));
    } else {
      store(to, shown[0]);
    }
  }
}

// Writes the three coordinates of the joints of people [M][joints, 3] to their planes, rotated if there is a rotation.
// kPeople > 0 fixes the number of people at compile time.
template <class Set, int kPeople, bool kTurned, class Real>
SHAPMIX_SIMD_BODY void spread(Real* __restrict planes, const Real* __restrict people, std::int64_t joints,
                              const Rotation<Real>& rotation, const Layout& clip) {
  const std::int64_t num_people = kPeople > 0 ? kPeople : clip.people;
  const std::int64_t person = joints * 3;
  Real* __restrict y = planes + clip.plane();
  Real* __restrict z = y + clip.plane();
  const auto& r = rotation.row;
  std::int64_t joint = 0;
  if constexpr (kPeople > 0) {
    constexpr int kLanes = kLanesOf<Set, Real>;
    for (; joint + kLanes <= joints; joint += kLanes) {
      spread_lanes<kPeople, kTurned, kLanes>(planes + joint * kPeople, clip.plane(), people + joint * 3, person, rotation);
    }
  }
  for (; joint < joints; ++joint) {
    for (std::int64_t m = 0; m < num_people; ++m) {
      const Real* from = people + m * person + joint * 3;
      const std::int64_t to = joint * num_people + m;
      planes[to] = kTurned ? r[0][0] * from[0] + r[0][1] * from[1] + r[0][2] * from[2] : from[0];
      y[to] = kTurned ? r[1][0] * from[0] + r[1][1] * from[1] + r[1][2] * from[2] : from[1];
      z[to] = kTurned ? r[2][0] * from[0] + r[2][1] * from[1] + r[2][2] * from[2] : from[2];
    }
  }
}

template <class Set, bool kTurned, class Real>
SHAPMIX_SIMD_BODY void spread_three(Real* planes, const Real* people, std::int64_t joints, const Rotation<Real>& rotation,
                                    const Layout& clip) {
  switch (clip.people) {
    case 1: return spread<Set, 1, kTurned>(planes, people, joints, rotation, clip);
    case 2: return spread<Set, 2, kTurned>(planes, people, joints, rotation, clip);
    default: return spread<Set, 0, kTurned>(planes, people, joints, rotation, clip);
  }
}

// Writes any number of coordinates to their planes.
template <class Real>
SHAPMIX_SIMD_BODY void spread_any(Real* __restrict planes, const Real* __restrict people, std::int64_t joints, const Layout& clip) {
  for (std::int64_t c = 0; c < clip.channels; ++c) {
    for (std::int64_t joint = 0; joint < joints; ++joint) {
      for (std::int64_t m = 0; m < clip.people; ++m) {
        planes[c * clip.plane() + joint * clip.people + m] = people[(m * joints + joint) * clip.channels + c];
      }
    }
  }
}

// Writes a clip whose joints are not moved. A few frames at a time: their rows stay in the L1 cache, and a multiple of the lanes
// leaves no remainder for any number of joints.
template <class Set, class Real>
SHAPMIX_SIMD_BODY void spread_frames(Real* planes, const Crop<Real>& crop, const Rotation<Real>* rotation,
                                     const Augment<Real>& augment, const Layout& clip, Real* people) {
  constexpr std::int64_t kFrames = kLanesOf<Set, Real>;
  for (std::int64_t begin = 0; begin < clip.frames; begin += kFrames) {
    const Frames frames = {begin, std::min(begin + kFrames, clip.frames)};
    const std::int64_t joints = frames.count() * clip.joints;
    resize<Set>(people, crop, augment, clip, frames);
    Real* to = planes + begin * clip.row();
    if (rotation) {
      spread_three<Set, true>(to, people, joints, *rotation, clip);
    } else if (clip.channels == 3) {
      spread_three<Set, false>(to, people, joints, Rotation<Real>{}, clip);
    } else {
      spread_any(to, people, joints, clip);
    }
  }
}

// The joint whose coordinates a joint shows, and whether these are anything but zero.
template <class Real>
SHAPMIX_SIMD_BODY const Real* shown(const Real* body, std::int64_t joint, const Augment<Real>& augment, std::int64_t channels) {
  return body + (augment.source ? augment.source[joint] : joint) * channels;
}

template <class Real>
SHAPMIX_SIMD_BODY bool present(const Real* joint, std::int64_t channels) {
  bool found = false;
  for (std::int64_t c = 0; c < channels; ++c) found |= joint[c] != 0;
  return found;
}

// Writes the three coordinates of the joint that every joint shows to their planes, multiplied, and the factor of its noise to
// `unit` [T, V, M]: 0 for a missing joint.
template <int kPeople, bool kJitter, class Real>
SHAPMIX_SIMD_BODY void spread_shown(Real* __restrict planes, Real* __restrict unit, const Real* people,
                                    const Rotation<Real>& matrix, const Augment<Real>& augment, const Layout& clip) {
  const std::int64_t num_people = kPeople > 0 ? kPeople : clip.people;
  const auto& r = matrix.row;
  Real* __restrict y = planes + clip.plane();
  Real* __restrict z = y + clip.plane();
  for (std::int64_t t = 0; t < clip.frames; ++t) {
    for (std::int64_t joint = 0; joint < clip.joints; ++joint) {
      const Real* from = shown(people + t * clip.body(), joint, augment, 3);
      for (std::int64_t m = 0; m < num_people; ++m, from += clip.person()) {
        const std::int64_t to = t * clip.row() + joint * num_people + m;
        planes[to] = r[0][0] * from[0] + r[0][1] * from[1] + r[0][2] * from[2];
        y[to] = r[1][0] * from[0] + r[1][1] * from[1] + r[1][2] * from[2];
        z[to] = r[2][0] * from[0] + r[2][1] * from[1] + r[2][2] * from[2];
        if (kJitter) unit[to] = present(from, 3) ? augment.unit : Real(0);
      }
    }
  }
}

template <bool kJitter, class Real>
SHAPMIX_SIMD_BODY void spread_three_shown(Real* planes, Real* unit, const Real* people, const Rotation<Real>& matrix,
                                          const Augment<Real>& augment, const Layout& clip) {
  switch (clip.people) {
    case 1: return spread_shown<1, kJitter>(planes, unit, people, matrix, augment, clip);
    case 2: return spread_shown<2, kJitter>(planes, unit, people, matrix, augment, clip);
    default: return spread_shown<0, kJitter>(planes, unit, people, matrix, augment, clip);
  }
}

// The same for any number of coordinates; without a matrix they are copied.
template <class Real>
SHAPMIX_SIMD_BODY void spread_any_shown(Real* __restrict planes, Real* __restrict unit, const Real* __restrict people,
                                        const Augment<Real>& augment, const Layout& clip) {
  const std::int64_t channels = clip.channels;
  for (std::int64_t t = 0; t < clip.frames; ++t) {
    for (std::int64_t joint = 0; joint < clip.joints; ++joint) {
      const Real* from = shown(people + t * clip.body(), joint, augment, channels);
      for (std::int64_t m = 0; m < clip.people; ++m, from += clip.person()) {
        const std::int64_t to = t * clip.row() + joint * clip.people + m;
        for (std::int64_t c = 0; c < channels; ++c) {
          const Real* row = augment.linear ? augment.linear + c * channels : nullptr;
          Real value = row ? row[0] * from[0] : from[c];
          for (std::int64_t other = 1; row && other < channels; ++other) value += row[other] * from[other];
          planes[c * clip.plane() + to] = value;
        }
        if (augment.jitter) unit[to] = present(from, channels) ? augment.unit : Real(0);
      }
    }
  }
}

// Adds the noise, as in shapmix.reference.clips.jitter_noise. `unit` [T, V, M]: its factor of every joint.
template <class Real>
SHAPMIX_SIMD_BODY void add_noise(Real* planes, const Real* __restrict unit, const Augment<Real>& augment, const Layout& clip) {
  constexpr std::int32_t kMean = 8 * 255 / 2;
  WordLanes words;
  std::int32_t noise[2][kWordLanes];
  for (std::int64_t c = 0; c < clip.channels; c += 2) {
    for (std::int64_t begin = 0; begin < clip.plane(); begin += kWordLanes) {
      random_word_lanes(words, augment.jitter_key, 0, 0, static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(c / 2));
      for (int lane = 0; lane < kWordLanes; ++lane) {
        noise[0][lane] = byte_sum(words.word[0][lane]) + byte_sum(words.word[1][lane]) - kMean;
        noise[1][lane] = byte_sum(words.word[2][lane]) + byte_sum(words.word[3][lane]) - kMean;
      }
      const std::int64_t count = std::min<std::int64_t>(kWordLanes, clip.plane() - begin);
      for (std::int64_t axis = c; axis < std::min(c + 2, clip.channels); ++axis) {
        Real* __restrict to = planes + axis * clip.plane() + begin;
        for (std::int64_t lane = 0; lane < count; ++lane) {
          to[lane] += static_cast<Real>(noise[axis - c][lane]) * unit[begin + lane];
        }
      }
    }
  }
}

// `rotation` is given for three coordinates; `unit` [T, V, M] is scratch memory.
template <class Real>
struct SpreadMoved {
  template <class>
  SHAPMIX_SIMD_BODY static void run(Real* planes, Real* unit, const Real* people, const Rotation<Real>* rotation,
                                    const Augment<Real>& augment, const Layout& clip) {
    if (clip.channels != 3) {
      spread_any_shown(planes, unit, people, augment, clip);
    } else if (augment.jitter) {
      spread_three_shown<true>(planes, unit, people, *rotation, augment, clip);
    } else {
      spread_three_shown<false>(planes, unit, people, *rotation, augment, clip);
    }
  }
};

template <class Real>
struct AddNoise {
  template <class>
  SHAPMIX_SIMD_BODY static void run(Real* planes, const Real* unit, const Augment<Real>& augment, const Layout& clip) {
    add_noise(planes, unit, augment, clip);
  }
};

// Sets the joints that are not kept to zero.
template <class Real>
void drop(Real* planes, const bool* kept, const Layout& clip) {
  for (std::int64_t row = 0; row < clip.channels * clip.frames; ++row) {
    for (std::int64_t joint = 0; joint < clip.joints; ++joint) {
      if (!kept[joint]) std::fill_n(planes + row * clip.row() + joint * clip.people, clip.people, Real(0));
    }
  }
}

// `parents` [T, V, M]: the parent of each joint, for one plane. Joint by joint, because a gather over a frame is slower.
template <int kPeople, class Real>
SHAPMIX_SIMD_BODY void take_parents(Real* __restrict parents, const Real* __restrict plane, const std::int64_t* parent_of,
                                    const Layout& clip) {
  const std::int64_t num_people = kPeople > 0 ? kPeople : clip.people;
  for (std::int64_t joint = 0; joint < clip.joints; ++joint) {
    const Real* from = plane + parent_of[joint] * num_people;
    Real* to = parents + joint * num_people;
    for (std::int64_t t = 0; t < clip.frames; ++t) {
      std::memcpy(to + t * clip.row(), from + t * clip.row(), static_cast<std::size_t>(num_people) * sizeof(Real));
    }
  }
}

// Subtracts the parent from every joint, in place. `parents` [T, V, M] is scratch memory.
template <class Real>
SHAPMIX_SIMD_BODY void to_bones(Real* planes, Real* __restrict parents, const std::int64_t* parent_of, const Layout& clip) {
  for (std::int64_t c = 0; c < clip.channels; ++c) {
    Real* __restrict plane = planes + c * clip.plane();
    switch (clip.people) {
      case 1: take_parents<1>(parents, plane, parent_of, clip); break;
      case 2: take_parents<2>(parents, plane, parent_of, clip); break;
      default: take_parents<0>(parents, plane, parent_of, clip);
    }
    for (std::int64_t i = 0; i < clip.plane(); ++i) plane[i] -= parents[i];
  }
}

// Replaces each frame by the next frame minus this one, in place; the last frame becomes 0.
template <class Real>
SHAPMIX_SIMD_BODY void to_motion(Real* planes, const Layout& clip) {
  const std::int64_t width = clip.row();
  const std::int64_t last = clip.plane() - width;
  for (std::int64_t c = 0; c < clip.channels; ++c) {
    Real* plane = planes + c * clip.plane();
    for (std::int64_t i = 0; i < last; ++i) plane[i] = plane[i + width] - plane[i];
    std::fill_n(plane + last, width, Real(0));
  }
}

// `rotation` is given where three coordinates are moved. `people` [M, T, V, C] and `parents` [T, V, M] are scratch memory.
template <class Real>
struct SampleClip {
  template <class Set>
  SHAPMIX_SIMD_BODY static void run(Real* out, const Crop<Real>& crop, const Rotation<Real>* rotation, const Augment<Real>& augment,
                                    const SampleJob& job, Real* people, Real* parents) {
    const Layout clip = layout(job);
    if (augment.moves) {
      resize<Set>(people, crop, augment, clip, {0, clip.frames});
      // Functions of their own: inlined here, their loops and those of clips that are not augmented are slower.
      compiled<SpreadMoved<Real>>(Set::kIsa)(out, parents, people, rotation, augment, clip);
      if (augment.jitter) compiled<AddNoise<Real>>(Set::kIsa)(out, parents, augment, clip);
    } else {
      spread_frames<Set>(out, crop, rotation, augment, clip, people);
    }
    if (job.bone) to_bones(out, parents, job.parents, clip);
    if (job.motion) to_motion(out, clip);
    if (augment.kept) drop(out, augment.kept, clip);
  }
};

template <class Real>
Rotation<Real> operator*(const Rotation<Real>& a, const Rotation<Real>& b) {
  Rotation<Real> ab;
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) {
      ab.row[i][j] = a.row[i][0] * b.row[0][j] + a.row[i][1] * b.row[1][j] + a.row[i][2] * b.row[2][j];
    }
  }
  return ab;
}

template <class Real>
Rotation<Real> matrix(const Real* rows) {
  Rotation<Real> found;
  std::memcpy(found.row, rows, sizeof(found.row));
  return found;
}

template <class Real>
Rotation<Real> identity() {
  return {{{1, 0, 0}, {0, 1, 0}, {0, 0, 1}}};
}

template <class Real>
Rotation<Real> clockwise_about(int axis, Real angle) {
  const int after = (axis + 1) % 3;
  const int before = (axis + 2) % 3;
  Rotation<Real> rotation{};
  rotation.row[axis][axis] = 1;
  rotation.row[after][after] = rotation.row[before][before] = std::cos(angle);
  rotation.row[after][before] = std::sin(angle);
  rotation.row[before][after] = -std::sin(angle);
  return rotation;
}

template <class Real>
Rotation<Real> clockwise(const Real* angles) {
  return clockwise_about(2, angles[2]) * clockwise_about(1, angles[1]) * clockwise_about(0, angles[0]);
}

template <class Real>
bool turns(const Real* angles) {
  return angles[0] != 0 || angles[1] != 0 || angles[2] != 0;
}

template <class Real>
Augment<Real> augment_of(const SampleJob& job, std::int64_t row) {
  const AugmentPlan& plan = job.augment;
  Augment<Real> found;
  found.reversed = plan.reversed && plan.reversed[row];
  if (plan.pace) found.pace = static_cast<const Real*>(plan.pace) + 2 * row;
  if (plan.source) found.source = plan.source + row * job.joints;
  if (plan.linear) found.linear = static_cast<const Real*>(plan.linear) + row * job.channels * job.channels;
  if (plan.jitter) {
    found.jitter = true;
    found.unit = static_cast<const Real*>(plan.jitter)[row] / static_cast<Real>(std::sqrt(8 * 65535.0 / 12));
    found.jitter_key = static_cast<std::uint64_t>(plan.jitter_key[row]);
  }
  if (plan.kept) found.kept = plan.kept + row * job.joints;
  found.moves = plan.moves();
  return found;
}

template <class Real>
void run(const SampleJob& job, int threads) {
  const auto* frames = static_cast<const Real*>(job.frames);
  const auto* angles = static_cast<const Real*>(job.plan.angles);
  auto* out = static_cast<Real*>(job.out);
  const Layout clip = layout(job);

  const int workers = workers_for(job.samples, job.samples * clip.clip() * static_cast<std::int64_t>(sizeof(Real)), threads);
  const Scratch<Real> people(workers, clip.clip());
  const Scratch<Real> parents(workers, job.bone || job.augment.jitter ? clip.plane() : 0);
  const auto sample_clip = compiled<SampleClip<Real>>();

  parallel_for(job.samples, workers, [&](std::int64_t worker, std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const std::int64_t first = job.offsets[job.plan.clip[row]] + job.plan.start[row];
      const Crop<Real> crop = {frames + first * clip.recorded_frame(), job.plan.length[row]};
      const Augment<Real> augment = augment_of<Real>(job, row);
      const bool moves = augment.moves && clip.channels == 3;
      const bool turned = turns(angles + 3 * row);
      Rotation<Real> rotation = turned ? clockwise(angles + 3 * row) : moves ? identity<Real>() : Rotation<Real>{};
      if (moves && augment.linear) rotation = turned ? matrix(augment.linear) * rotation : matrix(augment.linear);
      sample_clip(out + row * clip.clip(), crop, turned || moves ? &rotation : nullptr, augment, job, people.of(worker),
                  parents.of(worker));
    }
  });
}

template <class Real>
void check_turnable(const SampleJob& job, std::int64_t row) {
  const Real* angles = static_cast<const Real*>(job.plan.angles) + 3 * row;
  if (job.channels == 3 || !turns(angles)) return;
  throw std::invalid_argument("plan.angles[" + std::to_string(row) + "] is (" + std::to_string(angles[0]) + ", " +
                              std::to_string(angles[1]) + ", " + std::to_string(angles[2]) +
                              "); only clips of 3 coordinates can be rotated, and these frames have " +
                              std::to_string(job.channels));
}

template <class Real>
void check_pace(const SampleJob& job, std::int64_t row) {
  if (job.augment.pace == nullptr) return;
  const Real* pace = static_cast<const Real*>(job.augment.pace) + 2 * row;
  if (std::isfinite(pace[0]) && std::isfinite(pace[1])) return;
  throw std::invalid_argument("augment.pace[" + std::to_string(row) + "] is (" + std::to_string(pace[0]) + ", " +
                              std::to_string(pace[1]) + "); give a finite speed and shift");
}

}  // namespace

void check_crops(const SampleJob& job) {
  for (std::int64_t joint = 0; joint < job.joints; ++joint) {
    check_range("parents", joint, job.parents[joint], 0, job.joints - 1, "a joint's parent");
  }
  // Only the offsets of recordings that are read are checked: there may be many more recordings than samples.
  for (std::int64_t row = 0; row < job.samples; ++row) {
    const std::int64_t clip = job.plan.clip[row];
    check_range("plan.clip", row, clip, 0, job.recordings - 1, "a recording");
    check_range("offsets", clip, job.offsets[clip], 0, job.recorded_frames, "where a recording begins");
    check_range("offsets", clip + 1, job.offsets[clip + 1], job.offsets[clip], job.recorded_frames, "where a recording ends");
    const std::int64_t recorded = job.offsets[clip + 1] - job.offsets[clip];
    check_range("plan.start", row, job.plan.start[row], 0, recorded - 1, "the crop's first frame");
    check_range("plan.length", row, job.plan.length[row], 1, recorded - job.plan.start[row], "the crop's length from its start");
    job.dtype == Dtype::kFloat64 ? check_turnable<double>(job, row) : check_turnable<float>(job, row);
    job.dtype == Dtype::kFloat64 ? check_pace<double>(job, row) : check_pace<float>(job, row);
  }
  for (std::int64_t at = 0; job.augment.source && at < job.samples * job.joints; ++at) {
    check_range("augment.source", at, job.augment.source[at], 0, job.joints - 1, "the joint that a joint shows");
  }
}

void sample_clips_cpu(const SampleJob& job, int threads) {
  switch_dtype<float, double>(job.dtype, "sample_clips on the CPU: frames", [&](auto real) { run<decltype(real)>(job, threads); });
}

}  // namespace shapmix

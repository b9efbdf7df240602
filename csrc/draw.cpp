#include "draw.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "checks.h"
#include "parts.h"
#include "philox.h"

namespace shapmix {
namespace {

constexpr std::int64_t kFramesPerUnit = 4;  // windows start and end on multiples of this

// The draws shared by a batch, in frames.
struct Window {
  std::int64_t shift;  // the partner of sample i is i + shift
  std::int64_t start;
  std::int64_t length;
  std::int64_t source_start;
  std::int64_t source_length;
  double lam;
  bool blend;
};

Window draw_window(const DrawJob& job) {
  const RandomWords first = random_words(job.seed, kWindowDraw, job.step, 0, 0);
  const RandomWords second = random_words(job.seed, kWindowDraw, job.step, 0, 1);
  const std::int64_t units = job.num_frames / kFramesPerUnit;
  const std::int64_t length = uniform_integer(first.word[1], job.shortest, job.longest);
  const std::int64_t source_length = uniform_integer(first.word[3], length, units);
  Window window;
  window.shift = uniform_integer(first.word[0], 1, job.samples - 2);
  window.start = uniform_integer(first.word[2], 0, units - length) * kFramesPerUnit;
  window.length = length * kFramesPerUnit;
  window.source_start = uniform_integer(second.word[0], 0, units - source_length) * kFramesPerUnit;
  window.source_length = source_length * kFramesPerUnit;
  window.lam = uniform(second.word[1]);
  window.blend = uniform(second.word[2]) <= job.blend_probability;
  return window;
}

// Cumulative softmax of saliency / temperature per class, computed when a class is first drawn from.
class ClassDraws {
 public:
  explicit ClassDraws(const DrawJob& job)
      : job_(job),
        made_(static_cast<std::size_t>(job.guided ? job.classes : 0)),
        cumulative_(new double[made_.size() * static_cast<std::size_t>(job.columns)]) {}

  // The first column whose cumulative sum exceeds the sample's uniform number; the last if none does.
  std::int64_t column(std::int64_t sample, std::int64_t of_class) {
    double* cumulative = cumulative_.get() + of_class * job_.columns;
    if (!made_[static_cast<std::size_t>(of_class)]) {
      made_[static_cast<std::size_t>(of_class)] = true;
      if (job_.dtype == Dtype::kFloat64) {
        add_up(static_cast<const double*>(job_.saliency) + of_class * job_.columns, cumulative);
      } else {
        add_up(static_cast<const float*>(job_.saliency) + of_class * job_.columns, cumulative);
      }
    }
    const auto row = static_cast<std::uint32_t>(sample);
    const double point = uniform(random_words(job_.seed, kCombinationDraw, job_.step, row, 0).word[0]);
    std::int64_t column = 0;
    while (column < job_.columns - 1 && !(cumulative[column] > point)) ++column;
    return column;
  }

 private:
  template <class Real>
  void add_up(const Real* saliency, double* cumulative) const {
    double largest = saliency[0] / job_.temperature;
    for (std::int64_t q = 0; q < job_.columns; ++q) {
      cumulative[q] = saliency[q] / job_.temperature;
      largest = std::max(largest, cumulative[q]);
    }
    double sum = 0;
    for (std::int64_t q = 0; q < job_.columns; ++q) {
      cumulative[q] = std::exp(cumulative[q] - largest);
      sum += cumulative[q];
    }
    cumulative[0] /= sum;
    for (std::int64_t q = 1; q < job_.columns; ++q) cumulative[q] = cumulative[q - 1] + cumulative[q] / sum;
  }

  const DrawJob& job_;
  std::vector<char> made_;
  std::unique_ptr<double[]> cumulative_;
};

std::int64_t unguided_column(const DrawJob& job) {
  return uniform_integer(random_words(job.seed, kCombinationDraw, job.step, 0, 0).word[0], 0, job.columns - 1);
}

}  // namespace

void check_draw(const DrawJob& job) {
  for (std::int64_t row = 0; row < job.samples; ++row) {
    check_range("labels", row, job.labels[row], 0, job.classes - 1, "a class of the saliency");
  }
  const std::int64_t parts = count_parts(job.part_of_joint, job.joints);
  for (std::int64_t q = 0; q < job.columns; ++q) {
    if (holds_only_parts(job.combinations[q], parts)) continue;
    throw std::invalid_argument(not_a_part_set("combinations[" + std::to_string(q) + "]", job.combinations[q], parts));
  }
}

void draw_plan_cpu(const DrawJob& job) {
  const Window window = draw_window(job);
  const std::int64_t num_parts = count_parts(job.part_of_joint, job.joints);
  const auto all_parts = static_cast<std::int64_t>((std::uint64_t{1} << num_parts) - 1);
  const std::int64_t shared = job.guided ? 0 : job.combinations[unguided_column(job)];
  const auto elements = static_cast<double>(job.num_frames * job.joints);
  ClassDraws draws(job);

  const auto field = [&](std::int64_t row) { return job.fields + row * job.samples; };
  std::fill_n(field(2), job.samples, window.start);
  std::fill_n(field(3), job.samples, window.length);
  std::fill_n(field(4), job.samples, window.source_start);
  std::fill_n(field(5), job.samples, window.source_length);
  std::fill_n(job.blend, job.samples, window.blend);

  for (std::int64_t sample = 0; sample < job.samples; ++sample) {
    const std::int64_t partner = (sample + window.shift) % job.samples;
    std::int64_t parts = shared;
    if (job.guided) {
      const std::int64_t own = job.labels[sample];
      const std::int64_t theirs = job.labels[partner];
      // The partner's combination is pasted if its class is the rarer; otherwise, also in a tie, the sample keeps its own.
      const bool theirs_is_rarer = job.priority[own] > job.priority[theirs];
      const std::int64_t rarer = theirs_is_rarer ? theirs : own;
      const std::int64_t combination = job.combinations[draws.column(sample, rarer)];
      parts = theirs_is_rarer ? combination : all_parts ^ combination;
    }
    std::int64_t replaced_joints = 0;
    for (std::int64_t joint = 0; joint < job.joints; ++joint) replaced_joints += parts >> job.part_of_joint[joint] & 1;

    field(0)[sample] = partner;
    field(1)[sample] = parts;
    job.lam[sample] = window.blend ? window.lam : static_cast<double>(window.length * replaced_joints) / elements;
  }
}

}  // namespace shapmix

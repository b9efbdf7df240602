#include "loss.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "checks.h"
#include "isa.h"
#include "parallel.h"
#include "scratch.h"
#include "softmax_row.h"

namespace shapmix {
namespace {

// Target of a row of logits: its sample, and how the target is split between two classes.
template <class Real>
struct Target {
  bool mixed;
  std::int64_t label;
  std::int64_t partner_label;
  Real share;  // the partner's
};

template <class Real>
SHAPMIX_SIMD_BODY Target<Real> target_of(const LossJob& job, std::int64_t row) {
  const MixTargets& targets = job.targets;
  const bool mixed = row >= targets.samples;
  const std::int64_t sample = mixed ? row - targets.samples : row;
  const std::int64_t label = targets.labels[sample];
  if (!mixed) return {false, label, label, Real(0)};
  return {true, label, targets.labels[targets.partner[sample]], static_cast<const Real*>(job.lam)[sample]};
}

// block [kRowsAhead, whole_lanes(K)]: logits + log_prior of rows first..first + rows.
template <class Real, class Element>
SHAPMIX_SIMD_BODY void read_adjusted(Real* block, const LossJob& job, std::int64_t first, std::int64_t rows) {
  const std::int64_t classes = job.targets.classes;
  const auto* logits = static_cast<const Element*>(job.logits) + first * classes;
  const auto* log_prior = static_cast<const Real*>(job.log_prior);
  for (std::int64_t r = 0; r < rows; ++r) {
    Real* __restrict row = block + r * whole_lanes(classes);
    for (std::int64_t k = 0; k < classes; ++k) row[k] = widened<Real>(logits[r * classes + k]) + log_prior[k];
    fill_up(row, classes);
  }
}

// Cross-entropies of rows begin..end.
template <class Real, class Element>
SHAPMIX_SIMD_BODY void forward_of(const LossJob& job, std::int64_t begin, std::int64_t end, Real* block, Real* entropy) {
  const std::int64_t width = whole_lanes(job.targets.classes);
  for (std::int64_t first = begin; first < end; first += kRowsAhead) {
    const std::int64_t rows = std::min(kRowsAhead, end - first);
    read_adjusted<Real, Element>(block, job, first, rows);
    for (std::int64_t r = 0; r < rows; ++r) {
      Real* row = block + r * width;
      const Target<Real> target = target_of<Real>(job, first + r);
      const Real largest = largest_of(row, width);
      const Real own = row[target.label] - largest;
      const Real theirs = row[target.partner_label] - largest;
      exponentials(row, largest, width);
      const Real log_sum = std::log(sum_of(row, width));
      static_cast<Real*>(job.row_sums)[first + r] = largest + log_sum;
      entropy[first + r] = target.mixed ? (log_sum - own) * (1 - target.share) + (log_sum - theirs) * target.share : log_sum - own;
    }
  }
}

// Gradients of rows begin..end: (softmax - target) times the gradient of the loss.
template <class Real, class Element>
SHAPMIX_SIMD_BODY void backward_of(const LossJob& job, const Real* grad, std::int64_t begin, std::int64_t end, Real* block,
                                   Element* to_logits) {
  const std::int64_t classes = job.targets.classes;
  const std::int64_t width = whole_lanes(classes);
  for (std::int64_t first = begin; first < end; first += kRowsAhead) {
    const std::int64_t rows = std::min(kRowsAhead, end - first);
    read_adjusted<Real, Element>(block, job, first, rows);
    for (std::int64_t r = 0; r < rows; ++r) {
      Real* row = block + r * width;
      exponentials(row, static_cast<const Real*>(job.row_sums)[first + r], width);
      const Target<Real> target = target_of<Real>(job, first + r);
      const Real of_row = grad[target.mixed] / static_cast<Real>(job.targets.samples);
      Element* __restrict out = to_logits + (first + r) * classes;
      for (std::int64_t k = 0; k < classes; ++k) out[k] = rounded<Element>(row[k] * of_row);
      row[target.label] -= 1 - target.share;
      row[target.partner_label] -= target.share;
      out[target.label] = rounded<Element>(row[target.label] * of_row);
      out[target.partner_label] = rounded<Element>(row[target.partner_label] * of_row);
    }
  }
}

template <class Real>
struct Forward {
  template <class>
  SHAPMIX_SIMD_BODY static void run(const LossJob& job, std::int64_t begin, std::int64_t end, Real* block, Real* entropy) {
    if constexpr (std::is_same_v<Real, double>) {
      forward_of<double, double>(job, begin, end, block, entropy);
    } else {
      switch (job.dtype) {
        case Dtype::kFloat16: return forward_of<float, Half>(job, begin, end, block, entropy);
        case Dtype::kBfloat16: return forward_of<float, Bfloat16>(job, begin, end, block, entropy);
        default: return forward_of<float, float>(job, begin, end, block, entropy);
      }
    }
  }
};

template <class Real>
struct Backward {
  template <class>
  SHAPMIX_SIMD_BODY static void run(const LossJob& job, const Real* grad, std::int64_t begin, std::int64_t end, Real* block,
                                    void* to_logits) {
    if constexpr (std::is_same_v<Real, double>) {
      backward_of(job, grad, begin, end, block, static_cast<double*>(to_logits));
    } else {
      switch (job.dtype) {
        case Dtype::kFloat16: return backward_of(job, grad, begin, end, block, static_cast<Half*>(to_logits));
        case Dtype::kBfloat16: return backward_of(job, grad, begin, end, block, static_cast<Bfloat16*>(to_logits));
        default: return backward_of(job, grad, begin, end, block, static_cast<float*>(to_logits));
      }
    }
  }
};

template <class Real>
int workers_of(const LossJob& job, int threads) {
  return workers_for(job.rows, job.rows * job.targets.classes * static_cast<std::int64_t>(sizeof(Real)), threads);
}

// Summed in row order and in float64: the result does not depend on the number of threads.
template <class Real>
Real mean(const Real* values, std::int64_t count) {
  double sum = 0;
  for (std::int64_t i = 0; i < count; ++i) sum += values[i];
  return static_cast<Real>(sum / static_cast<double>(count));
}

template <class Real>
void run_forward(const LossJob& job, Real* losses, int threads) {
  const std::int64_t samples = job.targets.samples;
  const std::int64_t width = whole_lanes(job.targets.classes);
  const int workers = workers_of<Real>(job, threads);
  const Scratch<Real> blocks(workers, kRowsAhead * width);
  std::vector<Real> entropy(static_cast<std::size_t>(job.rows));
  const auto forward = compiled<Forward<Real>>();
  parallel_for(job.rows, workers, [&](std::int64_t worker, std::int64_t begin, std::int64_t end) {
    forward(job, begin, end, blocks.of(worker), entropy.data());
  });
  losses[0] = mean(entropy.data(), samples);
  losses[1] = job.rows == samples ? Real(0) : mean(entropy.data() + samples, samples);
}

template <class Real>
void run_backward(const LossJob& job, const Real* grad, void* to_logits, int threads) {
  const std::int64_t width = whole_lanes(job.targets.classes);
  const int workers = workers_of<Real>(job, threads);
  const Scratch<Real> blocks(workers, kRowsAhead * width);
  const auto backward = compiled<Backward<Real>>();
  parallel_for(job.rows, workers, [&](std::int64_t worker, std::int64_t begin, std::int64_t end) {
    backward(job, grad, begin, end, blocks.of(worker), to_logits);
  });
}

}  // namespace

void check_targets(const MixTargets& targets) {
  for (std::int64_t row = 0; row < targets.samples; ++row) {
    check_range("labels", row, targets.labels[row], 0, targets.classes - 1, "a class of the logits");
    check_range("partner", row, targets.partner[row], 0, targets.samples - 1, "a sample of the batch");
  }
}

void balanced_mix_loss_cpu(const LossJob& job, void* losses, int threads) {
  if (job.dtype == Dtype::kFloat64) return run_forward(job, static_cast<double*>(losses), threads);
  run_forward(job, static_cast<float*>(losses), threads);
}

void balanced_mix_loss_backward_cpu(const LossJob& job, const void* grad, void* to_logits, int threads) {
  if (job.dtype == Dtype::kFloat64) return run_backward(job, static_cast<const double*>(grad), to_logits, threads);
  run_backward(job, static_cast<const float*>(grad), to_logits, threads);
}

}  // namespace shapmix

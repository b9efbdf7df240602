// The logit-adjusted cross-entropy of a batch [clean; mixed], and its gradient.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace shapmix {

struct MixTargets {
  const std::int64_t* labels;   // [N]
  const std::int64_t* partner;  // [N], the sample mixed in
  std::int64_t samples;
  std::int64_t classes;
};

struct LossJob {
  const void* logits;  // [L, K], L either N (nothing is mixed) or 2N
  std::int64_t rows;
  Dtype dtype;
  MixTargets targets;

  // In the accumulation type: float64 for float64 logits, else float32.
  const void* lam;        // [N], the partner's share of the label
  const void* log_prior;  // [K]
  void* row_sums;         // [L], log-sum-exp of logits + log_prior: written by the forward pass, read by the backward pass
};

// Throws std::invalid_argument naming the first label that is not a class, or the first partner outside the batch.
void check_targets(const MixTargets& targets);

// losses [2]: means over clean and mixed rows; the latter is 0 without mixed rows. Precondition: check_targets passed.
void balanced_mix_loss_cpu(const LossJob& job, void* losses, int threads);

// to_logits [L, K], in the logits' type, from grad [2], in the accumulation type. Precondition: check_targets passed.
void balanced_mix_loss_backward_cpu(const LossJob& job, const void* grad, void* to_logits, int threads);

}  // namespace shapmix

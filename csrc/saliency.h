// Updates the class saliency from the logits of coalitions, in place.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace shapmix {

struct SaliencyJob {
  void* table;  // [K, Q]
  std::int64_t classes;
  std::int64_t combinations;
  Dtype table_dtype;  // float32 or float64, also the accumulation type

  const void* logits;  // [L, K]
  std::int64_t rows;
  Dtype logits_dtype;

  const std::int64_t* labels;   // [U], the class of each update
  const std::int64_t* columns;  // [U], its combination
  std::int64_t updates;
  const std::int64_t* with_rows;  // [U, J], rows of the logits with context and combination
  const std::int64_t* without_rows;
  const void* weights;  // [U, J] in the table's type, or null for ones
  std::int64_t contexts;
  const std::int64_t* joint_counts;  // [Q]

  double decay;
  double scale;
  void* marginal;  // [U], in the table's type
};

// Throws std::invalid_argument naming the first label, column or row out of range, or the first combination without joints.
void check_updates(const SaliencyJob& job);

// Applies the updates in order; one with a non-finite marginal is skipped. Precondition: check_updates passed.
void saliency_update_cpu(const SaliencyJob& job, int threads);

}  // namespace shapmix

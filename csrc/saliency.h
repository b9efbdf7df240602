// From the logits of coalitions to the class saliency, in place.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace shapmix {

struct SaliencyJob {
  void* table;  // [K, Q]
  std::int64_t classes;
  std::int64_t combinations;
  Dtype table_dtype;  // float32 or float64: sums are taken in it

  const void* logits;  // [L, K]
  std::int64_t rows;
  Dtype logits_dtype;

  const std::int64_t* labels;   // [U], the class of each update
  const std::int64_t* columns;  // [U], its combination
  std::int64_t updates;
  const std::int64_t* with_rows;  // [U, J], rows of the logits that show the context and the combination
  const std::int64_t* without_rows;
  const void* weights;  // [U, J] of the table's type, or null for ones
  std::int64_t contexts;
  const std::int64_t* joint_counts;  // [Q]

  double decay;
  double scale;
  void* marginal;  // [U], of the table's type
};

// Throws std::invalid_argument that names the first label, column or row that points outside, or the combination without
// joints.
void check_updates(const SaliencyJob& job);

// Updates in their order; one whose marginal is not finite changes nothing. The caller has run check_updates.
void saliency_update_cpu(const SaliencyJob& job, int threads);

}  // namespace shapmix

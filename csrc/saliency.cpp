#include "saliency.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "checks.h"
#include "isa.h"
#include "parallel.h"
#include "scratch.h"
#include "softmax_row.h"

namespace shapmix {
namespace {

// Softmax statistics of a row: its probabilities are exp(logit - largest) / sum.
template <class Real>
struct RowSum {
  Real largest;
  Real sum;
};

// Statistics of the rows used[begin..end). `block` [kRowsAhead, whole_lanes(K)] is scratch memory.
template <class Real, class Element>
SHAPMIX_SIMD_BODY void sum_rows_of(const SaliencyJob& job, const std::int64_t* used, std::int64_t begin, std::int64_t end,
                                   Real* block, RowSum<Real>* sums) {
  const std::int64_t classes = job.classes;
  const std::int64_t width = whole_lanes(classes);
  const auto* logits = static_cast<const Element*>(job.logits);
  for (std::int64_t first = begin; first < end; first += kRowsAhead) {
    const std::int64_t rows = std::min(kRowsAhead, end - first);
    for (std::int64_t r = 0; r < rows; ++r) {
      Real* __restrict row = block + r * width;
      const Element* from = logits + used[first + r] * classes;
      for (std::int64_t k = 0; k < classes; ++k) row[k] = widened<Real>(from[k]);
      fill_up(row, classes);
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      Real* row = block + r * width;
      const Real largest = largest_of(row, width);
      exponentials(row, largest, width);
      sums[used[first + r]] = {largest, sum_of(row, width)};
    }
  }
}

template <class Real>
struct SumRows {
  template <class>
  SHAPMIX_SIMD_BODY static void run(const SaliencyJob& job, const std::int64_t* used, std::int64_t begin, std::int64_t end,
                                    Real* block, RowSum<Real>* sums) {
    switch (job.logits_dtype) {
      case Dtype::kFloat32: return sum_rows_of<Real, float>(job, used, begin, end, block, sums);
      case Dtype::kFloat64: return sum_rows_of<Real, double>(job, used, begin, end, block, sums);
      case Dtype::kFloat16: return sum_rows_of<Real, Half>(job, used, begin, end, block, sums);
      case Dtype::kBfloat16: return sum_rows_of<Real, Bfloat16>(job, used, begin, end, block, sums);
    }
  }
};

template <class Real>
Real logit(const SaliencyJob& job, std::int64_t row, std::int64_t label) {
  Real value{};
  switch_dtype<float, double, Half, Bfloat16>(job.logits_dtype, "saliency_update on the CPU: logits", [&](auto element) {
    value = widened<Real>(static_cast<const decltype(element)*>(job.logits)[row * job.classes + label]);
  });
  return value;
}

// The distinct rows that the updates read.
std::vector<std::int64_t> used_rows(const SaliencyJob& job) {
  std::vector<char> seen(static_cast<std::size_t>(job.rows));
  std::vector<std::int64_t> used;
  used.reserve(static_cast<std::size_t>(job.rows));
  for (const std::int64_t* rows : {job.with_rows, job.without_rows}) {
    for (std::int64_t i = 0; i < job.updates * job.contexts; ++i) {
      char& before = seen[static_cast<std::size_t>(rows[i])];
      if (!before) used.push_back(rows[i]);
      before = 1;
    }
  }
  return used;
}

template <class Real>
void run(const SaliencyJob& job, int threads) {
  const std::vector<std::int64_t> used = used_rows(job);
  const auto num_used = static_cast<std::int64_t>(used.size());
  const std::int64_t width = whole_lanes(job.classes);
  const int workers = workers_for(num_used, num_used * width * static_cast<std::int64_t>(sizeof(Real)), threads);
  std::vector<RowSum<Real>> sums(static_cast<std::size_t>(job.rows));
  const Scratch<Real> blocks(workers, kRowsAhead * width);
  const auto sum_rows = compiled<SumRows<Real>>();
  parallel_for(num_used, workers, [&](std::int64_t worker, std::int64_t begin, std::int64_t end) {
    sum_rows(job, used.data(), begin, end, blocks.of(worker), sums.data());
  });

  const auto probability = [&](std::int64_t row, std::int64_t label) {
    const RowSum<Real>& of_row = sums[static_cast<std::size_t>(row)];
    return exponential(logit<Real>(job, row, label) - of_row.largest) / of_row.sum;
  };
  const auto* weights = static_cast<const Real*>(job.weights);
  auto* table = static_cast<Real*>(job.table);
  auto* marginals = static_cast<Real*>(job.marginal);
  const auto keep = static_cast<Real>(job.decay);
  const auto take = static_cast<Real>(1.0 - job.decay);
  for (std::int64_t u = 0; u < job.updates; ++u) {
    const std::int64_t label = job.labels[u];
    const std::int64_t column = job.columns[u];
    Real marginal = 0;
    for (std::int64_t i = u * job.contexts; i < (u + 1) * job.contexts; ++i) {
      const Real gain = probability(job.with_rows[i], label) - probability(job.without_rows[i], label);
      const Real rectified = gain <= 0 ? Real(0) : gain;  // NaN stays NaN
      marginal += weights ? rectified * weights[i] : rectified;
    }
    marginals[u] = marginal;
    const Real value = marginal * static_cast<Real>(job.scale) / static_cast<Real>(job.joint_counts[column]);
    if (!std::isfinite(value)) continue;  // a non-finite value would never leave the average
    Real& entry = table[label * job.combinations + column];
    entry = keep * entry + take * value;
  }
}

void check_rows(const char* name, const std::int64_t* rows, const SaliencyJob& job) {
  for (std::int64_t i = 0; i < job.updates * job.contexts; ++i) {
    if (rows[i] >= 0 && rows[i] < job.rows) continue;
    const std::string at = "[" + std::to_string(i / job.contexts) + ", " + std::to_string(i % job.contexts) + "]";
    throw_out_of_range(name + at, rows[i], 0, job.rows - 1, "a row of the logits");
  }
}

}  // namespace

void check_updates(const SaliencyJob& job) {
  for (std::int64_t q = 0; q < job.combinations; ++q) {
    if (job.joint_counts[q] > 0) continue;
    throw std::invalid_argument("joint_counts[" + std::to_string(q) + "] is " + std::to_string(job.joint_counts[q]) +
                                "; give every combination the number of its joints, at least 1");
  }
  for (std::int64_t u = 0; u < job.updates; ++u) {
    check_range("labels", u, job.labels[u], 0, job.classes - 1, "a row of the table");
    check_range("columns", u, job.columns[u], 0, job.combinations - 1, "a column of the table");
  }
  check_rows("with_rows", job.with_rows, job);
  check_rows("without_rows", job.without_rows, job);
}

void saliency_update_cpu(const SaliencyJob& job, int threads) {
  switch_dtype<float, double>(job.table_dtype, "saliency_update on the CPU: table",
                              [&](auto real) { run<decltype(real)>(job, threads); });
}

}  // namespace shapmix

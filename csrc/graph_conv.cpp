#include "graph_conv.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "element.h"
#include "graph_conv_bf16.h"
#include "graph_products.h"
#include "isa.h"
#include "lanes.h"
#include "parallel.h"
#include "scratch.h"

namespace shapmix {
namespace {

// The dtypes of the CPU path.
template <class Body>
void switch_features(const GraphConvJob& job, const Body& body) {
  switch_dtype<float, double, Bfloat16>(job.dtype, "graph_conv on the CPU: features", body);
}

// Channel blocks of one row: graphs [V][S V], features [T][S V], gradients [T][V] and [V][S V], in vectors.
template <class M, class Element>
class RowBlocks {
 public:
  using Sum = Wide<Element>;
  using Vector = Lanes<Sum, M::kLanes>;
  static constexpr int kLanes = M::kLanes;

  RowBlocks(const GraphConvJob& job, bool backward)
      : job_(job),
        terms_(job.subsets * job.relations),
        width_(job.subsets * job.joints),
        columns_(feature_columns(job)),
        places_(graph_places(job)),
        frame_stride_(backward ? 1 : width_),
        column_stride_(backward ? job.frames | 1 : 1),
        relation_(1, job.joints * job.joints * terms_),
        graph_(1, job.joints * width_ * kLanes),
        features_(1, std::max(job.frames * frame_stride_, width_ * column_stride_) * kLanes),
        grad_(1, backward ? job.frames * job.joints * kLanes : 0),
        to_graph_(1, backward ? job.joints * width_ * kLanes : 0),
        to_relation_(1, backward ? job.joints * job.joints * terms_ : 0) {}

  // relation[u][v][i][k] = tanh(left[u][i][k] - right[v][i][k])
  SHAPMIX_SIMD_BODY void compute_relations(std::int64_t row) {
    const std::int64_t joints = job_.joints;
    const Sum* terms = static_cast<const Sum*>(job_.relation_terms) + row * joints * 2 * terms_;
    for (std::int64_t u = 0; u < joints; ++u) {
      for (std::int64_t v = 0; v < joints; ++v) {
        Sum* to = relation_.of(0) + (u * joints + v) * terms_;
        const Sum* left = terms + u * 2 * terms_;
        const Sum* right = terms + (v * 2 + 1) * terms_;
        tanh_differences(left, right, terms_, to);
      }
    }
  }

  SHAPMIX_SIMD_BODY void build_graph(std::int64_t channel) {
    constexpr int kTogether = 5;
    const std::int64_t edges = job_.joints * job_.joints;
    for (std::int64_t i = 0; i < job_.subsets; ++i) {
      const Sum* weight = static_cast<const Sum*>(job_.weight) + i * job_.relations * job_.channels + channel;
      const Vector bias = load<kLanes>(static_cast<const Sum*>(job_.bias) + i * job_.channels + channel);
      const Sum* shared = static_cast<const Sum*>(job_.shared) + i * edges;
      for (std::int64_t edge = 0; edge < edges; edge += kTogether) {
        // The last block may overlap the one before.
        const std::int64_t first = std::max<std::int64_t>(std::min(edge, edges - kTogether), 0);
        const Sum* relation[kTogether];
        Vector graph[kTogether];
#pragma GCC unroll 5
        for (int j = 0; j < kTogether; ++j) {
          const std::int64_t at = std::min(first + j, edges - 1);
          relation[j] = relation_.of(0) + at * terms_ + i * job_.relations;
          graph[j] = bias + shared[at];
        }
        for (std::int64_t k = 0; k < job_.relations; ++k) {
          const Vector factor = load<kLanes>(weight + k * job_.channels);
#pragma GCC unroll 5
          for (int j = 0; j < kTogether; ++j) graph[j] += factor * relation[j][k];
        }
#pragma GCC unroll 5
        for (int j = 0; j < kTogether; ++j) {
          const std::int64_t at = std::min(first + j, edges - 1);
          store(graph_.of(0) + (places_[static_cast<std::size_t>(at)] + i * job_.joints) * kLanes, graph[j]);
        }
      }
    }
  }

  SHAPMIX_SIMD_BODY void gather_features(std::int64_t row, std::int64_t channel) {
    const std::int64_t joints = job_.joints;
    const auto* from = static_cast<const Element*>(job_.features) + row * job_.frames * joints * job_.feature_stride + channel;
    for (std::int64_t t = 0; t < job_.frames; ++t) {
      for (std::int64_t v = 0; v < joints; ++v) {
        for (std::int64_t i = 0; i < job_.subsets; ++i) {
          const Vector value = load<kLanes>(from + (t * joints + v) * job_.feature_stride + i * job_.channels);
          store(features_.of(0) + (t * frame_stride_ + (i * joints + v) * column_stride_) * kLanes, value);
        }
      }
    }
  }

  SHAPMIX_SIMD_BODY void aggregate(std::int64_t row, std::int64_t channel, const GraphConvEpilogue& epilogue, Element* out) {
    const std::int64_t joints = job_.joints;
    const std::int64_t first = row * job_.frames * joints;
    const auto* shortcut = static_cast<const Element*>(epilogue.shortcut);
    Vector offset = {};
    if (epilogue.offset != nullptr) offset = load<kLanes>(static_cast<const Sum*>(epilogue.offset) + channel);
    products<M>(graph_.of(0), width_, 1, joints, features_.of(0), frame_stride_, column_stride_, job_.frames, width_,
                [&](std::int64_t u, std::int64_t t, const Vector& sum) __attribute__((always_inline)) {
                  const std::int64_t at = first + t * joints + u;
                  Vector value = sum;
                  if (epilogue.offset != nullptr) {
                    value += offset;
                    if (shortcut != nullptr) value += load<kLanes>(shortcut + at * epilogue.shortcut_stride + channel);
                    value = value < 0 ? Vector{} : value;  // keeps NaN, as torch's ReLU
                  }
                  store(out + at * job_.channels + channel, value);
                });
  }

  SHAPMIX_SIMD_BODY void zero_relation_gradients() { std::fill_n(to_relation_.of(0), job_.joints * job_.joints * terms_, Sum{0}); }

  // Gradients of the features and of the graph of this channel block.
  SHAPMIX_SIMD_BODY void backward(std::int64_t row, std::int64_t channel, const Element* grad, Element* to_features) {
    const std::int64_t joints = job_.joints;
    const std::int64_t first = row * job_.frames * joints;
    for (std::int64_t at = 0; at < job_.frames * joints; ++at) {
      store(grad_.of(0) + at * kLanes, load<kLanes>(grad + (first + at) * job_.channels + channel));
    }
    const std::int64_t* columns = columns_.data();
    products<M>(graph_.of(0), 1, width_, width_, grad_.of(0), joints, 1, job_.frames, joints,
                [&](std::int64_t column, std::int64_t t, const Vector& sum) __attribute__((always_inline)) {
                  store(to_features + (first + t * joints) * job_.feature_stride + columns[column] + channel, sum);
                });
    products<M>(grad_.of(0), 1, joints, joints, features_.of(0), column_stride_, frame_stride_, width_, job_.frames,
                [&](std::int64_t u, std::int64_t column, const Vector& sum)
                    __attribute__((always_inline)) { store(to_graph_.of(0) + (u * width_ + column) * kLanes, sum); });
  }

  // Backward through build_graph. `to_shared` is [V][S V] vectors; `to_weight` and `to_bias` have the job's layout.
  SHAPMIX_SIMD_BODY void backward_graph(std::int64_t channel, Sum* to_shared, Sum* to_weight, Sum* to_bias) {
    const std::int64_t joints = job_.joints;
    for (std::int64_t at = 0; at < joints * width_; ++at) {
      Sum* to = to_shared + at * kLanes;
      store(to, load<kLanes>(to) + load<kLanes>(to_graph_.of(0) + at * kLanes));
    }
    for (std::int64_t i = 0; i < job_.subsets; ++i) {
      const Sum* weight = static_cast<const Sum*>(job_.weight) + i * job_.relations * job_.channels + channel;
      Vector bias = {};
      for (std::int64_t u = 0; u < joints; ++u) {
        for (std::int64_t v = 0; v < joints; ++v) bias += graph_grad(u, i, v);
      }
      Sum* of_bias = to_bias + i * job_.channels + channel;
      store(of_bias, load<kLanes>(of_bias) + bias);

      constexpr int kTogether = 8;
      for (std::int64_t k = 0; k < job_.relations; k += kTogether) {
        const auto some = static_cast<int>(std::min<std::int64_t>(kTogether, job_.relations - k));
        Vector sums[kTogether] = {};
        for (std::int64_t u = 0; u < joints; ++u) {
          for (std::int64_t v = 0; v < joints; ++v) {
            const Vector grad = graph_grad(u, i, v);
            const Sum* relation = relation_.of(0) + (u * joints + v) * terms_ + i * job_.relations + k;
#pragma GCC unroll 8
            for (int j = 0; j < kTogether; ++j) sums[j] += grad * relation[std::min(j, some - 1)];
          }
        }
#pragma GCC unroll 8
        for (int j = 0; j < kTogether; ++j) {
          if (j >= some) continue;
          Sum* of_weight = to_weight + (i * job_.relations + k + j) * job_.channels + channel;
          store(of_weight, load<kLanes>(of_weight) + sums[j]);
        }
      }

      // Sums over channels would cross lanes, so the relations are vectorised instead: weight[k][lane] is transposed to
      // [lane][k].
      Sum transposed[kLanes][kMostRelations];
      for (std::int64_t k = 0; k < job_.relations; ++k) {
        for (int lane = 0; lane < kLanes; ++lane) transposed[lane][k] = weight[k * job_.channels + lane];
      }
      for (std::int64_t u = 0; u < joints; ++u) {
        for (std::int64_t v = 0; v < joints; ++v) {
          const Sum* grad = to_graph_.of(0) + (u * width_ + i * joints + v) * kLanes;
          Sum* to = to_relation_.of(0) + (u * joints + v) * terms_ + i * job_.relations;
          if (job_.relations % 8 == 0) {
            for (std::int64_t k = 0; k < job_.relations; k += 8) {
              Lanes<Sum, 8> sums = load<8>(to + k);
#pragma GCC unroll 16
              for (int lane = 0; lane < kLanes; ++lane) sums += load<8>(transposed[lane] + k) * grad[lane];
              store(to + k, sums);
            }
          } else {
            for (int lane = 0; lane < kLanes; ++lane) {
              for (std::int64_t k = 0; k < job_.relations; ++k) to[k] += transposed[lane][k] * grad[lane];
            }
          }
        }
      }
    }
  }

  // Backward through tanh: left[u] receives the sum over v, right[v] minus the sum over u.
  SHAPMIX_SIMD_BODY void backward_relation(std::int64_t row, Sum* to_terms) {
    const std::int64_t joints = job_.joints;
    Sum* to = to_terms + row * joints * 2 * terms_;
    std::fill_n(to, joints * 2 * terms_, Sum{0});
    for (std::int64_t u = 0; u < joints; ++u) {
      for (std::int64_t v = 0; v < joints; ++v) {
        const Sum* relation = relation_.of(0) + (u * joints + v) * terms_;
        const Sum* grad = to_relation_.of(0) + (u * joints + v) * terms_;
        for (std::int64_t k = 0; k < terms_; ++k) {
          const Sum change = grad[k] * (1 - relation[k] * relation[k]);
          to[u * 2 * terms_ + k] += change;
          to[(v * 2 + 1) * terms_ + k] -= change;
        }
      }
    }
  }

  static constexpr std::int64_t kMostRelations = 256;

 private:
  SHAPMIX_SIMD_BODY Vector graph_grad(std::int64_t u, std::int64_t i, std::int64_t v) {
    return load<kLanes>(to_graph_.of(0) + (u * width_ + i * job_.joints + v) * kLanes);
  }

  const GraphConvJob& job_;
  std::int64_t terms_;  // S k
  std::int64_t width_;  // S V
  std::vector<std::int64_t> columns_;
  std::vector<std::int64_t> places_;
  std::int64_t frame_stride_;   // of the features, in vectors: the reduced axis of each product is contiguous
  std::int64_t column_stride_;  // odd, to avoid cache set conflicts between columns
  Scratch<Sum> relation_;
  Scratch<Sum> graph_;
  Scratch<Sum> features_;
  Scratch<Sum> grad_;
  Scratch<Sum> to_graph_;
  Scratch<Sum> to_relation_;
};

template <class M, class Element>
SHAPMIX_SIMD_BODY void forward_rows(const GraphConvJob& job, const GraphConvEpilogue& epilogue, void* out, std::int64_t begin,
                                    std::int64_t end) {
  RowBlocks<M, Element> blocks(job, false);
  for (std::int64_t row = begin; row < end; ++row) {
    blocks.compute_relations(row);
    for (std::int64_t channel = 0; channel < job.channels; channel += M::kLanes) {
      blocks.build_graph(channel);
      blocks.gather_features(row, channel);
      blocks.aggregate(row, channel, epilogue, static_cast<Element*>(out));
    }
  }
}

template <class M, class Element>
SHAPMIX_SIMD_BODY void backward_rows(const GraphConvJob& job, const void* grad, const GraphConvGradients& gradients,
                                     PartialSums<Wide<Element>>& sums, std::int64_t begin, std::int64_t end) {
  RowBlocks<M, Element> blocks(job, true);
  sums.shared.assign(static_cast<std::size_t>(job.joints * job.subsets * job.joints * M::kLanes), 0);
  for (std::int64_t row = begin; row < end; ++row) {
    blocks.compute_relations(row);
    blocks.zero_relation_gradients();
    for (std::int64_t channel = 0; channel < job.channels; channel += M::kLanes) {
      blocks.build_graph(channel);
      blocks.gather_features(row, channel);
      blocks.backward(row, channel, static_cast<const Element*>(grad), static_cast<Element*>(gradients.features));
      blocks.backward_graph(channel, sums.shared.data(), sums.weight.data(), sums.bias.data());
    }
    blocks.backward_relation(row, static_cast<Wide<Element>*>(gradients.relation_terms));
  }
  add_lanes<M::kLanes>(sums.shared);
}

// 32 vector registers hold 5 x 4 accumulators and their factors, 16 hold 5 x 2. 5 divides the 20 and 25 joints of the common
// skeletons.
template <class Set, class Sum>
using Micro = MicroKernel<Sum, Set::kBytes, 5, Set::kRegisters == 32 ? 4 : 2>;

template <class Element>
struct Forward {
  template <class Set>
  SHAPMIX_SIMD_BODY static void run(const GraphConvJob& job, const GraphConvEpilogue& epilogue, void* out, std::int64_t begin,
                                    std::int64_t end) {
    forward_rows<Micro<Set, Wide<Element>>, Element>(job, epilogue, out, begin, end);
  }
};

template <class Element>
struct Backward {
  template <class Set>
  SHAPMIX_SIMD_BODY static void run(const GraphConvJob& job, const void* grad, const GraphConvGradients& gradients,
                                    PartialSums<Wide<Element>>& sums, std::int64_t begin, std::int64_t end) {
    backward_rows<Micro<Set, Wide<Element>>, Element>(job, grad, gradients, sums, begin, end);
  }
};

// If the channels are not a multiple of the widest vector, the next one is used; they are always a multiple of 8.
template <class Element>
Isa fitting_isa(const GraphConvJob& job) {
  const bool fits = job.channels % kLanesOf<Avx512, Wide<Element>> == 0;
  return isa() == Isa::kAvx512 && !fits ? Isa::kAvx2 : isa();
}

int workers_of(const GraphConvJob& job, int threads) {
  const std::int64_t bytes = job.rows * job.frames * job.joints * job.channels * 4;
  return workers_for(job.rows, bytes, threads);
}

template <class Element>
void forward(const GraphConvJob& job, const GraphConvEpilogue& epilogue, void* out, int threads) {
  auto rows = compiled<Forward<Element>>(fitting_isa<Element>(job));
  if (fits_bf16(job)) rows = graph_conv_bf16_rows;
  parallel_for(job.rows, workers_of(job, threads),
               [&](std::int64_t, std::int64_t begin, std::int64_t end) { rows(job, epilogue, out, begin, end); });
}

template <class Element>
void backward(const GraphConvJob& job, const void* grad, const GraphConvGradients& gradients, int threads) {
  using Sum = Wide<Element>;
  auto rows = compiled<Backward<Element>>(fitting_isa<Element>(job));
  if constexpr (std::is_same_v<Element, Bfloat16>) {
    if (fits_bf16(job)) rows = graph_conv_backward_bf16_rows;
  }
  const std::int64_t weights = job.subsets * job.relations * job.channels;
  const std::int64_t biases = job.subsets * job.channels;
  const std::int64_t shared = job.joints * job.subsets * job.joints;
  const int workers = workers_of(job, threads);
  std::vector<PartialSums<Sum>> partial(static_cast<std::size_t>(workers));
  for (PartialSums<Sum>& sums : partial) {
    sums.shared.assign(static_cast<std::size_t>(shared), 0);
    sums.weight.assign(static_cast<std::size_t>(weights), 0);
    sums.bias.assign(static_cast<std::size_t>(biases), 0);
  }
  parallel_for(job.rows, workers, [&](std::int64_t worker, std::int64_t begin, std::int64_t end) {
    rows(job, grad, gradients, partial[static_cast<std::size_t>(worker)], begin, end);
  });

  auto* to_weight = static_cast<Sum*>(gradients.weight);
  auto* to_bias = static_cast<Sum*>(gradients.bias);
  auto* to_shared = static_cast<Sum*>(gradients.shared);
  std::fill_n(to_weight, weights, Sum{0});
  std::fill_n(to_bias, biases, Sum{0});
  std::fill_n(to_shared, shared, Sum{0});
  for (const PartialSums<Sum>& sums : partial) {
    for (std::int64_t at = 0; at < weights; ++at) to_weight[at] += sums.weight[static_cast<std::size_t>(at)];
    for (std::int64_t at = 0; at < biases; ++at) to_bias[at] += sums.bias[static_cast<std::size_t>(at)];
    for (std::int64_t i = 0; i < job.subsets; ++i) {
      for (std::int64_t u = 0; u < job.joints; ++u) {
        for (std::int64_t v = 0; v < job.joints; ++v) {
          to_shared[(i * job.joints + u) * job.joints + v] +=
              sums.shared[static_cast<std::size_t>((u * job.subsets + i) * job.joints + v)];
        }
      }
    }
  }
}

void check(const GraphConvJob& job) {
  if (job.channels % 8 != 0) {
    throw std::invalid_argument("weight has " + std::to_string(job.channels) + " channels; the CPU path needs a multiple of 8");
  }
  if (job.relations > RowBlocks<Micro<Baseline, float>, float>::kMostRelations) {
    throw std::invalid_argument("weight has " + std::to_string(job.relations) + " relations; the CPU path supports up to " +
                                std::to_string(RowBlocks<Micro<Baseline, float>, float>::kMostRelations));
  }
}

}  // namespace

void graph_conv_cpu(const GraphConvJob& job, const GraphConvEpilogue& epilogue, void* out, int threads) {
  check(job);
  switch_features(job, [&](auto element) { forward<decltype(element)>(job, epilogue, out, threads); });
}

void graph_conv_backward_cpu(const GraphConvJob& job, const void* grad, const GraphConvGradients& gradients, int threads) {
  check(job);
  switch_features(job, [&](auto element) { backward<decltype(element)>(job, grad, gradients, threads); });
}

}  // namespace shapmix

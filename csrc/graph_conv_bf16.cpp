#include "graph_conv_bf16.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "element.h"
#include "isa.h"
#include "lanes.h"
#include "scratch.h"

namespace shapmix {

// Clang rejects vector operands of inline assembly outside functions of that instruction set, and cannot inline those functions;
// in a Clang build, bfloat16 uses the float32 loops of graph_conv.cpp.
#if defined(__x86_64__) && !defined(__clang__)

namespace {

constexpr int kLanes = 16;
using Floats = Lanes<float, kLanes>;
using Halves = Lanes<std::uint16_t, kLanes>;  // bfloat16 of contiguous channels
using Pairs = Lanes<std::uint32_t, kLanes>;   // two bfloat16 per channel, the first in the lower half

// Inline assembly, because intrinsics are accepted only in functions of that instruction set, and these are inlined into such
// functions. Accumulators are passed by value: an operand whose address is taken would stay in memory.
SHAPMIX_SIMD_BODY Floats plus_products(Floats sums, const Pairs& left, const Pairs& right) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(left), "v"(right));
  return sums;
}
SHAPMIX_SIMD_BODY Floats plus_products(Floats sums, const Pairs& left, const std::uint32_t& right) {
  asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sums) : "v"(left), "m"(right));
  return sums;
}
SHAPMIX_SIMD_BODY Lanes<float, 8> plus_products(Lanes<float, 8> sums, const Lanes<std::uint32_t, 8>& left,
                                                const std::uint32_t& right) {
  asm("vdpbf16ps %2%{1to8%}, %1, %0" : "+v"(sums) : "v"(left), "m"(right));
  return sums;
}
SHAPMIX_SIMD_BODY Halves rounded(const Floats& value) {
  Halves result;
  asm("vcvtneps2bf16 %1, %0" : "=v"(result) : "v"(value));
  return result;
}
SHAPMIX_SIMD_BODY Pairs paired(const Halves& first, const Halves& second) {
  Pairs lower;
  Pairs upper;
  asm("vpmovzxwd %1, %0" : "=v"(lower) : "vm"(first));
  asm("vpmovzxwd %1, %0" : "=v"(upper) : "vm"(second));
  return lower | (upper << 16);
}
SHAPMIX_SIMD_BODY Halves halves_at(const void* from) { return load_words<kLanes>(static_cast<const std::uint16_t*>(from)); }

// 5 x 4 accumulators in 32 registers.
struct PairMicroKernel {
  static constexpr int kLanes = 16;
  static constexpr int kRows = 5;
  static constexpr int kColumns = 4;
  using Factor = std::uint32_t;
  using Sums = Floats;

  SHAPMIX_SIMD_BODY static void add_product(Sums& sums, const Pairs& left, const Pairs& right) {
    sums = plus_products(sums, left, right);
  }
};

std::int64_t pairs_in(std::int64_t count) { return (count + 1) / 2; }

// Offsets of the columns (subset, joint) of a row's graphs in the features of one frame.
std::vector<std::int64_t> feature_columns(const GraphConvJob& job) {
  std::vector<std::int64_t> columns;
  for (std::int64_t i = 0; i < job.subsets; ++i) {
    for (std::int64_t v = 0; v < job.joints; ++v) columns.push_back(v * job.feature_stride + i * job.channels);
  }
  return columns;
}

// Offsets of the edges [u][v] of the first subset in a row's graphs [u][S V].
std::vector<std::int64_t> graph_places(const GraphConvJob& job) {
  std::vector<std::int64_t> places;
  for (std::int64_t u = 0; u < job.joints; ++u) {
    for (std::int64_t v = 0; v < job.joints; ++v) places.push_back(u * job.subsets * job.joints + v);
  }
  return places;
}

// Blocks of 16 channels of one row. W = S V is the width of a joint's graphs; pairs are formed along the reduced axis.
class PairBlocks {
 public:
  PairBlocks(const GraphConvJob& job, bool backward)
      : job_(job),
        terms_(job.subsets * job.relations),
        width_(job.subsets * job.joints),
        width_pairs_(pairs_in(width_)),
        joint_pairs_(pairs_in(job.joints)),
        frame_pairs_(pairs_in(job.frames)),
        frame_stride_(frame_pairs_ | 1),
        columns_(feature_columns(job)),
        places_(graph_places(job)),
        relation_(1, job.joints * job.joints * terms_),
        relation_pairs_(1, job.joints * job.joints * terms_ / 2),
        graph_(1, job.joints * width_ * kLanes),
        graph_pairs_(1, std::max(job.joints * width_pairs_, joint_pairs_ * width_) * kLanes),
        feature_pairs_(1, (backward ? frame_stride_ * width_ : job.frames * width_pairs_) * kLanes),
        grad_by_joints_(1, backward ? job.frames * joint_pairs_ * kLanes : 0),
        grad_by_frames_(1, backward ? frame_stride_ * job.joints * kLanes : 0),
        to_graph_(1, backward ? job.joints * width_ * kLanes : 0),
        relation_by_joints_(1, backward ? job.joints * joint_pairs_ * terms_ : 0),
        to_relation_(1, backward ? job.joints * job.joints * terms_ : 0) {}

  // relation[u][v][i][k] = tanh(left[u][i][k] - right[v][i][k])
  SHAPMIX_SIMD_BODY void compute_relations(std::int64_t row) {
    const std::int64_t joints = job_.joints;
    const float* terms = static_cast<const float*>(job_.relation_terms) + row * joints * 2 * terms_;
    float* relation = relation_.of(0);
    for (std::int64_t u = 0; u < joints; ++u) {
      for (std::int64_t v = 0; v < joints; ++v) {
        float* to = relation + (u * joints + v) * terms_;
        const float* left = terms + u * 2 * terms_;
        const float* right = terms + (v * 2 + 1) * terms_;
        tanh_differences(left, right, terms_, to);
      }
    }
    std::uint32_t* pairs = relation_pairs_.of(0);
    for (std::int64_t at = 0; at < joints * joints * terms_ / 2; ++at) {
      pairs[at] = Bfloat16(relation[2 * at]).bits | static_cast<std::uint32_t>(Bfloat16(relation[2 * at + 1]).bits) << 16;
    }
  }

  // Pairs of neighbouring joints v, the last padded with zero: [u][v pair][i k]
  SHAPMIX_SIMD_BODY void pair_relation_by_joints() {
    const std::int64_t joints = job_.joints;
    const float* relation = relation_.of(0);
    for (std::int64_t u = 0; u < joints; ++u) {
      for (std::int64_t pair = 0; pair < joint_pairs_; ++pair) {
        const float* first = relation + (u * joints + 2 * pair) * terms_;
        std::uint32_t* to = relation_by_joints_.of(0) + (u * joint_pairs_ + pair) * terms_;
        if (2 * pair + 1 < joints) {
          const float* second = first + terms_;
          for (std::int64_t k = 0; k < terms_; ++k) {
            to[k] = Bfloat16(first[k]).bits | static_cast<std::uint32_t>(Bfloat16(second[k]).bits) << 16;
          }
        } else {
          for (std::int64_t k = 0; k < terms_; ++k) to[k] = Bfloat16(first[k]).bits;
        }
      }
    }
  }

  // graph[u][i v], rounded.
  SHAPMIX_SIMD_BODY void build_graph(std::int64_t channel) {
    constexpr int kTogether = 8;  // enough to hide the instruction latency
    const std::int64_t edges = job_.joints * job_.joints;
    const std::int64_t relation_pairs = job_.relations / 2;
    for (std::int64_t i = 0; i < job_.subsets; ++i) {
      const float* weight = static_cast<const float*>(job_.weight) + i * job_.relations * job_.channels + channel;
      Pairs factors[kMostRelations / 2];
      for (std::int64_t k = 0; k < relation_pairs; ++k) {
        factors[k] = paired(rounded(load<kLanes>(weight + 2 * k * job_.channels)),
                            rounded(load<kLanes>(weight + (2 * k + 1) * job_.channels)));
      }
      const Floats bias = load<kLanes>(static_cast<const float*>(job_.bias) + i * job_.channels + channel);
      const float* shared = static_cast<const float*>(job_.shared) + i * edges;
      for (std::int64_t edge = 0; edge < edges; edge += kTogether) {
        // The last block may overlap the one before.
        const std::int64_t first = std::max<std::int64_t>(std::min(edge, edges - kTogether), 0);
        const std::uint32_t* relation[kTogether];
        Floats graph[kTogether];
#pragma GCC unroll 8
        for (int j = 0; j < kTogether; ++j) {
          const std::int64_t at = std::min(first + j, edges - 1);
          relation[j] = relation_pairs_.of(0) + (at * terms_ + i * job_.relations) / 2;
          graph[j] = bias + shared[at];
        }
        for (std::int64_t k = 0; k < relation_pairs; ++k) {
#pragma GCC unroll 8
          for (int j = 0; j < kTogether; ++j) graph[j] = plus_products(graph[j], factors[k], relation[j][k]);
        }
#pragma GCC unroll 8
        for (int j = 0; j < kTogether; ++j) {
          const std::int64_t at = std::min(first + j, edges - 1);
          store(graph_.of(0) + (places_[static_cast<std::size_t>(at)] + i * job_.joints) * kLanes, rounded(graph[j]));
        }
      }
    }
  }

  // graph_pairs[u][pair of i v]
  SHAPMIX_SIMD_BODY void pair_graph_by_width() {
    for (std::int64_t u = 0; u < job_.joints; ++u) {
      for (std::int64_t pair = 0; pair < width_pairs_; ++pair) {
        const std::uint16_t* first = graph_.of(0) + (u * width_ + 2 * pair) * kLanes;
        const Halves second = 2 * pair + 1 < width_ ? halves_at(first + kLanes) : Halves{};
        store(graph_pairs_.of(0) + (u * width_pairs_ + pair) * kLanes, paired(halves_at(first), second));
      }
    }
  }

  // graph_pairs[i v][pair of u]
  SHAPMIX_SIMD_BODY void pair_graph_by_joints() {
    for (std::int64_t pair = 0; pair < joint_pairs_; ++pair) {
      for (std::int64_t column = 0; column < width_; ++column) {
        const std::uint16_t* first = graph_.of(0) + (2 * pair * width_ + column) * kLanes;
        const Halves second = 2 * pair + 1 < job_.joints ? halves_at(first + width_ * kLanes) : Halves{};
        store(graph_pairs_.of(0) + (column * joint_pairs_ + pair) * kLanes, paired(halves_at(first), second));
      }
    }
  }

  // feature_pairs[t][pair of i v]
  SHAPMIX_SIMD_BODY void pair_features_by_width(std::int64_t row, std::int64_t channel) {
    for (std::int64_t t = 0; t < job_.frames; ++t) {
      for (std::int64_t pair = 0; pair < width_pairs_; ++pair) {
        const Halves second = 2 * pair + 1 < width_ ? features_at(row, t, 2 * pair + 1, channel) : Halves{};
        store(feature_pairs_.of(0) + (t * width_pairs_ + pair) * kLanes, paired(features_at(row, t, 2 * pair, channel), second));
      }
    }
  }

  // feature_pairs[i v][pair of t]
  SHAPMIX_SIMD_BODY void pair_features_by_frames(std::int64_t row, std::int64_t channel) {
    for (std::int64_t pair = 0; pair < frame_pairs_; ++pair) {
      for (std::int64_t column = 0; column < width_; ++column) {
        const Halves second = 2 * pair + 1 < job_.frames ? features_at(row, 2 * pair + 1, column, channel) : Halves{};
        store(feature_pairs_.of(0) + (column * frame_stride_ + pair) * kLanes,
              paired(features_at(row, 2 * pair, column, channel), second));
      }
    }
  }

  SHAPMIX_SIMD_BODY void aggregate(std::int64_t row, std::int64_t channel, const GraphConvEpilogue& epilogue, Bfloat16* out) {
    const std::int64_t joints = job_.joints;
    const std::int64_t first = row * job_.frames * joints;
    const auto* shortcut = static_cast<const Bfloat16*>(epilogue.shortcut);
    Floats offset = {};
    if (epilogue.offset != nullptr) offset = load<kLanes>(static_cast<const float*>(epilogue.offset) + channel);
    products<PairMicroKernel>({graph_pairs_.of(0), joints, width_pairs_, 1}, {feature_pairs_.of(0), job_.frames, width_pairs_, 1},
                              width_pairs_, [&](std::int64_t u, std::int64_t t, const Floats& sum) __attribute__((always_inline)) {
                                const std::int64_t at = first + t * joints + u;
                                Floats value = sum;
                                if (epilogue.offset != nullptr) {
                                  value += offset;
                                  if (shortcut != nullptr)
                                    value += load<kLanes>(shortcut + at * epilogue.shortcut_stride + channel);
                                  value = value < 0 ? Floats{} : value;  // keeps NaN, as torch's ReLU
                                }
                                store(reinterpret_cast<std::uint16_t*>(out) + at * job_.channels + channel, rounded(value));
                              });
  }

  SHAPMIX_SIMD_BODY void zero_relation_gradients() { std::fill_n(to_relation_.of(0), job_.joints * job_.joints * terms_, 0.0f); }

  // Gradients of the features and of the graph of this channel block.
  SHAPMIX_SIMD_BODY void backward(std::int64_t row, std::int64_t channel, const Bfloat16* grad, Bfloat16* to_features) {
    const std::int64_t joints = job_.joints;
    const std::int64_t first = row * job_.frames * joints;
    const auto grad_at = [&](std::int64_t t, std::int64_t u) __attribute__((always_inline)) {
      return halves_at(grad + (first + t * joints + u) * job_.channels + channel);
    };
    for (std::int64_t t = 0; t < job_.frames; ++t) {
      for (std::int64_t pair = 0; pair < joint_pairs_; ++pair) {
        const Halves second = 2 * pair + 1 < joints ? grad_at(t, 2 * pair + 1) : Halves{};
        store(grad_by_joints_.of(0) + (t * joint_pairs_ + pair) * kLanes, paired(grad_at(t, 2 * pair), second));
      }
    }
    for (std::int64_t pair = 0; pair < frame_pairs_; ++pair) {
      for (std::int64_t u = 0; u < joints; ++u) {
        const Halves second = 2 * pair + 1 < job_.frames ? grad_at(2 * pair + 1, u) : Halves{};
        store(grad_by_frames_.of(0) + (u * frame_stride_ + pair) * kLanes, paired(grad_at(2 * pair, u), second));
      }
    }
    const std::int64_t* columns = columns_.data();
    products<PairMicroKernel>({graph_pairs_.of(0), width_, joint_pairs_, 1}, {grad_by_joints_.of(0), job_.frames, joint_pairs_, 1},
                              joint_pairs_,
                              [&](std::int64_t column, std::int64_t t, const Floats& sum) __attribute__((always_inline)) {
                                const std::int64_t at = (first + t * joints) * job_.feature_stride + channel;
                                store(reinterpret_cast<std::uint16_t*>(to_features) + at + columns[column], rounded(sum));
                              });
    products<PairMicroKernel>({grad_by_frames_.of(0), joints, frame_stride_, 1}, {feature_pairs_.of(0), width_, frame_stride_, 1},
                              frame_pairs_,
                              [&](std::int64_t u, std::int64_t column, const Floats& sum)
                                  __attribute__((always_inline)) { store(to_graph_.of(0) + (u * width_ + column) * kLanes, sum); });
  }

  // Backward through build_graph. `to_shared` is [S][V][V] vectors; `to_weight` and `to_bias` have the job's layout.
  SHAPMIX_SIMD_BODY void backward_graph(std::int64_t channel, float* to_shared, float* to_weight, float* to_bias) {
    const std::int64_t joints = job_.joints;
    // The graph is no longer needed: its buffer is reused for the rounded gradient.
    for (std::int64_t u = 0; u < joints; ++u) {
      for (std::int64_t i = 0; i < job_.subsets; ++i) {
        for (std::int64_t v = 0; v < joints; ++v) {
          const std::int64_t at = u * width_ + i * joints + v;
          const Floats grad = load<kLanes>(to_graph_.of(0) + at * kLanes);
          float* to = to_shared + ((i * joints + u) * joints + v) * kLanes;
          store(to, load<kLanes>(to) + grad);
          store(graph_.of(0) + at * kLanes, rounded(grad));
        }
      }
    }
    for (std::int64_t i = 0; i < job_.subsets; ++i) {
      const float* weight = static_cast<const float*>(job_.weight) + i * job_.relations * job_.channels + channel;
      Floats bias = {};
      for (std::int64_t u = 0; u < joints; ++u) {
        for (std::int64_t v = 0; v < joints; ++v) bias += load<kLanes>(to_graph_.of(0) + (u * width_ + i * joints + v) * kLanes);
      }
      float* of_bias = to_bias + i * job_.channels + channel;
      store(of_bias, load<kLanes>(of_bias) + bias);

      constexpr int kTogether = 8;  // relations are a multiple of it
      for (std::int64_t k = 0; k < job_.relations; k += kTogether) {
        Floats sums[kTogether] = {};
        for (std::int64_t u = 0; u < joints; ++u) {
          for (std::int64_t pair = 0; pair < joint_pairs_; ++pair) {
            const std::uint16_t* first = graph_.of(0) + (u * width_ + i * joints + 2 * pair) * kLanes;
            const Halves second = 2 * pair + 1 < joints ? halves_at(first + kLanes) : Halves{};
            const Pairs grad = paired(halves_at(first), second);
            const std::uint32_t* relation = relation_by_joints_.of(0) + (u * joint_pairs_ + pair) * terms_ + i * job_.relations + k;
#pragma GCC unroll 8
            for (int j = 0; j < kTogether; ++j) sums[j] = plus_products(sums[j], grad, relation[j]);
          }
        }
#pragma GCC unroll 8
        for (int j = 0; j < kTogether; ++j) {
          float* of_weight = to_weight + (i * job_.relations + k + j) * job_.channels + channel;
          store(of_weight, load<kLanes>(of_weight) + sums[j]);
        }
      }

      // Sums over channels would cross lanes, so the relations are vectorised instead, with pairs of channels.
      std::uint32_t transposed[kLanes / 2][kMostRelations];
      for (std::int64_t k = 0; k < job_.relations; ++k) {
        for (int pair = 0; pair < kLanes / 2; ++pair) {
          const float* both = weight + k * job_.channels + 2 * pair;
          transposed[pair][k] = Bfloat16(both[0]).bits | static_cast<std::uint32_t>(Bfloat16(both[1]).bits) << 16;
        }
      }
      if (job_.relations % 16 == 0) {
        add_to_relation<16>(i, transposed);
      } else {
        add_to_relation<8>(i, transposed);
      }
    }
  }

  // Backward through tanh: left[u] receives the sum over v, right[v] minus the sum over u.
  SHAPMIX_SIMD_BODY void backward_relation(std::int64_t row, float* to_terms) {
    const std::int64_t joints = job_.joints;
    float* to = to_terms + row * joints * 2 * terms_;
    std::fill_n(to, joints * 2 * terms_, 0.0f);
    for (std::int64_t u = 0; u < joints; ++u) {
      for (std::int64_t v = 0; v < joints; ++v) {
        const float* relation = relation_.of(0) + (u * joints + v) * terms_;
        const float* grad = to_relation_.of(0) + (u * joints + v) * terms_;
        for (std::int64_t k = 0; k < terms_; ++k) {
          const float change = grad[k] * (1 - relation[k] * relation[k]);
          to[u * 2 * terms_ + k] += change;
          to[(v * 2 + 1) * terms_ + k] -= change;
        }
      }
    }
  }

  static constexpr std::int64_t kMostRelations = 256;

 private:
  // to_relation[u][v][i k] += sum over the channels of weight[k] * grad[u][i v], kWidth relations at a time.
  template <int kWidth>
  SHAPMIX_SIMD_BODY void add_to_relation(std::int64_t i, const std::uint32_t (&transposed)[kLanes / 2][kMostRelations]) {
    const std::int64_t joints = job_.joints;
    for (std::int64_t u = 0; u < joints; ++u) {
      for (std::int64_t v = 0; v < joints; ++v) {
        std::uint32_t grad[kLanes / 2];
        std::memcpy(grad, graph_.of(0) + (u * width_ + i * joints + v) * kLanes, sizeof grad);
        float* to = to_relation_.of(0) + (u * joints + v) * terms_ + i * job_.relations;
        for (std::int64_t k = 0; k < job_.relations; k += kWidth) {
          Lanes<float, kWidth> sums = load<kWidth>(to + k);
#pragma GCC unroll 8
          for (int pair = 0; pair < kLanes / 2; ++pair)
            sums = plus_products(sums, load_words<kWidth>(transposed[pair] + k), grad[pair]);
          store(to + k, sums);
        }
      }
    }
  }

  SHAPMIX_SIMD_BODY Halves features_at(std::int64_t row, std::int64_t t, std::int64_t column, std::int64_t channel) {
    const auto* from = static_cast<const Bfloat16*>(job_.features) + channel;
    return halves_at(from + (row * job_.frames + t) * job_.joints * job_.feature_stride +
                     columns_[static_cast<std::size_t>(column)]);
  }

  const GraphConvJob& job_;
  std::int64_t terms_;  // S k
  std::int64_t width_;  // S V
  std::int64_t width_pairs_;
  std::int64_t joint_pairs_;
  std::int64_t frame_pairs_;
  std::int64_t frame_stride_;  // odd, to avoid cache set conflicts between columns
  std::vector<std::int64_t> columns_;
  std::vector<std::int64_t> places_;
  Scratch<float> relation_;
  Scratch<std::uint32_t> relation_pairs_;
  Scratch<std::uint16_t> graph_;
  Scratch<std::uint32_t> graph_pairs_;
  Scratch<std::uint32_t> feature_pairs_;
  Scratch<std::uint32_t> grad_by_joints_;
  Scratch<std::uint32_t> grad_by_frames_;
  Scratch<float> to_graph_;
  Scratch<std::uint32_t> relation_by_joints_;
  Scratch<float> to_relation_;
};

}  // namespace

bool fits_bf16(const GraphConvJob& job) {
  return job.dtype == Dtype::kBfloat16 && has_bf16_products() && job.channels % kLanes == 0 && job.relations % 8 == 0 &&
         job.relations <= PairBlocks::kMostRelations;
}

SHAPMIX_AVX512 void graph_conv_bf16_rows(const GraphConvJob& job, const GraphConvEpilogue& epilogue, void* out, std::int64_t begin,
                                         std::int64_t end) {
  PairBlocks blocks(job, false);
  for (std::int64_t row = begin; row < end; ++row) {
    blocks.compute_relations(row);
    for (std::int64_t channel = 0; channel < job.channels; channel += kLanes) {
      blocks.build_graph(channel);
      blocks.pair_graph_by_width();
      blocks.pair_features_by_width(row, channel);
      blocks.aggregate(row, channel, epilogue, static_cast<Bfloat16*>(out));
    }
  }
}

SHAPMIX_AVX512 void graph_conv_backward_bf16_rows(const GraphConvJob& job, const void* grad, const GraphConvGradients& gradients,
                                                  PartialSums<float>& sums, std::int64_t begin, std::int64_t end) {
  PairBlocks blocks(job, true);
  sums.shared.assign(static_cast<std::size_t>(job.joints * job.subsets * job.joints * kLanes), 0);
  for (std::int64_t row = begin; row < end; ++row) {
    blocks.compute_relations(row);
    blocks.pair_relation_by_joints();
    blocks.zero_relation_gradients();
    for (std::int64_t channel = 0; channel < job.channels; channel += kLanes) {
      blocks.build_graph(channel);
      blocks.pair_graph_by_joints();
      blocks.pair_features_by_frames(row, channel);
      blocks.backward(row, channel, static_cast<const Bfloat16*>(grad), static_cast<Bfloat16*>(gradients.features));
      blocks.backward_graph(channel, sums.shared.data(), sums.weight.data(), sums.bias.data());
    }
    blocks.backward_relation(row, static_cast<float*>(gradients.relation_terms));
  }
  add_lanes<kLanes>(sums.shared);
}

#else

bool fits_bf16(const GraphConvJob&) { return false; }
void graph_conv_bf16_rows(const GraphConvJob&, const GraphConvEpilogue&, void*, std::int64_t, std::int64_t) {}
void graph_conv_backward_bf16_rows(const GraphConvJob&, const void*, const GraphConvGradients&, PartialSums<float>&, std::int64_t,
                                   std::int64_t) {}

#endif

}  // namespace shapmix

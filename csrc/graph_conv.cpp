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

// The features of one subset and one line of channels, in some frames of a row: what is multiplied at a time.
struct Piece {
  std::int64_t row;
  std::int64_t channel;
  std::int64_t subset;
  std::int64_t frame;
};

// One row, a cache line of channels at a time, so that a line is fetched once: its kBlocks vectors follow each other. All arrays of
// vectors are of one block: graphs [S][V][V], features of a piece [T][V], their gradients the same.
template <class M, class Element>
class RowBlocks {
 public:
  using Sum = Wide<Element>;
  using Vector = Lanes<Sum, M::kLanes>;
  static constexpr int kLanes = M::kLanes;
  static constexpr std::int64_t kBlocks = static_cast<std::int64_t>(kCacheLine / sizeof(Vector));
  static constexpr std::int64_t kLine = kBlocks * kLanes;  // channels

  // For the rows `begin` to `end`, in this order.
  RowBlocks(const GraphConvJob& job, bool backward, std::int64_t begin, std::int64_t end)
      : job_(job),
        backward_(backward),
        end_(end),
        edges_(job.joints * job.joints),
        padded_(edges_ + M::kEdges),
        terms_(padded_ * job.relations),
        frames_(std::min(job.frames, kFrames)),
        graphs_(backward ? 1 : job.subsets),
        relation_(1, job.subsets * terms_),
        shared_(1, job.subsets * padded_),
        graph_(1, kBlocks * graphs_ * padded_ * kLanes),
        features_(1, 2 * frames_ * job.joints * kLanes),
        sums_(1, backward ? 0 : kBlocks * frames_ * job.joints * kLanes),
        grad_(1, backward ? kBlocks * job.frames * job.joints * kLanes : 0),
        to_graph_(1, backward ? kBlocks * padded_ * kLanes : 0),
        to_relation_(1, backward ? job.subsets * terms_ : 0),
        transposed_(1, backward ? job.subsets * job.channels * job.relations : 0) {
    // The last tile of edges includes padding, whose results are not used.
    std::fill_n(relation_.of(0), job.subsets * terms_, Sum{0});
    std::fill_n(shared_.of(0), job.subsets * padded_, Sum{0});
    for (std::int64_t i = 0; i < job.subsets; ++i) {
      std::copy_n(static_cast<const Sum*>(job.shared) + i * edges_, edges_, shared_.of(0) + i * padded_);
    }
    if (backward) {
      std::fill_n(to_graph_.of(0), kBlocks * padded_ * kLanes, Sum{0});
      transpose_weight();
    }
    const Piece first{begin, 0, 0, 0};
    for (std::int64_t at = 0; at < frames_of(first) * job.joints; ++at) {
      store(features_.of(0) + at * kLanes, load<kLanes>(features_of(first) + at * job.feature_stride));
    }
  }

  // relation[i][u][v][k] = tanh(left[u][i][k] - right[v][i][k])
  SHAPMIX_SIMD_BODY void compute_relations(std::int64_t row) {
    const std::int64_t joints = job_.joints, relations = job_.relations, all = job_.subsets * relations;
    const Sum* terms = static_cast<const Sum*>(job_.relation_terms) + row * joints * 2 * all;
    for (std::int64_t i = 0; i < job_.subsets; ++i) {
      for (std::int64_t u = 0; u < joints; ++u) {
        for (std::int64_t v = 0; v < joints; ++v) {
          const Sum* left = terms + u * 2 * all + i * relations;
          const Sum* right = terms + (v * 2 + 1) * all + i * relations;
          tanh_differences(left, right, relations, relation_.of(0) + i * terms_ + (u * joints + v) * relations);
        }
      }
    }
  }

  // Of the line of channels at `channel`.
  SHAPMIX_SIMD_BODY void forward(std::int64_t row, std::int64_t channel, const GraphConvEpilogue& epilogue, Element* out) {
    const std::int64_t blocks = blocks_of(channel);
    for (std::int64_t block = 0; block < blocks; ++block) {
      for (std::int64_t i = 0; i < job_.subsets; ++i) build_graph(i, channel + block * kLanes, graph_at(block, i));
    }
    for (std::int64_t t = 0; t < job_.frames; t += frames_) {
      for (std::int64_t i = 0; i < job_.subsets; ++i) {
        for (std::int64_t block = 0; block < blocks; ++block) aggregate(Piece{row, channel, i, t}, block, epilogue, out);
      }
    }
  }

  SHAPMIX_SIMD_BODY void zero_relation_gradients() { std::fill_n(to_relation_.of(0), job_.subsets * terms_, Sum{0}); }

  // Gradients of the line of channels at `channel`: of the features, and added to `sums` and the gradients of the relations.
  SHAPMIX_SIMD_BODY void backward(std::int64_t row, std::int64_t channel, const Element* grad, Element* to_features,
                                  PartialSums<Sum>& sums) {
    const std::int64_t blocks = blocks_of(channel);
    const Element* from = grad + row * job_.frames * job_.joints * job_.channels + channel;
    for (std::int64_t at = 0; at < job_.frames * job_.joints; ++at) {
      for (std::int64_t block = 0; block < blocks; ++block) {
        store(grad_at(block, 0) + at * kLanes, load<kLanes>(from + at * job_.channels + block * kLanes));
      }
    }
    for (std::int64_t i = 0; i < job_.subsets; ++i) {
      for (std::int64_t block = 0; block < blocks; ++block) build_graph(i, channel + block * kLanes, graph_at(block, 0));
      for (std::int64_t t = 0; t < job_.frames; t += frames_) {
        for (std::int64_t block = 0; block < blocks; ++block) backward_products(Piece{row, channel, i, t}, block, to_features);
      }
      for (std::int64_t block = 0; block < blocks; ++block) {
        add_graph_gradients(i, channel + block * kLanes, to_graph_.of(0) + block * padded_ * kLanes, sums);
      }
    }
  }

  // Backward through tanh: left[u] receives the sum over v, right[v] minus the sum over u.
  SHAPMIX_SIMD_BODY void backward_relation(std::int64_t row, Sum* to_terms) {
    const std::int64_t joints = job_.joints, relations = job_.relations, all = job_.subsets * relations;
    Sum* to = to_terms + row * joints * 2 * all;
    std::fill_n(to, joints * 2 * all, Sum{0});
    for (std::int64_t i = 0; i < job_.subsets; ++i) {
      for (std::int64_t u = 0; u < joints; ++u) {
        for (std::int64_t v = 0; v < joints; ++v) {
          const std::int64_t at = i * terms_ + (u * joints + v) * relations;
          const Sum* relation = relation_.of(0) + at;
          const Sum* grad = to_relation_.of(0) + at;
          Sum* to_left = to + u * 2 * all + i * relations;
          Sum* to_right = to + (v * 2 + 1) * all + i * relations;
          for (std::int64_t k = 0; k < relations; ++k) {
            const Sum change = grad[k] * (1 - relation[k] * relation[k]);
            to_left[k] += change;
            to_right[k] -= change;
          }
        }
      }
    }
  }

 private:
  // The frames of a piece: with 25 joints, a block of features and one of sums take 12.5 KB each on AVX2, twice on AVX-512.
  static constexpr std::int64_t kFrames = 16;

  std::int64_t blocks_of(std::int64_t channel) const { return std::min(kBlocks, (job_.channels - channel) / kLanes); }
  std::int64_t frames_of(const Piece& piece) const { return std::min(frames_, job_.frames - piece.frame); }
  const Element* features_of(const Piece& piece) const { return static_cast<const Element*>(job_.features) + place_of(piece); }
  std::int64_t place_of(const Piece& piece) const {
    return (piece.row * job_.frames + piece.frame) * job_.joints * job_.feature_stride + piece.subset * job_.channels +
           piece.channel;
  }
  const Sum* weight_of(std::int64_t i) const { return static_cast<const Sum*>(job_.weight) + i * job_.relations * job_.channels; }
  Sum* graph_at(std::int64_t block, std::int64_t i) { return graph_.of(0) + (block * graphs_ + i) * padded_ * kLanes; }
  Sum* grad_at(std::int64_t block, std::int64_t t) { return grad_.of(0) + (block * job_.frames + t) * job_.joints * kLanes; }
  Sum* features_in(std::int64_t buffer) { return features_.of(0) + buffer * frames_ * job_.joints * kLanes; }

  // The piece that is used after `piece`.
  Piece after(Piece piece) const {
    const auto next = [](std::int64_t& at, std::int64_t step, std::int64_t end) {
      at += step;
      if (at < end) return true;
      at = 0;
      return false;
    };
    const bool in_line = backward_ ? next(piece.frame, frames_, job_.frames) || next(piece.subset, 1, job_.subsets)
                                   : next(piece.subset, 1, job_.subsets) || next(piece.frame, frames_, job_.frames);
    if (!in_line && !next(piece.channel, kLine, job_.channels)) ++piece.row;
    return piece;
  }

  // Copies the next block of features, a few vectors after each tile of this one, and requests the cache lines of the piece after
  // the next. In memory a block is half a line (or one) at a large stride, which hardware does not foresee and which would
  // occupy few sets of the first-level cache.
  class Ahead {
   public:
    SHAPMIX_SIMD_BODY Ahead(RowBlocks& rows, const Piece& piece, std::int64_t block, std::int64_t tiles)
        : to_(rows.features_in(1 - rows.buffer_)), stride_(rows.job_.feature_stride) {
      const std::int64_t blocks = rows.blocks_of(piece.channel);
      const Piece next = rows.after(piece);
      if (block + 1 < blocks) {
        from_ = rows.features_of(piece) + (block + 1) * kLanes;
        left_ = rows.frames_of(piece) * rows.job_.joints;
      } else if (next.row < rows.end_) {
        from_ = rows.features_of(next);
        left_ = rows.frames_of(next) * rows.job_.joints;
      }
      const Piece later = rows.after(next);
      if (later.row < rows.end_) {
        const std::int64_t lines = rows.frames_of(later) * rows.job_.joints;
        const std::int64_t begin = lines * block / blocks;
        request_ = rows.features_of(later) + begin * stride_;
        requests_ = lines * (block + 1) / blocks - begin;
      }
      together_ = tiles_of(left_, tiles);
      requested_ = tiles_of(requests_, tiles);
    }

    SHAPMIX_SIMD_BODY void some() {
      const std::int64_t copies = std::min(left_, together_);
      for (std::int64_t at = 0; at < copies; ++at) store(to_ + at * kLanes, load<kLanes>(from_ + at * stride_));
      to_ += copies * kLanes;
      from_ += copies * stride_;
      left_ -= copies;
      const std::int64_t requests = std::min(requests_, requested_);
      for (std::int64_t at = 0; at < requests; ++at) __builtin_prefetch(request_ + at * stride_, 0, 3);
      request_ += requests * stride_;
      requests_ -= requests;
    }

   private:
    Sum* to_;
    std::int64_t stride_;
    const Element* from_ = nullptr;
    std::int64_t left_ = 0;
    std::int64_t together_ = 0;
    const Element* request_ = nullptr;
    std::int64_t requests_ = 0;
    std::int64_t requested_ = 0;
  };

  // graph[u][v] of one subset and one block.
  SHAPMIX_SIMD_BODY void build_graph(std::int64_t i, std::int64_t channel, Sum* to) {
    switch (job_.relations) {
      case 8: return build_graph_of<8>(i, channel, to);
      case 16: return build_graph_of<16>(i, channel, to);
      case 32: return build_graph_of<32>(i, channel, to);
      default: return build_graph_of<0>(i, channel, to);
    }
  }

  // If the number of relations is known to the compiler, those of a tile of edges are at constant offsets from one pointer.
  template <int kRelations>
  SHAPMIX_SIMD_BODY void build_graph_of(std::int64_t i, std::int64_t channel, Sum* to) {
    const std::int64_t relations = kRelations == 0 ? job_.relations : kRelations;
    const Vector bias = load<kLanes>(static_cast<const Sum*>(job_.bias) + i * job_.channels + channel);
    const Sum* shared = shared_.of(0) + i * padded_;
    for (std::int64_t edge = 0; edge < edges_; edge += M::kEdges) {
      Vector graph[M::kEdges];
#pragma GCC unroll 32
      for (int j = 0; j < M::kEdges; ++j) graph[j] = bias + shared[edge + j];
      const Sum* relation = relation_.of(0) + i * terms_ + edge * relations;
      const Sum* weight = weight_of(i) + channel;
      for (std::int64_t k = 0; k < relations; ++k) {
        const Vector factor = load<kLanes>(weight);
#pragma GCC unroll 32
        for (int j = 0; j < M::kEdges; ++j) graph[j] += factor * relation[j * relations];
        ++relation;
        weight += job_.channels;
      }
#pragma GCC unroll 32
      for (int j = 0; j < M::kEdges; ++j) store(to + (edge + j) * kLanes, graph[j]);
    }
  }

  SHAPMIX_SIMD_BODY void aggregate(const Piece& piece, std::int64_t block, const GraphConvEpilogue& epilogue, Element* out) {
    const std::int64_t joints = job_.joints, frames = frames_of(piece), channel = piece.channel + block * kLanes;
    const std::int64_t first = (piece.row * job_.frames + piece.frame) * joints;
    const auto* shortcut = static_cast<const Element*>(epilogue.shortcut);
    Vector offset = {};
    if (epilogue.offset != nullptr) offset = load<kLanes>(static_cast<const Sum*>(epilogue.offset) + channel);
    Sum* sums = sums_.of(0) + block * frames_ * joints * kLanes;
    const auto so_far = [&](std::int64_t u, std::int64_t t) __attribute__((always_inline)) {
      return piece.subset == 0 ? Vector{} : load<kLanes>(sums + (t * joints + u) * kLanes);
    };
    const auto keep = [&](std::int64_t u, std::int64_t t, const Vector& sum)
                          __attribute__((always_inline)) { store(sums + (t * joints + u) * kLanes, sum); };
    const auto finish = [&](std::int64_t u, std::int64_t t, const Vector& sum) __attribute__((always_inline)) {
      const std::int64_t at = first + t * joints + u;
      Vector value = sum;
      if (epilogue.offset != nullptr) {
        value += offset;
        if (shortcut != nullptr) value += load<kLanes>(shortcut + at * epilogue.shortcut_stride + channel);
        value = value < 0 ? Vector{} : value;  // keeps NaN, as torch's ReLU
      }
      store(out + at * job_.channels + channel, value);
    };
    Ahead ahead(*this, piece, block, product_tiles<M>(joints, frames));
    const auto copy_some = [&]() __attribute__((always_inline)) { ahead.some(); };
    const Factor<Sum> graph{graph_at(block, piece.subset), joints, joints, 1};
    const Factor<Sum> features{features_in(buffer_), frames, joints, 1};
    if (piece.subset + 1 < job_.subsets) {
      products<M>(graph, features, joints, so_far, keep, copy_some);
    } else {
      products<M>(graph, features, joints, so_far, finish, copy_some);
    }
    buffer_ = 1 - buffer_;
  }

  // The gradient of a piece of features, and its part of that of the graph.
  SHAPMIX_SIMD_BODY void backward_products(const Piece& piece, std::int64_t block, Element* to_features) {
    const std::int64_t joints = job_.joints, frames = frames_of(piece);
    const Sum* graph = graph_at(block, 0);
    const Sum* grad = grad_at(block, piece.frame);
    Sum* to_graph = to_graph_.of(0) + block * padded_ * kLanes;
    Element* to = to_features + place_of(piece) + block * kLanes;
    const auto zero = [](std::int64_t, std::int64_t) __attribute__((always_inline)) { return Vector{}; };
    const auto keep = [&](std::int64_t v, std::int64_t t, const Vector& sum)
                          __attribute__((always_inline)) { store(to + (t * joints + v) * job_.feature_stride, sum); };
    const auto so_far = [&](std::int64_t u, std::int64_t v) __attribute__((always_inline)) {
      return piece.frame == 0 ? Vector{} : load<kLanes>(to_graph + (u * joints + v) * kLanes);
    };
    const auto keep_graph = [&](std::int64_t u, std::int64_t v, const Vector& sum)
                                __attribute__((always_inline)) { store(to_graph + (u * joints + v) * kLanes, sum); };
    using Square = typename M::Square;
    Ahead ahead(*this, piece, block, product_tiles<M>(joints, frames) + product_tiles<Square>(joints, joints));
    const auto copy_some = [&]() __attribute__((always_inline)) { ahead.some(); };
    products<M>(Factor<Sum>{graph, joints, 1, joints}, Factor<Sum>{grad, frames, joints, 1}, joints, zero, keep, copy_some);
    products<Square>(Factor<Sum>{grad, joints, 1, joints}, Factor<Sum>{features_in(buffer_), joints, 1, joints}, frames, so_far,
                     keep_graph, copy_some);
    buffer_ = 1 - buffer_;
  }

  // Backward through build_graph, of one subset and one block.
  SHAPMIX_SIMD_BODY void add_graph_gradients(std::int64_t i, std::int64_t channel, const Sum* to_graph, PartialSums<Sum>& sums) {
    Sum* to_shared = sums.shared.data() + i * edges_ * kLanes;
    Vector bias = {};
    for (std::int64_t edge = 0; edge < edges_; ++edge) {
      const Vector grad = load<kLanes>(to_graph + edge * kLanes);
      bias += grad;
      store(to_shared + edge * kLanes, load<kLanes>(to_shared + edge * kLanes) + grad);
    }
    Sum* to_bias = sums.bias.data() + i * job_.channels + channel;
    store(to_bias, load<kLanes>(to_bias) + bias);

    constexpr std::int64_t kTogether = 8;
    std::int64_t k = 0;
    for (; k + kTogether <= job_.relations; k += kTogether) add_weight_gradients<kTogether>(i, k, channel, to_graph, sums);
    for (; k < job_.relations; ++k) add_weight_gradients<1>(i, k, channel, to_graph, sums);

    constexpr int kHalf = kLanes == 16 ? 8 : kLanes;
    if (job_.relations % (2 * kLanes) == 0) {
      add_relation_gradients<kLanes, M::kEdges / 2, 2>(i, channel, to_graph);
    } else if (job_.relations % kLanes == 0) {
      add_relation_gradients<kLanes, M::kEdges, 1>(i, channel, to_graph);
    } else if (job_.relations % kHalf == 0) {
      add_relation_gradients<kHalf, M::kEdges, 1>(i, channel, to_graph);
    } else {
      add_relation_gradients<1, M::kEdges, 1>(i, channel, to_graph);
    }
  }

  // to_weight[k] += sum over the edges of relation[k] * grad
  template <int kTogether>
  SHAPMIX_SIMD_BODY void add_weight_gradients(std::int64_t i, std::int64_t k, std::int64_t channel, const Sum* to_graph,
                                              PartialSums<Sum>& sums) {
    Vector totals[kTogether] = {};
    const Sum* relation = relation_.of(0) + i * terms_ + k;
    for (std::int64_t edge = 0; edge < edges_; ++edge) {
      const Vector grad = load<kLanes>(to_graph + edge * kLanes);
#pragma GCC unroll 8
      for (int j = 0; j < kTogether; ++j) totals[j] += grad * relation[j];
      relation += job_.relations;
    }
#pragma GCC unroll 8
    for (int j = 0; j < kTogether; ++j) {
      Sum* to = sums.weight.data() + (i * job_.relations + k + j) * job_.channels + channel;
      store(to, load<kLanes>(to) + totals[j]);
    }
  }

  // to_relation[k] += sum over the channels of weight[k] * grad, for each edge. The sum would cross lanes, so the relations are
  // vectorised instead.
  template <int kWidth, int kEdges, int kVectors>
  SHAPMIX_SIMD_BODY void add_relation_gradients(std::int64_t i, std::int64_t channel, const Sum* to_graph) {
    const std::int64_t relations = job_.relations;
    for (std::int64_t k = 0; k < relations; k += kWidth * kVectors) {
      for (std::int64_t edge = 0; edge < edges_; edge += kEdges) {
        Lanes<Sum, kWidth> sums[kEdges][kVectors];
        Sum* to = to_relation_.of(0) + i * terms_ + edge * relations + k;
#pragma GCC unroll 32
        for (int j = 0; j < kEdges; ++j) {
#pragma GCC unroll 2
          for (int part = 0; part < kVectors; ++part) sums[j][part] = load<kWidth>(to + j * relations + part * kWidth);
        }
        const Sum* grad = to_graph + edge * kLanes;
        const Sum* weight = transposed_.of(0) + (i * job_.channels + channel) * relations + k;
        for (int lane = 0; lane < kLanes; ++lane) {
          Lanes<Sum, kWidth> factors[kVectors];
#pragma GCC unroll 2
          for (int part = 0; part < kVectors; ++part) factors[part] = load<kWidth>(weight + part * kWidth);
#pragma GCC unroll 32
          for (int j = 0; j < kEdges; ++j) {
#pragma GCC unroll 2
            for (int part = 0; part < kVectors; ++part) sums[j][part] += factors[part] * grad[j * kLanes + lane];
          }
          weight += relations;
        }
#pragma GCC unroll 32
        for (int j = 0; j < kEdges; ++j) {
#pragma GCC unroll 2
          for (int part = 0; part < kVectors; ++part) store(to + j * relations + part * kWidth, sums[j][part]);
        }
      }
    }
  }

  void transpose_weight() {
    for (std::int64_t i = 0; i < job_.subsets; ++i) {
      for (std::int64_t k = 0; k < job_.relations; ++k) {
        for (std::int64_t c = 0; c < job_.channels; ++c) {
          transposed_.of(0)[(i * job_.channels + c) * job_.relations + k] = weight_of(i)[k * job_.channels + c];
        }
      }
    }
  }

  const GraphConvJob& job_;
  bool backward_;
  std::int64_t end_;
  std::int64_t buffer_ = 0;  // of the features of this piece and block
  std::int64_t edges_;       // V V
  std::int64_t padded_;      // edges, with space for the last tile
  std::int64_t terms_;       // relations of the padded edges
  std::int64_t frames_;      // of a piece, at most
  std::int64_t graphs_;      // subsets whose graphs exist at a time
  Scratch<Sum> relation_;    // [S] times [V][V][k]
  Scratch<Sum> shared_;      // [S] times [V][V]
  Scratch<Sum> graph_;
  Scratch<Sum> features_;  // two buffers
  Scratch<Sum> sums_;      // of the output, over the subsets so far
  Scratch<Sum> grad_;      // of all frames
  Scratch<Sum> to_graph_;
  Scratch<Sum> to_relation_;
  Scratch<Sum> transposed_;  // weight[i][c][k]
};

template <class M, class Element>
SHAPMIX_SIMD_BODY void forward_rows(const GraphConvJob& job, const GraphConvEpilogue& epilogue, void* out, std::int64_t begin,
                                    std::int64_t end) {
  using Blocks = RowBlocks<M, Element>;
  Blocks blocks(job, false, begin, end);
  for (std::int64_t row = begin; row < end; ++row) {
    blocks.compute_relations(row);
    for (std::int64_t channel = 0; channel < job.channels; channel += Blocks::kLine) {
      blocks.forward(row, channel, epilogue, static_cast<Element*>(out));
    }
  }
}

template <class M, class Element>
SHAPMIX_SIMD_BODY void backward_rows(const GraphConvJob& job, const void* grad, const GraphConvGradients& gradients,
                                     PartialSums<Wide<Element>>& sums, std::int64_t begin, std::int64_t end) {
  using Blocks = RowBlocks<M, Element>;
  Blocks blocks(job, true, begin, end);
  sums.shared.assign(static_cast<std::size_t>(job.joints * job.subsets * job.joints * M::kLanes), 0);
  for (std::int64_t row = begin; row < end; ++row) {
    blocks.compute_relations(row);
    blocks.zero_relation_gradients();
    for (std::int64_t channel = 0; channel < job.channels; channel += Blocks::kLine) {
      blocks.backward(row, channel, static_cast<const Element*>(grad), static_cast<Element*>(gradients.features), sums);
    }
    blocks.backward_relation(row, static_cast<Wide<Element>*>(gradients.relation_terms));
  }
  add_lanes<M::kLanes>(sums.shared);
}

// 32 vector registers hold 5 x 4 accumulators and their factors, 16 hold 5 x 2. 5 divides the 20 and 25 joints of the common
// skeletons. Products of joints with joints, and sums for several edges, have tiles of their own.
template <class Set, class Sum>
struct Micro : MicroKernel<Sum, Set::kBytes, 5, Set::kRegisters == 32 ? 4 : 2> {
  using Square = MicroKernel<Sum, Set::kBytes, 5, Set::kRegisters == 32 ? 5 : 2>;
  static constexpr int kEdges = Set::kRegisters == 32 ? 25 : 12;
};

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
    for (std::int64_t at = 0; at < shared; ++at) to_shared[at] += sums.shared[static_cast<std::size_t>(at)];
  }
}

void check(const GraphConvJob& job) {
  if (job.channels % 8 != 0) {
    throw std::invalid_argument("weight has " + std::to_string(job.channels) + " channels; the CPU path needs a multiple of 8");
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

#include "batch_norm.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "element.h"
#include "isa.h"
#include "lanes.h"
#include "parallel.h"
#include "scratch.h"

namespace shapmix {
namespace {

// Rows accumulated in the elements' arithmetic before their sums are added to the totals in float64.
constexpr std::int64_t kRowsTogether = 64;
// Vectors of contiguous channels in registers at once, with their sums or constants.
constexpr int kTogether = 4;
// A longer stretch of memory that is read in groups of channels is slower: the order of its cache lines defeats prefetching.
constexpr std::int64_t kBytesTogether = 512;
// A mean within this many deviations from zero is subtracted after the scaling, which rounds at the size of the mean and saves one
// instruction per element.
constexpr double kNear = 2;
// The dtypes of the CPU path.
template <class Body>
void switch_input(const BatchNormJob& job, const Body& body) {
  switch_dtype<float, double, Bfloat16>(job.dtype, "batch_norm on the CPU: x", body);
}

// Two numbers per channel: sums, or the mean and the sum of squared deviations from it.
struct Totals {
  std::int64_t rows = 0;
  std::vector<double> first;
  std::vector<double> second;
};

// Update of Chan, Golub and LeVeque (1983): a mean far from zero loses no precision. `share` is the fraction of the added rows,
// `weight` this fraction times the number of earlier rows. For one channel or a vector of channels.
template <class Number>
SHAPMIX_SIMD_BODY void join_moments(Number& mean, Number& deviations, double share, double weight, const Number& other,
                                    const Number& other_deviations) {
  const Number gap = other - mean;
  mean += gap * share;
  deviations += other_deviations + gap * gap * weight;
}

struct Moments {
  static void join(Totals& totals, const Totals& other) {
    const auto before = static_cast<double>(totals.rows);
    const double share = static_cast<double>(other.rows) / static_cast<double>(totals.rows + other.rows);
    for (std::size_t c = 0; c < totals.first.size(); ++c) {
      join_moments(totals.first[c], totals.second[c], share, before * share, other.first[c], other.second[c]);
    }
  }
};

struct Added {
  static void join(Totals& totals, const Totals& other) {
    for (std::size_t c = 0; c < totals.first.size(); ++c) {
      totals.first[c] += other.first[c];
      totals.second[c] += other.second[c];
    }
  }
};

// Calls body(channel, lanes, vectors) for groups of up to kTogether vectors of contiguous channels, then for single channels.
template <int kLanes, class Body>
SHAPMIX_SIMD_BODY void over_groups(std::int64_t channels, const Body& body) {
  std::int64_t channel = 0;
  const auto step = [&](auto lanes, auto vectors) __attribute__((always_inline)) {
    constexpr int kWidth = decltype(lanes)::value * decltype(vectors)::value;
    for (; channel + kWidth <= channels; channel += kWidth) body(channel, lanes, vectors);
  };
  step(std::integral_constant<int, kLanes>{}, std::integral_constant<int, kTogether>{});
  step(std::integral_constant<int, kLanes>{}, std::integral_constant<int, 2>{});
  step(std::integral_constant<int, kLanes>{}, std::integral_constant<int, 1>{});
  step(std::integral_constant<int, 1>{}, std::integral_constant<int, 1>{});
}

// Calls body(first, last, channel, lanes, vectors) for all rows almost in order of memory, which prefetching needs: groups of
// channels are read for a few short rows at a time, unless one group is a whole row.
template <int kLanes, class Element, class Body>
SHAPMIX_SIMD_BODY void over_blocks(std::int64_t begin, std::int64_t end, std::int64_t channels, const Body& body) {
  const std::int64_t few = kBytesTogether / (channels * static_cast<std::int64_t>(sizeof(Element)));
  const std::int64_t rows = channels <= kTogether * kLanes ? kRowsTogether : std::max<std::int64_t>(few, 1);
  for (std::int64_t first = begin; first < end; first += rows) {
    const std::int64_t last = std::min(first + rows, end);
    over_groups<kLanes>(channels, [&](std::int64_t channel, auto lanes, auto vectors)
                                      __attribute__((always_inline)) { body(first, last, channel, lanes, vectors); });
  }
}

template <int kLanes, int kVectors, class Element>
SHAPMIX_SIMD_BODY std::array<Lanes<Wide<Element>, kLanes>, kVectors> load_group(const Element* from) {
  std::array<Lanes<Wide<Element>, kLanes>, kVectors> group;
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j) group[j] = load<kLanes>(from + j * kLanes);
  return group;
}

// Two sums per channel over rows begin..end. `centre(block)` [channels] is subtracted from the elements of rows block.. by
// term(row, channel, centre, first, second), which adds one row to some lanes; join(block, stop, sums) receives the sums of rows
// block..stop: the first sum of each channel, then the second.
template <int kLanes, class Element, class Centre, class Term, class Join>
SHAPMIX_SIMD_BODY void add_up(std::int64_t begin, std::int64_t end, std::int64_t channels, const Centre& centre, const Term& term,
                              const Join& join) {
  using Sum = Wide<Element>;
  const Scratch<Sum> scratch(1, 2 * channels);
  Sum* sums = scratch.of(0);
  for (std::int64_t block = begin; block < end; block += kRowsTogether) {
    const std::int64_t stop = std::min(block + kRowsTogether, end);
    std::fill_n(sums, 2 * channels, Sum(0));
    over_blocks<kLanes, Element>(block, stop, channels,
                                 [&](std::int64_t begin_row, std::int64_t last, std::int64_t channel, auto lanes,
                                     auto vectors) __attribute__((always_inline)) {
                                   constexpr int kWidth = decltype(lanes)::value;
                                   constexpr int kVectors = decltype(vectors)::value;
                                   constexpr int kRows = kTogether / kVectors;  // independent sums hide the latency of additions
                                   const auto centres = load_group<kWidth, kVectors>(centre(block) + channel);
                                   Lanes<Sum, kWidth> first[kRows][kVectors] = {};
                                   Lanes<Sum, kWidth> second[kRows][kVectors] = {};
#pragma GCC unroll 4
                                   for (int j = 0; j < kVectors; ++j) {
                                     first[0][j] = load<kWidth>(sums + channel + j * kWidth);
                                     second[0][j] = load<kWidth>(sums + channels + channel + j * kWidth);
                                   }
                                   const auto add = [&](std::int64_t row, int r) __attribute__((always_inline)) {
#pragma GCC unroll 4
                                     for (int j = 0; j < kVectors; ++j)
                                       term(row, channel + j * kWidth, centres[j], first[r][j], second[r][j], lanes);
                                   };
                                   std::int64_t row = begin_row;
                                   for (; row + kRows <= last; row += kRows) {
#pragma GCC unroll 4
                                     for (int r = 0; r < kRows; ++r) add(row + r, r);
                                   }
                                   for (; row < last; ++row) add(row, 0);
#pragma GCC unroll 4
                                   for (int j = 0; j < kVectors; ++j) {
#pragma GCC unroll 4
                                     for (int r = 1; r < kRows; ++r) {
                                       first[0][j] += first[r][j];
                                       second[0][j] += second[r][j];
                                     }
                                     store(sums + channel + j * kWidth, first[0][j]);
                                     store(sums + channels + channel + j * kWidth, second[0][j]);
                                   }
                                 });
    join(block, stop, sums);
  }
}

// Mean and squared deviations. The sums of a block are taken relative to its first row, which keeps the precision that a large
// mean would lose; as blocks are short, a first row far from the others loses little.
template <int kLanes, class Element>
SHAPMIX_SIMD_BODY void sum_rows(const BatchNormJob& job, Totals& totals, std::int64_t begin, std::int64_t end) {
  const auto* in = static_cast<const Element*>(job.in);
  add_up<kLanes, Element>(
      begin, end, job.channels, [&](std::int64_t block) __attribute__((always_inline)) { return in + block * job.channels; },
      [&](std::int64_t row, std::int64_t channel, const auto& pivot, auto& first, auto& second, auto lanes)
          __attribute__((always_inline)) {
            const auto value = load<decltype(lanes)::value>(in + row * job.channels + channel) - pivot;
            first += value;
            second += value * value;
          },
      [&](std::int64_t block, std::int64_t stop, const Wide<Element>* sums) __attribute__((always_inline)) {
        const auto before = static_cast<double>(block - begin);
        const auto count = static_cast<double>(stop - block);
        const double share = count / (before + count);
        const double inverse = 1 / count;
        const Element* pivots = in + block * job.channels;
        over_channels<kLanes / 2>(job.channels, [&](std::int64_t channel, auto lanes) __attribute__((always_inline)) {
          constexpr int kWidth = decltype(lanes)::value;
          const auto first = load_double<kWidth>(sums + channel);
          const auto offset = first * inverse;
          const auto within = load_double<kWidth>(sums + job.channels + channel) - first * offset;
          auto mean = load<kWidth>(totals.first.data() + channel);
          auto deviations = load<kWidth>(totals.second.data() + channel);
          join_moments(mean, deviations, share, before * share, load_double<kWidth>(pivots + channel) + offset,
                       within < 0 ? Lanes<double, kWidth>{} : within);
          store(totals.first.data() + channel, mean);
          store(totals.second.data() + channel, deviations);
        });
      });
}

// If `mean` is given, it is subtracted before the elements are scaled.
template <int kLanes, class Element>
SHAPMIX_SIMD_BODY void apply_rows(const BatchNormJob& job, const void* mean, const Wide<Element>* scale, const Wide<Element>* shift,
                                  void* out, std::int64_t begin, std::int64_t end) {
  const auto* centre = static_cast<const Wide<Element>*>(mean);
  const auto* in = static_cast<const Element*>(job.in);
  const auto* shortcut = static_cast<const Element*>(job.shortcut);
  const auto* lowest = static_cast<const Wide<Element>*>(job.lowest);
  auto* to = static_cast<Element*>(out);
  const auto apply = [&](auto is_centred, auto has_shortcut) __attribute__((always_inline)) {
    over_blocks<kLanes, Element>(begin, end, job.channels,
                                 [&](std::int64_t first, std::int64_t last, std::int64_t channel, auto lanes, auto vectors)
                                     __attribute__((always_inline)) {
                                       constexpr int kWidth = decltype(lanes)::value;
                                       constexpr int kVectors = decltype(vectors)::value;
                                       const auto scales = load_group<kWidth, kVectors>(scale + channel);
                                       const auto shifts = load_group<kWidth, kVectors>(shift + channel);
                                       const auto floors = load_group<kWidth, kVectors>(lowest + channel);
                                       for (std::int64_t row = first; row < last; ++row) {
                                         const std::int64_t at = row * job.channels + channel;
#pragma GCC unroll 4
                                         for (int j = 0; j < kVectors; ++j) {
                                           auto value = load<kWidth>(in + at + j * kWidth);
                                           if constexpr (is_centred) value -= load<kWidth>(centre + channel + j * kWidth);
                                           value = value * scales[j] + shifts[j];
                                           if constexpr (has_shortcut)
                                             value += load<kWidth>(shortcut + row * job.shortcut_stride + channel + j * kWidth);
                                           value = value < floors[j] ? floors[j] : value;  // keeps NaN
                                           store(to + at + j * kWidth, value);
                                         }
                                       }
                                     });
  };
  // Separate loops, since the compiler would branch for each vector.
  const auto with = [&](auto is_centred) __attribute__((always_inline)) {
    if (shortcut != nullptr) {
      apply(is_centred, std::true_type{});
    } else {
      apply(is_centred, std::false_type{});
    }
  };
  if (centre != nullptr) {
    with(std::true_type{});
  } else {
    with(std::false_type{});
  }
}

// The gradient through the ReLU: kept where the output is above its lower bound, else 0.
template <int kLanes, class Element>
SHAPMIX_SIMD_BODY Lanes<Wide<Element>, kLanes> passed(const Element* grad, const Element* out, const Wide<Element>* lowest) {
  const Lanes<Wide<Element>, kLanes> value = load<kLanes>(grad);
  return load<kLanes>(out) > load<kLanes>(lowest) ? value : Lanes<Wide<Element>, kLanes>{};
}

// Sums of the passed gradient and of its product with in - mean; the passed gradient is the gradient of the shortcut.
template <int kLanes, class Element>
SHAPMIX_SIMD_BODY void sum_gradients(const BatchNormJob& job, const void* out, const void* mean, const void* grad,
                                     void* to_shortcut, Totals& totals, std::int64_t begin, std::int64_t end) {
  using Sum = Wide<Element>;
  const auto* in = static_cast<const Element*>(job.in);
  const auto* lowest = static_cast<const Sum*>(job.lowest);
  const auto* from = static_cast<const Element*>(grad);
  const auto* result = static_cast<const Element*>(out);
  auto* shortcut = static_cast<Element*>(to_shortcut);
  const auto sum = [&](auto has_shortcut) __attribute__((always_inline)) {
    add_up<kLanes, Element>(
        begin, end, job.channels, [&](std::int64_t) __attribute__((always_inline)) { return static_cast<const Sum*>(mean); },
        [&](std::int64_t row, std::int64_t channel, const auto& centre, auto& first, auto& second, auto lanes)
            __attribute__((always_inline)) {
              constexpr int kWidth = decltype(lanes)::value;
              const std::int64_t at = row * job.channels + channel;
              const auto value = passed<kWidth>(from + at, result + at, lowest + channel);
              if constexpr (has_shortcut) store(shortcut + at, value);
              first += value;
              second += value * (load<kWidth>(in + at) - centre);
            },
        [&](std::int64_t, std::int64_t, const Sum* sums) __attribute__((always_inline)) {
          double* first = totals.first.data();
          double* second = totals.second.data();
          for (std::int64_t channel = 0; channel < job.channels; ++channel) {
            first[channel] += static_cast<double>(sums[channel]);
            second[channel] += static_cast<double>(sums[job.channels + channel]);
          }
        });
  };
  if (shortcut != nullptr) {
    sum(std::true_type{});
  } else {
    sum(std::false_type{});
  }
}

// to_in = scale * passed + slope * (in - mean) + level. With a shortcut, its gradient is the passed one.
template <int kLanes, class Element>
SHAPMIX_SIMD_BODY void spread_rows(const BatchNormJob& job, const void* out, const void* mean, const void* grad,
                                   const void* to_shortcut, const Wide<Element>* scale, const Wide<Element>* slope,
                                   const Wide<Element>* level, void* to_in, std::int64_t begin, std::int64_t end) {
  using Sum = Wide<Element>;
  const auto* in = static_cast<const Element*>(job.in);
  const auto* lowest = static_cast<const Sum*>(job.lowest);
  const auto* centre = static_cast<const Sum*>(mean);
  const auto* from = static_cast<const Element*>(grad);
  const auto* result = static_cast<const Element*>(out);
  const auto* known = static_cast<const Element*>(to_shortcut);
  auto* to = static_cast<Element*>(to_in);
  const auto spread = [&](auto has_shortcut) __attribute__((always_inline)) {
    over_blocks<kLanes, Element>(
        begin, end, job.channels,
        [&](std::int64_t first, std::int64_t last, std::int64_t channel, auto lanes, auto vectors) __attribute__((always_inline)) {
          constexpr int kWidth = decltype(lanes)::value;
          constexpr int kVectors = decltype(vectors)::value;
          const auto centres = load_group<kWidth, kVectors>(centre + channel);
          const auto scales = load_group<kWidth, kVectors>(scale + channel);
          const auto slopes = load_group<kWidth, kVectors>(slope + channel);
          const auto levels = load_group<kWidth, kVectors>(level + channel);
          for (std::int64_t row = first; row < last; ++row) {
#pragma GCC unroll 4
            for (int j = 0; j < kVectors; ++j) {
              const std::int64_t at = row * job.channels + channel + j * kWidth;
              Lanes<Sum, kWidth> value;
              if constexpr (has_shortcut) {
                value = load<kWidth>(known + at);
              } else {
                value = passed<kWidth>(from + at, result + at, lowest + channel + j * kWidth);
              }
              store(to + at, value * scales[j] + (load<kWidth>(in + at) - centres[j]) * slopes[j] + levels[j]);
            }
          }
        });
  };
  if (known != nullptr) {
    spread(std::true_type{});
  } else {
    spread(std::false_type{});
  }
}

// The four loops for one element type.
template <class Element>
struct Loops {
  using Sum = Wide<Element>;

  struct SumRows {
    template <class Set>
    SHAPMIX_SIMD_BODY static void run(const BatchNormJob& job, Totals& totals, std::int64_t begin, std::int64_t end) {
      sum_rows<kLanesOf<Set, Sum>, Element>(job, totals, begin, end);
    }
  };
  struct ApplyRows {
    template <class Set>
    SHAPMIX_SIMD_BODY static void run(const BatchNormJob& job, const void* mean, const Sum* scale, const Sum* shift, void* out,
                                      std::int64_t begin, std::int64_t end) {
      apply_rows<kLanesOf<Set, Sum>, Element>(job, mean, scale, shift, out, begin, end);
    }
  };
  struct SumGradients {
    template <class Set>
    SHAPMIX_SIMD_BODY static void run(const BatchNormJob& job, const void* out, const void* mean, const void* grad,
                                      void* to_shortcut, Totals& totals, std::int64_t begin, std::int64_t end) {
      sum_gradients<kLanesOf<Set, Sum>, Element>(job, out, mean, grad, to_shortcut, totals, begin, end);
    }
  };
  struct SpreadRows {
    template <class Set>
    SHAPMIX_SIMD_BODY static void run(const BatchNormJob& job, const void* out, const void* mean, const void* grad,
                                      const void* to_shortcut, const Sum* scale, const Sum* slope, const Sum* level, void* to_in,
                                      std::int64_t begin, std::int64_t end) {
      spread_rows<kLanesOf<Set, Sum>, Element>(job, out, mean, grad, to_shortcut, scale, slope, level, to_in, begin, end);
    }
  };

  decltype(compiled<SumRows>()) sum = compiled<SumRows>();
  decltype(compiled<ApplyRows>()) apply = compiled<ApplyRows>();
  decltype(compiled<SumGradients>()) gradients = compiled<SumGradients>();
  decltype(compiled<SpreadRows>()) spread = compiled<SpreadRows>();
};

int workers_of(const BatchNormJob& job, int threads) { return workers_for(job.rows, job.rows * job.channels * 4, threads); }

// The totals of all workers, combined in order.
template <class Joined, class Body>
Totals total(const BatchNormJob& job, int workers, const Body& body) {
  const auto channels = static_cast<std::size_t>(job.channels);
  std::vector<Totals> each(static_cast<std::size_t>(workers));
  for (Totals& totals : each) {
    totals.first.assign(channels, 0);
    totals.second.assign(channels, 0);
  }
  parallel_for(job.rows, workers, [&](std::int64_t worker, std::int64_t begin, std::int64_t end) {
    each[static_cast<std::size_t>(worker)].rows = end - begin;
    body(each[static_cast<std::size_t>(worker)], begin, end);
  });
  for (std::size_t worker = 1; worker < each.size(); ++worker) {
    if (each[worker].rows == 0) continue;
    Joined::join(each[0], each[worker]);
    each[0].rows += each[worker].rows;
  }
  return each[0];
}

template <class Element>
void forward(const BatchNormJob& job, void* out, void* mean, void* variance, int threads) {
  using Sum = Wide<Element>;
  const Loops<Element> loops;
  const int workers = workers_of(job, threads);
  const auto channels = static_cast<std::size_t>(job.channels);
  const Totals totals =
      total<Moments>(job, workers, [&](Totals& own, std::int64_t begin, std::int64_t end) { loops.sum(job, own, begin, end); });

  std::vector<Sum> scale(channels);
  std::vector<Sum> shift(channels);
  std::vector<double> factors(channels);
  bool is_far = false;
  for (std::size_t c = 0; c < channels; ++c) {
    const double spread = totals.second[c] / static_cast<double>(job.rows);
    const auto centre = static_cast<Sum>(totals.first[c]);
    static_cast<Sum*>(mean)[c] = centre;
    static_cast<Sum*>(variance)[c] = static_cast<Sum>(spread);
    factors[c] = static_cast<const Sum*>(job.weight)[c] / std::sqrt(spread + job.eps);
    scale[c] = static_cast<Sum>(factors[c]);
    is_far = is_far || std::abs(totals.first[c] * factors[c]) > kNear;
  }
  for (std::size_t c = 0; c < channels; ++c) {
    // If the mean was subtracted, only its rounding error remains.
    const double off = totals.first[c] - (is_far ? static_cast<double>(static_cast<const Sum*>(mean)[c]) : 0);
    shift[c] = static_cast<Sum>(static_cast<const Sum*>(job.bias)[c] - off * factors[c]);
  }
  parallel_for(job.rows, workers, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    loops.apply(job, is_far ? mean : nullptr, scale.data(), shift.data(), out, begin, end);
  });
}

template <class Element>
void backward(const BatchNormJob& job, const void* out, const void* mean, const void* variance, const void* grad, void* to_in,
              void* to_shortcut, void* to_weight, void* to_bias, int threads) {
  using Sum = Wide<Element>;
  const Loops<Element> loops;
  const int workers = workers_of(job, threads);
  const auto channels = static_cast<std::size_t>(job.channels);
  const Totals totals = total<Added>(job, workers, [&](Totals& own, std::int64_t begin, std::int64_t end) {
    loops.gradients(job, out, mean, grad, to_shortcut, own, begin, end);
  });

  std::vector<Sum> scale(channels);
  std::vector<Sum> slope(channels);
  std::vector<Sum> level(channels);
  for (std::size_t c = 0; c < channels; ++c) {
    const double rows = static_cast<double>(job.rows);
    const double inverse = 1 / std::sqrt(static_cast<const Sum*>(variance)[c] + job.eps);
    const double factor = static_cast<const Sum*>(job.weight)[c] * inverse;
    static_cast<Sum*>(to_weight)[c] = static_cast<Sum>(totals.second[c] * inverse);
    static_cast<Sum*>(to_bias)[c] = static_cast<Sum>(totals.first[c]);
    scale[c] = static_cast<Sum>(factor);
    slope[c] = static_cast<Sum>(-factor * inverse * inverse * totals.second[c] / rows);
    level[c] = static_cast<Sum>(-factor * totals.first[c] / rows);
  }
  parallel_for(job.rows, workers, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    loops.spread(job, out, mean, grad, to_shortcut, scale.data(), slope.data(), level.data(), to_in, begin, end);
  });
}

}  // namespace

void batch_norm_cpu(const BatchNormJob& job, void* out, void* mean, void* variance, int threads) {
  switch_input(job, [&](auto element) { forward<decltype(element)>(job, out, mean, variance, threads); });
}

void batch_norm_backward_cpu(const BatchNormJob& job, const void* out, const void* mean, const void* variance, const void* grad,
                             void* to_in, void* to_shortcut, void* to_weight, void* to_bias, int threads) {
  switch_input(job, [&](auto element) {
    backward<decltype(element)>(job, out, mean, variance, grad, to_in, to_shortcut, to_weight, to_bias, threads);
  });
}

}  // namespace shapmix

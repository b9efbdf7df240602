#include "batch_norm.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "element.h"
#include "lanes.h"
#include "machine.h"
#include "parallel.h"

namespace shapmix {
namespace {

// Rows whose sums are taken in the elements' arithmetic, before they join a float64 total.
constexpr std::int64_t kRowsTogether = 64;
constexpr const char* kNoHalf = "the CPU path of batch_norm takes float32, float64 and bfloat16";

struct Totals {
  std::vector<double> first;
  std::vector<double> second;
};

// Adds, over rows begin..end, two sums a channel; term(row, channel, first, second) adds a row's share of some lanes.
template <int kLanes, class Sum, class Term>
SHAPMIX_SIMD_BODY void add_up(std::int64_t begin, std::int64_t end, std::int64_t channels, Totals& totals, const Term& term) {
  constexpr int kTogether = 4;  // vectors of neighbouring channels: whole cache lines of a row
  for (std::int64_t block = begin; block < end; block += kRowsTogether) {
    const std::int64_t stop = std::min(block + kRowsTogether, end);
    const auto add = [&](std::int64_t channel, auto lanes, auto together) __attribute__((always_inline)) {
      constexpr int kWidth = decltype(lanes)::value;
      constexpr int kVectors = decltype(together)::value;
      Lanes<Sum, kWidth> first[kVectors] = {};
      Lanes<Sum, kWidth> second[kVectors] = {};
      for (std::int64_t row = block; row < stop; ++row) {
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) term(row, channel + j * kWidth, first[j], second[j], lanes);
      }
      for (int j = 0; j < kVectors; ++j) {
        for (int lane = 0; lane < kWidth; ++lane) {
          totals.first[static_cast<std::size_t>(channel + j * kWidth + lane)] += first[j][lane];
          totals.second[static_cast<std::size_t>(channel + j * kWidth + lane)] += second[j][lane];
        }
      }
    };
    std::int64_t channel = 0;
    for (; channel + kTogether * kLanes <= channels; channel += kTogether * kLanes) {
      add(channel, std::integral_constant<int, kLanes>{}, std::integral_constant<int, kTogether>{});
    }
    for (; channel + kLanes <= channels; channel += kLanes) {
      add(channel, std::integral_constant<int, kLanes>{}, std::integral_constant<int, 1>{});
    }
    for (; channel < channels; ++channel) add(channel, std::integral_constant<int, 1>{}, std::integral_constant<int, 1>{});
  }
}

// Sums of in - in[0] and of its square: subtracting any one row keeps the digits that a large mean would eat.
template <int kLanes, class Element>
SHAPMIX_SIMD_BODY void sum_rows(const BatchNormJob& job, Totals& totals, std::int64_t begin, std::int64_t end) {
  const auto* in = static_cast<const Element*>(job.in);
  add_up<kLanes, Wide<Element>>(
      begin, end, job.channels, totals,
      [&](std::int64_t row, std::int64_t channel, auto& first, auto& second, auto lanes) __attribute__((always_inline)) {
        constexpr int kWidth = decltype(lanes)::value;
        const auto value = load<kWidth>(in + row * job.channels + channel) - load<kWidth>(in + channel);
        first += value;
        second += value * value;
      });
}

template <int kLanes, class Element>
SHAPMIX_SIMD_BODY void apply_rows(const BatchNormJob& job, const Wide<Element>* scale, const Wide<Element>* shift, void* out,
                                  std::int64_t begin, std::int64_t end) {
  const auto* in = static_cast<const Element*>(job.in);
  const auto* shortcut = static_cast<const Element*>(job.shortcut);
  const auto* lowest = static_cast<const Wide<Element>*>(job.lowest);
  auto* to = static_cast<Element*>(out);
  for (std::int64_t row = begin; row < end; ++row) {
    over_channels<kLanes>(job.channels, [&](std::int64_t channel, auto lanes) __attribute__((always_inline)) {
      constexpr int kWidth = decltype(lanes)::value;
      auto value = load<kWidth>(in + row * job.channels + channel) * load<kWidth>(scale + channel) + load<kWidth>(shift + channel);
      if (shortcut != nullptr) value += load<kWidth>(shortcut + row * job.shortcut_stride + channel);
      const auto floor = load<kWidth>(lowest + channel);
      value = value < floor ? floor : value;  // a NaN stays
      store(to + row * job.channels + channel, value);
    });
  }
}

// The gradient behind the rectifier: kept where the output lies above its lowest value.
template <int kLanes, class Element>
SHAPMIX_SIMD_BODY Lanes<Wide<Element>, kLanes> passed(const Element* grad, const Element* out, const Wide<Element>* lowest) {
  const Lanes<Wide<Element>, kLanes> value = load<kLanes>(grad);
  return load<kLanes>(out) > load<kLanes>(lowest) ? value : Lanes<Wide<Element>, kLanes>{};
}

// Sums of the passed gradient and of its product with in - mean; the passed gradient is the shortcut's.
template <int kLanes, class Element>
SHAPMIX_SIMD_BODY void sum_gradients(const BatchNormJob& job, const void* out, const void* mean, const void* grad,
                                     void* to_shortcut, Totals& totals, std::int64_t begin, std::int64_t end) {
  using Sum = Wide<Element>;
  const auto* in = static_cast<const Element*>(job.in);
  const auto* lowest = static_cast<const Sum*>(job.lowest);
  const auto* centre = static_cast<const Sum*>(mean);
  const auto* from = static_cast<const Element*>(grad);
  const auto* result = static_cast<const Element*>(out);
  auto* shortcut = static_cast<Element*>(to_shortcut);
  add_up<kLanes, Sum>(
      begin, end, job.channels, totals,
      [&](std::int64_t row, std::int64_t channel, auto& first, auto& second, auto lanes) __attribute__((always_inline)) {
        constexpr int kWidth = decltype(lanes)::value;
        const std::int64_t at = row * job.channels + channel;
        const auto value = passed<kWidth>(from + at, result + at, lowest + channel);
        if (shortcut != nullptr) store(shortcut + at, value);
        first += value;
        second += value * (load<kWidth>(in + at) - load<kWidth>(centre + channel));
      });
}

// to_in = scale * passed + slope * (in - mean) + level
template <int kLanes, class Element>
SHAPMIX_SIMD_BODY void spread_rows(const BatchNormJob& job, const void* out, const void* mean, const void* grad,
                                   const Wide<Element>* scale, const Wide<Element>* slope, const Wide<Element>* level,
                                   void* to_in, std::int64_t begin, std::int64_t end) {
  using Sum = Wide<Element>;
  const auto* in = static_cast<const Element*>(job.in);
  const auto* lowest = static_cast<const Sum*>(job.lowest);
  const auto* centre = static_cast<const Sum*>(mean);
  const auto* from = static_cast<const Element*>(grad);
  const auto* result = static_cast<const Element*>(out);
  auto* to = static_cast<Element*>(to_in);
  for (std::int64_t row = begin; row < end; ++row) {
    over_channels<kLanes>(job.channels, [&](std::int64_t channel, auto lanes) __attribute__((always_inline)) {
      constexpr int kWidth = decltype(lanes)::value;
      const std::int64_t at = row * job.channels + channel;
      const auto value = passed<kWidth>(from + at, result + at, lowest + channel);
      const auto centred = load<kWidth>(in + at) - load<kWidth>(centre + channel);
      store(to + at,
            value * load<kWidth>(scale + channel) + centred * load<kWidth>(slope + channel) + load<kWidth>(level + channel));
    });
  }
}

// The four loops for one element type, compiled for each instruction set.
template <class Element>
struct Loops {
  using Sum = Wide<Element>;
  static constexpr int kLanes = 32 / static_cast<int>(sizeof(Sum));
  static constexpr int kWideLanes = 2 * kLanes;

#define SHAPMIX_FOR(SUFFIX, TARGET, LANES)                                                                                        \
  TARGET static void sum_##SUFFIX(const BatchNormJob& job, Totals& totals, std::int64_t begin, std::int64_t end) {                \
    sum_rows<LANES, Element>(job, totals, begin, end);                                                                            \
  }                                                                                                                               \
  TARGET static void apply_##SUFFIX(const BatchNormJob& job, const Sum* scale, const Sum* shift, void* out, std::int64_t begin,   \
                                    std::int64_t end) {                                                                           \
    apply_rows<LANES, Element>(job, scale, shift, out, begin, end);                                                               \
  }                                                                                                                               \
  TARGET static void gradients_##SUFFIX(const BatchNormJob& job, const void* out, const void* mean, const void* grad,             \
                                        void* to_shortcut, Totals& totals, std::int64_t begin, std::int64_t end) {                \
    sum_gradients<LANES, Element>(job, out, mean, grad, to_shortcut, totals, begin, end);                                         \
  }                                                                                                                               \
  TARGET static void spread_##SUFFIX(const BatchNormJob& job, const void* out, const void* mean, const void* grad,                \
                                     const Sum* scale, const Sum* slope, const Sum* level, void* to_in, std::int64_t begin,       \
                                     std::int64_t end) {                                                                          \
    spread_rows<LANES, Element>(job, out, mean, grad, scale, slope, level, to_in, begin, end);                                    \
  }
  SHAPMIX_FOR(512, SHAPMIX_AVX512, kWideLanes)
  SHAPMIX_FOR(256, SHAPMIX_AVX2, kLanes)
  SHAPMIX_FOR(any, , kLanes)
#undef SHAPMIX_FOR

  decltype(&sum_any) sum;
  decltype(&apply_any) apply;
  decltype(&gradients_any) gradients;
  decltype(&spread_any) spread;
};

template <class Element>
Loops<Element> widest_loops() {
  using Here = Loops<Element>;
  if (has_avx512()) {
    return {Here::sum_512, Here::apply_512, Here::gradients_512, Here::spread_512};
  }
  if (has_avx2()) return {Here::sum_256, Here::apply_256, Here::gradients_256, Here::spread_256};
  return {Here::sum_any, Here::apply_any, Here::gradients_any, Here::spread_any};
}

int workers_of(const BatchNormJob& job, int threads) { return workers_for(job.rows, job.rows * job.channels * 4, threads); }

// The workers' totals added in their order.
template <class Body>
Totals total(const BatchNormJob& job, int workers, const Body& body) {
  const auto channels = static_cast<std::size_t>(job.channels);
  std::vector<Totals> each(static_cast<std::size_t>(workers));
  for (Totals& totals : each) {
    totals.first.assign(channels, 0);
    totals.second.assign(channels, 0);
  }
  parallel_for(job.rows, workers, [&](std::int64_t worker, std::int64_t begin, std::int64_t end) {
    body(each[static_cast<std::size_t>(worker)], begin, end);
  });
  for (std::size_t worker = 1; worker < each.size(); ++worker) {
    for (std::size_t channel = 0; channel < channels; ++channel) {
      each[0].first[channel] += each[worker].first[channel];
      each[0].second[channel] += each[worker].second[channel];
    }
  }
  return each[0];
}

template <class Element>
void forward(const BatchNormJob& job, void* out, void* mean, void* variance, int threads) {
  using Sum = Wide<Element>;
  const Loops<Element> loops = widest_loops<Element>();
  const int workers = workers_of(job, threads);
  const auto channels = static_cast<std::size_t>(job.channels);
  const Totals totals = total(job, workers, [&](Totals& own, std::int64_t begin, std::int64_t end) { loops.sum(job, own, begin, end); });

  std::vector<Sum> scale(channels);
  std::vector<Sum> shift(channels);
  for (std::size_t c = 0; c < channels; ++c) {
    const double rows = static_cast<double>(job.rows);
    const double offset = totals.first[c] / rows;
    const double centre = static_cast<double>(static_cast<Wide<Element>>(static_cast<const Element*>(job.in)[c])) + offset;
    const double spread = std::max(totals.second[c] / rows - offset * offset, 0.0);
    static_cast<Sum*>(mean)[c] = static_cast<Sum>(centre);
    static_cast<Sum*>(variance)[c] = static_cast<Sum>(spread);
    const double factor = static_cast<const Sum*>(job.weight)[c] / std::sqrt(spread + job.eps);
    scale[c] = static_cast<Sum>(factor);
    shift[c] = static_cast<Sum>(static_cast<const Sum*>(job.bias)[c] - centre * factor);
  }
  parallel_for(job.rows, workers, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
    loops.apply(job, scale.data(), shift.data(), out, begin, end);
  });
}

template <class Element>
void backward(const BatchNormJob& job, const void* out, const void* mean, const void* variance, const void* grad, void* to_in,
              void* to_shortcut, void* to_weight, void* to_bias, int threads) {
  using Sum = Wide<Element>;
  const Loops<Element> loops = widest_loops<Element>();
  const int workers = workers_of(job, threads);
  const auto channels = static_cast<std::size_t>(job.channels);
  const Totals totals = total(job, workers, [&](Totals& own, std::int64_t begin, std::int64_t end) {
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
    loops.spread(job, out, mean, grad, scale.data(), slope.data(), level.data(), to_in, begin, end);
  });
}

}  // namespace

void batch_norm_cpu(const BatchNormJob& job, void* out, void* mean, void* variance, int threads) {
  switch (job.dtype) {
    case Dtype::kFloat32: return forward<float>(job, out, mean, variance, threads);
    case Dtype::kFloat64: return forward<double>(job, out, mean, variance, threads);
    case Dtype::kBfloat16: return forward<Bfloat16>(job, out, mean, variance, threads);
    case Dtype::kFloat16: throw std::invalid_argument(kNoHalf);
  }
}

void batch_norm_backward_cpu(const BatchNormJob& job, const void* out, const void* mean, const void* variance, const void* grad,
                             void* to_in, void* to_shortcut, void* to_weight, void* to_bias, int threads) {
  const auto run = [&](auto element) {
    backward<decltype(element)>(job, out, mean, variance, grad, to_in, to_shortcut, to_weight, to_bias, threads);
  };
  switch (job.dtype) {
    case Dtype::kFloat32: return run(float{});
    case Dtype::kFloat64: return run(double{});
    case Dtype::kBfloat16: return run(Bfloat16{});
    case Dtype::kFloat16: throw std::invalid_argument(kNoHalf);
  }
}

}  // namespace shapmix

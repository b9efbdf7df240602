// The network ops of shapmix._native.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <utility>

#include "batch_norm.h"
#include "branches.h"
#include "graph_conv.h"
#include "job.h"

namespace py = pybind11;

namespace shapmix {
namespace {

// sizes: rows, frames, joints, channels, subsets, relations
GraphConvJob graph_conv_job(Address features, std::int64_t feature_stride, Address relation_terms, Address weight, Address bias,
                            Address shared, const std::array<std::int64_t, 6>& sizes, const std::string& dtype) {
  return {sizes[0],           sizes[1],         sizes[2],       sizes[3],       sizes[4],        sizes[5],        dtype_named(dtype),
          at<void>(features), feature_stride, at<void>(relation_terms), at<void>(weight), at<void>(bias), at<void>(shared)};
}

BatchNormJob batch_norm_job(Address in, Address shortcut, std::int64_t shortcut_stride, Address weight, Address bias,
                            Address lowest, std::int64_t rows, std::int64_t channels, double eps, const std::string& dtype) {
  return {rows,          channels,        dtype_named(dtype), at<void>(in), if_any<void>(shortcut), shortcut_stride, at<void>(weight),
          at<void>(bias), at<void>(lowest), eps};
}

// Address and stride of channel rows.
using RowsOf = std::pair<Address, std::int64_t>;

Rows rows_of(const RowsOf& rows) { return {at<void>(rows.first), rows.second}; }
Rows rows_if_any(const RowsOf& rows) { return {if_any<void>(rows.first), rows.second}; }

}  // namespace

void bind_network_ops(py::module_& module) {
  const py::call_guard<py::gil_scoped_release> without_gil;

  module.def(
      "graph_conv",
      [](Address out, Address features, std::int64_t feature_stride, Address relation_terms, Address weight, Address bias,
         Address shared, Address offset, Address shortcut, std::int64_t shortcut_stride, const std::array<std::int64_t, 6>& sizes,
         const std::string& dtype, int threads) {
        graph_conv_cpu(graph_conv_job(features, feature_stride, relation_terms, weight, bias, shared, sizes, dtype),
                       {if_any<void>(offset), if_any<void>(shortcut), shortcut_stride}, into<void>(out), threads);
      },
      without_gil);

  module.def(
      "graph_conv_backward",
      [](const std::array<Address, 5>& gradients, Address grad, Address features, std::int64_t feature_stride,
         Address relation_terms, Address weight, Address bias, Address shared, const std::array<std::int64_t, 6>& sizes,
         const std::string& dtype, int threads) {
        graph_conv_backward_cpu(
            graph_conv_job(features, feature_stride, relation_terms, weight, bias, shared, sizes, dtype), at<void>(grad),
            {into<void>(gradients[0]), into<void>(gradients[1]), into<void>(gradients[2]), into<void>(gradients[3]), into<void>(gradients[4])}, threads);
      },
      without_gil);

  module.def(
      "join_branches",
      [](Address out, const std::array<RowsOf, 4>& branches, const RowsOf& shortcut, Address scale, Address offset,
         const std::array<std::int64_t, 4>& sizes, std::int64_t frame_stride, const std::string& dtype, int threads) {
        const BranchesJob job = {sizes[0],
                                 sizes[1],
                                 frame_stride,
                                 sizes[2],
                                 sizes[3],
                                 dtype_named(dtype),
                                 rows_of(branches[0]),
                                 rows_of(branches[1]),
                                 rows_of(branches[2]),
                                 rows_of(branches[3]),
                                 rows_if_any(shortcut),
                                 at<void>(scale),
                                 at<void>(offset)};
        join_branches_cpu(job, into<void>(out), threads);
      },
      without_gil);

  module.def(
      "batch_norm",
      [](Address out, Address mean, Address variance, Address in, Address shortcut, std::int64_t shortcut_stride, Address weight,
         Address bias, Address lowest, std::int64_t rows, std::int64_t channels, double eps, const std::string& dtype, int threads) {
        batch_norm_cpu(batch_norm_job(in, shortcut, shortcut_stride, weight, bias, lowest, rows, channels, eps, dtype), into<void>(out),
                       into<void>(mean), into<void>(variance), threads);
      },
      without_gil);

  module.def(
      "batch_norm_backward",
      [](const std::array<Address, 4>& gradients, Address grad, Address out, Address mean, Address variance, Address in,
         Address weight, Address bias, Address lowest, std::int64_t rows, std::int64_t channels, double eps,
         const std::string& dtype, int threads) {
        batch_norm_backward_cpu(batch_norm_job(in, 0, 0, weight, bias, lowest, rows, channels, eps, dtype), at<void>(out),
                                at<void>(mean), at<void>(variance), at<void>(grad), into<void>(gradients[0]), reinterpret_cast<void*>(gradients[1]),
                                into<void>(gradients[2]), into<void>(gradients[3]), threads);
      },
      without_gil);
}

}  // namespace shapmix

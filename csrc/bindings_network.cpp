// The network ops of shapmix._native.
#include "batch_norm.h"
#include "branches.h"
#include "graph_conv.h"
#include "job.h"

namespace shapmix {
namespace {

const std::vector<Dtype> kNetworkDtypes = {Dtype::kFloat32, Dtype::kFloat64, Dtype::kBfloat16};

GraphConvJob graph_conv_job(Fields& fields) {
  const Array features = fields.tensor("features", 4), weight = fields.tensor("weight", 3);
  GraphConvJob job{};
  job.rows = features.size(0);
  job.frames = features.size(2);
  job.joints = features.size(3);
  job.subsets = weight.size(0);
  job.relations = weight.size(1);
  job.channels = weight.size(2);
  job.dtype = features.dtype();
  const Dtype wide = sum_dtype(job.dtype);
  job.features = features.of(job.dtype);
  job.feature_stride = features.row_stride();
  job.relation_terms = fields.tensor("relation_terms", 5).of(wide);
  job.weight = weight.of(wide);
  job.bias = fields.tensor("bias", 2).of(wide);
  job.shared = fields.tensor("shared", 3).of(wide);
  return job;
}

GraphConvEpilogue epilogue_of(Fields& fields, Dtype dtype) {
  const Array shortcut = fields.optional_tensor("shortcut", 4);
  GraphConvEpilogue epilogue{};
  epilogue.offset = fields.optional_tensor("offset", 1).of(sum_dtype(dtype));
  epilogue.shortcut = shortcut.of(dtype);
  epilogue.shortcut_stride = shortcut.given() ? shortcut.row_stride() : 0;
  return epilogue;
}

GraphConvGradients graph_conv_gradients(Fields& fields, Dtype dtype) {
  const Dtype wide = sum_dtype(dtype);
  GraphConvGradients gradients{};
  gradients.features = fields.tensor("to_features", 4).of(dtype);
  gradients.relation_terms = fields.tensor("to_relation_terms", 5).of(wide);
  gradients.weight = fields.tensor("to_weight", 3).of(wide);
  gradients.bias = fields.tensor("to_bias", 2).of(wide);
  gradients.shared = fields.tensor("to_shared", 3).of(wide);
  return gradients;
}

// All but the shortcut.
BatchNormJob batch_norm_job(Fields& fields) {
  const Array x = fields.tensor("x", 4);
  BatchNormJob job{};
  job.rows = x.size(0) * x.size(2) * x.size(3);
  job.channels = x.size(1);
  job.dtype = x.dtype();
  const Dtype wide = sum_dtype(job.dtype);
  job.in = x.of(job.dtype);
  job.weight = fields.tensor("weight", 1).of(wide);
  job.bias = fields.tensor("bias", 1).of(wide);
  job.lowest = fields.tensor("lowest", 1).of(wide);
  job.eps = fields.number<double>("eps");
  return job;
}

Rows rows_of(const Array& branch, Dtype dtype) { return {branch.of(dtype), branch.given() ? branch.row_stride() : 0}; }

BranchesJob branches_job(Fields& fields) {
  const Array middle = fields.tensor("middle", 4);
  BranchesJob job{};
  job.clips = middle.size(0);
  job.width = middle.size(1);
  job.frames = middle.size(2);
  job.joints = middle.size(3);
  job.frame_stride = fields.number<std::int64_t>("frame_stride");
  job.dtype = middle.dtype();
  job.narrow = rows_of(fields.tensor("narrow", 4), job.dtype);
  job.wide = rows_of(fields.tensor("wide", 4), job.dtype);
  job.middle = rows_of(middle, job.dtype);
  job.skip = rows_of(fields.tensor("skip", 4), job.dtype);
  job.shortcut = rows_of(fields.optional_tensor("shortcut", 4), job.dtype);
  job.scale = fields.tensor("scale", 1).of(sum_dtype(job.dtype));
  job.offset = fields.tensor("offset", 1).of(sum_dtype(job.dtype));
  return job;
}

const Binding binding([](py::module_& module) {
  declare(module, "graph_conv", kNetworkDtypes, [](Fields& fields) {
    const GraphConvJob job = graph_conv_job(fields);
    return [job, epilogue = epilogue_of(fields, job.dtype), out = fields.tensor("out", 4).of(job.dtype),
            threads = torch_threads()] { graph_conv_cpu(job, epilogue, out, threads); };
  });
  declare(module, "graph_conv_backward", kNetworkDtypes, [](Fields& fields) {
    const GraphConvJob job = graph_conv_job(fields);
    return [job, grad = fields.tensor("grad", 4).of(job.dtype), gradients = graph_conv_gradients(fields, job.dtype),
            threads = torch_threads()] { graph_conv_backward_cpu(job, grad, gradients, threads); };
  });
  declare(module, "join_branches", kNetworkDtypes, [](Fields& fields) {
    const BranchesJob job = branches_job(fields);
    return [job, out = fields.tensor("out", 4).of(job.dtype), threads = torch_threads()] { join_branches_cpu(job, out, threads); };
  });
  declare(module, "batch_norm", kNetworkDtypes, [](Fields& fields) {
    BatchNormJob job = batch_norm_job(fields);
    const Array shortcut = fields.optional_tensor("shortcut", 4);
    job.shortcut = shortcut.of(job.dtype);
    job.shortcut_stride = shortcut.given() ? shortcut.row_stride() : 0;
    const Dtype wide = sum_dtype(job.dtype);
    return [job, out = fields.tensor("out", 4).of(job.dtype), mean = fields.tensor("mean", 1).of(wide),
            variance = fields.tensor("variance", 1).of(wide),
            threads = torch_threads()] { batch_norm_cpu(job, out, mean, variance, threads); };
  });
  declare(module, "batch_norm_backward", kNetworkDtypes, [](Fields& fields) {
    const BatchNormJob job = batch_norm_job(fields);
    const Dtype wide = sum_dtype(job.dtype);
    const bool with_shortcut = fields.number<bool>("with_shortcut");
    const Array shortcut = with_shortcut ? fields.tensor("to_shortcut", 4) : fields.absent("to_shortcut");
    return [job, out = fields.tensor("out", 4).of(job.dtype), mean = fields.tensor("mean", 1).of(wide),
            variance = fields.tensor("variance", 1).of(wide), grad = fields.tensor("grad", 4).of(job.dtype),
            to_x = fields.tensor("to_x", 4).of(job.dtype), to_shortcut = shortcut.of(job.dtype),
            to_weight = fields.tensor("to_weight", 1).of(wide), to_bias = fields.tensor("to_bias", 1).of(wide),
            threads = torch_threads()] {
      batch_norm_backward_cpu(job, out, mean, variance, grad, to_x, to_shortcut, to_weight, to_bias, threads);
    };
  });
});

}  // namespace
}  // namespace shapmix

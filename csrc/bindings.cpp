// shapmix._native: the CPU ops.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu_info.h"
#include "draw.h"
#include "job.h"
#include "loss.h"
#include "saliency.h"
#include "sample.h"

namespace py = pybind11;
using namespace shapmix;

namespace {

using FrameSizes = std::array<std::int64_t, 4>;  // [F, M, V, C]
using TableSizes = std::array<std::int64_t, 2>;  // [K, Q] or [L, K]

// All arguments except the output.
SampleJob sample_job(Address frames, const FrameSizes& sizes, Address offsets, std::int64_t recordings, Address clip,
                     Address start, Address length, Address angles, std::int64_t samples, Address parents,
                     std::int64_t num_frames, bool bone, bool motion, const std::string& dtype) {
  const CropPlan plan = {at<std::int64_t>(clip), at<std::int64_t>(start), at<std::int64_t>(length), at<void>(angles)};
  return {at<void>(frames), sizes[0],
          sizes[1],         sizes[2],
          sizes[3],         at<std::int64_t>(offsets),
          recordings,       plan,
          samples,          at<std::int64_t>(parents),
          num_frames,       bone,
          motion,           dtype_named(dtype),
          nullptr};
}

SaliencyJob saliency_job(Address marginal, Address table, const TableSizes& table_sizes, const std::string& table_dtype,
                         Address logits, std::int64_t rows, const std::string& logits_dtype, Address labels, Address columns,
                         std::int64_t updates, Address with_rows, Address without_rows, Address weights, std::int64_t contexts,
                         Address joint_counts, double decay, double scale) {
  return {into<void>(table),
          table_sizes[0],
          table_sizes[1],
          dtype_named(table_dtype),
          at<void>(logits),
          rows,
          dtype_named(logits_dtype),
          at<std::int64_t>(labels),
          at<std::int64_t>(columns),
          updates,
          at<std::int64_t>(with_rows),
          at<std::int64_t>(without_rows),
          if_any<void>(weights),
          contexts,
          at<std::int64_t>(joint_counts),
          decay,
          scale,
          into<void>(marginal)};
}

LossJob loss_job(Address row_sums, Address logits, const TableSizes& sizes, const std::string& dtype, Address labels,
                 Address partner, std::int64_t samples, Address lam, Address log_prior) {
  const MixTargets targets = {at<std::int64_t>(labels), at<std::int64_t>(partner), samples, sizes[1]};
  return {at<void>(logits), sizes[0], dtype_named(dtype), targets, at<void>(lam), at<void>(log_prior), into<void>(row_sums)};
}

}  // namespace

namespace shapmix {
void bind_network_ops(py::module_& module);  // bindings_network.cpp
void bind_data(py::module_& module);         // bindings_data.cpp
}  // namespace shapmix

PYBIND11_MODULE(_native, module) {
  module.doc() = "CPU ops of shapmix on raw pointers; called by shapmix.kernels, which checks the tensors.";
  const py::call_guard<py::gil_scoped_release> without_gil;

  module.def(
      "coalition_inputs",
      [](Address out, Address clips, const Sizes& sizes, const Strides& strides, Address mean_motion,
         std::int64_t mean_channel_stride, Address coalitions, std::int64_t sets, const Strides& coalition_strides,
         Address part_of_joint, std::int64_t restored_frames, std::int64_t element_size, int threads) {
        const CoalitionJob job = coalition_job(out, clips, sizes, strides, mean_motion, mean_channel_stride, coalitions, sets,
                                               coalition_strides, part_of_joint, restored_frames, element_size);
        check_coalitions(job);
        coalition_inputs_cpu(job, threads);
      },
      without_gil);

  module.def(
      "mix_clips",
      [](Address out, Address clips, const Sizes& sizes, const Strides& strides, const std::array<Address, 8>& plan,
         Address part_of_joint, const std::string& dtype, int threads) {
        const MixJob job = mix_job(out, clips, sizes, strides, plan, part_of_joint, dtype);
        check_plan(job.shape, job.plan, job.part_of_joint);
        mix_clips_cpu(job, threads);
      },
      without_gil);

  module.def(
      "normalised_coalition_inputs",
      [](Address out, Address clips, const Sizes& sizes, const Strides& strides, Address mean_motion,
         std::int64_t mean_channel_stride, Address coalitions, std::int64_t sets, const Strides& coalition_strides,
         Address part_of_joint, Address weight, Address bias, std::int64_t restored_frames, std::int64_t element_size,
         const std::string& dtype, int threads) {
        const CoalitionJob job = coalition_job(out, clips, sizes, strides, mean_motion, mean_channel_stride, coalitions, sets,
                                               coalition_strides, part_of_joint, restored_frames, element_size);
        check_coalitions(job);
        normalised_coalition_inputs_cpu({job, at<void>(weight), at<void>(bias), dtype_named(dtype)}, threads);
      },
      without_gil);

  module.def(
      "sample_clips",
      [](Address out, Address frames, const FrameSizes& sizes, Address offsets, std::int64_t recordings, Address clip,
         Address start, Address length, Address angles, std::int64_t samples, Address parents, std::int64_t num_frames, bool bone,
         bool motion, const std::string& dtype, int threads) {
        SampleJob job = sample_job(frames, sizes, offsets, recordings, clip, start, length, angles, samples, parents, num_frames,
                                   bone, motion, dtype);
        job.out = into<void>(out);
        check_crops(job);
        sample_clips_cpu(job, threads);
      },
      without_gil);

  module.def(
      "draw_plan",
      [](Address fields, Address lam, Address blend, Address labels, std::int64_t samples, Address saliency,
         const TableSizes& sizes, const std::string& dtype, Address priority, Address combinations, Address part_of_joint,
         std::int64_t joints, std::int64_t num_frames, std::int64_t shortest, std::int64_t longest, std::uint64_t seed,
         std::uint32_t step, bool guided, double temperature, double blend_probability) {
        const DrawJob job = {at<std::int64_t>(labels),
                             samples,
                             at<void>(saliency),
                             dtype_named(dtype),
                             sizes[0],
                             sizes[1],
                             at<std::int64_t>(priority),
                             at<std::int64_t>(combinations),
                             at<std::int64_t>(part_of_joint),
                             joints,
                             num_frames,
                             shortest,
                             longest,
                             seed,
                             step,
                             guided,
                             temperature,
                             blend_probability,
                             into<std::int64_t>(fields),
                             into<double>(lam),
                             into<bool>(blend)};
        check_draw(job);
        draw_plan_cpu(job);
      },
      without_gil);

  module.def(
      "saliency_update",
      [](Address marginal, Address table, const TableSizes& table_sizes, const std::string& table_dtype, Address logits,
         std::int64_t rows, const std::string& logits_dtype, Address labels, Address columns, std::int64_t updates,
         Address with_rows, Address without_rows, Address weights, std::int64_t contexts, Address joint_counts, double decay,
         double scale, int threads) {
        const SaliencyJob job =
            saliency_job(marginal, table, table_sizes, table_dtype, logits, rows, logits_dtype, labels, columns, updates,
                         with_rows, without_rows, weights, contexts, joint_counts, decay, scale);
        check_updates(job);
        saliency_update_cpu(job, threads);
      },
      without_gil);

  module.def(
      "balanced_mix_loss",
      [](Address losses, Address row_sums, Address logits, const TableSizes& sizes, const std::string& dtype, Address labels,
         Address partner, std::int64_t samples, Address lam, Address log_prior, int threads) {
        const LossJob job = loss_job(row_sums, logits, sizes, dtype, labels, partner, samples, lam, log_prior);
        check_targets(job.targets);
        balanced_mix_loss_cpu(job, into<void>(losses), threads);
      },
      without_gil);

  module.def(
      "balanced_mix_loss_backward",
      [](Address to_logits, Address grad, Address row_sums, Address logits, const TableSizes& sizes, const std::string& dtype,
         Address labels, Address partner, std::int64_t samples, Address lam, Address log_prior, int threads) {
        const LossJob job = loss_job(row_sums, logits, sizes, dtype, labels, partner, samples, lam, log_prior);
        check_targets(job.targets);
        balanced_mix_loss_backward_cpu(job, at<void>(grad), into<void>(to_logits), threads);
      },
      without_gil);

  module.def(
      "check_coalitions",
      [](Address coalitions, std::int64_t sets, const Strides& coalition_strides, const Sizes& sizes, Address part_of_joint) {
        CoalitionJob job{};
        job.shape = clip_shape(sizes);
        job.coalitions = at<std::int64_t>(coalitions);
        job.sets = sets;
        job.set_stride = coalition_strides[0];
        job.sample_stride = coalition_strides[1];
        job.part_of_joint = at<std::int64_t>(part_of_joint);
        check_coalitions(job);
      },
      "Raises ValueError for the first coalition with a bit beyond the parts.");

  module.def(
      "check_plan",
      [](const std::array<Address, 8>& plan, const Sizes& sizes, Address part_of_joint) {
        check_plan(clip_shape(sizes), mix_plan(plan), at<std::int64_t>(part_of_joint));
      },
      "Raises ValueError for the first plan row out of range of the batch, the clip or the parts.");

  module.def(
      "check_crops",
      [](Address frames, const FrameSizes& sizes, Address offsets, std::int64_t recordings, Address clip, Address start,
         Address length, Address angles, std::int64_t samples, Address parents, const std::string& dtype) {
        check_crops(sample_job(frames, sizes, offsets, recordings, clip, start, length, angles, samples, parents, 0, false, false,
                               dtype));
      },
      "Raises ValueError for the first crop outside its recording, invalid parent, or rotation of clips without 3 coordinates.");

  module.def(
      "check_draw",
      [](Address labels, std::int64_t samples, const TableSizes& sizes, Address combinations, Address part_of_joint,
         std::int64_t joints) {
        DrawJob job{};
        job.labels = at<std::int64_t>(labels);
        job.samples = samples;
        job.classes = sizes[0];
        job.columns = sizes[1];
        job.combinations = at<std::int64_t>(combinations);
        job.part_of_joint = at<std::int64_t>(part_of_joint);
        job.joints = joints;
        check_draw(job);
      },
      "Raises ValueError for the first label that is not a class, or combination with a bit beyond the parts.");

  module.def(
      "check_updates",
      [](const TableSizes& table_sizes, std::int64_t rows, Address labels, Address columns, std::int64_t updates,
         Address with_rows, Address without_rows, std::int64_t contexts, Address joint_counts) {
        SaliencyJob job{};
        job.classes = table_sizes[0];
        job.combinations = table_sizes[1];
        job.rows = rows;
        job.labels = at<std::int64_t>(labels);
        job.columns = at<std::int64_t>(columns);
        job.updates = updates;
        job.with_rows = at<std::int64_t>(with_rows);
        job.without_rows = at<std::int64_t>(without_rows);
        job.contexts = contexts;
        job.joint_counts = at<std::int64_t>(joint_counts);
        check_updates(job);
      },
      "Raises ValueError for the first update out of range of the table or the logits, or combination without joints.");

  module.def(
      "check_targets",
      [](Address labels, Address partner, std::int64_t samples, std::int64_t classes) {
        check_targets({at<std::int64_t>(labels), at<std::int64_t>(partner), samples, classes});
      },
      "Raises ValueError for the first label that is not a class, or partner outside the batch.");

  bind_network_ops(module);
  bind_data(module);

  module.def("cpu_info", [] {
    py::dict info;
    info["avx2"] = cpu_has_avx2();
    info["avx512"] = cpu_has_avx512();
    info["openmp"] = kHasOpenMP;
    info["compiler"] = SHAPMIX_COMPILER;
    return info;
  });
}

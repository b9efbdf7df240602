// shapmix._native: the CPU ops.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu_info.h"
#include "job.h"

namespace py = pybind11;
using namespace shapmix;

PYBIND11_MODULE(_native, module) {
  module.doc() = "CPU ops of shapmix on raw addresses; shapmix.kernels checks the tensors and calls them.";
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
      "check_coalitions",
      [](Address coalitions, std::int64_t sets, const Strides& coalition_strides, const Sizes& sizes, Address part_of_joint) {
        check_coalitions(coalition_job(0, 0, sizes, {0, 0}, 0, 0, coalitions, sets, coalition_strides, part_of_joint, 0, 0));
      },
      "Raises ValueError for the first coalition with a bit that is no part's.");

  module.def(
      "check_plan",
      [](const std::array<Address, 8>& plan, const Sizes& sizes, Address part_of_joint) {
        check_plan(clip_shape(sizes), mix_plan(plan), at<std::int64_t>(part_of_joint));
      },
      "Raises ValueError for the first row of a plan that points outside the batch, the clip or the parts.");

  module.def("cpu_info", [] {
    py::dict info;
    info["avx2"] = cpu_has_avx2();
    info["avx512"] = cpu_has_avx512();
    info["openmp"] = kHasOpenMP;
    info["compiler"] = SHAPMIX_COMPILER;
    return info;
  });
}

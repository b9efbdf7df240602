// shapmix._native_cuda: the CUDA ops. Also imports on a machine without a GPU or driver; device_error then says what is missing.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cuda_device.h"
#include "job.h"

namespace py = pybind11;
using namespace shapmix;

PYBIND11_MODULE(_native_cuda, module) {
  module.doc() = "CUDA ops of shapmix on raw pointers; called by shapmix.kernels, which checks the tensors.";
  const py::call_guard<py::gil_scoped_release> without_gil;

  module.def(
      "coalition_inputs",
      [](Address out, Address clips, const Sizes& sizes, const Strides& strides, Address mean_motion,
         std::int64_t mean_channel_stride, Address coalitions, std::int64_t sets, const Strides& coalition_strides,
         Address part_of_joint, std::int64_t restored_frames, std::int64_t element_size, int device, Address stream) {
        coalition_inputs_cuda(coalition_job(out, clips, sizes, strides, mean_motion, mean_channel_stride, coalitions, sets,
                                            coalition_strides, part_of_joint, restored_frames, element_size),
                              device, reinterpret_cast<void*>(stream));
      },
      without_gil);

  module.def(
      "normalised_coalition_inputs",
      [](Address out, Address clips, const Sizes& sizes, const Strides& strides, Address mean_motion,
         std::int64_t mean_channel_stride, Address coalitions, std::int64_t sets, const Strides& coalition_strides,
         Address part_of_joint, Address weight, Address bias, std::int64_t restored_frames, std::int64_t element_size,
         const std::string& dtype, int device, Address stream) {
        normalised_coalition_inputs_cuda({coalition_job(out, clips, sizes, strides, mean_motion, mean_channel_stride, coalitions,
                                                        sets, coalition_strides, part_of_joint, restored_frames, element_size),
                                          at<void>(weight), at<void>(bias), dtype_named(dtype)},
                                         device, reinterpret_cast<void*>(stream));
      },
      without_gil);

  module.def(
      "mix_clips",
      [](Address out, Address clips, const Sizes& sizes, const Strides& strides, const std::array<Address, 8>& plan,
         Address part_of_joint, const std::string& dtype, int device, Address stream) {
        mix_clips_cuda(mix_job(out, clips, sizes, strides, plan, part_of_joint, dtype), device, reinterpret_cast<void*>(stream));
      },
      without_gil);

  module.def("device_count", &device_count, "Usable devices; 0 without a GPU or driver.");
  module.def("device_error", &device_error,
             "The reason why the kernels of this build cannot run on a device; empty if they can.");
  module.def("toolkit_version", &toolkit_version, "13000 = CUDA 13.0.");
  module.def("driver_version", &driver_version, "Encoded like toolkit_version; 0 without a driver.");
  module.attr("architectures") = SHAPMIX_CUDA_ARCHITECTURES;
}

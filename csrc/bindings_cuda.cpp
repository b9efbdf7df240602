// shapmix._native_cuda: the CUDA ops. Also imports on a machine without a GPU or driver; device_error then says what is missing.
#include "cuda_device.h"
#include "job.h"

using namespace shapmix;

namespace {

// Where an op is launched.
struct Place {
  int device;
  void* stream;
};

Place place_of(Fields& fields) {
  return {fields.number<int>("device"), reinterpret_cast<void*>(fields.number<std::uintptr_t>("stream"))};
}

}  // namespace

PYBIND11_MODULE(_native_cuda, module) {
  module.doc() = "CUDA ops of shapmix, called by shapmix.kernels with tensors by name; KERNELS has the dtypes of each op.";

  declare(module, "coalition_inputs", kEveryDtype, [](Fields& fields) {
    return [job = coalition_job(fields), at = place_of(fields)] { coalition_inputs_cuda(job, at.device, at.stream); };
  });
  declare(module, "mix_clips", kEveryDtype, [](Fields& fields) {
    return [job = mix_job(fields), at = place_of(fields)] { mix_clips_cuda(job, at.device, at.stream); };
  });

  module.def("device_count", &device_count, "Usable devices; 0 without a GPU or driver.");
  module.def("device_error", &device_error, "The reason why the kernels of this build cannot run on a device; empty if they can.");
  module.def("toolkit_version", &toolkit_version, "13000 = CUDA 13.0.");
  module.def("driver_version", &driver_version, "Encoded like toolkit_version; 0 without a driver.");
  module.attr("architectures") = SHAPMIX_CUDA_ARCHITECTURES;
}

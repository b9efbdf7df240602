// The data set readers of shapmix._native.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <utility>
#include <vector>

#include "job.h"
#include "ntu_skeleton.h"

namespace shapmix {
namespace {

// Moves a vector into a NumPy array that owns its memory.
template <class T>
py::array_t<T> as_array(std::vector<T>&& values, std::vector<py::ssize_t> shape) {
  auto* owned = new std::vector<T>(std::move(values));
  const py::capsule owner(owned, [](void* pointer) { delete static_cast<std::vector<T>*>(pointer); });
  return py::array_t<T>(std::move(shape), owned->data(), owner);
}

const Binding binding([](py::module_& module) {
  module.def("parse_ntu_skeleton", [](const py::bytes& content) {
    char* text = nullptr;
    py::ssize_t size = 0;
    if (PyBytes_AsStringAndSize(content.ptr(), &text, &size) != 0) throw py::error_already_set();
    NtuSkeleton found;
    {
      const py::gil_scoped_release without_gil;
      found = parse_ntu_skeleton(text, static_cast<std::size_t>(size));
    }
    const auto bodies = static_cast<py::ssize_t>(found.body.size());
    return py::make_tuple(found.frames, as_array(std::move(found.frame_of), {bodies}), as_array(std::move(found.body), {bodies}),
                          as_array(std::move(found.joints), {bodies, kNtuJoints, 3}));
  });
});

}  // namespace
}  // namespace shapmix

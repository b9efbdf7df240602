// Reads the arguments of an op by name. A tensor is read from the torch object through its Python attributes (data_ptr, shape,
// stride, dtype), so no torch header is included and one build works with every torch version.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "clips.h"
#include "coalition.h"
#include "dtype.h"
#include "mix.h"

namespace shapmix {

namespace py = pybind11;

// Names are literals, so each is interned once and found by its address. The GIL is held.
inline PyObject* interned(const char* name) {
  static std::unordered_map<const char*, PyObject*> found;
  PyObject*& text = found[name];
  if (text == nullptr) text = PyUnicode_InternFromString(name);
  return text;
}

inline py::object attribute(PyObject* object, const char* name) {
  PyObject* value = PyObject_GetAttr(object, interned(name));
  if (value == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(value);
}

inline py::object result_of(PyObject* object, const char* method) {
  PyObject* value = PyObject_CallMethodNoArgs(object, interned(method));
  if (value == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(value);
}

// torch.<name>, looked up once.
template <const char* kName>
PyObject* of_torch() {
  static PyObject* const found = py::object(py::module_::import("torch").attr(kName)).release().ptr();
  return found;
}

inline constexpr char kFloat32Name[] = "float32", kFloat64Name[] = "float64", kFloat16Name[] = "float16",
                      kBfloat16Name[] = "bfloat16", kInt64Name[] = "int64", kBoolName[] = "bool", kThreads[] = "get_num_threads";

inline PyObject* torch_dtype(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32: return of_torch<kFloat32Name>();
    case Dtype::kFloat64: return of_torch<kFloat64Name>();
    case Dtype::kFloat16: return of_torch<kFloat16Name>();
    case Dtype::kBfloat16: return of_torch<kBfloat16Name>();
  }
  return nullptr;
}

inline std::int64_t element_bytes(Dtype dtype) { return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2; }

// The type of sums over elements: float64 for float64, else float32.
inline Dtype sum_dtype(Dtype dtype) { return dtype == Dtype::kFloat64 ? Dtype::kFloat64 : Dtype::kFloat32; }

inline int torch_threads() { return py::reinterpret_steal<py::object>(PyObject_CallNoArgs(of_torch<kThreads>())).cast<int>(); }

// A tensor of a call; absent (no memory) if it is an optional one that was not given.
class Array {
 public:
  Array(const char* op, const char* name, PyObject* tensor, int axes, int most_axes) : op_(op), name_(name), tensor_(tensor) {
    if (tensor == nullptr) return;
    const auto shape = py::reinterpret_steal<py::object>(PyObject_GetAttr(tensor, interned("shape")));
    if (!shape) {
      PyErr_Clear();
      throw py::type_error(label() + " is " + std::string(py::repr(tensor)) + "; give a tensor");
    }
    size_ = integers(shape);
    axes_ = static_cast<int>(PyTuple_GET_SIZE(shape.ptr()));
    if (axes_ < axes || axes_ > most_axes) {
      throw std::invalid_argument(label() + " has " + std::to_string(axes_) + " axes; give " + std::to_string(axes) +
                                  (axes == most_axes ? "" : " to " + std::to_string(most_axes)));
    }
    data_ = reinterpret_cast<void*>(PyLong_AsUnsignedLongLong(result_of(tensor, "data_ptr").ptr()));
    if (PyErr_Occurred()) throw py::error_already_set();
    if (data_ == nullptr) throw std::invalid_argument(label() + " is a tensor without memory; give tensors that hold their values");
  }

  int axes() const { return axes_; }
  std::int64_t size(std::size_t axis) const { return size_[axis]; }
  std::int64_t stride(std::size_t axis) const { return strides()[axis]; }
  bool given() const { return data_ != nullptr; }

  // Its dtype, which must be a floating point one.
  Dtype dtype() const {
    const py::object found = attribute(tensor_, "dtype");
    for (const Dtype dtype : {Dtype::kFloat32, Dtype::kFloat64, Dtype::kFloat16, Dtype::kBfloat16}) {
      if (found.ptr() == torch_dtype(dtype)) return dtype;
    }
    throw wrong_dtype(found, "a floating point tensor");
  }

  // Its elements, which must have this type.
  template <class Element>
  Element* of() const {
    using Bare = std::remove_const_t<Element>;
    if constexpr (std::is_same_v<Bare, std::int64_t>) {
      return static_cast<Element*>(checked(of_torch<kInt64Name>()));
    } else if constexpr (std::is_same_v<Bare, bool>) {
      return static_cast<Element*>(checked(of_torch<kBoolName>()));
    } else {
      return static_cast<Element*>(checked(torch_dtype(DtypeOf<Bare>::value)));
    }
  }
  void* of(Dtype dtype) const { return checked(torch_dtype(dtype)); }

  // Elements between the joints of [N, C, T, V]: channels are contiguous and joints evenly spaced.
  std::int64_t row_stride() const {
    const auto stride = strides();
    bool even = size_[1] == 1 || stride[1] == 1;
    std::int64_t found = -1, rows = 1;  // -1: not known yet; 0 is the stride of an expanded tensor
    for (const int axis : {3, 2, 0}) {
      if (size_[axis] == 1) continue;  // the stride of an axis of size 1 is meaningless
      if (found < 0) found = stride[axis];
      even = even && stride[axis] == rows * found;
      rows *= size_[axis];
    }
    if (!even) throw std::invalid_argument(label() + " has no rows of contiguous channels; give a channels-last tensor");
    return found < 0 ? size_[1] : found;
  }

 private:
  using Axes = std::array<std::int64_t, 5>;

  static Axes integers(const py::object& tuple) {
    Axes found{};
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple.ptr()) && i < static_cast<Py_ssize_t>(found.size()); ++i) {
      found[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(tuple.ptr(), i));
    }
    if (PyErr_Occurred()) throw py::error_already_set();
    return found;
  }

  Axes strides() const { return integers(result_of(tensor_, "stride")); }

  void* checked(PyObject* wanted) const {
    if (tensor_ == nullptr) return nullptr;
    const py::object found = attribute(tensor_, "dtype");
    if (found.ptr() != wanted) throw wrong_dtype(found, std::string(py::str(wanted)));
    return data_;
  }

  py::type_error wrong_dtype(const py::object& found, const std::string& wanted) const {
    return py::type_error(label() + " is " + std::string(py::str(found)) + "; give " + wanted);
  }

  std::string label() const { return std::string(op_) + ": " + name_; }

  const char* op_;
  const char* name_;
  PyObject* tensor_;  // borrowed from the call; null if it was not given
  void* data_ = nullptr;
  int axes_ = 0;
  Axes size_{};
};

// The keyword arguments of one call of an op.
class Fields {
 public:
  Fields(const char* op, const py::dict& given) : op_(op), given_(given) { read_.reserve(32); }

  Array tensor(const char* name, int axes) { return tensor(name, axes, axes); }
  Array tensor(const char* name, int axes, int most_axes) { return {op_, name, find(name), axes, most_axes}; }
  Array optional_tensor(const char* name, int axes) {
    PyObject* value = find(name);
    return {op_, name, value == Py_None ? nullptr : value, axes, axes};
  }
  // A field that the op does not use in this call.
  Array absent(const char* name) {
    find(name);
    return {op_, name, nullptr, 0, 0};
  }
  template <class Number>
  Number number(const char* name) {
    return cast<Number>(name, find(name));
  }
  std::int64_t integer_or(const char* name, std::int64_t fallback) {
    PyObject* value = find(name);
    return value == Py_None ? fallback : cast<std::int64_t>(name, value);
  }
  std::uint32_t low_word(const char* name) {
    return static_cast<std::uint32_t>(PyLong_AsUnsignedLongLongMask(find(name)) & 0xFFFFFFFF);
  }

  // Throws TypeError for a field that was given but not read.
  void all_read() const {
    if (read_.size() == static_cast<std::size_t>(PyDict_GET_SIZE(given_.ptr()))) return;
    for (const auto& entry : given_) {
      const std::string name = py::str(entry.first);
      bool known = false;
      for (const char* read : read_) known = known || name == read;
      if (!known) throw py::type_error(qualified(name.c_str()) + " is no field of the op; it has " + listed(read_));
    }
  }

 private:
  PyObject* find(const char* name) {
    PyObject* value = PyDict_GetItemWithError(given_.ptr(), interned(name));
    if (value == nullptr) {
      if (PyErr_Occurred()) throw py::error_already_set();
      std::vector<std::string> names;
      for (const auto& entry : given_) names.push_back(py::str(entry.first));
      throw py::type_error(qualified(name) + " is missing; given are " + listed(names));
    }
    read_.push_back(name);
    return value;
  }

  template <class Value>
  Value cast(const char* name, PyObject* value) const {
    py::detail::make_caster<Value> caster;
    if (!caster.load(value, true)) {
      throw py::type_error(qualified(name) + " is " + std::string(py::repr(value)) + "; give " + wanted<Value>());
    }
    return py::detail::cast_op<Value>(caster);
  }

  template <class Value>
  static const char* wanted() {
    if constexpr (std::is_same_v<Value, std::string>) return "a string";
    if constexpr (std::is_same_v<Value, bool>) return "True or False";
    return std::is_floating_point_v<Value> ? "a number" : "an integer in range";
  }

  template <class Names>
  static std::string listed(const Names& names) {
    std::string text;
    for (const auto& name : names) text += (text.empty() ? "" : ", ") + std::string(name);
    return text;
  }

  std::string qualified(const char* name) const { return std::string(op_) + ": " + name; }

  const char* op_;
  const py::dict& given_;
  std::vector<const char*> read_;
};

inline const std::vector<Dtype> kEveryDtype = {Dtype::kFloat32, Dtype::kFloat64, Dtype::kFloat16, Dtype::kBfloat16};

// Adds an op to a module, and its dtypes to the module's KERNELS. `prepare` reads the fields and returns a function that computes
// without the GIL.
template <class Prepare>
void declare(py::module_& module, const char* op, const std::vector<Dtype>& dtypes, const Prepare& prepare) {
  py::list names;
  for (const Dtype dtype : dtypes) names.append(name_of(dtype));
  if (!py::hasattr(module, "KERNELS")) module.attr("KERNELS") = py::dict();
  module.attr("KERNELS")[op] = py::tuple(names);
  module.def(op, [op, prepare](const py::kwargs& given) {
    Fields fields(op, given);
    const auto compute = prepare(fields);
    fields.all_read();
    const py::gil_scoped_release without_gil;
    compute();
  });
}

// Adds a file's ops to the module into which it is linked: `const Binding binding([](py::module_& module) { ... });`.
class Binding {
 public:
  using Bind = void (*)(py::module_&);

  explicit Binding(Bind bind) { all().push_back(bind); }
  static void run_all(py::module_& module) {
    for (const Bind bind : all()) bind(module);
  }

 private:
  static std::vector<Bind>& all() {
    static std::vector<Bind> found;
    return found;
  }
};

inline ClipShape clip_shape(const Array& clips) {
  return {clips.size(0), clips.size(1), clips.size(2), clips.size(3), clips.size(4)};
}

inline MixPlan mix_plan(Fields& fields) {
  MixPlan plan{};
  plan.partner = fields.tensor("partner", 1).of<std::int64_t>();
  plan.parts = fields.tensor("parts", 1).of<std::int64_t>();
  plan.start = fields.tensor("start", 1).of<std::int64_t>();
  plan.length = fields.tensor("length", 1).of<std::int64_t>();
  plan.source_start = fields.tensor("source_start", 1).of<std::int64_t>();
  plan.source_length = fields.tensor("source_length", 1).of<std::int64_t>();
  plan.lam = fields.tensor("lam", 1).of<double>();
  plan.blend = fields.tensor("blend", 1).of<bool>();
  return plan;
}

inline MixJob mix_job(Fields& fields) {
  const Array clips = fields.tensor("clips", 5);
  MixJob job{};
  job.shape = clip_shape(clips);
  job.dtype = clips.dtype();
  job.clips = {clips.of(job.dtype), clips.stride(0), clips.stride(1)};
  job.plan = mix_plan(fields);
  job.part_of_joint = fields.tensor("part_of_joint", 1).of<std::int64_t>();
  job.out = fields.tensor("out", 5).of(job.dtype);
  return job;
}

// The fields that a check of the values reads.
inline CoalitionJob coalitions_of(Fields& fields, const Array& clips) {
  CoalitionJob job{};
  job.shape = clip_shape(clips);
  const Array coalitions = fields.tensor("coalitions", 1, 2);
  job.coalitions = coalitions.of<std::int64_t>();
  job.sets = coalitions.size(0);
  job.set_stride = coalitions.stride(0);
  job.sample_stride = coalitions.axes() == 2 ? coalitions.stride(1) : 0;  // 0: shared by the batch
  job.part_of_joint = fields.tensor("part_of_joint", 1).of<std::int64_t>();
  return job;
}

inline CoalitionJob coalition_job(Fields& fields) {
  const Array clips = fields.tensor("clips", 5);
  CoalitionJob job = coalitions_of(fields, clips);
  const Dtype dtype = clips.dtype();
  job.clips = {clips.of(dtype), clips.stride(0), clips.stride(1)};
  const Array mean_motion = fields.tensor("mean_motion", 4);
  job.mean_motion = {mean_motion.of(dtype), 0, mean_motion.stride(0)};
  const std::int64_t frames = job.shape.frames, restored = fields.integer_or("restored_frames", frames);
  job.restored_frames = restored < 0 ? 0 : restored > frames ? frames : restored;
  job.element_size = element_bytes(dtype);
  job.out = fields.tensor("out", 5).of(dtype);
  return job;
}

}  // namespace shapmix

// Element types by their torch names, and the switches over them.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace shapmix {

enum class Dtype { kFloat32, kFloat64, kFloat16, kBfloat16 };

inline std::string name_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32: return "float32";
    case Dtype::kFloat64: return "float64";
    case Dtype::kFloat16: return "float16";
    case Dtype::kBfloat16: return "bfloat16";
  }
  return "dtype " + std::to_string(static_cast<int>(dtype));
}

// The Dtype of an element type; element.h has those of the CPU's half types, cuda_rounding.h those of CUDA's.
template <class Element>
struct DtypeOf;
template <>
struct DtypeOf<float> {
  static constexpr Dtype value = Dtype::kFloat32;
};
template <>
struct DtypeOf<double> {
  static constexpr Dtype value = Dtype::kFloat64;
};

// Calls body(Element{}) for the one of `Elements` that `dtype` names; `what` names the tensor and the path in the error.
template <class... Elements, class Body>
void switch_dtype(Dtype dtype, const char* what, const Body& body) {
  const bool found = ((dtype == DtypeOf<Elements>::value && (body(Elements{}), true)) || ...);
  if (found) return;
  std::string supported;
  ((supported += (supported.empty() ? "" : ", ") + name_of(DtypeOf<Elements>::value)), ...);
  throw std::invalid_argument(std::string(what) + " is " + name_of(dtype) + "; give one of " + supported);
}

// Calls body(Bits{}) with the unsigned integer of the elements' size, for ops that copy elements.
template <class Body>
void switch_element_size(std::int64_t bytes, const char* what, const Body& body) {
  switch (bytes) {
    case 2: return body(std::uint16_t{});
    case 4: return body(std::uint32_t{});
    case 8: return body(std::uint64_t{});
    default:
      throw std::invalid_argument(std::string(what) + " has elements of " + std::to_string(bytes) + " bytes; give 2, 4 or 8");
  }
}

}  // namespace shapmix

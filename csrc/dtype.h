// Element types by their torch names.
#pragma once

#include <stdexcept>
#include <string>

namespace shapmix {

enum class Dtype { kFloat32, kFloat64, kFloat16, kBfloat16 };

inline Dtype dtype_named(const std::string& name) {
  if (name == "float32") return Dtype::kFloat32;
  if (name == "float64") return Dtype::kFloat64;
  if (name == "float16") return Dtype::kFloat16;
  if (name == "bfloat16") return Dtype::kBfloat16;
  throw std::invalid_argument("dtype '" + name + "' is not supported; give float32, float64, float16 or bfloat16");
}

}  // namespace shapmix

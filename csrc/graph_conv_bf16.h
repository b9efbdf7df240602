// graph_conv in bfloat16 on CPUs with AVX512-BF16 dot products: graphs and their gradients are rounded to bfloat16, as under
// torch.autocast, and accumulated in float32.
#pragma once

#include <cstdint>

#include "graph_conv.h"
#include "graph_products.h"

namespace shapmix {

// True if the CPU supports it and the job has bfloat16 features, whole vectors of channels, and relations that are
// a multiple of 8 and at most 256.
bool fits_bf16(const GraphConvJob& job);

// Processes rows begin..end, like the other paths of graph_conv.cpp.
void graph_conv_bf16_rows(const GraphConvJob& job, const GraphConvEpilogue& epilogue, void* out, std::int64_t begin,
                          std::int64_t end);
void graph_conv_backward_bf16_rows(const GraphConvJob& job, const void* grad, const GraphConvGradients& gradients,
                                   PartialSums<float>& sums, std::int64_t begin, std::int64_t end);

}  // namespace shapmix

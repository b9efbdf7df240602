// graph_conv of bfloat16 on the processors that multiply pairs of them: graphs and gradients of graphs are rounded to bfloat16,
// as torch.autocast rounds them, and every sum is float32.
#pragma once

#include <cstdint>

#include "graph_conv.h"
#include "graph_products.h"

namespace shapmix {

// Whether the processor can, and the job has bfloat16 features, whole vectors of channels and pairs of relations.
bool fits_bf16(const GraphConvJob& job);

// Rows begin..end, as the other paths of graph_conv.cpp.
void graph_conv_bf16_rows(const GraphConvJob& job, const GraphConvEnding& ending, void* out, std::int64_t begin, std::int64_t end);
void graph_conv_backward_bf16_rows(const GraphConvJob& job, const void* grad, const GraphConvGradients& gradients,
                                   PartialSums<float>& sums, std::int64_t begin, std::int64_t end);

}  // namespace shapmix

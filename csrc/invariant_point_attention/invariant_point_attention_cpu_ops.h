// The calls that invariant_point_attention_cpu_ops.cpp makes once it knows the type (invariant_point_attention_cpu.h).
#pragma once

#include "invariant_point_attention_cpu_plan.h"

namespace paperops::ipa {

// results: o, o_points, o_pair, lse; nothing is empty.
template <typename X>
void attend(const Sizes& sizes, const Given& given, const Tensor* results);

// The gradients of the results, and the forward pass's logsumexp.
struct GivenGradients {
  const Tensor &o, &o_points, &o_pair, &lse;
};

// results: the gradients of q, k, v, q_points, k_points, v_points, z, bias, bias_weight, bias_bias, point_weights, each of
// its tensor's dtype and shape, or [0]; nothing else is empty.
template <typename X>
void attend_backward(const Sizes& sizes, const GivenGradients& gradients, const Given& given, const Tensor* results);

}  // namespace paperops::ipa

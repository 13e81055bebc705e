// Invariant point attention on the CPU: the dispatcher's side. Schemas and checks of the arguments are in
// paperops/ops/; what is checked here only keeps a direct call from reading outside its tensors.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../common/pages.h"
#include "invariant_point_attention_cpu_ops.h"

namespace paperops::ipa {
namespace {

void check(const char* name, const Tensor& tensor, std::initializer_list<int64_t> sizes, ScalarType type) {
  bool fits = tensor.dim() == static_cast<int64_t>(sizes.size()) && tensor.scalar_type() == type;
  for (int64_t d = 0; fits && d < tensor.dim(); ++d) {
    fits = tensor.size(d) == sizes.begin()[d];
  }
  STD_TORCH_CHECK(fits, name, " has the wrong shape or dtype");
}

void check_parameter(const char* name, const Optional& tensor, std::initializer_list<int64_t> sizes, ScalarType type) {
  if (tensor.has_value()) {
    check(name, *tensor, sizes, tensor->scalar_type() == type ? type : accumulator(type));
  }
}

Sizes check(const Given& given) {
  STD_TORCH_CHECK(given.q.dim() == 4 && given.q_points.dim() == 5 && given.v_points.dim() == 5 && given.z.dim() == 4,
                  "q and z must have 4 dimensions, points 5");
  const Sizes s = {given.q.size(0), given.q.size(1), given.q.size(2), given.q.size(3), 3 * given.q_points.size(3),
                   3 * given.v_points.size(3), given.z.size(3)};
  const int64_t b = s.batch, n = s.n, h = s.heads, pq = given.q_points.size(3), pv = given.v_points.size(3);
  STD_TORCH_CHECK(h >= 1 && s.channels >= 1 && pq >= 1 && pv >= 1 && s.pair_channels >= 1,
                  "heads, channels and points must be 1 at least");
  const ScalarType narrow = given.q.scalar_type(), wide = accumulator(narrow);
  check("k", given.k, {b, n, h, s.channels}, narrow);
  check("v", given.v, {b, n, h, s.channels}, narrow);
  check("q_points", given.q_points, {b, n, h, pq, 3}, wide);
  check("k_points", given.k_points, {b, n, h, pq, 3}, wide);
  check("v_points", given.v_points, {b, n, h, pv, 3}, wide);
  check("z", given.z, {b, n, n, s.pair_channels}, narrow);
  check("centres", given.centres, {b, n, 3}, wide);
  check("point_weights", given.point_weights, {h}, wide);
  STD_TORCH_CHECK(given.bias.has_value() != given.bias_weight.has_value(),
                  "exactly one of bias and bias_weight must be given");
  if (given.bias.has_value()) {
    check("bias", *given.bias, {b, n, n, h}, narrow);
  }
  check_parameter("bias_weight", given.bias_weight, {h, s.pair_channels}, narrow);
  check_parameter("bias_bias", given.bias_bias, {h}, narrow);
  if (given.mask.has_value()) {
    check("mask", *given.mask, {b, n}, ScalarType::Bool);
  }
  return s;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& q_points, const Tensor& k_points,
    const Tensor& v_points, const Tensor& z, const Tensor& centres, const Tensor& point_weights, const Optional& bias,
    const Optional& bias_weight, const Optional& bias_bias, const Optional& mask, double inf) {
  const Given given{q,       k,             v,    q_points,    k_points,  v_points, z,
                    centres, point_weights, bias, bias_weight, bias_bias, mask,     inf};
  const Sizes s = check(given);
  const ScalarType wide = accumulator(q.scalar_type());
  const Tensor results[4] = {empty_cpu({s.batch, s.n, s.heads, s.channels}, wide),
                             empty_cpu({s.batch, s.n, s.heads, s.value_coordinates / 3, 3}, wide),
                             empty_cpu({s.batch, s.n, s.heads, s.pair_channels}, wide),
                             empty_cpu({s.batch, s.heads, s.n}, wide)};
  if (s.batch > 0 && s.n > 0) {
    with_type(q.scalar_type(), [&](auto zero) { attend<decltype(zero)>(s, given, results); });
  }
  return {results[0], results[1], results[2], results[3]};
}

// An uninitialised contiguous tensor like another; [0], of `type`, for a None one.
Tensor empty_gradient(const Tensor& tensor) {
  int64_t sizes[8];
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    sizes[d] = tensor.size(d);
  }
  const ScalarType type = tensor.scalar_type();
  switch (tensor.dim()) {
    case 1: return empty_cpu({sizes[0]}, type);
    case 2: return empty_cpu({sizes[0], sizes[1]}, type);
    case 4: return empty_cpu({sizes[0], sizes[1], sizes[2], sizes[3]}, type);
    default: return empty_cpu({sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]}, type);
  }
}
Tensor empty_gradient(const Optional& tensor, ScalarType type) {
  return tensor.has_value() ? empty_gradient(*tensor) : empty_cpu({0}, type);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad_o, const Tensor& grad_o_points, const Tensor& grad_o_pair, const Tensor& delta,
    const Tensor& lse, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& q_points,
    const Tensor& k_points, const Tensor& v_points, const Tensor& z, const Tensor& centres, const Tensor& point_weights,
    const Optional& bias, const Optional& bias_weight, const Optional& bias_bias, const Optional& mask, double inf) {
  const Given given{q,       k,             v,    q_points,    k_points,  v_points, z,
                    centres, point_weights, bias, bias_weight, bias_bias, mask,     inf};
  const GivenGradients gradients{grad_o, grad_o_points, grad_o_pair, lse};
  const Sizes s = check(given);
  const ScalarType type = q.scalar_type(), wide = accumulator(type);
  check("grad_o", grad_o, {s.batch, s.n, s.heads, s.channels}, wide);
  check("grad_o_points", grad_o_points, {s.batch, s.n, s.heads, s.value_coordinates / 3, 3}, wide);
  check("grad_o_pair", grad_o_pair, {s.batch, s.n, s.heads, s.pair_channels}, wide);
  check("delta", delta, {s.batch, s.heads, s.n}, wide);
  check("lse", lse, {s.batch, s.heads, s.n}, wide);
  Tensor r[11] = {empty_gradient(q),        empty_gradient(k),        empty_gradient(v),
                  empty_gradient(q_points), empty_gradient(k_points), empty_gradient(v_points),
                  empty_gradient(z),        empty_gradient(bias, type), empty_gradient(bias_weight, type),
                  empty_gradient(bias_bias, type), empty_gradient(point_weights)};
  prefer_large_pages(r[6].data_ptr(), r[6].numel() * static_cast<int64_t>(r[6].element_size()));
  if (s.batch > 0 && s.n > 0) {
    with_type(type, [&](auto zero) { attend_backward<decltype(zero)>(s, gradients, given, r); });
  } else {
    for (Tensor& gradient : r) {
      torch::stable::zero_(gradient);
    }
  }
  return {r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7], r[8], r[9], r[10]};
}

}  // namespace
}  // namespace paperops::ipa

STABLE_TORCH_LIBRARY_IMPL(paperops, CPU, m) {
  m.impl("invariant_point_attention.native", TORCH_BOX(&paperops::ipa::forward));
  m.impl("invariant_point_attention_backward.native", TORCH_BOX(&paperops::ipa::backward));
}

// The triangle multiplicative update on the CPU: the dispatcher's side. Schemas and checks of the arguments are in
// paperops/ops/; what is checked here only keeps a direct call from reading outside its tensors.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "triangle_multiplication_cpu_ops.h"

namespace paperops::triangle {
namespace {

using Optional = std::optional<Tensor>;

// An uninitialised tensor [batch, a, b, c] for a result.
Tensor empty_result(int64_t batch, int64_t a, int64_t b, int64_t c, ScalarType type) {
  Tensor result = empty_cpu({batch, a, b, c}, type);
  prefer_large_pages(result.data_ptr(), result.numel() * static_cast<int64_t>(result.element_size()));
  return result;
}

// Calls work with values of X and P.
template <class Work>
void with_types(ScalarType type, const Work& work) {
  switch (type) {
    case ScalarType::Float: return work(float{}, float{});
    case ScalarType::Double: return work(double{}, double{});
    case ScalarType::Half: return work(Half{}, float{});
    case ScalarType::BFloat16:
      return has_bfloat16_products() ? work(BFloat16{}, BFloat16{}) : work(BFloat16{}, float{});
    default: STD_TORCH_CHECK(false, "expected float16, bfloat16, float32 or float64");
  }
}

void check_mask(const Optional& mask, const Tensor& x) {
  STD_TORCH_CHECK(!mask.has_value() || (mask->scalar_type() == accumulator(x.scalar_type()) &&
                                        mask->numel() == x.size(0) * x.size(1) * x.size(2)),
                  "mask must be [B, N, N], float64 for float64 and float32 otherwise");
}

void check_dtype(const Tensor& value, ScalarType type) {
  STD_TORCH_CHECK(value.scalar_type() == type || value.scalar_type() == accumulator(type),
                  "a parameter has the wrong dtype");
}

void check_vector(const Optional& value, int64_t size, ScalarType type) {
  if (value.has_value()) {
    STD_TORCH_CHECK(value->dim() == 1 && value->size(0) == size, "a parameter has the wrong shape");
    check_dtype(*value, type);
  }
}

void check_matrix(const Tensor& value, int64_t rows, int64_t columns, ScalarType type) {
  STD_TORCH_CHECK(value.dim() == 2 && value.size(0) == rows && value.size(1) == columns,
                  "a parameter has the wrong shape");
  check_dtype(value, type);
}

Sizes check(const Tensor& x, const Optional& mask, const Parameters& given, bool outgoing, bool gate_first, double eps) {
  STD_TORCH_CHECK(x.dim() == 4 && x.size(1) == x.size(2) && x.size(3) >= 1, "x must be [B, N, N, C]");
  STD_TORCH_CHECK(given.p_out_weight.dim() == 2 && given.p_out_weight.size(1) >= 1, "p_out_weight must be [C, D]");
  const Sizes sizes = {x.size(0), x.size(1), x.size(3), given.p_out_weight.size(1), outgoing, gate_first, eps};
  const int64_t c = sizes.channels, d = sizes.hidden, q = sizes.gate();
  const ScalarType type = x.scalar_type();
  check_mask(mask, x);
  check_vector(given.norm_in_weight, c, type);
  check_vector(given.norm_in_bias, c, type);
  check_matrix(given.p_in_weight, 2 * d, c, type);
  check_vector(given.p_in_bias, 2 * d, type);
  check_matrix(given.g_in_weight, 2 * d, c, type);
  check_vector(given.g_in_bias, 2 * d, type);
  check_vector(given.norm_out_weight, d, type);
  check_vector(given.norm_out_bias, d, type);
  check_matrix(given.p_out_weight, c, d, type);
  check_vector(given.p_out_bias, c, type);
  check_matrix(given.g_out_weight, q, c, type);
  check_vector(given.g_out_bias, q, type);
  return sizes;
}

// The CPU's forward pass is always the one of low memory: it is also the fastest.
std::tuple<Tensor, Tensor> forward(
    const Tensor& x, const Optional& mask, const Optional& norm_in_weight, const Optional& norm_in_bias,
    const Tensor& p_in_weight, const Optional& p_in_bias, const Tensor& g_in_weight, const Optional& g_in_bias,
    const Optional& norm_out_weight, const Optional& norm_out_bias, const Tensor& p_out_weight,
    const Optional& p_out_bias, const Tensor& g_out_weight, const Optional& g_out_bias, bool outgoing, bool gate_first,
    double eps, int64_t /*precision*/, bool keep, bool /*low_memory*/) {
  const Parameters given{norm_in_weight, norm_in_bias,    p_in_weight,   p_in_bias,    g_in_weight,  g_in_bias,
                         norm_out_weight, norm_out_bias, p_out_weight, p_out_bias, g_out_weight, g_out_bias};
  const Sizes s = check(x, mask, given, outgoing, gate_first, eps);
  const ScalarType type = x.scalar_type();
  Tensor out = empty_result(s.batch, s.n, s.n, s.channels, type);
  Tensor t = keep ? empty_result(s.batch, s.hidden, s.n, s.n, type) : empty_cpu({0}, type);
  if (s.batch > 0 && s.n > 0) {
    with_types(type, [&](auto x_zero, auto p_zero) {
      update<decltype(x_zero), decltype(p_zero)>(s, x, mask, given, out, keep ? &t : nullptr);
    });
  }
  return {out, t};
}

// dx, then one gradient for each parameter: of its dtype and shape, zero where there are no pairs, [0] for a None one.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
backward(const Tensor& grad, const Tensor& t, const Tensor& x, const Optional& mask, const Optional& norm_in_weight,
         const Optional& norm_in_bias, const Tensor& p_in_weight, const Optional& p_in_bias, const Tensor& g_in_weight,
         const Optional& g_in_bias, const Optional& norm_out_weight, const Optional& norm_out_bias,
         const Tensor& p_out_weight, const Optional& p_out_bias, const Tensor& g_out_weight, const Optional& g_out_bias,
         bool outgoing, bool gate_first, double eps, int64_t /*precision*/) {
  const Parameters given{norm_in_weight, norm_in_bias,    p_in_weight,   p_in_bias,    g_in_weight,  g_in_bias,
                         norm_out_weight, norm_out_bias, p_out_weight, p_out_bias, g_out_weight, g_out_bias};
  const Sizes s = check(x, mask, given, outgoing, gate_first, eps);
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(grad.numel() == x.numel() && grad.scalar_type() == type, "grad must be as x");
  STD_TORCH_CHECK(t.numel() == s.batch * s.hidden * s.pairs() && t.scalar_type() == type, "t must be [B, D, N, N]");
  const auto vector = [&](const Optional& parameter) {
    return parameter.has_value() ? empty_cpu({parameter->numel()}, parameter->scalar_type()) : empty_cpu({0}, type);
  };
  const auto matrix = [&](const Tensor& parameter) {
    return empty_cpu({parameter.size(0), parameter.size(1)}, parameter.scalar_type());
  };
  Tensor dx = empty_result(s.batch, s.n, s.n, s.channels, type);
  Tensor found[12] = {vector(norm_in_weight), vector(norm_in_bias), matrix(p_in_weight),     vector(p_in_bias),
                      matrix(g_in_weight),    vector(g_in_bias),    vector(norm_out_weight), vector(norm_out_bias),
                      matrix(p_out_weight),   vector(p_out_bias),   matrix(g_out_weight),    vector(g_out_bias)};
  if (s.batch > 0 && s.n > 0) {
    with_types(type, [&](auto x_zero, auto p_zero) {
      update_backward<decltype(x_zero), decltype(p_zero)>(s, grad, t, x, mask, given, dx, found);
    });
  } else {
    for (Tensor& gradient : found) {
      torch::stable::zero_(gradient);
    }
  }
  return {dx,       found[0], found[1], found[2], found[3],  found[4], found[5],
          found[6], found[7], found[8], found[9], found[10], found[11]};
}

Tensor contraction(const Tensor& a, const Tensor& b, const Optional& mask, bool outgoing) {
  STD_TORCH_CHECK(a.dim() == 4 && a.size(1) == a.size(2), "a must be [B, N, N, D]");
  STD_TORCH_CHECK(b.dim() == 4 && b.scalar_type() == a.scalar_type(), "b must be as a");
  for (int64_t dimension = 0; dimension < 4; ++dimension) {
    STD_TORCH_CHECK(a.size(dimension) == b.size(dimension), "a and b must have the same shape");
  }
  check_mask(mask, a);
  const Sizes s = {a.size(0), a.size(1), a.size(3), a.size(3), outgoing, false, 0.0};
  Tensor out = empty_result(s.batch, s.n, s.n, s.hidden, a.scalar_type());
  if (out.numel() > 0) {
    with_types(a.scalar_type(), [&](auto x_zero, auto p_zero) {
      contract_pairs<decltype(x_zero), decltype(p_zero)>(s, a, b, mask, out);
    });
  }
  return out;
}

}  // namespace
}  // namespace paperops::triangle

STABLE_TORCH_LIBRARY_IMPL(paperops, CPU, m) {
  m.impl("triangle_multiplication.native", TORCH_BOX(&paperops::triangle::forward));
  m.impl("triangle_multiplication_backward.native", TORCH_BOX(&paperops::triangle::backward));
  m.impl("triangle_contract.native", TORCH_BOX(&paperops::triangle::contraction));
}

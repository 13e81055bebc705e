// Nearest neighbours and Chamfer distance on the CPU: the dispatcher's side. Schemas and checks of the arguments are in
// paperops/ops/nearest.py; what is checked here only keeps a direct call from reading outside its tensors.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <tuple>

#include "../common/tensors.h"
#include "nearest.h"
#include "nearest_cpu.h"

namespace paperops::nearest {
namespace {

using Lengths = std::optional<Tensor>;

void check_clouds(const Tensor& x, const Tensor& y, const Lengths& x_lengths, const Lengths& y_lengths, int64_t norm) {
  STD_TORCH_CHECK(x.dim() == 3 && y.dim() == 3, "x and y must be [B, N, D] and [B, M, D]");
  STD_TORCH_CHECK(x.size(0) == y.size(0) && x.size(2) == y.size(2), "x and y must have the same B and D");
  STD_TORCH_CHECK(x.size(2) >= 1, "x and y must have at least one dimension");
  STD_TORCH_CHECK(x.scalar_type() == y.scalar_type(), "x and y must have the same dtype");
  const ScalarType type = x.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
                      type == ScalarType::BFloat16,
                  "x and y must be float16, bfloat16, float32 or float64");
  STD_TORCH_CHECK(norm == 1 || norm == 2, "norm must be 1 or 2");
  STD_TORCH_CHECK(!x_lengths.has_value() || x_lengths->numel() == x.size(0), "x_lengths must be [B]");
  STD_TORCH_CHECK(!y_lengths.has_value() || y_lengths->numel() == y.size(0), "y_lengths must be [B]");
}

void check_pairs(const Tensor& gradient, const Tensor& indices, const Tensor& queries, int64_t k) {
  STD_TORCH_CHECK(indices.scalar_type() == ScalarType::Long, "indices must be int64");
  STD_TORCH_CHECK(gradient.scalar_type() == accumulator(queries.scalar_type()),
                  "gradients of distances must be float64 for float64 points, else float32");
  STD_TORCH_CHECK(gradient.numel() == queries.size(0) * queries.size(1) * k && indices.numel() == gradient.numel(),
                  "gradients and indices must have an element for each neighbour");
}

template <typename T>
T* data_of(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// Calls work with a value of the accumulator type.
template <class Work>
void with_accumulator(const Tensor& x, const Work& work) {
  if (x.scalar_type() == ScalarType::Double) {
    work(double{});
  } else {
    work(float{});
  }
}

std::tuple<Tensor, Tensor> knn(const Tensor& x, const Tensor& y, const Lengths& x_lengths, const Lengths& y_lengths,
                               int64_t k, int64_t norm) {
  check_clouds(x, y, x_lengths, y_lengths, norm);
  STD_TORCH_CHECK(k >= 1, "k must be at least 1");
  const ScalarType type = accumulator(x.scalar_type());
  Tensor distances = empty_cpu({x.size(0), x.size(1), k}, type);                 // [B, N, k]
  Tensor indices = empty_cpu({x.size(0), x.size(1), k}, ScalarType::Long);       // [B, N, k]
  with_accumulator(x, [&](auto zero) {
    using T = decltype(zero);
    const Elements<T> x_points(x), y_points(y);
    const Integers x_valid(x_lengths), y_valid(y_lengths);
    find_neighbours<T>({x.size(0), x.size(1), y.size(1), x.size(2), norm, k, x_points.data(), y_points.data(),
                        x_valid.data(), y_valid.data(), data_of<T>(distances), data_of<int64_t>(indices), nullptr,
                        nullptr});
  });
  return {distances, indices};
}

// What nearest returns, and chamfer after its loss.
struct Nearest {
  Tensor x_distances;  // [B, N]
  Tensor x_indices;    // [B, N]
  Tensor y_distances;  // [B, M]
  Tensor y_indices;    // [B, M]
};

Nearest find_nearest(const Tensor& x, const Tensor& y, const Lengths& x_lengths, const Lengths& y_lengths,
                     int64_t norm) {
  check_clouds(x, y, x_lengths, y_lengths, norm);
  const ScalarType type = accumulator(x.scalar_type());
  const int64_t batch = x.size(0), n = x.size(1), m = y.size(1);
  Nearest out{empty_cpu({batch, n}, type), empty_cpu({batch, n}, ScalarType::Long), empty_cpu({batch, m}, type),
              empty_cpu({batch, m}, ScalarType::Long)};
  with_accumulator(x, [&](auto zero) {
    using T = decltype(zero);
    const Elements<T> x_points(x), y_points(y);
    const Integers x_valid(x_lengths), y_valid(y_lengths);
    find_neighbours<T>({batch, n, m, x.size(2), norm, 1, x_points.data(), y_points.data(), x_valid.data(),
                        y_valid.data(), data_of<T>(out.x_distances), data_of<int64_t>(out.x_indices),
                        data_of<T>(out.y_distances), data_of<int64_t>(out.y_indices)});
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> nearest(const Tensor& x, const Tensor& y, const Lengths& x_lengths,
                                                   const Lengths& y_lengths, int64_t norm) {
  const Nearest out = find_nearest(x, y, x_lengths, y_lengths, norm);
  return {out.x_distances, out.x_indices, out.y_distances, out.y_indices};
}

// The pairs that one cloud chose: gradients of their distances, and whom each point chose.
struct Pairs {
  const Tensor* gradient = nullptr;
  const Tensor* indices = nullptr;
  int64_t k = 1;
};

// The gradient with respect to a of the pairs that a chose in b and of those that b chose in a.
Tensor gradient_of(const Tensor& a, const Tensor& b, const Pairs& own, const Pairs& other, int64_t norm) {
  const int64_t batch = a.size(0), dimensions = a.size(2);
  Tensor gradient = empty_cpu({batch, a.size(1), dimensions}, accumulator(a.scalar_type()));  // [B, N, D]
  const auto optional = [](const Tensor* tensor) { return tensor ? std::optional<Tensor>(*tensor) : std::nullopt; };
  with_accumulator(a, [&](auto zero) {
    using T = decltype(zero);
    const Elements<T> a_points(a), b_points(b), own_gradient(optional(own.gradient)),
        other_gradient(optional(other.gradient));
    const Integers own_indices(optional(own.indices)), other_indices(optional(other.indices));
    pair_gradient_cpu<T>({batch, a.size(1), b.size(1), dimensions, norm, a_points.data(), b_points.data(),
                          own_gradient.data(), own_indices.data(), own.k, other_gradient.data(), other_indices.data(),
                          other.k, data_of<T>(gradient)});
  });
  return gradient.scalar_type() == a.scalar_type() ? gradient : torch::stable::to(gradient, a.scalar_type());
}

std::tuple<Tensor, Tensor> knn_backward(const Tensor& grad_distances, const Tensor& x, const Tensor& y,
                                        const Tensor& indices, int64_t norm) {
  check_clouds(x, y, std::nullopt, std::nullopt, norm);
  STD_TORCH_CHECK(indices.dim() == 3, "indices must be [B, N, k]");
  const Pairs pairs{&grad_distances, &indices, indices.size(2)};
  check_pairs(grad_distances, indices, x, pairs.k);
  return {gradient_of(x, y, pairs, {}, norm), gradient_of(y, x, {}, pairs, norm)};
}

std::tuple<Tensor, Tensor> nearest_backward(const Tensor& grad_x_distances, const Tensor& grad_y_distances,
                                            const Tensor& x, const Tensor& y, const Tensor& x_indices,
                                            const Tensor& y_indices, int64_t norm) {
  check_clouds(x, y, std::nullopt, std::nullopt, norm);
  check_pairs(grad_x_distances, x_indices, x, 1);
  check_pairs(grad_y_distances, y_indices, y, 1);
  const Pairs x_pairs{&grad_x_distances, &x_indices, 1}, y_pairs{&grad_y_distances, &y_indices, 1};
  return {gradient_of(x, y, x_pairs, y_pairs, norm), gradient_of(y, x, y_pairs, x_pairs, norm)};
}

// sum_i coefficient_i f(distance_i), f the identity or the root; coefficients null = 1. In eight interleaved partial
// sums, added in order: fixed, and not bound by the latency of one addition.
template <typename T>
double weighted_sum(const T* distances, const T* coefficients, int64_t count, bool squared) {
  double sums[8] = {};
  for (int64_t i = 0; i < count; ++i) {
    const double value = static_cast<double>(distances[i]);
    const double weight = coefficients != nullptr ? static_cast<double>(coefficients[i]) : 1.0;
    sums[i % 8] += weight * (squared ? value : std::sqrt(value));
  }
  double total = 0.0;
  for (const double sum : sums) {
    total += sum;
  }
  return total;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> chamfer(
    const Tensor& x, const Tensor& y, const Lengths& x_lengths, const Lengths& y_lengths,
    const std::optional<Tensor>& x_coefficients, const std::optional<Tensor>& y_coefficients, int64_t x_divisor,
    int64_t y_divisor, int64_t norm, bool squared, bool reduce_batch) {
  const Nearest found = find_nearest(x, y, x_lengths, y_lengths, norm);
  const ScalarType type = accumulator(x.scalar_type());
  const int64_t batch = x.size(0), n = x.size(1), m = y.size(1);
  for (const auto& [coefficients, points] : {std::pair(x_coefficients, n), std::pair(y_coefficients, m)}) {
    STD_TORCH_CHECK(!coefficients.has_value() ||
                        (coefficients->scalar_type() == type && coefficients->numel() == batch * points),
                    "coefficients must have an element for each point, in the distances' dtype");
  }
  Tensor loss = reduce_batch ? empty_cpu({}, type) : empty_cpu({batch}, type);  // [] or [B]
  with_accumulator(x, [&](auto zero) {
    using T = decltype(zero);
    const Elements<T> x_weights(x_coefficients), y_weights(y_coefficients);
    const Integers x_valid(x_lengths), y_valid(y_lengths);
    const Buffer<double> losses(batch);
    run_tasks(batch, batch * (n + m) > 65536, [&](const auto& next) {
      const auto side = [&](const Tensor& distances, const T* weights, int64_t b, int64_t size, int64_t count) {
        return weighted_sum(data_of<T>(distances) + b * size, weights ? weights + b * size : nullptr, count, squared);
      };
      for (int64_t b = next(); b >= 0; b = next()) {
        const int64_t x_count = clamp_length(x_valid.data(), b, n);
        const int64_t y_count = clamp_length(y_valid.data(), b, m);
        losses.data()[b] = x_count == 0 || y_count == 0
                               ? 0.0
                               : side(found.x_distances, x_weights.data(), b, n, x_count) / static_cast<double>(x_divisor) +
                                     side(found.y_distances, y_weights.data(), b, m, y_count) / static_cast<double>(y_divisor);
      }
    });
    double total = 0.0;
    for (int64_t b = 0; b < batch; ++b) {
      total += losses.data()[b];
      if (!reduce_batch) {
        data_of<T>(loss)[b] = static_cast<T>(losses.data()[b]);
      }
    }
    if (reduce_batch) {
      *data_of<T>(loss) = static_cast<T>(total);
    }
  });
  return {loss, found.x_distances, found.x_indices, found.y_distances, found.y_indices};
}

}  // namespace
}  // namespace paperops::nearest

STABLE_TORCH_LIBRARY_IMPL(paperops, CPU, m) {
  m.impl("knn.native", TORCH_BOX(&paperops::nearest::knn));
  m.impl("knn_backward.native", TORCH_BOX(&paperops::nearest::knn_backward));
  m.impl("nearest.native", TORCH_BOX(&paperops::nearest::nearest));
  m.impl("nearest_backward.native", TORCH_BOX(&paperops::nearest::nearest_backward));
  m.impl("chamfer.native", TORCH_BOX(&paperops::nearest::chamfer));
}

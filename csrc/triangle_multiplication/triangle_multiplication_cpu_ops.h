// The calls that triangle_multiplication_cpu_ops.cpp makes once it knows the types (triangle_multiplication_cpu.h).
#pragma once

#include "triangle_multiplication_cpu_plan.h"

namespace paperops::triangle {

// out [B, N, N, C] and, where not null, kept [B, D, N, N]; nothing is empty.
template <typename X, typename P>
void update(const Sizes& sizes, const Tensor& x, const std::optional<Tensor>& mask, const Parameters& parameters,
            const Tensor& out, const Tensor* kept);

// The gradients of x and of the parameters, each of which is a tensor of its parameter's dtype and shape, or [0].
template <typename X, typename P>
void update_backward(const Sizes& sizes, const Tensor& grad, const Tensor& t, const Tensor& x,
                     const std::optional<Tensor>& mask, const Parameters& parameters, const Tensor& dx,
                     const Tensor* gradients);

// out [B, N, N, D]; nothing is empty.
template <typename X, typename P>
void contract_pairs(const Sizes& sizes, const Tensor& a, const Tensor& b, const std::optional<Tensor>& mask,
                    const Tensor& out);

}  // namespace paperops::triangle

// The types of tensors that ops for models take, and what they are computed in.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <type_traits>

namespace paperops {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// What is computed of X: float, or double for double.
template <typename X>
using Wide = std::conditional_t<std::is_same<X, double>::value, double, float>;

}  // namespace paperops

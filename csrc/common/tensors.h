// Tensors of the stable ABI, as the CPU ops use them.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <initializer_list>
#include <optional>

#include "parallel.h"

namespace paperops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// An uninitialised contiguous CPU tensor. (torch::stable::empty goes through the dispatcher: several times dearer.)
inline Tensor empty_cpu(std::initializer_list<int64_t> sizes, ScalarType type) {
  int64_t strides[8];
  int64_t stride = 1;
  for (int64_t i = static_cast<int64_t>(sizes.size()) - 1; i >= 0; --i) {
    strides[i] = stride;
    stride *= sizes.begin()[i] > 0 ? sizes.begin()[i] : 1;
  }
  const int32_t dtype =
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.begin(), strides, dtype, aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// float64 for float64, float32 for all narrower types.
inline ScalarType accumulator(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Calls work with a value of the type of a floating-point tensor's elements.
template <class Work>
void with_type(ScalarType type, const Work& work) {
  switch (type) {
    case ScalarType::Float: return work(float{});
    case ScalarType::Double: return work(double{});
    case ScalarType::Half: return work(torch::headeronly::Half{});
    case ScalarType::BFloat16: return work(torch::headeronly::BFloat16{});
    default: STD_TORCH_CHECK(false, "expected float16, bfloat16, float32 or float64");
  }
}

// A tensor's elements as T, its accumulator type: the tensor's own memory where it is contiguous and already of that
// type, else a copy (exact for the narrower types). Empty where there is no tensor.
template <typename T>
class Elements {
 public:
  explicit Elements(const Tensor& tensor) : tensor_(as_contiguous(tensor)), copy_(copy_size(*tensor_)) {
    switch (tensor_->scalar_type()) {
      case ScalarType::Half: convert<torch::headeronly::Half>(); break;
      case ScalarType::BFloat16: convert<torch::headeronly::BFloat16>(); break;
      default: data_ = static_cast<const T*>(tensor_->data_ptr());
    }
  }
  explicit Elements(const std::optional<Tensor>& tensor) : copy_(0) {
    if (tensor.has_value()) {
      tensor_ = as_contiguous(*tensor);
      data_ = static_cast<const T*>(tensor_->data_ptr());
    }
  }
  Elements(const Elements&) = delete;
  Elements& operator=(const Elements&) = delete;

  const T* data() const { return data_; }

 private:
  static int64_t copy_size(const Tensor& tensor) {
    const ScalarType type = tensor.scalar_type();
    return type == ScalarType::Half || type == ScalarType::BFloat16 ? tensor.numel() : 0;
  }
  template <typename Narrow>
  void convert() {
    const auto* narrow = static_cast<const Narrow*>(tensor_->data_ptr());
    const int64_t size = tensor_->numel();
    run_tasks((size + kPart - 1) / kPart, size > 4 * kPart, [&](const auto& next) {
      for (int64_t part = next(); part >= 0; part = next()) {
        for (int64_t i = part * kPart; i < size && i < (part + 1) * kPart; ++i) {
          copy_.data()[i] = static_cast<float>(narrow[i]);
        }
      }
    });
    data_ = copy_.data();
  }
  static constexpr int64_t kPart = 16384;
  std::optional<Tensor> tensor_;
  Buffer<T> copy_;
  const T* data_ = nullptr;
};

// The int64 elements of a tensor (null where there is none).
class Integers {
 public:
  explicit Integers(const std::optional<Tensor>& tensor) {
    if (tensor.has_value()) {
      STD_TORCH_CHECK(tensor->scalar_type() == ScalarType::Long, "expected an int64 tensor");
      tensor_ = as_contiguous(*tensor);
    }
  }
  const int64_t* data() const {
    return tensor_.has_value() ? static_cast<const int64_t*>(tensor_->data_ptr()) : nullptr;
  }

 private:
  std::optional<Tensor> tensor_;
};

}  // namespace paperops

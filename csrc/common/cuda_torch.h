// What every CUDA op needs of torch, through its stable ABI: element types, the current stream, the device's size.
#pragma once

#include <array>
#include <atomic>
#include <cuda_runtime.h>
#include <optional>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include "cuda.cuh"

namespace paperops::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Dtype dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half: return Dtype::float16;
    case ScalarType::BFloat16: return Dtype::bfloat16;
    case ScalarType::Float: return Dtype::float32;
    case ScalarType::Double: return Dtype::float64;
    default: STD_TORCH_CHECK(false, "expected a float16, bfloat16, float32 or float64 tensor");
  }
  return Dtype::float32;
}

// The type that an op computes and returns distances in.
inline ScalarType accumulator(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

// Multiprocessors of the device, asked for once.
inline int processors(int32_t device) {
  static std::array<std::atomic<int>, 64> known{};
  int count = device < 64 ? known[device].load(std::memory_order_relaxed) : 0;
  if (count == 0) {
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
    if (device < 64) {
      known[device].store(count, std::memory_order_relaxed);
    }
  }
  return count;
}

inline const void* data_of(const Tensor& tensor) {
  return tensor.const_data_ptr();
}

}  // namespace paperops::cuda

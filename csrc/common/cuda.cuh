// What every CUDA op shares: element types known at run time, launching, and the device's size.
//
// The kernels include this file, and through it nothing of torch, so that the tests can compile them with a host
// compiler and run them thread by thread (PAPEROPS_EMULATE_CUDA; tests/csrc/emulate_cuda.h).
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(PAPEROPS_EMULATE_CUDA)
#include "emulate_cuda.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

namespace paperops::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarp = 32;

enum class Dtype : int { float16, bfloat16, float32, float64 };

// Element i of an array, in the type that the kernel computes in. The type is a run-time argument, uniform over the
// launch, because loads are a small part of these kernels and a template over it would multiply their number by three.
template <typename T>
__device__ __forceinline__ T load(const void* data, int64_t i, Dtype dtype) {
  if constexpr (sizeof(T) == 8) {
    return static_cast<const double*>(data)[i];
  } else {
    if (dtype == Dtype::float32) {
      return static_cast<const float*>(data)[i];
    }
    if (dtype == Dtype::float16) {
      return __half2float(static_cast<const __half*>(data)[i]);
    }
    return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]);
  }
}

template <typename T>
__device__ __forceinline__ void store(void* data, int64_t i, T value, Dtype dtype) {
  if constexpr (sizeof(T) == 8) {
    static_cast<double*>(data)[i] = value;
  } else {
    if (dtype == Dtype::float32) {
      static_cast<float*>(data)[i] = value;
    } else if (dtype == Dtype::float16) {
      static_cast<__half*>(data)[i] = __float2half_rn(value);
    } else {
      static_cast<__nv_bfloat16*>(data)[i] = __float2bfloat16_rn(value);
    }
  }
}

template <typename Integer>
__host__ __device__ constexpr Integer ceil_div(Integer a, Integer b) {
  return (a + b - 1) / b;
}

// A divisor with its reciprocal, found on the host: a 64-bit division is a function call on the device, which costs
// registers around it. The product is within one of the quotient for every numerator below 2^51.
struct Divisor {
  int64_t value = 1;
  double reciprocal = 1.0;

  Divisor() = default;
  Divisor(int64_t divisor) : value(divisor), reciprocal(divisor == 0 ? 0.0 : 1.0 / static_cast<double>(divisor)) {}

  __device__ __forceinline__ int64_t divide(int64_t numerator) const {
    const int64_t guess = static_cast<int64_t>(static_cast<double>(numerator) * reciprocal);
    const int64_t rest = numerator - guess * value;
    return rest < 0 ? guess - 1 : (rest >= value ? guess + 1 : guess);
  }
};

// A grid for `items` blocks of work: the kernels stride over what does not fit into one grid dimension.
inline unsigned grid_for(int64_t items) {
  constexpr int64_t most = 2147483647;
  return static_cast<unsigned>(items < most ? items : most);
}

#if !defined(PAPEROPS_EMULATE_CUDA)
// The error is left for the caller, which checks cudaGetLastError after each launch.
template <typename... Parameters, typename... Arguments>
void launch(
    void (*kernel)(Parameters...), unsigned grid, unsigned block, size_t shared, cudaStream_t stream,
    const Arguments&... arguments) {
  kernel<<<grid, block, shared, stream>>>(arguments...);
}
#endif

}  // namespace paperops::cuda

// What the nearest-neighbour kernels share: their arguments, points in registers and shared memory, and the order of
// distances as integers.
#pragma once

#include "nearest.h"
#include "nearest_cuda_plan.h"

namespace paperops::nearest {

constexpr uint64_t kInfinityKey = 0x7ff0000000000000ull;
constexpr uint64_t kNanKey = 0x7ff8000000000000ull;
constexpr uint64_t kNoKey = ~0ull;

// A non-negative distance as an integer of the same order, with NaN after all numbers (and kNoKey after NaN).
PAPEROPS_HOST_DEVICE uint64_t distance_key(double distance) {
#if defined(__CUDA_ARCH__)
  return distance != distance ? kNanKey : static_cast<uint64_t>(__double_as_longlong(distance));
#else
  uint64_t bits;
  __builtin_memcpy(&bits, &distance, sizeof bits);
  return distance != distance ? kNanKey : bits;
#endif
}

PAPEROPS_HOST_DEVICE double key_distance(uint64_t key) {
#if defined(__CUDA_ARCH__)
  return __longlong_as_double(static_cast<long long>(key));
#else
  double distance;
  __builtin_memcpy(&distance, &key, sizeof distance);
  return distance;
#endif
}

// ---- filter distances -----------------------------------------------------------------------------------------

template <int D, int Norm, typename T>
__device__ __forceinline__ T filter_distance(const T (&x)[D], const T (&y)[D]) {
  T sum = filter_add<Norm>(T(0), x[0], y[0]);
#pragma unroll
  for (int d = 1; d < D; ++d) {
    sum = filter_add<Norm>(sum, x[d], y[d]);
  }
  return sum;
}

// The float64 distance of points held in registers; zeros in the dimensions above the true D add exactly nothing.
template <int D, int Norm, typename T>
__device__ __forceinline__ double exact_distance_of(const T (&x)[D], const T (&y)[D]) {
  double sum = 0.0;
#pragma unroll
  for (int d = 0; d < D; ++d) {
    sum = exact_add<Norm>(sum, static_cast<double>(x[d]), static_cast<double>(y[d]));
  }
  return sum;
}

template <int D, typename T, typename Element>
__device__ __forceinline__ void load_point_of(T (&point)[D], const Element* data, int64_t i, int dimensions) {
#pragma unroll
  for (int d = 0; d < D; ++d) {
    point[d] = d < dimensions ? static_cast<T>(data[i * dimensions + d]) : T(0);
  }
}

// Point i of a cloud, zeros in the dimensions above the true D. One branch on the type, not one an element.
template <int D, typename T>
__device__ __forceinline__ void load_point(T (&point)[D], const void* data, int64_t i, int dimensions, Dtype dtype) {
  if constexpr (sizeof(T) == 8) {
    load_point_of(point, static_cast<const double*>(data), i, dimensions);
  } else if (dtype == Dtype::float32) {
    load_point_of(point, static_cast<const float*>(data), i, dimensions);
  } else if (dtype == Dtype::float16) {
    load_point_of(point, static_cast<const __half*>(data), i, dimensions);
  } else {
    load_point_of(point, static_cast<const __nv_bfloat16*>(data), i, dimensions);
  }
}

template <int D, typename T>
__device__ __forceinline__ bool point_has_nan(const T (&point)[D]) {
  bool result = false;
#pragma unroll
  for (int d = 0; d < D; ++d) {
    result = result || point[d] != point[d];
  }
  return result;
}

// Fills `stage` with targets [first, first + width) of the cloud that starts at row `row`; NaN from `valid` on.
template <int D, int Width, typename T>
__device__ __forceinline__ void load_stage(
    T (&stage)[D][Width], const void* targets, int64_t row, int64_t first, int64_t valid, int dimensions,
    Dtype dtype) {
  for (int j = threadIdx.x; j < Width; j += blockDim.x) {
    T y[D];
    if (first + j < valid) {
      load_point(y, targets, row + first + j, dimensions, dtype);
    } else {
#pragma unroll
      for (int d = 0; d < D; ++d) {
        y[d] = static_cast<T>(NAN);
      }
    }
#pragma unroll
    for (int d = 0; d < D; ++d) {
      stage[d][j] = y[d];
    }
  }
}

}  // namespace paperops::nearest

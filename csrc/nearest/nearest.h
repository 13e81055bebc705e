// Arithmetic of the nearest-neighbour ops, shared by the CPU and the CUDA implementation.
//
// Neighbours are ordered by (is NaN, distance, index), where the distance is computed in float64 from the given
// values, in order of dimension and without fused multiply-add: see exact_distance and before. Faster arithmetic
// (float32 for narrower inputs, fused) serves as a filter only: see FilterBound.
//
// Every function is static and inlined, so that translation units compiled for different instruction sets never
// share a copy. A host compiler must be run with -ffp-contract=off, or exact_distance may be fused.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#if defined(__CUDACC__)
#define PAPEROPS_HOST_DEVICE static __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define PAPEROPS_HOST_DEVICE static __forceinline
#else
#define PAPEROPS_HOST_DEVICE static inline __attribute__((always_inline, unused))
#endif

namespace paperops::nearest {

// ---- distances ------------------------------------------------------------------------------------------------

// One dimension of the filter distance, added to `sum`: |a - b| for norm 1, (a - b)^2 for norm 2. May be fused.
template <int Norm, typename T>
PAPEROPS_HOST_DEVICE T filter_add(T sum, T a, T b) {
  const T difference = a - b;
  if constexpr (Norm == 1) {
#if defined(__CUDA_ARCH__)
    return sum + fabs(difference);
#else
    return sum + (difference < T(0) ? -difference : difference);
#endif
  } else {
#if defined(__CUDA_ARCH__)
    if constexpr (sizeof(T) == 4) {
      return fmaf(difference, difference, sum);
    } else {
      return fma(difference, difference, sum);
    }
#else
    return sum + difference * difference;
#endif
  }
}

// One dimension of the exact distance, added to `sum` with every operation rounded on its own.
template <int Norm>
PAPEROPS_HOST_DEVICE double exact_add(double sum, double a, double b) {
#if defined(__CUDA_ARCH__)
  const double difference = __dsub_rn(a, b);
  return __dadd_rn(sum, Norm == 1 ? fabs(difference) : __dmul_rn(difference, difference));
#else
  const double difference = a - b;
  return sum + (Norm == 1 ? std::fabs(difference) : difference * difference);
#endif
}

// The distance that decides: sum over d, in order, of |a_d - b_d| or (a_d - b_d)^2 in float64.
// Element d of a point lies at point[d * stride].
template <int Norm, typename T>
PAPEROPS_HOST_DEVICE double exact_distance(
    const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t dimensions) {
  double sum = 0.0;
  for (int64_t d = 0; d < dimensions; ++d) {
    sum = exact_add<Norm>(sum, static_cast<double>(a[d * a_stride]), static_cast<double>(b[d * b_stride]));
  }
  return sum;
}

// Whether (distance a, index i) comes before (distance b, index j): NaN after all numbers, ties by index.
PAPEROPS_HOST_DEVICE bool before(double a, int64_t i, double b, int64_t j) {
  const bool a_nan = a != a;
  const bool b_nan = b != b;
  if (a_nan != b_nan) {
    return b_nan;
  }
  if (a_nan || a == b) {
    return i < j;
  }
  return a < b;
}

template <typename T>
PAPEROPS_HOST_DEVICE bool has_nan(const T* point, int64_t stride, int64_t dimensions) {
  for (int64_t d = 0; d < dimensions; ++d) {
    if (point[d * stride] != point[d * stride]) {
      return true;
    }
  }
  return false;
}

// ---- the filter -----------------------------------------------------------------------------------------------

// If f is the least filter distance seen, every candidate for the nearest has a filter distance <= bound(f).
// With u the unit roundoff of T, a filter distance is within (1 +- e) of the true one, e = n u / (1 - n u), where
// n = D + 4 covers the subtraction (twice, squared), the product, the D additions, and the float64 roundings of the
// exact distance; and within `a` absolutely, which covers underflow (also where denormal numbers are flushed to zero).
// So a candidate has filter distance <= (f + a) (1 + e) / (1 - e) + a. An overflow to +inf on either side gives
// bound = +inf, which every number passes: the comparison must be `filter <= bound`, and where the bound is +inf or
// NaN the NaN distances must be candidates too.
template <typename T>
struct FilterBound {
  T scale;
  T offset;
};

template <typename T>
PAPEROPS_HOST_DEVICE FilterBound<T> filter_bound(int64_t dimensions) {
  // 2^-24 and 2^-126, 2^-53 and 2^-1022
  const double unit = sizeof(T) == 4 ? 5.9604644775390625e-8 : 1.1102230246251565e-16;
  const double smallest = sizeof(T) == 4 ? 1.1754943508222875e-38 : 2.2250738585072014e-308;
  const double nu = (static_cast<double>(dimensions) + 4.0) * unit;
  if (nu > 0.125) {  // no useful bound in so many dimensions: everything is a candidate
    return {static_cast<T>(INFINITY), static_cast<T>(INFINITY)};
  }
  const double e = nu / (1.0 - nu);
  // two more roundings (of the scale, and of the product below); a = 4 D smallest
  const double scale = (1.0 + e) / (1.0 - e) + 4.0 * unit;
  return {static_cast<T>(scale), static_cast<T>(16.0 * static_cast<double>(dimensions) * smallest)};
}

template <typename T>
PAPEROPS_HOST_DEVICE T threshold(FilterBound<T> bound, T filter_distance) {
  return filter_distance * bound.scale + bound.offset;
}

// ---- lists ----------------------------------------------------------------------------------------------------

// Inserts a candidate into a list of `k` sorted by `before`, which drops its last entry. The caller has checked that
// the candidate comes before the last entry. Unused slots hold (NaN, largest int64), which come last.
template <typename Index>
PAPEROPS_HOST_DEVICE void insert_sorted(double* distances, Index* indices, int64_t k, double distance, Index index) {
  int64_t slot = k - 1;
  while (slot > 0 && before(distance, index, distances[slot - 1], indices[slot - 1])) {
    distances[slot] = distances[slot - 1];
    indices[slot] = indices[slot - 1];
    --slot;
  }
  distances[slot] = distance;
  indices[slot] = index;
}

// ---- lengths and gradients ------------------------------------------------------------------------------------

// The valid length of cloud b: `capacity` where there are no lengths; anything else is clamped to [0, capacity].
PAPEROPS_HOST_DEVICE int64_t clamp_length(const int64_t* lengths, int64_t b, int64_t capacity) {
  if (lengths == nullptr) {
    return capacity;
  }
  const int64_t length = lengths[b];
  return length < 0 ? 0 : (length > capacity ? capacity : length);
}

// d distance / d a_d of one dimension, times the incoming gradient: 2 g (a - b), or g sign(a - b) with sign(0) = 0.
// The gradient with respect to b is its negative.
template <int Norm, typename T>
PAPEROPS_HOST_DEVICE T pair_gradient(T gradient, T a, T b) {
  const T difference = a - b;
  if constexpr (Norm == 1) {
    return difference > T(0) ? gradient : (difference < T(0) ? -gradient : T(0));
  } else {
    return T(2) * gradient * difference;
  }
}

}  // namespace paperops::nearest

// The few vector operations that the CPU kernels need, for one instruction set.
//
// A translation unit defines PAPEROPS_SIMD_BITS (512, 256, or 0 for the compiler's portable vectors) and
// PAPEROPS_SIMD_NAMESPACE, enables the instruction set for the code that follows, and includes this header once.
// Everything lives in that namespace with internal linkage: no instantiation can be shared between instruction sets.
//
// minimum(a, b) is a if a < b, else b, for the values used here: distances (never -0), with NaN only in a. So NaN never
// enters an accumulator. Where there is an unsigned integer minimum it is used: distances and +inf order as their bits
// do, NaN lies above +inf, and it balances the load on processors that compare floats on the units that add.
#pragma once

#include <cstdint>
#include <limits>
#if PAPEROPS_SIMD_BITS > 0
#include <immintrin.h>
#endif

#define PAPEROPS_INLINE static inline __attribute__((always_inline, unused))

namespace paperops::PAPEROPS_SIMD_NAMESPACE {
namespace {

template <typename T>
struct Simd;

#if PAPEROPS_SIMD_BITS == 512

template <>
struct Simd<float> {
  using Vector = __m512;
  static constexpr int64_t lanes = 16;
  PAPEROPS_INLINE Vector load(const float* p) { return _mm512_loadu_ps(p); }
  PAPEROPS_INLINE void store(float* p, Vector a) { _mm512_storeu_ps(p, a); }
  PAPEROPS_INLINE Vector broadcast(float a) { return _mm512_set1_ps(a); }
  PAPEROPS_INLINE Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
  PAPEROPS_INLINE Vector square_root(Vector a) { return _mm512_sqrt_ps(a); }
  PAPEROPS_INLINE Vector absolute(Vector a) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0x7fffffff)));
  }
  PAPEROPS_INLINE Vector minimum(Vector a, Vector b) {
    return _mm512_castsi512_ps(_mm512_min_epu32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
  }
  PAPEROPS_INLINE Vector maximum(Vector a, Vector b) { return _mm512_max_ps(a, b); }
  PAPEROPS_INLINE uint32_t not_greater(Vector a, Vector b) { return _mm512_cmp_ps_mask(a, b, _CMP_NGT_UQ); }
};

template <>
struct Simd<double> {
  using Vector = __m512d;
  static constexpr int64_t lanes = 8;
  PAPEROPS_INLINE Vector load(const double* p) { return _mm512_loadu_pd(p); }
  PAPEROPS_INLINE void store(double* p, Vector a) { _mm512_storeu_pd(p, a); }
  PAPEROPS_INLINE Vector broadcast(double a) { return _mm512_set1_pd(a); }
  PAPEROPS_INLINE Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_pd(a, b, c); }
  PAPEROPS_INLINE Vector square_root(Vector a) { return _mm512_sqrt_pd(a); }
  PAPEROPS_INLINE Vector absolute(Vector a) {
    return _mm512_castsi512_pd(_mm512_and_si512(_mm512_castpd_si512(a), _mm512_set1_epi64(INT64_MAX)));
  }
  PAPEROPS_INLINE Vector minimum(Vector a, Vector b) {
    return _mm512_castsi512_pd(_mm512_min_epu64(_mm512_castpd_si512(a), _mm512_castpd_si512(b)));
  }
  PAPEROPS_INLINE Vector maximum(Vector a, Vector b) { return _mm512_max_pd(a, b); }
  PAPEROPS_INLINE uint32_t not_greater(Vector a, Vector b) { return _mm512_cmp_pd_mask(a, b, _CMP_NGT_UQ); }
};

#elif PAPEROPS_SIMD_BITS == 256

template <>
struct Simd<float> {
  using Vector = __m256;
  static constexpr int64_t lanes = 8;
  PAPEROPS_INLINE Vector load(const float* p) { return _mm256_loadu_ps(p); }
  PAPEROPS_INLINE void store(float* p, Vector a) { _mm256_storeu_ps(p, a); }
  PAPEROPS_INLINE Vector broadcast(float a) { return _mm256_set1_ps(a); }
  PAPEROPS_INLINE Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
  PAPEROPS_INLINE Vector square_root(Vector a) { return _mm256_sqrt_ps(a); }
  PAPEROPS_INLINE Vector absolute(Vector a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  PAPEROPS_INLINE Vector minimum(Vector a, Vector b) {
    return _mm256_castsi256_ps(_mm256_min_epu32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
  }
  PAPEROPS_INLINE Vector maximum(Vector a, Vector b) { return _mm256_max_ps(a, b); }
  PAPEROPS_INLINE uint32_t not_greater(Vector a, Vector b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NGT_UQ)));
  }
};

template <>
struct Simd<double> {
  using Vector = __m256d;
  static constexpr int64_t lanes = 4;
  PAPEROPS_INLINE Vector load(const double* p) { return _mm256_loadu_pd(p); }
  PAPEROPS_INLINE void store(double* p, Vector a) { _mm256_storeu_pd(p, a); }
  PAPEROPS_INLINE Vector broadcast(double a) { return _mm256_set1_pd(a); }
  PAPEROPS_INLINE Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_pd(a, b, c); }
  PAPEROPS_INLINE Vector square_root(Vector a) { return _mm256_sqrt_pd(a); }
  PAPEROPS_INLINE Vector absolute(Vector a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a); }
  PAPEROPS_INLINE Vector minimum(Vector a, Vector b) { return _mm256_min_pd(a, b); }
  PAPEROPS_INLINE Vector maximum(Vector a, Vector b) { return _mm256_max_pd(a, b); }
  PAPEROPS_INLINE uint32_t not_greater(Vector a, Vector b) {
    return static_cast<uint32_t>(_mm256_movemask_pd(_mm256_cmp_pd(a, b, _CMP_NGT_UQ)));
  }
};

#else

// GCC's and Clang's vector extension: 16 bytes, which every 64-bit processor of today has (SSE2, NEON).
template <typename T>
struct Simd {
  typedef T Vector __attribute__((vector_size(16)));
  static constexpr int64_t lanes = 16 / sizeof(T);
  PAPEROPS_INLINE Vector load(const T* p) {
    Vector a;
    __builtin_memcpy(&a, p, sizeof(a));
    return a;
  }
  PAPEROPS_INLINE void store(T* p, Vector a) { __builtin_memcpy(p, &a, sizeof(a)); }
  PAPEROPS_INLINE Vector broadcast(T a) { return Vector{} + a; }
  PAPEROPS_INLINE Vector multiply_add(Vector a, Vector b, Vector c) { return a * b + c; }
  PAPEROPS_INLINE Vector square_root(Vector a) {
    for (int64_t lane = 0; lane < lanes; ++lane) {
      a[lane] = static_cast<T>(__builtin_sqrt(a[lane]));  // of a float, rounded twice, still the nearest
    }
    return a;
  }
  PAPEROPS_INLINE Vector absolute(Vector a) { return a < Vector{} ? -a : a; }
  PAPEROPS_INLINE Vector minimum(Vector a, Vector b) { return a < b ? a : b; }
  PAPEROPS_INLINE Vector maximum(Vector a, Vector b) { return a > b ? a : b; }
  PAPEROPS_INLINE uint32_t not_greater(Vector a, Vector b) {
    uint32_t mask = 0;
    for (int64_t lane = 0; lane < lanes; ++lane) {
      mask |= static_cast<uint32_t>(!(a[lane] > b[lane])) << lane;
    }
    return mask;
  }
};

#endif

}  // namespace
}  // namespace paperops::PAPEROPS_SIMD_NAMESPACE

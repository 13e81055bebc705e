// Vectors of float or double over memory of any element type, and the logistic function. For one instruction set: include
// as simd.h is included, after it. The accumulator of float16, bfloat16 and float32 is float, that of float64 double.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "simd.h"

namespace paperops::PAPEROPS_SIMD_NAMESPACE {
namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

template <typename T>
using Vector = typename Simd<T>::Vector;

template <typename T, typename Integer>
struct VectorOf {
  typedef Integer Type __attribute__((vector_size(sizeof(Vector<T>) / sizeof(T) * sizeof(Integer))));
};
// Integers as wide as T, as many as Simd<T> has lanes.
template <typename T>
using Bits = typename VectorOf<T, std::conditional_t<sizeof(T) == 8, int64_t, int32_t>>::Type;

// --- memory: whole vectors, converted -------------------------------------------------------------------------------

PAPEROPS_INLINE Vector<float> load_vector(const float* p) { return Simd<float>::load(p); }
PAPEROPS_INLINE Vector<double> load_vector(const double* p) { return Simd<double>::load(p); }
PAPEROPS_INLINE void store_vector(float* p, Vector<float> a) { Simd<float>::store(p, a); }
PAPEROPS_INLINE void store_vector(double* p, Vector<double> a) { Simd<double>::store(p, a); }

PAPEROPS_INLINE Vector<float> load_vector(const BFloat16* p) {
  using Narrow = VectorOf<float, uint16_t>::Type;
  using Wide = VectorOf<float, uint32_t>::Type;
  Narrow narrow;
  __builtin_memcpy(&narrow, p, sizeof(narrow));
  const Wide bits = __builtin_convertvector(narrow, Wide) << 16;
  return (Vector<float>)bits;
}

// To the nearest, ties to even; NaN stays NaN.
PAPEROPS_INLINE void store_vector(BFloat16* p, Vector<float> a) {
  using Narrow = VectorOf<float, uint16_t>::Type;
  using Wide = VectorOf<float, uint32_t>::Type;
  const Wide bits = (Wide)a;
  const Wide rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Wide chosen = a == a ? rounded : Wide{} + 0x7fc0;
  const Narrow narrow = __builtin_convertvector(chosen, Narrow);
  __builtin_memcpy(p, &narrow, sizeof(narrow));
}

#if PAPEROPS_SIMD_BITS == 512
PAPEROPS_INLINE Vector<float> load_vector(const Half* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
PAPEROPS_INLINE void store_vector(Half* p, Vector<float> a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
#elif PAPEROPS_SIMD_BITS == 256
PAPEROPS_INLINE Vector<float> load_vector(const Half* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
PAPEROPS_INLINE void store_vector(Half* p, Vector<float> a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
#else
PAPEROPS_INLINE Vector<float> load_vector(const Half* p) {
  Vector<float> a;
  for (int64_t lane = 0; lane < Simd<float>::lanes; ++lane) {
    a[lane] = static_cast<float>(p[lane]);
  }
  return a;
}
PAPEROPS_INLINE void store_vector(Half* p, Vector<float> a) {
  for (int64_t lane = 0; lane < Simd<float>::lanes; ++lane) {
    p[lane] = Half(a[lane]);
  }
}
#endif

// --- ranges: whole vectors, then one that is filled up with zeros ---------------------------------------------------

struct Whole {};
struct Part {
  int64_t count;
};

template <typename T, typename S>
PAPEROPS_INLINE Vector<T> load(const S* p, Whole) {
  return load_vector(p);
}
template <typename T, typename S>
PAPEROPS_INLINE Vector<T> load(const S* p, Part part) {
  S copy[Simd<T>::lanes] = {};
  std::memcpy(static_cast<void*>(copy), p, part.count * sizeof(S));
  return load_vector(copy);
}
template <typename T, typename S>
PAPEROPS_INLINE void store(S* p, Vector<T> a, Whole) {
  store_vector(p, a);
}
template <typename T, typename S>
PAPEROPS_INLINE void store(S* p, Vector<T> a, Part part) {
  S copy[Simd<T>::lanes];
  store_vector(copy, a);
  std::memcpy(static_cast<void*>(p), copy, part.count * sizeof(S));
}

// Calls body(i, extent) for every vector of `count` elements; extent goes to load and store.
template <typename T, class Body>
PAPEROPS_INLINE void each_vector(int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + Simd<T>::lanes <= count; i += Simd<T>::lanes) {
    body(i, Whole{});
  }
  if (i < count) {
    body(i, Part{count - i});
  }
}

template <typename T>
PAPEROPS_INLINE Vector<T> only(Vector<T> a, Whole) {
  return a;
}
// The lanes that are there; 0 in the others.
template <typename T>
PAPEROPS_INLINE Vector<T> only(Vector<T> a, Part part) {
  T copy[Simd<T>::lanes];
  store_vector(copy, a);
  for (int64_t lane = part.count; lane < Simd<T>::lanes; ++lane) {
    copy[lane] = 0;
  }
  return load_vector(copy);
}

// The sum of the lanes, in a fixed order.
template <typename T>
PAPEROPS_INLINE T sum(Vector<T> a) {
  T lanes[Simd<T>::lanes];
  store_vector(lanes, a);
  for (int64_t width = Simd<T>::lanes / 2; width > 0; width /= 2) {
    for (int64_t lane = 0; lane < width; ++lane) {
      lanes[lane] += lanes[lane + width];
    }
  }
  return lanes[0];
}

// --- functions ------------------------------------------------------------------------------------------------------

template <typename T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float limit = 104, log2_e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float round = 12582912.0f;  // 1.5 * 2^23
  static constexpr int mantissa = 23, bias = 127, degree = 7;
};
template <>
struct ExpConstants<double> {
  static constexpr double limit = 746, log2_e = 1.4426950408889634, ln2_high = 0.693147180369123816490;
  static constexpr double ln2_low = 1.90821492927058770002e-10, round = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int mantissa = 52, bias = 1023, degree = 13;
};

// e^x = 2^n e^r, n the nearest integer to x / ln 2, e^r by its Taylor series: |r| < 0.35, so that the first term left out is
// below a tenth of a rounding. 2^n in two factors: one alone would overflow before the result does. NaN stays NaN.
template <typename T>
PAPEROPS_INLINE Vector<T> exponential(Vector<T> x) {
  using S = Simd<T>;
  using K = ExpConstants<T>;
  const Vector<T> limit = S::broadcast(K::limit);
  x = x > limit ? limit : x;
  x = x < -limit ? -limit : x;
  const Vector<T> magic = S::broadcast(K::round);
  const Vector<T> shifted = S::multiply_add(x, S::broadcast(K::log2_e), magic);  // n in its lowest bits
  const Vector<T> n = shifted - magic;
  Vector<T> r = S::multiply_add(n, S::broadcast(-K::ln2_high), x);
  r = S::multiply_add(n, S::broadcast(-K::ln2_low), r);
  T factorial = 1;
  for (int k = 2; k <= K::degree; ++k) {
    factorial *= static_cast<T>(k);
  }
  Vector<T> series = S::broadcast(1 / factorial);
  for (int k = K::degree; k > 0; --k) {  // unrolled, and the divisions done, by the compiler
    factorial /= static_cast<T>(k);
    series = S::multiply_add(series, r, S::broadcast(1 / factorial));
  }
  const Bits<T> power = (Bits<T>)shifted - (Bits<T>)magic;
  const Bits<T> half = power >> 1;
  return series * (Vector<T>)((half + K::bias) << K::mantissa) *
         (Vector<T>)((power - half + K::bias) << K::mantissa);
}

// 1 / (1 + e^-x)
template <typename T>
PAPEROPS_INLINE Vector<T> sigmoid(Vector<T> x) {
  const Vector<T> one = Simd<T>::broadcast(1);
  return one / (one + exponential<T>(-x));
}

}  // namespace
}  // namespace paperops::PAPEROPS_SIMD_NAMESPACE

// The kernels for one instruction set: included by invariant_point_attention_cpu_{portable,avx2,avx512}.cpp, see
// common/simd.h. Formulas are in invariant_point_attention_cpu.h.
#pragma once

#include <limits>

#include "../common/simd_math.h"
#include "invariant_point_attention_cpu.h"
#include "invariant_point_attention_cpu_product.h"

namespace paperops::PAPEROPS_SIMD_NAMESPACE {
namespace {

using ipa::Conversions;
using ipa::Kernels;
using ipa::Masked;
using ipa::Points;

// --- points ---------------------------------------------------------------------------------------------------------

// kRows queries at once share what they load of the keys.
template <typename T, int kRows>
PAPEROPS_INLINE void add_distances_of(const Points<T>& points, const T* queries, T weight, T* logits, int64_t stride) {
  using S = Simd<T>;
  const Vector<T> factor = S::broadcast(-weight);
  for (int64_t j = 0; j < points.pitch; j += S::lanes) {
    Vector<T> squares[kRows] = {};
    for (int64_t x = 0; x < points.coordinates; ++x) {
      const Vector<T> key = S::load(points.keys + x * points.pitch + j);
      for (int r = 0; r < kRows; ++r) {
        const Vector<T> difference = S::broadcast(queries[r * points.query_stride + x]) - key;
        squares[r] = S::multiply_add(difference, difference, squares[r]);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      S::store(logits + r * stride + j, S::multiply_add(factor, squares[r], S::load(logits + r * stride + j)));
    }
  }
}

template <typename T>
void add_distances(const Points<T>& points, T weight, T* logits, int64_t stride) {
  int64_t i = 0;
  for (; i + 4 <= points.count; i += 4) {
    add_distances_of<T, 4>(points, points.queries + i * points.query_stride, weight, logits + i * stride, stride);
  }
  for (; i < points.count; ++i) {
    add_distances_of<T, 1>(points, points.queries + i * points.query_stride, weight, logits + i * stride, stride);
  }
}

// kCoordinates coordinates, from x on.
template <typename T, int kCoordinates>
PAPEROPS_INLINE double point_gradients_of(const Points<T>& points, int64_t x, T weight, const T* ds, int64_t stride,
                                          T* dq, int64_t dq_stride, T* dk) {
  using S = Simd<T>;
  const T* keys = points.keys + x * points.pitch;
  const Vector<T> factor = S::broadcast(2 * weight);
  for (int64_t j = 0; j < points.pitch; j += S::lanes) {
    Vector<T> key[kCoordinates], sums[kCoordinates] = {};
    for (int c = 0; c < kCoordinates; ++c) {
      key[c] = S::load(keys + c * points.pitch + j);
    }
    for (int64_t i = 0; i < points.count; ++i) {
      const Vector<T> d = S::load(ds + i * stride + j);
      for (int c = 0; c < kCoordinates; ++c) {
        sums[c] = S::multiply_add(d, S::broadcast(points.queries[i * points.query_stride + x + c]) - key[c], sums[c]);
      }
    }
    for (int c = 0; c < kCoordinates; ++c) {
      T* to = dk + (x + c) * points.pitch + j;
      S::store(to, S::multiply_add(factor, sums[c], S::load(to)));
    }
  }
  double total = 0;
  for (int64_t i = 0; i < points.count; ++i) {
    Vector<T> query[kCoordinates], sums[kCoordinates] = {}, squares = {};
    for (int c = 0; c < kCoordinates; ++c) {
      query[c] = S::broadcast(points.queries[i * points.query_stride + x + c]);
    }
    for (int64_t j = 0; j < points.pitch; j += S::lanes) {
      const Vector<T> d = S::load(ds + i * stride + j);
      for (int c = 0; c < kCoordinates; ++c) {
        const Vector<T> difference = query[c] - S::load(keys + c * points.pitch + j);
        const Vector<T> term = d * difference;
        sums[c] += term;
        squares = S::multiply_add(term, difference, squares);
      }
    }
    for (int c = 0; c < kCoordinates; ++c) {
      dq[i * dq_stride + x + c] = -2 * weight * sum<T>(sums[c]);
    }
    total += sum<T>(squares);
  }
  return total;
}

template <typename T>
double point_gradients(const Points<T>& points, T weight, const T* ds, int64_t stride, T* dq, int64_t dq_stride,
                       T* dk) {
  double total = 0;
  for (int64_t x = 0; x < points.coordinates; x += 3) {  // a point
    total += point_gradients_of<T, 3>(points, x, weight, ds, stride, dq, dq_stride, dk);
  }
  return total;
}

// --- rows of weights ------------------------------------------------------------------------------------------------

// The logits as the mask has them.
template <typename T>
PAPEROPS_INLINE Vector<T> masked_logits(const T* row, int64_t j, Masked<T> masked) {
  using S = Simd<T>;
  Vector<T> x = S::load(row + j);
  if (masked.less != nullptr) {
    x -= S::load(masked.less + j);
  }
  const Vector<T> nothing = S::broadcast(-std::numeric_limits<T>::infinity());
  return S::load(masked.gone + j) != Vector<T>{} ? nothing : x;
}

template <typename T>
T softmax(T* row, int64_t pitch, Masked<T> masked) {
  using S = Simd<T>;
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  Vector<T> largest = S::broadcast(-kInfinity);
  for (int64_t j = 0; j < pitch; j += S::lanes) {
    const Vector<T> x = masked_logits(row, j, masked);
    S::store(row + j, x);
    largest = x > largest ? x : largest;  // passes over NaN, which comes back in the sum
  }
  T lanes[S::lanes], shift = -kInfinity;
  S::store(lanes, largest);
  for (const T lane : lanes) {
    shift = lane > shift ? lane : shift;
  }
  const Vector<T> shifts = S::broadcast(shift == -kInfinity ? 0 : shift);
  Vector<T> totals = {};
  for (int64_t j = 0; j < pitch; j += S::lanes) {
    const Vector<T> a = exponential<T>(S::load(row + j) - shifts);
    S::store(row + j, a);
    totals += a;
  }
  const T total = sum<T>(totals);
  if (total == 0) {
    return kInfinity;
  }
  const Vector<T> scale = S::broadcast(1 / total);
  for (int64_t j = 0; j < pitch; j += S::lanes) {
    S::store(row + j, S::load(row + j) * scale);
  }
  return shift + std::log(total);
}

template <typename T>
T softmax_backward(T* logits, T* da, int64_t pitch, Masked<T> masked, T lse) {
  using S = Simd<T>;
  const Vector<T> shift = S::broadcast(lse);
  Vector<T> totals = {}, moments = {};
  for (int64_t j = 0; j < pitch; j += S::lanes) {
    const Vector<T> a = exponential<T>(masked_logits(logits, j, masked) - shift);
    S::store(logits + j, a);
    totals += a;
    moments = S::multiply_add(a, S::load(da + j), moments);
  }
  const T total = sum<T>(totals);  // 1, but for what rounding lse makes of it where logits are large
  const T scale = total == 0 ? 0 : 1 / total;
  const Vector<T> scales = S::broadcast(scale), mean = S::broadcast(sum<T>(moments) * scale);
  Vector<T> rest = {};
  for (int64_t j = 0; j < pitch; j += S::lanes) {
    const Vector<T> a = S::load(logits + j) * scales, ds = a * (S::load(da + j) - mean);
    S::store(logits + j, a);
    S::store(da + j, ds);
    rest += ds;
  }
  return sum<T>(rest);
}

// --- copies ---------------------------------------------------------------------------------------------------------

template <typename T>
void add_transposed(const T* from, int64_t stride, int64_t keys, int64_t heads, T scale, const T* constant, T* to,
                    int64_t pitch) {
  for (int64_t h = 0; h < heads; ++h) {
    const T offset = constant == nullptr ? 0 : constant[h];
    for (int64_t j = 0; j < keys; ++j) {
      to[h * pitch + j] += scale * from[j * stride + h] + offset;
    }
  }
}

template <typename T>
void transpose(const T* from, int64_t pitch, int64_t keys, int64_t heads, T scale, T* to, int64_t stride) {
  for (int64_t j = 0; j < keys; ++j) {
    for (int64_t h = 0; h < heads; ++h) {
      to[j * stride + h] = scale * from[h * pitch + j];
    }
  }
}

template <typename T>
void shift(const T* from, int64_t count, T value, T* to) {
  const Vector<T> values = Simd<T>::broadcast(value);
  each_vector<T>(count, [&](int64_t i, auto extent) { store<T>(to + i, load<T>(from + i, extent) - values, extent); });
}

template <typename T>
void accumulate(const T* part, int64_t count, T* total) {
  each_vector<T>(count, [&](int64_t i, auto extent) {
    store<T>(total + i, load<T>(total + i, extent) + load<T>(part + i, extent), extent);
  });
}

template <typename X>
void read(const X* from, int64_t row_stride, int64_t column_stride, int64_t rows, int64_t columns, Wide<X>* to,
          int64_t to_stride) {
  using T = Wide<X>;
  for (int64_t r = 0; r < rows; ++r, from += row_stride, to += to_stride) {
    if (column_stride == 1) {
      each_vector<T>(columns, [&](int64_t c, auto extent) { store<T>(to + c, load<T>(from + c, extent), extent); });
    } else {
      for (int64_t c = 0; c < columns; ++c) {
        to[c] = static_cast<T>(from[c * column_stride]);
      }
    }
  }
}

template <typename X>
void write(const Wide<X>* from, int64_t from_stride, int64_t rows, int64_t columns, Wide<X> factor, X* to,
           int64_t to_stride) {
  using T = Wide<X>;
  const Vector<T> factors = Simd<T>::broadcast(factor);
  for (int64_t r = 0; r < rows; ++r, from += from_stride, to += to_stride) {
    each_vector<T>(columns,
                   [&](int64_t c, auto extent) { store<T>(to + c, factors * load<T>(from + c, extent), extent); });
  }
}

template <typename T>
Kernels<T> kernels() {
  Kernels<T> all;
  all.product = product<T>;
  all.product_centred = product_centred<T>;
  all.product_ahead = product_ahead<T>;
  all.add_distances = add_distances<T>;
  all.point_gradients = point_gradients<T>;
  all.add_transposed = add_transposed<T>;
  all.transpose = transpose<T>;
  all.softmax = softmax<T>;
  all.softmax_backward = softmax_backward<T>;
  all.shift = shift<T>;
  all.accumulate = accumulate<T>;
  return all;
}

template <typename X>
Conversions<X> conversions() {
  Conversions<X> all;
  all.read = read<X>;
  all.write = write<X>;
  return all;
}

}  // namespace
}  // namespace paperops::PAPEROPS_SIMD_NAMESPACE

// Defines the instances of a header's functions for this instruction set.
#define PAPEROPS_IPA_KERNELS(ISA, T)                          \
  template <>                                                 \
  Kernels<T> kernels_##ISA<T>() {                             \
    return ::paperops::PAPEROPS_SIMD_NAMESPACE::kernels<T>(); \
  }
#define PAPEROPS_IPA_CONVERSIONS(ISA, X)                          \
  template <>                                                     \
  Conversions<X> conversions_##ISA<X>() {                         \
    return ::paperops::PAPEROPS_SIMD_NAMESPACE::conversions<X>(); \
  }
#define PAPEROPS_IPA_INSTANCES(ISA)         \
  PAPEROPS_IPA_KERNELS(ISA, float)          \
  PAPEROPS_IPA_KERNELS(ISA, double)         \
  PAPEROPS_IPA_CONVERSIONS(ISA, float)      \
  PAPEROPS_IPA_CONVERSIONS(ISA, double)     \
  PAPEROPS_IPA_CONVERSIONS(ISA, Half)       \
  PAPEROPS_IPA_CONVERSIONS(ISA, BFloat16)

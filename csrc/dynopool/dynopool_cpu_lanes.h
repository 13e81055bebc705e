// Vectors as these kernels need them beyond common/simd_math.h: masks of lanes, elements of a row at indices near each
// other, and interpolation. For one instruction set, see common/simd.h.
#pragma once

#include <utility>

#include "../common/simd_math.h"
#include "dynopool_cpu.h"

namespace paperops::PAPEROPS_SIMD_NAMESPACE {
namespace {

using dynopool::Axis;
using dynopool::kPacked;
using dynopool::kPad;
using dynopool::Mode;
using dynopool::Problem;
using dynopool::Scratch;
using dynopool::Task;

template <typename T>
constexpr int64_t kLanes = Simd<T>::lanes;

// --- masks of lanes -------------------------------------------------------------------------------------------------

#if PAPEROPS_SIMD_BITS == 512
template <typename T>
struct MaskOf {
  using Type = __mmask16;
};
template <>
struct MaskOf<double> {
  using Type = __mmask8;
};
template <typename T>
using Mask = typename MaskOf<T>::Type;

PAPEROPS_INLINE __mmask16 not_zero(__m512 a) { return _mm512_cmp_ps_mask(a, _mm512_setzero_ps(), _CMP_NEQ_UQ); }
PAPEROPS_INLINE __mmask8 not_zero(__m512d a) { return _mm512_cmp_pd_mask(a, _mm512_setzero_pd(), _CMP_NEQ_UQ); }
// Whether v comes before m as a maximum: it is greater, or NaN where m is not.
PAPEROPS_INLINE __mmask16 exceeds(__m512 v, __m512 m) {
  return _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(m, m, _CMP_ORD_Q), v, m, _CMP_NLE_UQ);
}
PAPEROPS_INLINE __mmask8 exceeds(__m512d v, __m512d m) {
  return _mm512_mask_cmp_pd_mask(_mm512_cmp_pd_mask(m, m, _CMP_ORD_Q), v, m, _CMP_NLE_UQ);
}
PAPEROPS_INLINE __m512 choose(__mmask16 k, __m512 a, __m512 b) { return _mm512_mask_blend_ps(k, b, a); }
PAPEROPS_INLINE __m512d choose(__mmask8 k, __m512d a, __m512d b) { return _mm512_mask_blend_pd(k, b, a); }
template <typename T>
PAPEROPS_INLINE Mask<T> equal_to(Bits<T> a, int value) {
  if constexpr (sizeof(T) == 8) {
    return _mm512_cmpeq_epi64_mask((__m512i)a, _mm512_set1_epi64(value));
  } else {
    return _mm512_cmpeq_epi32_mask((__m512i)a, _mm512_set1_epi32(value));
  }
}
// `value` in the lanes of the mask, 0 in the others.
template <typename T>
PAPEROPS_INLINE Bits<T> where(Mask<T> k, int value) {
  if constexpr (sizeof(T) == 8) {
    return (Bits<T>)_mm512_maskz_set1_epi64(k, value);
  } else {
    return (Bits<T>)_mm512_maskz_set1_epi32(k, value);
  }
}
#else
template <typename T>
using Mask = Bits<T>;

template <typename T>
PAPEROPS_INLINE Bits<T> where(Bits<T> k, int value) {
  return k & (Bits<T>{} + value);
}
template <typename T>
PAPEROPS_INLINE Bits<T> equal_to(Bits<T> a, int value) {
  return (Bits<T>)(a == Bits<T>{} + value);
}
template <typename V>
PAPEROPS_INLINE auto not_zero(V a) {
  return a != V{};
}
template <typename V>
PAPEROPS_INLINE auto exceeds(V v, V m) {
  return ~(v <= m) & (m == m);
}
template <typename V, typename K>
PAPEROPS_INLINE V choose(K k, V a, V b) {
  return k ? a : b;
}
#endif

template <typename T>
PAPEROPS_INLINE Bits<T> lane_numbers() {
  Bits<T> number;
  for (int64_t lane = 0; lane < kLanes<T>; ++lane) {
    number[lane] = lane;
  }
  return number;
}

// --- ranges ---------------------------------------------------------------------------------------------------------

// Calls body(i, extent, fresh) for vectors that cover `count` elements: whole ones where there is room for one, the last
// of which may begin within the one before it. Lanes from `fresh` on were in no vector before.
template <typename T, class Body>
PAPEROPS_INLINE void each_block(int64_t count, const Body& body) {
  if (count < kLanes<T>) {
    if (count > 0) {
      body(int64_t{0}, Part{count}, int64_t{0});
    }
    return;
  }
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) {
    body(i, Whole{}, int64_t{0});
  }
  if (i < count) {
    body(count - kLanes<T>, Whole{}, i - (count - kLanes<T>));
  }
}

template <typename T>
PAPEROPS_INLINE int64_t count_of(Whole) {
  return kLanes<T>;
}
template <typename T>
PAPEROPS_INLINE int64_t count_of(Part part) {
  return part.count;
}

// The lanes from `fresh` to the end of the extent.
template <typename T>
PAPEROPS_INLINE Mask<T> lanes_between(int64_t fresh, int64_t end) {
#if PAPEROPS_SIMD_BITS == 512
  return static_cast<Mask<T>>(((uint32_t{1} << end) - 1) & ~((uint32_t{1} << fresh) - 1));
#else
  const Bits<T> number = lane_numbers<T>();
  using Integer = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  return (Bits<T>)((number >= Bits<T>{} + static_cast<Integer>(fresh)) & (number < Bits<T>{} + static_cast<Integer>(end)));
#endif
}

// --- small integers in memory ---------------------------------------------------------------------------------------

template <typename T>
PAPEROPS_INLINE Bits<T> load_indices(const int32_t* p) {
  typename VectorOf<T, int32_t>::Type narrow;
  __builtin_memcpy(&narrow, p, sizeof(narrow));
  return __builtin_convertvector(narrow, Bits<T>);
}
template <typename T>
PAPEROPS_INLINE Bits<T> load_bytes(const uint8_t* p, Whole) {
  typename VectorOf<T, uint8_t>::Type narrow;
  __builtin_memcpy(&narrow, p, sizeof(narrow));
  return __builtin_convertvector(narrow, Bits<T>);
}
template <typename T>
PAPEROPS_INLINE Bits<T> load_bytes(const uint8_t* p, Part part) {
  uint8_t copy[kLanes<T>] = {};
  std::memcpy(copy, p, part.count);
  return load_bytes<T>(copy, Whole{});
}
template <typename T, class Extent>
PAPEROPS_INLINE void store_bytes(uint8_t* p, Bits<T> a, Extent extent) {
  const auto narrow = __builtin_convertvector(a, typename VectorOf<T, uint8_t>::Type);
  std::memcpy(p, &narrow, count_of<T>(extent));
}

// --- elements of a row ----------------------------------------------------------------------------------------------

// How far the indices of one vector reach: over two vectors of the row, over four, or anywhere.
enum class Reach { two, four, any };

template <typename T>
PAPEROPS_INLINE Reach reach_of(int64_t span) {
#if PAPEROPS_SIMD_BITS == 512
  return span <= 2 * kLanes<T> ? Reach::two : span <= 4 * kLanes<T> ? Reach::four : Reach::any;
#else
  return Reach::any;
#endif
}

// row[index], which the reach allows to load four vectors from `row` on.
template <Reach reach, typename T>
PAPEROPS_INLINE Vector<T> take(const T* row, Bits<T> index) {
#if PAPEROPS_SIMD_BITS == 512
  const __m512i i = (__m512i)index;
  if constexpr (sizeof(T) == 8) {
    if constexpr (reach == Reach::any) {
      return _mm512_i64gather_pd(i, row, 8);
    } else {
      const __m512d near = _mm512_permutex2var_pd(_mm512_loadu_pd(row), i, _mm512_loadu_pd(row + 8));
      if constexpr (reach == Reach::two) {
        return near;
      } else {
        const __m512d far = _mm512_permutex2var_pd(_mm512_loadu_pd(row + 16), i, _mm512_loadu_pd(row + 24));
        return _mm512_mask_blend_pd(_mm512_cmpgt_epi64_mask(i, _mm512_set1_epi64(15)), near, far);
      }
    }
  } else {
    if constexpr (reach == Reach::any) {
      return _mm512_i32gather_ps(i, row, 4);
    } else {
      const __m512 near = _mm512_permutex2var_ps(_mm512_loadu_ps(row), i, _mm512_loadu_ps(row + 16));
      if constexpr (reach == Reach::two) {
        return near;
      } else {
        const __m512 far = _mm512_permutex2var_ps(_mm512_loadu_ps(row + 32), i, _mm512_loadu_ps(row + 48));
        return _mm512_mask_blend_ps(_mm512_cmpgt_epi32_mask(i, _mm512_set1_epi32(31)), near, far);
      }
    }
  }
#elif PAPEROPS_SIMD_BITS == 256
  if constexpr (sizeof(T) == 8) {
    return _mm256_i64gather_pd(row, (__m256i)index, 8);
  } else {
    return _mm256_i32gather_ps(row, (__m256i)index, 4);
  }
#else
  Vector<T> found;
  for (int64_t lane = 0; lane < kLanes<T>; ++lane) {
    found[lane] = row[index[lane]];
  }
  return found;
#endif
}

// a and b alternating: the first half of a0 b0 a1 b1 .., and the second.
template <typename T, size_t... i>
PAPEROPS_INLINE void interleave(Vector<T> a, Vector<T> b, T* to, std::index_sequence<i...>) {
  constexpr int lanes = static_cast<int>(sizeof...(i));
  store_vector(to, (Vector<T>)__builtin_shufflevector(a, b, (static_cast<int>(i) / 2 + static_cast<int>(i) % 2 * lanes)...));
  store_vector(to + lanes, (Vector<T>)__builtin_shufflevector(
                               a, b, (lanes / 2 + static_cast<int>(i) / 2 + static_cast<int>(i) % 2 * lanes)...));
}
template <typename T>
PAPEROPS_INLINE void interleave(Vector<T> a, Vector<T> b, T* to) {
  interleave<T>(a, b, to, std::make_index_sequence<static_cast<size_t>(kLanes<T>)>{});
}

// --- interpolation --------------------------------------------------------------------------------------------------

// a + f (b - a); a where f is 0.
template <typename T>
PAPEROPS_INLINE Vector<T> between(Vector<T> a, Vector<T> b, Vector<T> f, Mask<T> any) {
#if PAPEROPS_SIMD_BITS == 512
  if constexpr (sizeof(T) == 8) {
    return _mm512_mask3_fmadd_pd(f, b - a, a, any);
  } else {
    return _mm512_mask3_fmadd_ps(f, b - a, a, any);
  }
#else
  return choose(any, Simd<T>::multiply_add(f, b - a, a), a);
#endif
}

// c + a b in the lanes of the mask.
template <typename T>
PAPEROPS_INLINE Vector<T> add_product(Vector<T> a, Vector<T> b, Vector<T> c, Mask<T> any) {
#if PAPEROPS_SIMD_BITS == 512
  if constexpr (sizeof(T) == 8) {
    return _mm512_mask3_fmadd_pd(a, b, c, any);
  } else {
    return _mm512_mask3_fmadd_ps(a, b, c, any);
  }
#else
  return choose(any, Simd<T>::multiply_add(a, b, c), c);
#endif
}

// b - a, the derivative of `between` by f; 0 where f is 0 and it is not finite.
template <typename T>
PAPEROPS_INLINE Vector<T> slope_between(Vector<T> a, Vector<T> b, Mask<T> any) {
  const Vector<T> difference = b - a, nothing = difference - difference;  // 0, or NaN
  return choose(any, difference, choose(not_zero(nothing), Vector<T>{}, difference));
}

// The maximum of four samples by rows, NaN above all, and of equal ones the first.
template <typename T>
struct Most {
  Vector<T> value;
  Mask<T> low, high;  // the bits of its number
};
template <typename T>
PAPEROPS_INLINE Most<T> most_of(const Vector<T> (&v)[2][2]) {
  const Mask<T> upper = (Mask<T>)exceeds(v[0][1], v[0][0]), lower = (Mask<T>)exceeds(v[1][1], v[1][0]);
  const Vector<T> a = choose(upper, v[0][1], v[0][0]), b = choose(lower, v[1][1], v[1][0]);
  const Mask<T> high = (Mask<T>)exceeds(b, a);
  return {choose(high, b, a), static_cast<Mask<T>>((upper & ~high) | (lower & high)), high};
}

// The sum of the lanes, in their order.
template <typename T>
PAPEROPS_INLINE double wide_sum(Vector<T> a) {
  double total = 0;
  for (int64_t lane = 0; lane < kLanes<T>; ++lane) {
    total += static_cast<double>(a[lane]);
  }
  return total;
}

// A row of x that a sample row touches, numbered from 1; zeros around the map.
template <typename X>
PAPEROPS_INLINE const X* row_of(const Problem<X>& p, const X* map, int64_t number) {
  return number < 1 || number > p.rows.pixels ? p.zero_row : map + (number - 1) * p.row_size();
}

// to = a + f (b - a), count elements.
template <typename X, typename T>
PAPEROPS_INLINE void blend(const X* a, const X* b, T f, int64_t count, T* to) {
  if (f == T{0}) {
    each_block<T>(count, [&](int64_t i, auto extent, int64_t) { store<T>(to + i, load<T>(a + i, extent), extent); });
    return;
  }
  const Vector<T> fs = Simd<T>::broadcast(f);
  each_block<T>(count, [&](int64_t i, auto extent, int64_t) {
    const Vector<T> low = load<T>(a + i, extent);
    store<T>(to + i, Simd<T>::multiply_add(fs, load<T>(b + i, extent) - low, low), extent);
  });
}

// to = the derivative of that by f.
template <typename X, typename T>
PAPEROPS_INLINE void blend_slope(const X* a, const X* b, T f, int64_t count, T* to) {
  const Mask<T> any = (Mask<T>)not_zero(Simd<T>::broadcast(f));
  each_block<T>(count, [&](int64_t i, auto extent, int64_t) {
    store<T>(to + i, slope_between<T>(load<T>(a + i, extent), load<T>(b + i, extent), any), extent);
  });
}

// Adds weight v to a row.
template <typename T>
PAPEROPS_INLINE void add_to(T* row, T weight, Vector<T> v) {
  store_vector(row, Simd<T>::multiply_add(Simd<T>::broadcast(weight), v, load_vector(row)));
}

}  // namespace
}  // namespace paperops::PAPEROPS_SIMD_NAMESPACE

// What the kernels over pairs are made of, for one instruction set: minima of filter distances over a tile, the scan that
// decides candidates in float64, and the lists that keep them. A translation unit sets the macros of common/simd.h first.
#pragma once

#include "../common/simd.h"
#include "nearest.h"
#include "nearest_cpu.h"

namespace paperops::PAPEROPS_SIMD_NAMESPACE {
namespace {

using namespace paperops::nearest;

// Queries whose minima are in registers at the same time.
constexpr int64_t kQueryRegisters = 4;
static_assert(kQueryBlock % kQueryRegisters == 0, "a block is made of whole register blocks");

template <typename T>
PAPEROPS_INLINE T infinity() {
  return std::numeric_limits<T>::infinity();
}

template <int Norm, typename T>
PAPEROPS_INLINE typename Simd<T>::Vector add_term(
    typename Simd<T>::Vector sum, typename Simd<T>::Vector a, typename Simd<T>::Vector b) {
  const auto difference = a - b;
  return Norm == 1 ? sum + Simd<T>::absolute(difference) : Simd<T>::multiply_add(difference, difference, sum);
}

// The first term, without an addition to zero.
template <int Norm, typename T>
PAPEROPS_INLINE typename Simd<T>::Vector first_term(typename Simd<T>::Vector a, typename Simd<T>::Vector b) {
  const auto difference = a - b;
  return Norm == 1 ? Simd<T>::absolute(difference) : difference * difference;
}

// Minima over one tile for kQueryRegisters queries [kQueryRegisters, D]: writes one vector a query to rows, `row_stride`
// apart, and with Both lowers the tile's `columns` [group, lanes]. A dimension of the tile is [group, lanes], and
// `tile_stride` elements from the next.
template <typename T, int D, int Norm, bool Both>
PAPEROPS_INLINE void tile_minima(
    const T* queries, const T* tile, int64_t tile_stride, int64_t any_dimensions, int64_t group, T* rows,
    int64_t row_stride, T* columns) {
  using S = Simd<T>;
  const int64_t dimensions = D > 0 ? D : any_dimensions;
  // Few dimensions: every query coordinate in a register of its own, before the loop (the stores inside it would make
  // the compiler read them again).
  typename S::Vector coordinates[D > 0 ? kQueryRegisters * D : 1];
  for (int64_t i = 0; D > 0 && i < kQueryRegisters * D; ++i) {
    coordinates[i] = S::broadcast(queries[i]);
  }
  const auto query = [&](int64_t q, int64_t d) __attribute__((always_inline)) {
    return D > 0 ? coordinates[q * D + d] : S::broadcast(queries[q * dimensions + d]);
  };
  typename S::Vector least[kQueryRegisters];
  for (int64_t q = 0; q < kQueryRegisters; ++q) {
    least[q] = S::broadcast(infinity<T>());
  }
  for (int64_t v = 0; v < group; ++v) {
    typename S::Vector distance[kQueryRegisters];
    const T* target = tile + v * S::lanes;
    const auto first = S::load(target);
    for (int64_t q = 0; q < kQueryRegisters; ++q) {
      distance[q] = first_term<Norm, T>(query(q, 0), first);
    }
    for (int64_t d = 1; d < dimensions; ++d) {
      const auto coordinate = S::load(target + d * tile_stride);
      for (int64_t q = 0; q < kQueryRegisters; ++q) {
        distance[q] = add_term<Norm, T>(distance[q], query(q, d), coordinate);
      }
    }
    for (int64_t q = 0; q < kQueryRegisters; ++q) {
      least[q] = S::minimum(distance[q], least[q]);
    }
    if constexpr (Both) {
      auto column = S::load(columns + v * S::lanes);
      for (int64_t q = 0; q < kQueryRegisters; ++q) {
        column = S::minimum(distance[q], column);
      }
      S::store(columns + v * S::lanes, column);
    }
  }
  for (int64_t q = 0; q < kQueryRegisters; ++q) {
    S::store(rows + q * row_stride, least[q]);
  }
}

// Visits the points [begin, end) of the cloud whose filter distance to `query` [D] does not exceed the bound (or is
// NaN), in order of index: visitor(distance in float64, index).
template <typename T, int D, int Norm, typename Visitor>
PAPEROPS_INLINE void scan_range(
    const T* query, const Cloud<T>& cloud, int64_t any_dimensions, int64_t begin, int64_t end, T bound, Visitor& visitor) {
  using S = Simd<T>;
  const int64_t dimensions = D > 0 ? D : any_dimensions;
  for (int64_t i = begin; i < end; i += S::lanes) {
    auto filter = first_term<Norm, T>(S::broadcast(query[0]), S::load(cloud.columns + i));
    for (int64_t d = 1; d < dimensions; ++d) {
      filter = add_term<Norm, T>(filter, S::broadcast(query[d]), S::load(cloud.columns + d * cloud.stride + i));
    }
    uint32_t mask = S::not_greater(filter, S::broadcast(bound));
    if (end - i < S::lanes) {
      mask &= (uint32_t{1} << (end - i)) - 1;
    }
    if (mask == 0) {
      continue;
    }
    double exact[S::lanes];
    for (int64_t lane = 0; lane < S::lanes; ++lane) {
      exact[lane] = 0.0;
    }
    for (int64_t d = 0; d < dimensions; ++d) {
      const double coordinate = static_cast<double>(query[d]);
      const T* column = cloud.columns + d * cloud.stride + i;
      for (int64_t lane = 0; lane < S::lanes; ++lane) {
        exact[lane] = exact_add<Norm>(exact[lane], coordinate, static_cast<double>(column[lane]));
      }
    }
    for (; mask != 0; mask &= mask - 1) {
      const int lane = __builtin_ctz(mask);
      visitor(exact[lane], i + lane);
    }
  }
}

// Keeps the first in order. Candidates come in order of index, so an equal distance never replaces.
struct KeepNearest {
  double distance = std::numeric_limits<double>::quiet_NaN();
  int64_t index = std::numeric_limits<int64_t>::max();
  inline __attribute__((always_inline)) void operator()(double d, int64_t i) {
    if (before(d, i, distance, index)) {
      distance = d;
      index = i;
    }
  }
};

// Collects candidates for the k first; when the list is full it is cut to k.
struct KeepCandidates {
  Candidate* candidates;
  int64_t capacity;
  int64_t k;
  int64_t count = 0;
  inline __attribute__((always_inline)) void operator()(double d, int64_t i) {
    if (count == capacity) {
      select_candidates(candidates, count, k);
      count = k;
    }
    candidates[count++] = {d, i};
  }
};

// The least of `count` values, a multiple of the lanes.
template <typename T>
PAPEROPS_INLINE T least_of(const T* values, int64_t count) {
  using S = Simd<T>;
  auto least = S::broadcast(infinity<T>());
  for (int64_t i = 0; i < count; i += S::lanes) {
    least = S::minimum(S::load(values + i), least);
  }
  T lanes[S::lanes];
  S::store(lanes, least);
  T result = lanes[0];
  for (int64_t lane = 1; lane < S::lanes; ++lane) {
    result = lanes[lane] < result ? lanes[lane] : result;
  }
  return result;
}

// A value that at least k of the values do not exceed, and few more than k: bisection over the bits, which order as the
// values do (none is negative or NaN). +inf where there are fewer than k.
template <typename T>
PAPEROPS_INLINE T kth_least_of(const T* values, int64_t count, int64_t k) {
  using S = Simd<T>;
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  if (k > count) {
    return infinity<T>();
  }
  const T least = least_of(values, count);
  const T most = infinity<T>();
  Bits low, high;
  __builtin_memcpy(&low, &least, sizeof(T));
  __builtin_memcpy(&high, &most, sizeof(T));
  T result = most;
  while (low < high) {
    const Bits middle = low + (high - low) / 2;
    T value;
    __builtin_memcpy(&value, &middle, sizeof(T));
    const auto bound = S::broadcast(value);
    int64_t below = 0;
    for (int64_t i = 0; i < count; i += S::lanes) {
      below += __builtin_popcount(S::not_greater(S::load(values + i), bound));
    }
    if (below < k) {
      low = middle + 1;
    } else {
      high = middle;
      result = value;
      if (below <= k + k / 4 + 2) {
        break;
      }
    }
  }
  return result;
}

template <typename T>
PAPEROPS_INLINE void write_neighbour(const KeepNearest& nearest, T* distance, int64_t* index) {
  *distance = static_cast<T>(nearest.distance);
  *index = nearest.index;
}

// The k first of a list, in order; (+inf, -1) where there are fewer.
template <typename T>
PAPEROPS_INLINE void write_neighbours(const KeepCandidates& list, T* distances, int64_t* indices) {
  select_candidates(list.candidates, list.count, list.k);
  for (int64_t slot = 0; slot < list.k; ++slot) {
    distances[slot] = slot < list.count ? static_cast<T>(list.candidates[slot].distance) : infinity<T>();
    indices[slot] = slot < list.count ? list.candidates[slot].index : -1;
  }
}

}  // namespace
}  // namespace paperops::PAPEROPS_SIMD_NAMESPACE

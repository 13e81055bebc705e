// The work on pairs, for one instruction set: included by nearest_cpu_{portable,avx2,avx512}.cpp, see common/simd.h.
//
// Both directions in one pass. For a block of 64 queries and a tile of targets, every pair's filter distance is
// computed once and folded into two minima: that of the query (a register: one lane covers `group` neighbouring targets)
// and that of the target. For D = 3 and norm 2 that is 3 subtractions, 3 multiply-adds and 2 minima a pair, no index.
// The index is found afterwards: whatever group has a minimum within the filter's error of the least is scanned again,
// and each point within that error is decided in float64. Usually that is one group and one point.
//   - A query has the minima of all groups of targets before it: the k-th least bounds its k-th distance.
//   - A target keeps its minimum and a mask of the groups of queries that came within the error of it.
#pragma once

#include "nearest_cpu_filter.h"
#include "nearest_cpu_pruned_kernels.h"

namespace paperops::PAPEROPS_SIMD_NAMESPACE {
namespace {

// Scans the groups of targets whose minimum (rows [tiles, lanes]) does not exceed the bound.
template <typename T, int D, int Norm, typename Visitor>
PAPEROPS_INLINE void scan_groups(const ScanTask<T>& task, const T* query, const T* rows, T bound, Visitor& visitor) {
  using S = Simd<T>;
  const auto bounds = S::broadcast(bound);
  for (int64_t tile = 0; tile < task.tiles.count; ++tile) {
    uint32_t mask = S::not_greater(S::load(rows + tile * S::lanes), bounds);
    for (; mask != 0; mask &= mask - 1) {
      const int64_t begin = (tile * S::lanes + __builtin_ctz(mask)) * task.tiles.group;
      const int64_t end = begin + task.tiles.group;
      scan_range<T, D, Norm>(
          query, task.y, task.dimensions, begin, end < task.y.count ? end : task.y.count, bound, visitor);
    }
  }
}

// Writes the neighbours of query n, from the minima of its groups.
template <typename T, int D, int Norm>
PAPEROPS_INLINE void finish_query(const ScanTask<T>& task, FilterBound<T> bound, int64_t n, const T* rows) {
  const int64_t groups = task.tiles.count * Simd<T>::lanes;
  const T* query = task.x.points + n * task.dimensions;
  T* distances = task.distances + n * task.k;
  int64_t* indices = task.indices + n * task.k;
  if (has_nan(query, 1, task.dimensions)) {
    int64_t found = 0;
    for (; found < task.k && found < task.y.count; ++found) {
      distances[found] = std::numeric_limits<T>::quiet_NaN();
      indices[found] = -1;
    }
    for (; found < task.k; ++found) {
      distances[found] = infinity<T>();
      indices[found] = -1;
    }
  } else if (task.k == 1) {
    KeepNearest nearest;
    scan_groups<T, D, Norm>(task, query, rows, threshold(bound, least_of(rows, groups)), nearest);
    write_neighbour(nearest, distances, indices);
  } else {
    KeepCandidates list{task.candidates, task.candidate_capacity, task.k};
    scan_groups<T, D, Norm>(task, query, rows, threshold(bound, kth_least_of(rows, groups, task.k)), list);
    write_neighbours(list, distances, indices);
  }
}

// Folds the minima of a block of queries into those of the chunk, and marks the block's group (`bit`) where it may hold
// the nearest: for most blocks and targets that is decided by one comparison of vectors. A lower minimum that leaves the
// old one outside the filter's error clears the mask.
template <typename T>
PAPEROPS_INLINE void fold_columns(
    const T* columns, int64_t count, FilterBound<T> bound, uint32_t bit, T* minimum, uint32_t* masks) {
  using S = Simd<T>;
  const auto scale = S::broadcast(bound.scale);
  const auto offset = S::broadcast(bound.offset);
  for (int64_t i = 0; i < count; i += S::lanes) {
    const auto limit = S::multiply_add(S::load(minimum + i), scale, offset);
    uint32_t near = S::not_greater(S::load(columns + i), limit);
    for (; near != 0; near &= near - 1) {
      const int64_t j = i + __builtin_ctz(near);
      const T fresh = columns[j];
      masks[j] = (threshold(bound, fresh) < minimum[j] ? 0 : masks[j]) | bit;
      minimum[j] = fresh < minimum[j] ? fresh : minimum[j];
    }
  }
}

template <typename T, int D, int Norm, bool Both>
void scan_queries_of(const ScanTask<T>& task) {
  using S = Simd<T>;
  const int64_t dimensions = D > 0 ? D : task.dimensions;
  const int64_t tile_points = task.tiles.group * S::lanes;
  const int64_t row_stride = task.tiles.count * S::lanes;
  const auto bound = filter_bound<T>(dimensions);
  T* queries = task.workspace;                      // [kQueryBlock, D]
  T* rows = queries + kQueryBlock * dimensions;     // [kQueryBlock, tiles, lanes]
  T* columns = rows + kQueryBlock * row_stride;     // [group, lanes]
  if constexpr (Both) {
    for (int64_t i = 0; i < task.tiles.count * tile_points; ++i) {
      task.minima.minimum[i] = infinity<T>();
      task.minima.mask[i] = 0;
    }
  }
  for (int64_t block = task.begin; block < task.end; block += kQueryBlock) {
    const int64_t count = task.end - block < kQueryBlock ? task.end - block : kQueryBlock;
    const int64_t padded = (count + kQueryRegisters - 1) / kQueryRegisters * kQueryRegisters;
    for (int64_t i = 0; i < count * dimensions; ++i) {
      queries[i] = task.x.points[block * dimensions + i];
    }
    for (int64_t i = count * dimensions; i < padded * dimensions; ++i) {
      queries[i] = std::numeric_limits<T>::quiet_NaN();
    }
    const uint32_t bit = Both ? uint32_t{1} << ((block - task.begin) / task.queries_per_bit) : 0;
    for (int64_t tile = 0; tile < task.tiles.count; ++tile) {
      const T* targets = task.tiles.data + tile * dimensions * tile_points;
      if constexpr (Both) {
        for (int64_t i = 0; i < tile_points; ++i) {
          columns[i] = infinity<T>();
        }
      }
      for (int64_t q = 0; q < padded; q += kQueryRegisters) {
        tile_minima<T, D, Norm, Both>(queries + q * dimensions, targets, tile_points, dimensions, task.tiles.group,
                                      rows + q * row_stride + tile * S::lanes, row_stride, columns);
      }
      if constexpr (Both) {
        fold_columns(columns, tile_points, bound, bit, task.minima.minimum + tile * tile_points,
                     task.minima.mask + tile * tile_points);
      }
    }
    for (int64_t q = 0; q < count; ++q) {
      finish_query<T, D, Norm>(task, bound, block + q, rows + q * row_stride);
    }
  }
}

template <typename T, int D, int Norm>
void resolve_targets_of(const ResolveTask<T>& task) {
  const int64_t dimensions = D > 0 ? D : task.dimensions;
  const int64_t lanes = Simd<T>::lanes;
  const int64_t group = task.tiles.group;
  const auto bound = filter_bound<T>(dimensions);
  for (int64_t m = task.begin; m < task.end; ++m) {
    const T* query = task.y.points + m * dimensions;
    if (has_nan(query, 1, dimensions)) {
      task.distances[m] = std::numeric_limits<T>::quiet_NaN();
      task.indices[m] = -1;
      continue;
    }
    // where the target stands in the order of the tiles
    const int64_t row = m / group;  // tile * lanes + lane
    const int64_t place = ((row / lanes) * group + m % group) * lanes + row % lanes;
    T least = infinity<T>();
    for (int64_t chunk = 0; chunk < task.chunks; ++chunk) {
      const T minimum = task.minima.minimum[chunk * task.minima_stride + place];
      least = minimum < least ? minimum : least;
    }
    const T limit = threshold(bound, least);
    KeepNearest nearest;
    for (int64_t chunk = 0; chunk < task.chunks; ++chunk) {
      if (task.minima.minimum[chunk * task.minima_stride + place] > limit) {
        continue;
      }
      const int64_t chunk_begin = chunk * task.queries_per_chunk;
      const int64_t chunk_end = chunk_begin + task.queries_per_chunk;
      const int64_t last = chunk_end < task.x.count ? chunk_end : task.x.count;
      for (uint32_t mask = task.minima.mask[chunk * task.minima_stride + place]; mask != 0; mask &= mask - 1) {
        const int64_t begin = chunk_begin + __builtin_ctz(mask) * task.queries_per_bit;
        const int64_t end = begin + task.queries_per_bit;
        scan_range<T, D, Norm>(query, task.x, dimensions, begin, end < last ? end : last, limit, nearest);
      }
    }
    write_neighbour(nearest, task.distances + m, task.indices + m);
  }
}

template <typename T, int Norm>
void scan_queries_norm(const ScanTask<T>& task) {
  const bool both = task.minima.minimum != nullptr;
  switch (task.dimensions) {
    case 1: return both ? scan_queries_of<T, 1, Norm, true>(task) : scan_queries_of<T, 1, Norm, false>(task);
    case 2: return both ? scan_queries_of<T, 2, Norm, true>(task) : scan_queries_of<T, 2, Norm, false>(task);
    case 3: return both ? scan_queries_of<T, 3, Norm, true>(task) : scan_queries_of<T, 3, Norm, false>(task);
    case 4: return both ? scan_queries_of<T, 4, Norm, true>(task) : scan_queries_of<T, 4, Norm, false>(task);
    default: return both ? scan_queries_of<T, 0, Norm, true>(task) : scan_queries_of<T, 0, Norm, false>(task);
  }
}

template <typename T, int Norm>
void resolve_targets_norm(const ResolveTask<T>& task) {
  switch (task.dimensions) {
    case 1: return resolve_targets_of<T, 1, Norm>(task);
    case 2: return resolve_targets_of<T, 2, Norm>(task);
    case 3: return resolve_targets_of<T, 3, Norm>(task);
    case 4: return resolve_targets_of<T, 4, Norm>(task);
    default: return resolve_targets_of<T, 0, Norm>(task);
  }
}

template <typename T>
void scan_queries(const ScanTask<T>& task) {
  task.norm == 1 ? scan_queries_norm<T, 1>(task) : scan_queries_norm<T, 2>(task);
}

template <typename T>
void resolve_targets(const ResolveTask<T>& task) {
  task.norm == 1 ? resolve_targets_norm<T, 1>(task) : resolve_targets_norm<T, 2>(task);
}

template <typename T>
Kernels<T> kernels() {
  return {Simd<T>::lanes, scan_queries<T>, resolve_targets<T>, scan_pruned<T>};
}

}  // namespace
}  // namespace paperops::PAPEROPS_SIMD_NAMESPACE

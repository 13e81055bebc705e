// Nearest neighbours without looking at all pairs, for one instruction set. Both clouds are sorted along a space-filling
// curve, so that 64 consecutive points lie close together, in a small box.
//
// For a block of 64 queries: the distances from its box to the boxes of the targets are computed; the minima over the
// nearest few boxes bound every query's k-th distance; the boxes within the widest bound of the block are listed; and
// each query scans those of the list that are within its own bound, deciding in float64 as everywhere.
// The distance to a box is computed as a filter distance is, of no more than the true distance to any point in it, so
// FilterBound holds for it as well.
#pragma once

#include "nearest_cpu_filter.h"

namespace paperops::PAPEROPS_SIMD_NAMESPACE {
namespace {

// Filter distances between the box [low, high] (each [D]) and the boxes [i, i + lanes).
template <typename T, int D, int Norm>
PAPEROPS_INLINE typename Simd<T>::Vector box_distance(
    const T* low, const T* high, const T* lower, const T* upper, int64_t stride, int64_t i) {
  using S = Simd<T>;
  const auto zero = S::broadcast(T(0));
  auto sum = zero;
  for (int64_t d = 0; d < D; ++d) {
    const auto above = S::load(lower + d * stride + i) - S::broadcast(high[d]);
    const auto below = S::broadcast(low[d]) - S::load(upper + d * stride + i);
    const auto gap = S::maximum(S::maximum(above, below), zero);
    sum = Norm == 1 ? sum + gap : S::multiply_add(gap, gap, sum);
  }
  return sum;
}

// Tells a visitor the caller's index of a point.
template <typename Visitor>
struct InCallersOrder {
  Visitor& visitor;
  const int64_t* order;
  inline __attribute__((always_inline)) void operator()(double distance, int64_t i) { visitor(distance, order[i]); }
};

template <typename T, int D, int Norm>
void scan_pruned_of(const PrunedTask<T>& task) {
  using S = Simd<T>;
  const Cloud<T>& y = task.y.cloud;
  const int64_t stride = task.y.box_stride;
  const int64_t most_seeds = seed_boxes(task.k);
  const int64_t row_stride = most_seeds * S::lanes;
  const auto bound = filter_bound<T>(D);
  T* queries = task.workspace;                       // [kQueryBlock, D]
  T* bounds = queries + kQueryBlock * D;             // [kQueryBlock]
  T* rows = bounds + kQueryBlock;                    // [kQueryBlock, most_seeds, lanes]
  T* distance = rows + kQueryBlock * row_stride;     // [box_stride], from the block to each box
  T* lower = distance + stride;                      // [D, box_stride], the listed boxes
  T* upper = lower + D * stride;                     // [D, box_stride]
  for (int64_t block = task.begin; block < task.end; block += kQueryBlock) {
    const int64_t count = task.end - block < kQueryBlock ? task.end - block : kQueryBlock;
    const int64_t padded = (count + kQueryRegisters - 1) / kQueryRegisters * kQueryRegisters;
    T low[D], high[D];
    for (int64_t d = 0; d < D; ++d) {
      low[d] = infinity<T>();
      high[d] = -infinity<T>();
      for (int64_t q = 0; q < count; ++q) {
        const T coordinate = task.x.cloud.points[(block + q) * D + d];
        queries[q * D + d] = coordinate;
        low[d] = coordinate < low[d] ? coordinate : low[d];
        high[d] = coordinate > high[d] ? coordinate : high[d];
      }
      for (int64_t q = count; q < padded; ++q) {
        queries[q * D + d] = std::numeric_limits<T>::quiet_NaN();
      }
    }
    for (int64_t i = 0; i < stride; i += S::lanes) {
      S::store(distance + i, box_distance<T, D, Norm>(low, high, task.y.lower, task.y.upper, stride, i));
    }

    // A bound for every query, from the boxes nearest to the block.
    const T near = kth_least_of(distance, stride, most_seeds / 2 < task.y.boxes ? most_seeds / 2 : task.y.boxes);
    int64_t seeds = 0;
    for (int64_t box = 0; box < task.y.boxes && seeds < most_seeds; ++box) {
      if (!(distance[box] > near)) {
        for (int64_t q = 0; q < padded; q += kQueryRegisters) {
          tile_minima<T, D, Norm, false>(queries + q * D, y.columns + box * kBoxPoints, y.stride, D,
                                         kBoxPoints / S::lanes, rows + q * row_stride + seeds * S::lanes, row_stride,
                                         nullptr);
        }
        ++seeds;
      }
    }
    T widest = T(0);
    for (int64_t q = 0; q < count; ++q) {
      const T* row = rows + q * row_stride;
      const T least = task.k == 1 ? least_of(row, seeds * S::lanes) : kth_least_of(row, seeds * S::lanes, task.k);
      bounds[q] = threshold(bound, least);
      widest = bounds[q] > widest ? bounds[q] : widest;
    }

    // The boxes that any query of the block may have to look into.
    int64_t listed = 0;
    for (int64_t box = 0; box < task.y.boxes; ++box) {
      if (!(distance[box] > widest)) {
        task.list[listed] = box;
        for (int64_t d = 0; d < D; ++d) {
          lower[d * stride + listed] = task.y.lower[d * stride + box];
          upper[d * stride + listed] = task.y.upper[d * stride + box];
        }
        ++listed;
      }
    }

    for (int64_t q = 0; q < count; ++q) {
      const T* query = queries + q * D;
      const int64_t row = task.x.order[block + q];
      const auto scan = [&](auto& keep) __attribute__((always_inline)) {
        InCallersOrder<std::remove_reference_t<decltype(keep)>> visitor{keep, task.y.order};
        const auto limit = S::broadcast(bounds[q]);
        for (int64_t i = 0; i < listed; i += S::lanes) {
          uint32_t mask = S::not_greater(box_distance<T, D, Norm>(query, query, lower, upper, stride, i), limit);
          if (listed - i < S::lanes) {
            mask &= (uint32_t{1} << (listed - i)) - 1;
          }
          for (; mask != 0; mask &= mask - 1) {
            const int64_t begin = task.list[i + __builtin_ctz(mask)] * kBoxPoints;
            const int64_t end = begin + kBoxPoints;
            scan_range<T, D, Norm>(query, y, D, begin, end < y.count ? end : y.count, bounds[q], visitor);
          }
        }
      };
      if (task.k == 1) {
        KeepNearest nearest;
        scan(nearest);
        write_neighbour(nearest, task.distances + row, task.indices + row);
      } else {
        KeepCandidates list{task.candidates, task.candidate_capacity, task.k};
        scan(list);
        write_neighbours(list, task.distances + row * task.k, task.indices + row * task.k);
      }
    }
  }
}

template <typename T, int Norm>
void scan_pruned_norm(const PrunedTask<T>& task) {
  switch (task.dimensions) {
    case 1: return scan_pruned_of<T, 1, Norm>(task);
    case 2: return scan_pruned_of<T, 2, Norm>(task);
    default: return scan_pruned_of<T, 3, Norm>(task);
  }
}

template <typename T>
void scan_pruned(const PrunedTask<T>& task) {
  task.norm == 1 ? scan_pruned_norm<T, 1>(task) : scan_pruned_norm<T, 2>(task);
}

}  // namespace
}  // namespace paperops::PAPEROPS_SIMD_NAMESPACE

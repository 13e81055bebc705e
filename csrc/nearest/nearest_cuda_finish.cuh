// Nearest neighbour of every point, second kernel: from the scan's winning tiles to exact indices.
//
// Eight lanes take a query. They merge its splits (best, rival, tile; the earliest split wins a tie), rescan the
// winning tile, and have
//   (d*, j*) = min over j in the tile of (d(x, y_j), j)   in float64, ties to the lowest index.
// Any target with d <= d* has a filter distance of at most limit(d*). So if rival > limit(d*), nothing outside the tile
// can be as near, and j* is the answer. Otherwise (a near tie between tiles, an overflow of the filter, only NaN) the
// whole warp rescans all targets of this query, with the filter to skip those beyond limit(d*).
// Reads 12 bytes a split and one tile a query; writes the distance in acc and the index.
#pragma once

#include "nearest_cuda_scan.cuh"

namespace paperops::nearest {

constexpr int kFinishLanes = 8;

struct Candidate {
  uint64_t key = kNoKey;
  int64_t index = -1;

  __device__ __forceinline__ void add(uint64_t other_key, int64_t other_index) {
    if (other_key < key || (other_key == key && other_index < index)) {
      key = other_key;
      index = other_index;
    }
  }

  // The least over groups of `lanes` lanes, in every lane of the group.
  __device__ __forceinline__ void reduce(int lanes) {
    for (int offset = lanes / 2; offset > 0; offset /= 2) {
      const uint64_t other_key = __shfl_xor_sync(cuda::kAllLanes, static_cast<unsigned long long>(key), offset);
      const int64_t other_index = __shfl_xor_sync(cuda::kAllLanes, static_cast<long long>(index), offset);
      add(other_key, other_index);
    }
  }
};

// What the filter does not exceed for a target whose distance is at most `distance`.
template <typename T>
__device__ __forceinline__ T limit_of(FilterBound<T> bound, double distance) {
  if constexpr (sizeof(T) == 8) {
    return distance;
  } else {
    return threshold(bound, static_cast<float>(distance));
  }
}

// Adds targets first, first + step, ... below `last` to the candidate, skipping those whose filter exceeds `limit`.
template <int D, int Norm, typename T>
__device__ __forceinline__ void rescan(
    Candidate& candidate, T limit, FilterBound<T> bound, const T (&x)[D], const void* targets, int64_t row,
    int64_t first, int64_t last, int step, int dimensions, Dtype dtype) {
  constexpr int batch = 4;  // loads in flight before the first use
  for (int64_t base = first; base < last; base += batch * step) {
    T y[batch][D];
#pragma unroll
    for (int i = 0; i < batch; ++i) {
      const int64_t j = min(base + i * step, last - 1);
      load_point(y[i], targets, row + j, dimensions, dtype);
    }
#pragma unroll
    for (int i = 0; i < batch; ++i) {
      const int64_t j = base + i * step;
      const bool inside = j < last;
      // `not above`, so that NaN is looked at too: it is the answer where there is no number.
      if (inside && (sizeof(T) == 8 || !(filter_distance<D, Norm>(x, y[i]) > limit))) {
        candidate.add(distance_key(exact_distance_of<D, Norm>(x, y[i])), j);
        if (candidate.key <= kInfinityKey) {
          limit = min(limit, limit_of(bound, key_distance(candidate.key)));
        }
      }
    }
  }
}

// A query's place among the rows of both sides.
struct Place {
  int side;
  int64_t b;
  int64_t n;
};

__device__ __forceinline__ Place place_of(const NearestArguments& arguments, int64_t row) {
  const int64_t first_rows = arguments.batch * arguments.sides[0].query_count.value;
  const int side = row < first_rows ? 0 : 1;
  const int64_t rest = row - side * first_rows;
  const cuda::Divisor& count = arguments.sides[side].query_count;
  const int64_t b = count.divide(rest);
  return {side, b, rest - b * count.value};
}

template <int D, int Norm, typename T>
__global__ void __launch_bounds__(kFinishThreads, 3)
    nearest_finish(const __grid_constant__ NearestArguments arguments) {
  constexpr int queries_per_warp = cuda::kWarp / kFinishLanes;
  const int lane = threadIdx.x % cuda::kWarp;
  const int sublane = lane % kFinishLanes;
  const int64_t warp = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / cuda::kWarp;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * blockDim.x / cuda::kWarp;
  const int dimensions = arguments.dimensions;
  const FilterBound<T> bound = filter_bound<T>(dimensions);
  const int64_t rows =
      arguments.batch *
      (arguments.sides[0].query_count.value + (arguments.side_count > 1 ? arguments.sides[1].query_count.value : 0));

  for (int64_t first_row = warp * queries_per_warp; first_row < rows; first_row += warps * queries_per_warp) {
    const int64_t row = min(first_row + lane / kFinishLanes, rows - 1);  // a repeated row writes the same values
    const Place place = place_of(arguments, row);
    const Side& side = arguments.sides[place.side];
    const int64_t query_row = place.b * side.query_count.value + place.n;
    const int64_t target_row = place.b * side.target_count;
    const bool inside = place.n < clamp_length(side.query_lengths, place.b, side.query_count.value);
    const int64_t valid = clamp_length(side.target_lengths, place.b, side.target_count);

    T x[D];
    load_point(x, side.queries, query_row, dimensions, arguments.dtype);
    const bool query_nan = point_has_nan(x);
    const bool search = inside && valid > 0 && !query_nan;

    Candidate candidate;
    bool ambiguous = false;
    Running<T> running;
    if (search) {
      for (int64_t split = 0; split < side.splits.value; ++split) {
        const int64_t slot = split * arguments.batch * side.query_count.value + query_row;
        if constexpr (sizeof(T) == 8) {
          running.add(static_cast<const double*>(side.best)[slot], side.tile[slot]);
        } else {
          running.add(static_cast<const unsigned*>(side.best)[slot], side.tile[slot]);
          running.rival = min(running.rival, static_cast<const unsigned*>(side.rival)[slot]);
        }
      }
      if (running.found()) {
        const int64_t first = static_cast<int64_t>(running.tile) * side.tile_size;
        const T best = running.value();
        rescan<D, Norm>(
            candidate, sizeof(T) == 8 ? best : threshold(bound, best), bound, x, side.targets, target_row,
            first + sublane, min(first + side.tile_size, valid), kFinishLanes, dimensions, arguments.dtype);
      }
    }
    candidate.reduce(kFinishLanes);
    if (search) {
      ambiguous = candidate.key > kInfinityKey || running.rivals(limit_of(bound, key_distance(candidate.key)));
    }

    unsigned pending = __ballot_sync(cuda::kAllLanes, ambiguous && sublane == 0);
    while (pending != 0) {
      const int source = __ffs(static_cast<int>(pending)) - 1;
      pending &= pending - 1;
      const Place other = place_of(arguments, min(first_row + source / kFinishLanes, rows - 1));
      const Side& other_side = arguments.sides[other.side];
      load_point(
          x, other_side.queries, other.b * other_side.query_count.value + other.n, dimensions, arguments.dtype);
      Candidate all;
      all.key = __shfl_sync(cuda::kAllLanes, static_cast<unsigned long long>(candidate.key), source);
      all.index = __shfl_sync(cuda::kAllLanes, static_cast<long long>(candidate.index), source);
      const T limit = all.key <= kInfinityKey ? limit_of(bound, key_distance(all.key)) : static_cast<T>(INFINITY);
      rescan<D, Norm>(
          all, limit, bound, x, other_side.targets, other.b * other_side.target_count, lane,
          clamp_length(other_side.target_lengths, other.b, other_side.target_count), cuda::kWarp, dimensions,
          arguments.dtype);
      all.reduce(cuda::kWarp);
      if (lane / kFinishLanes == source / kFinishLanes) {
        candidate = all;
      }
    }

    if (sublane == 0) {
      using Acc = T;  // float32 unless the input is float64, as the filter
      double distance = 0.0;
      int64_t index = -1;
      if (inside) {
        distance = valid == 0 ? INFINITY : (query_nan ? static_cast<double>(NAN) : key_distance(candidate.key));
        index = search ? candidate.index : -1;
      }
      static_cast<Acc*>(side.distances)[query_row] = static_cast<Acc>(distance);
      side.indices[query_row] = index;
    }
  }
}

}  // namespace paperops::nearest

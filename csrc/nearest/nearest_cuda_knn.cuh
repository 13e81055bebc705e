// The k nearest neighbours of every point, k <= 32, kernels: search and merge.
//
// search. A warp takes Q queries; its lanes take 32 targets at a time from shared memory. Lane i also holds entry i of
// each query's list, sorted by (distance, index) with the distance in float64, so a list costs three registers a lane
// for any k up to 32. A pair costs the filter distance (2 D instructions), D / Q shared loads and a comparison with
// what the filter allows a member of the present list. Only targets that pass get their float64 distance; they are
// inserted one after another in order of index, each by one shuffle of the list, so ties keep the lowest index.
// Random data pass about k (1 + ln(M / k)) targets a query. A long cloud is split over blocks when queries are few, and
// then every split writes its list, as keys, to the workspace.
// merge. A warp takes a query and inserts its splits' lists into one, in order.
// Reads each cloud once a block; writes k distances (acc) and indices a query.
#pragma once

#include "nearest_cuda_point.cuh"

namespace paperops::nearest {

// A sorted list, entry i in lane i. Entries from k on are not kept up.
struct WarpList {
  uint64_t key = kNoKey;
  uint32_t index = 0;

  // Inserts where the key belongs, after equal keys: the caller inserts in order of index.
  __device__ __forceinline__ void insert(uint64_t new_key, uint32_t new_index, int lane) {
    const uint64_t above_key = __shfl_up_sync(cuda::kAllLanes, static_cast<unsigned long long>(key), 1);
    const uint32_t above_index = __shfl_up_sync(cuda::kAllLanes, index, 1);
    if (key > new_key) {
      const bool shift = lane > 0 && above_key > new_key;
      key = shift ? above_key : new_key;
      index = shift ? above_index : new_index;
    }
  }

  __device__ __forceinline__ uint64_t key_of(int entry) const {
    return __shfl_sync(cuda::kAllLanes, static_cast<unsigned long long>(key), entry);
  }
};

// Writes one query's list: the results of a valid query, of one with a NaN, or of a row beyond its length.
template <typename Acc>
__device__ __forceinline__ void write_list(
    const KnnArguments& arguments, const WarpList& list, int64_t row, int64_t valid, bool inside, bool query_nan,
    int lane) {
  if (lane < arguments.k) {
    double distance = 0.0;
    int64_t index = -1;
    if (inside) {
      const bool taken = list.key != kNoKey;
      distance = query_nan ? (lane < valid ? static_cast<double>(NAN) : static_cast<double>(INFINITY))
                           : (taken ? key_distance(list.key) : static_cast<double>(INFINITY));
      index = taken && !query_nan ? static_cast<int64_t>(list.index) : -1;
    }
    static_cast<Acc*>(arguments.distances)[row * arguments.k + lane] = static_cast<Acc>(distance);
    arguments.indices[row * arguments.k + lane] = index;
  }
}

template <int D, int Norm, typename T>
__global__ void __launch_bounds__(kKnnWarps* cuda::kWarp, 2)
    knn_search(const __grid_constant__ KnnArguments arguments) {
  constexpr int Q = knn_queries(sizeof(T) == 8);
  __shared__ __align__(16) T stage[D][kKnnWidth];
  const int lane = threadIdx.x % cuda::kWarp;
  const int warp = threadIdx.x / cuda::kWarp;
  const int k = arguments.k;
  const FilterBound<T> bound = filter_bound<T>(arguments.dimensions);
  const int64_t items = arguments.batch * arguments.groups.value * arguments.splits.value;

  for (int64_t work = blockIdx.x; work < items; work += gridDim.x) {
    const int64_t part = arguments.splits.divide(work);
    const int64_t split = work - part * arguments.splits.value;
    const int64_t b = arguments.groups.divide(part);
    const int64_t group = part - b * arguments.groups.value;
    const int64_t queries = clamp_length(arguments.query_lengths, b, arguments.query_count.value);
    const int64_t valid = clamp_length(arguments.target_lengths, b, arguments.target_count);
    const int64_t first_query = (group * kKnnWarps + warp) * Q;

    T x[Q][D];
    WarpList list[Q];
    T limit[Q];       // what the filter allows a member of the list
    uint64_t last[Q];  // the list's entry k - 1
    bool nan[Q];
    bool any_search = false;
#pragma unroll
    for (int q = 0; q < Q; ++q) {
      const int64_t n = first_query + q;
      const bool inside = n < queries;
      load_point(
          x[q], arguments.queries, b * arguments.query_count.value + min(n, arguments.query_count.value - 1),
          arguments.dimensions, arguments.dtype);
      nan[q] = point_has_nan(x[q]);
      const bool search = inside && !nan[q];
      any_search = any_search || search;
      // A query without a search accepts nothing: no key is below 0. Zeros, so that its distances pass as rarely.
      limit[q] = search ? static_cast<T>(INFINITY) : static_cast<T>(-1);
      last[q] = search ? kNoKey : 0;
#pragma unroll
      for (int d = 0; d < D; ++d) {
        x[q][d] = search ? x[q][d] : T(0);
      }
    }

    const int64_t begin = split * arguments.split_targets;
    const int64_t end = min(begin + arguments.split_targets, valid);
    for (int64_t base = begin; base < end && group * kKnnWarps * Q < queries; base += kKnnWidth) {
      __syncthreads();  // the previous stage has been read
      load_stage(
          stage, arguments.targets, b * arguments.target_count, base, valid, arguments.dimensions, arguments.dtype);
      __syncthreads();
      const int count = any_search ? static_cast<int>(min(static_cast<int64_t>(kKnnWidth), end - base)) : 0;
      for (int j = 0; j < count; j += cuda::kWarp) {
        T y[D];
#pragma unroll
        for (int d = 0; d < D; ++d) {
          y[d] = stage[d][j + lane];
        }
        bool pass[Q];
        bool any = false;
#pragma unroll
        for (int q = 0; q < Q; ++q) {
          // `not above`, so that NaN passes: it belongs into a list that is not full of numbers.
          pass[q] = !(filter_distance<D, Norm>(x[q], y) > limit[q]);
          any = any || pass[q];
        }
        if (!__any_sync(cuda::kAllLanes, any)) {
          continue;
        }
        const uint32_t here = static_cast<uint32_t>(base) + static_cast<uint32_t>(j);
#pragma unroll
        for (int q = 0; q < Q; ++q) {
          uint64_t key = kNoKey;
          if (pass[q] && j + lane < count) {
            key = distance_key(exact_distance_of<D, Norm>(x[q], y));
          }
          unsigned pending = __ballot_sync(cuda::kAllLanes, key < last[q]);
          if (pending == 0) {
            continue;
          }
          do {
            const int source = __ffs(static_cast<int>(pending)) - 1;
            const uint64_t new_key = __shfl_sync(cuda::kAllLanes, static_cast<unsigned long long>(key), source);
            list[q].insert(new_key, here + static_cast<uint32_t>(source), lane);
            last[q] = list[q].key_of(k - 1);
            // What an insertion has excluded is dropped; `source` itself is done.
            pending = __ballot_sync(cuda::kAllLanes, key < last[q]) & (pending & (pending - 1));
          } while (pending != 0);
          if (last[q] <= kInfinityKey) {
            const double distance = key_distance(last[q]);
            if constexpr (sizeof(T) == 8) {
              limit[q] = threshold(bound, distance);  // the filter is fused, the exact distance is not
            } else {
              limit[q] = threshold(bound, static_cast<float>(distance));
            }
          }
        }
      }
    }

#pragma unroll
    for (int q = 0; q < Q; ++q) {
      const int64_t n = first_query + q;
      if (n < arguments.query_count.value) {
        const int64_t row = b * arguments.query_count.value + n;
        if (arguments.keys == nullptr) {
          write_list<T>(arguments, list[q], row, valid, n < queries, nan[q], lane);
        } else if (lane < k) {
          const int64_t slot = ((split * arguments.batch * arguments.query_count.value) + row) * k + lane;
          arguments.keys[slot] = list[q].key;
          arguments.positions[slot] = list[q].index;
        }
      }
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kKnnWarps* cuda::kWarp, 4) knn_merge(const __grid_constant__ KnnArguments arguments) {
  const int lane = threadIdx.x % cuda::kWarp;
  const int k = arguments.k;
  const int64_t rows = arguments.batch * arguments.query_count.value;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x / cuda::kWarp;
  for (int64_t row = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / cuda::kWarp; row < rows;
       row += step) {
    const int64_t b = arguments.query_count.divide(row);
    const int64_t n = row - b * arguments.query_count.value;
    const bool inside = n < clamp_length(arguments.query_lengths, b, arguments.query_count.value);
    const int64_t valid = clamp_length(arguments.target_lengths, b, arguments.target_count);
    WarpList list;
    uint64_t last = kNoKey;
    for (int64_t split = 0; split < arguments.splits.value; ++split) {
      const int64_t slot = (split * rows + row) * k + lane;
      const uint64_t key = lane < k ? arguments.keys[slot] : kNoKey;
      const uint32_t index = lane < k ? arguments.positions[slot] : 0;
      for (int entry = 0; entry < k; ++entry) {
        const uint64_t new_key = __shfl_sync(cuda::kAllLanes, static_cast<unsigned long long>(key), entry);
        if (new_key >= last) {
          break;  // the split's list is sorted
        }
        list.insert(new_key, __shfl_sync(cuda::kAllLanes, index, entry), lane);
        last = list.key_of(k - 1);
      }
    }
    bool query_nan = false;
    for (int d = 0; d < arguments.dimensions; ++d) {
      const T x = cuda::load<T>(arguments.queries, row * arguments.dimensions + d, arguments.dtype);
      query_nan = query_nan || x != x;
    }
    write_list<T>(arguments, list, row, valid, inside, query_nan, lane);
  }
}

}  // namespace paperops::nearest

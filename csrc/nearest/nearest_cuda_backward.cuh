// Gradient of nearest-neighbour distances with respect to both clouds, one kernel for both sides.
//
// The gradient of point p of a cloud has two parts. With g the incoming gradient of a distance and
// v(g, a, b) = 2 g (a - b) (norm 2) or g sign(a - b) (norm 1):
//   own       sum over the slots s of p:           v(g[p, s], p, other[index[p, s]]), and
//   incoming  sum over entries e = (m, s) of the other cloud whose index[e] = p:   -v(g[e], other[m], p).
// One block takes up to `tile` points of one cloud. Its warps each read a contiguous part of the other cloud's indices,
// in order, queue those that fall into the tile, and add 32 at a time to the warp's own sums in shared memory. Lanes
// with the same point take turns, or, where many share one, sum by shuffles. At the end the warps' sums are added in
// order, then the own part. So every sum has a fixed order, without atomics, sorting or a workspace; a point chosen by
// all queries costs five shuffles and additions a dimension for 32 of them. The indices are read once a tile: M / tile
// times, a few instructions for 32, where the forward computed M distances.
#pragma once

#include "nearest_cuda_point.cuh"

namespace paperops::nearest {

constexpr int kGatherAhead = 8;  // loads of 32 indices in flight
constexpr int kGatherTurns = 4;  // more lanes than this on one point are summed by shuffles

template <typename T>
__device__ __forceinline__ T gradient_of(int norm, T gradient, T a, T b) {
  return norm == 1 ? pair_gradient<1>(gradient, a, b) : pair_gradient<2>(gradient, a, b);
}

template <typename T>
struct GatherQueue {
  int64_t entry[2 * cuda::kWarp];
  int point[2 * cuda::kWarp];
};

// Adds the first `count` queued entries (at most 32) to the warp's sums. Every lane comes here.
template <int D, typename T>
__device__ __forceinline__ void add_queued(
    T* sums, const GatherQueue<T>& queue, int count, const GatherArguments& arguments, const GatherSide& side,
    int64_t b, int64_t first_point, int lane) {
  const bool active = lane < count;
  // Lanes without an entry get points of their own, which nobody adds to.
  const int point = active ? queue.point[lane] : -1 - lane;
  T value[D];
#pragma unroll
  for (int d = 0; d < D; ++d) {
    value[d] = T(0);
  }
  if (active) {
    const int64_t entry = queue.entry[lane];
    const int64_t other = side.incoming.divide(entry);
    const T gradient =
        static_cast<const T*>(side.incoming_gradients)[b * side.other_count * side.incoming.value + entry];
    T from[D];
    T to[D];
    load_point(from, side.others, b * side.other_count + other, arguments.dimensions, arguments.dtype);
    load_point(to, side.points, b * side.point_count + first_point + point, arguments.dimensions, arguments.dtype);
#pragma unroll
    for (int d = 0; d < D; ++d) {
      value[d] = -gradient_of(arguments.norm, gradient, from[d], to[d]);
    }
  }
  const unsigned peers = __match_any_sync(cuda::kAllLanes, point);
  const int turn = __popc(peers & ((1u << lane) - 1u));
  const int turns = __reduce_max_sync(cuda::kAllLanes, turn) + 1;
  if (turns <= kGatherTurns) {
    for (int t = 0; t < turns; ++t) {
      if (active && turn == t) {
#pragma unroll
        for (int d = 0; d < D; ++d) {
          sums[point * D + d] += value[d];
        }
      }
      __syncwarp();
    }
    return;
  }
  unsigned pending = __ballot_sync(cuda::kAllLanes, active);
  while (pending != 0) {
    const int leader = __ffs(static_cast<int>(pending)) - 1;
    const int leading = __shfl_sync(cuda::kAllLanes, point, leader);
    const bool member = point == leading;
#pragma unroll
    for (int d = 0; d < D; ++d) {
      T sum = member ? value[d] : T(0);
#pragma unroll
      for (int offset = cuda::kWarp / 2; offset > 0; offset /= 2) {
        sum += __shfl_xor_sync(cuda::kAllLanes, sum, offset);
      }
      if (lane == leader) {
        sums[point * D + d] += sum;
      }
    }
    pending &= ~__ballot_sync(cuda::kAllLanes, member);
  }
  __syncwarp();
}

// Reads this warp's part of the incoming indices and adds what falls into the tile to `sums`.
template <int D, typename T>
__device__ __forceinline__ void add_incoming(
    T* sums, GatherQueue<T>& queue, const GatherArguments& arguments, const GatherSide& side, int64_t b,
    int64_t first_point, int count, int warp, int lane) {
  constexpr int64_t step = kGatherAhead * cuda::kWarp;
  const int64_t entries = side.other_count * side.incoming.value;
  const int64_t part = cuda::ceil_div<int64_t>(entries, kGatherWarps);
  const int64_t last = min((warp + 1) * part, entries);
  const int64_t* indices = side.incoming_indices + b * entries;
  int queued = 0;
  for (int64_t base = warp * part; base < last; base += step) {
    int64_t index[kGatherAhead];
#pragma unroll
    for (int i = 0; i < kGatherAhead; ++i) {
      const int64_t entry = base + i * cuda::kWarp + lane;
      index[i] = entry < last ? indices[entry] : -1;
    }
#pragma unroll
    for (int i = 0; i < kGatherAhead; ++i) {
      const int64_t point = index[i] - first_point;
      const bool hit = index[i] >= 0 && point >= 0 && point < count;
      const unsigned hits = __ballot_sync(cuda::kAllLanes, hit);
      if (hits == 0) {
        continue;
      }
      if (hit) {
        const int place = queued + __popc(hits & ((1u << lane) - 1u));
        queue.entry[place] = base + i * cuda::kWarp + lane;
        queue.point[place] = static_cast<int>(point);
      }
      queued += __popc(hits);
      __syncwarp();
      if (queued >= cuda::kWarp) {
        add_queued<D>(sums, queue, cuda::kWarp, arguments, side, b, first_point, lane);
        queued -= cuda::kWarp;
        if (lane < queued) {
          queue.entry[lane] = queue.entry[cuda::kWarp + lane];
          queue.point[lane] = queue.point[cuda::kWarp + lane];
        }
        __syncwarp();
      }
    }
  }
  if (queued > 0) {
    add_queued<D>(sums, queue, queued, arguments, side, b, first_point, lane);
  }
}

template <int D, typename T>
__global__ void __launch_bounds__(kGatherWarps* cuda::kWarp, 2)
    nearest_gather(const __grid_constant__ GatherArguments arguments) {
  __shared__ GatherQueue<T> queues[kGatherWarps];
  __shared__ __align__(16) T sums[kGatherBytes / sizeof(T)];  // [warps, tile, D]
  const int lane = threadIdx.x % cuda::kWarp;
  const int warp = threadIdx.x / cuda::kWarp;
  const int64_t first_items = arguments.batch * arguments.sides[0].tiles.value;
  const int64_t items = first_items + arguments.batch * arguments.sides[1].tiles.value;

  for (int64_t work = blockIdx.x; work < items; work += gridDim.x) {
    const GatherSide& side = arguments.sides[work < first_items ? 0 : 1];
    const int64_t item = work < first_items ? work : work - first_items;
    const int64_t b = side.tiles.divide(item);
    const int64_t first_point = (item - b * side.tiles.value) * arguments.tile;
    const int count = static_cast<int>(min(static_cast<int64_t>(arguments.tile), side.point_count - first_point));

    if (side.incoming.value > 0) {
      __syncthreads();  // the previous item's sums have been read
      for (int i = threadIdx.x; i < kGatherWarps * arguments.tile * D; i += blockDim.x) {
        sums[i] = T(0);
      }
      __syncthreads();
      add_incoming<D>(
          sums + warp * arguments.tile * D, queues[warp], arguments, side, b, first_point, count, warp, lane);
      __syncthreads();
    }

    for (int p = threadIdx.x; p < count; p += blockDim.x) {
      const int64_t row = b * side.point_count + first_point + p;
      T total[D];
#pragma unroll
      for (int d = 0; d < D; ++d) {
        total[d] = T(0);
        if (side.incoming.value > 0) {
          for (int w = 0; w < kGatherWarps; ++w) {
            total[d] += sums[(w * arguments.tile + p) * D + d];
          }
        }
      }
      if (side.own > 0) {
        T point[D];
        load_point(point, side.points, row, arguments.dimensions, arguments.dtype);
        for (int64_t slot = row * side.own; slot < (row + 1) * side.own; ++slot) {
          const int64_t index = side.own_indices[slot];
          if (index >= 0 && index < side.other_count) {
            const T gradient = static_cast<const T*>(side.own_gradients)[slot];
            T other[D];
            load_point(other, side.others, b * side.other_count + index, arguments.dimensions, arguments.dtype);
#pragma unroll
            for (int d = 0; d < D; ++d) {
              total[d] += gradient_of(arguments.norm, gradient, point[d], other[d]);
            }
          }
        }
      }
#pragma unroll
      for (int d = 0; d < D; ++d) {
        if (d < arguments.dimensions) {
          cuda::store(side.gradient, row * arguments.dimensions + d, total[d], arguments.dtype);
        }
      }
    }
  }
}

}  // namespace paperops::nearest

// Nearest neighbour of every point, first kernel: the least filter distance of every query and where it is.
//
// One block takes up to blockDim.x * Q queries of one cloud, Q a thread in registers, and one range of tiles of 64
// targets (a split). Targets pass through shared memory, one array a dimension, and are read four at a time by vector
// loads that all lanes share. For every query it keeps, in filter arithmetic (float32, fused),
//   best  = min over tiles of m(tile),   m(tile) = min over the tile's targets j of sum_d (x_d - y_jd)^2 or |.|,
//   tile  = the first tile that attains it,   rival = min of m over all other tiles,
// and writes these three, from which nearest_finish finds the exact index. No index is kept inside a tile. Invalid
// targets are NaN in shared memory: a distance is never negative, so its bits order as an unsigned integer in which NaN
// is above everything and loses every minimum. Both directions are one launch: the first blocks take one side's
// queries, the rest the other's. Large clouds in both directions take nearest_fused instead.
//
// Bound: instruction issue. A pair costs 2 D instructions of distance (D subtractions, one product, D - 1 fused
// multiply-adds) and half a three-way minimum (sm_90 and sm_100; a whole minimum elsewhere): 6.5 (7) for D = 3. Over
// these come D / (4 Q) shared loads a pair and 5 / 64 for the bookkeeping of a tile; the compiled loop of sm_90a has
// 6.67 a pair for Q = 8. The loads of queries and targets are negligible: each is read once a block.
#pragma once

#include "nearest_cuda_point.cuh"

namespace paperops::nearest {

constexpr unsigned kInfinityBits = 0x7f800000u;

// Blocks a multiprocessor that the registers must allow: as many as make none spill.
constexpr int scan_blocks(bool wide, int dimensions) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
  return wide || dimensions > 2 ? 3 : 4;
#else
  return wide || dimensions > 3 ? 3 : 4;
#endif
}

// ---- scan -----------------------------------------------------------------------------------------------------

// The running result of one query. float32: distances are kept as bits, see the head of this file.
template <typename T>
struct Running;

template <>
struct Running<float> {
  unsigned best = kInfinityBits;
  unsigned rival = kInfinityBits;
  int tile = 0;

  static __device__ __forceinline__ unsigned nothing() { return kInfinityBits; }

  static __device__ __forceinline__ unsigned least(unsigned a, float b, float c) {
    return __vimin3_u32(a, __float_as_uint(b), __float_as_uint(c));
  }

  __device__ __forceinline__ void add(unsigned minimum, int id) {
    const unsigned loser = max(best, minimum);
    rival = min(rival, loser);
    tile = minimum < best ? id : tile;
    best = min(best, minimum);
  }

  __device__ __forceinline__ bool found() const { return best < kInfinityBits; }
  __device__ __forceinline__ float value() const { return __uint_as_float(best); }
  __device__ __forceinline__ bool rivals(float limit) const { return !(__uint_as_float(rival) > limit); }
};

// float64: the filter is the exact distance itself, so a tie is decided by the order of tiles and no rival is needed.
template <>
struct Running<double> {
  double best = INFINITY;
  int tile = 0;

  static __device__ __forceinline__ double nothing() { return INFINITY; }

  static __device__ __forceinline__ double least(double a, double b, double c) { return fmin(a, fmin(b, c)); }

  __device__ __forceinline__ void add(double minimum, int id) {
    tile = minimum < best ? id : tile;
    best = minimum < best ? minimum : best;
  }

  __device__ __forceinline__ bool found() const { return best < INFINITY; }
  __device__ __forceinline__ double value() const { return best; }
  __device__ __forceinline__ bool rivals(double) const { return false; }
};

// Four targets from shared memory, as one (float32) or two (float64) vector loads.
__device__ __forceinline__ void load_four(float (&out)[4], const float* from) {
  const float4 v = *reinterpret_cast<const float4*>(from);
  out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
}

__device__ __forceinline__ void load_four(double (&out)[4], const double* from) {
  const double2 v = *reinterpret_cast<const double2*>(from);
  const double2 w = *reinterpret_cast<const double2*>(from + 2);
  out[0] = v.x, out[1] = v.y, out[2] = w.x, out[3] = w.y;
}

template <int D, int Norm, typename T>
__device__ __forceinline__ T scan_distance(const T (&x)[D], const T (&y)[D][4], int j) {
  T point[D];
#pragma unroll
  for (int d = 0; d < D; ++d) {
    point[d] = y[d][j];
  }
  if constexpr (sizeof(T) == 8) {
    return exact_distance_of<D, Norm>(x, point);
  } else {
    return filter_distance<D, Norm>(x, point);
  }
}

template <int D, int Norm, int Q, typename T>
__global__ void __launch_bounds__(kScanThreads, scan_blocks(sizeof(T) == 8, D))
    nearest_scan(const __grid_constant__ NearestArguments arguments) {
  constexpr int width = kTile * kStageTiles;
  __shared__ __align__(16) T stage[D][width];

  const int64_t batch = arguments.batch;
  const int64_t first_items = batch * arguments.sides[0].groups.value * arguments.sides[0].splits.value;
  const int64_t second_items =
      arguments.side_count > 1 ? batch * arguments.sides[1].groups.value * arguments.sides[1].splits.value : 0;
  const int64_t items = first_items + second_items;

  for (int64_t work = blockIdx.x; work < items; work += gridDim.x) {
    const Side& side = arguments.sides[work < first_items ? 0 : 1];
    const int64_t item = work < first_items ? work : work - first_items;
    const int64_t part = side.splits.divide(item);
    const int64_t split = item - part * side.splits.value;
    const int64_t b = side.groups.divide(part);
    const int64_t group = part - b * side.groups.value;

    const int64_t queries = clamp_length(side.query_lengths, b, side.query_count.value);
    const int64_t valid = clamp_length(side.target_lengths, b, side.target_count);
    const int64_t first_query = group * (Q * static_cast<int64_t>(blockDim.x)) + threadIdx.x;
    if (group * (Q * static_cast<int64_t>(blockDim.x)) >= queries) {
      continue;  // uniform over the block; finish does not read these rows
    }

    T x[Q][D];
#pragma unroll
    for (int q = 0; q < Q; ++q) {
      const int64_t n = first_query + q * static_cast<int64_t>(blockDim.x);
      load_point(
          x[q], side.queries, b * side.query_count.value + (n < queries ? n : queries - 1), arguments.dimensions,
          arguments.dtype);
    }
    Running<T> running[Q];

    const int64_t all_tiles = cuda::ceil_div<int64_t>(valid, kTile);
    const int64_t first_tile = split * side.split_tiles;
    const int64_t last_tile = min(first_tile + side.split_tiles, all_tiles);
    for (int64_t base = first_tile; base < last_tile; base += kStageTiles) {
      __syncthreads();  // the previous stage has been read
      load_stage(
          stage, side.targets, b * side.target_count, base * kTile, valid, arguments.dimensions, arguments.dtype);
      __syncthreads();
      const int tiles = static_cast<int>(min(static_cast<int64_t>(kStageTiles), last_tile - base));
#pragma unroll 1
      for (int t = 0; t < tiles; ++t) {
        decltype(Running<T>::nothing()) minimum[Q];
#pragma unroll
        for (int q = 0; q < Q; ++q) {
          minimum[q] = Running<T>::nothing();
        }
#pragma unroll 2
        for (int j = 0; j < kTile; j += 4) {
          T y[D][4];
#pragma unroll
          for (int d = 0; d < D; ++d) {
            load_four(y[d], &stage[d][t * kTile + j]);
          }
#pragma unroll
          for (int q = 0; q < Q; ++q) {
#pragma unroll
            for (int i = 0; i < 4; i += 2) {
              minimum[q] = Running<T>::least(
                  minimum[q], scan_distance<D, Norm>(x[q], y, i), scan_distance<D, Norm>(x[q], y, i + 1));
            }
          }
        }
#pragma unroll
        for (int q = 0; q < Q; ++q) {
          running[q].add(minimum[q], static_cast<int>(base) + t);
        }
      }
    }

#pragma unroll
    for (int q = 0; q < Q; ++q) {
      const int64_t n = first_query + q * static_cast<int64_t>(blockDim.x);
      if (n < queries) {
        const int64_t slot = (split * batch + b) * side.query_count.value + n;
        side.tile[slot] = running[q].tile;
        if constexpr (sizeof(T) == 8) {
          static_cast<double*>(side.best)[slot] = running[q].best;
        } else {
          static_cast<unsigned*>(side.best)[slot] = running[q].best;
          static_cast<unsigned*>(side.rival)[slot] = running[q].rival;
        }
      }
    }
  }
}

}  // namespace paperops::nearest

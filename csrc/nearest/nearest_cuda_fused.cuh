// Nearest neighbour of every point, both directions from one evaluation of each distance: float32 filter only.
//
// One block takes a range of groups of 1024 points x of one cloud and a range of tiles of 64 points y of the other. A
// warp holds 256 consecutive x, eight a lane, in registers. As in nearest_scan, y pass through shared memory and each x
// keeps (best, rival, tile) over the block's tiles. The same distances also serve the other direction: for every y, the
// least over the lane's eight x, then over the warp by one integer reduction, is m(y, block of 256 x); after each stage
// the four warps' values are added to the (best, rival, tile) of y, with tiles of 256 x. That state lies in the
// workspace, in a slice that no other block touches. nearest_finish does the rest for both sides.
//
// Bound: instruction issue. A pair of points costs 2 D instructions of distance and two halves of a three-way minimum
// for both directions together, where two scans cost twice 2 D + 1/2: 7 against 13 for D = 3. Over these come a
// reduction, a move and a quarter of a store a warp and y (0.28 a pair), and the shared loads: the compiled loop of
// sm_90a has 7.47 a pair.
#pragma once

#include "nearest_cuda_scan.cuh"

namespace paperops::nearest {

constexpr int kFusedWarps = kScanThreads / cuda::kWarp;

template <int D, int Norm>
__global__ void __launch_bounds__(kScanThreads, scan_blocks(false, D))
    nearest_fused(const __grid_constant__ NearestArguments arguments) {
  constexpr int Q = kFusedTile / cuda::kWarp;
  constexpr int width = kTile * kStageTiles;
  __shared__ __align__(16) float stage[D][width];
  __shared__ __align__(16) unsigned least[kFusedWarps][width];

  const int64_t batch = arguments.batch;
  const Side& rows = arguments.sides[0];
  const Side& columns = arguments.sides[1];
  const int lane = threadIdx.x % cuda::kWarp;
  const int warp = threadIdx.x / cuda::kWarp;
  const int64_t items = batch * columns.splits.value * rows.splits.value;

  for (int64_t work = blockIdx.x; work < items; work += gridDim.x) {
    const int64_t part = rows.splits.divide(work);
    const int64_t row_split = work - part * rows.splits.value;
    const int64_t b = columns.splits.divide(part);
    const int64_t column_split = part - b * columns.splits.value;

    const int64_t queries = clamp_length(rows.query_lengths, b, rows.query_count.value);
    const int64_t valid = clamp_length(rows.target_lengths, b, rows.target_count);
    const int64_t first_tile = row_split * rows.split_tiles;
    const int64_t last_tile = min(first_tile + rows.split_tiles, cuda::ceil_div<int64_t>(valid, kTile));
    const int64_t first_group = column_split * columns.split_tiles;  // a split of y's targets, in groups of 1024 x
    const int64_t last_group =
        min(first_group + columns.split_tiles, cuda::ceil_div<int64_t>(queries, kFusedWarps * kFusedTile));
    const int64_t column_base = (column_split * batch + b) * columns.query_count.value;

    // One group more than there are where there are none: finish reads every split, so its state must be written.
    for (int64_t group = first_group; group < max(last_group, first_group + 1); ++group) {
      const int64_t first_block = group * kFusedWarps;
      const int64_t first_query = (first_block + warp) * kFusedTile + lane;
      float x[Q][D];
#pragma unroll
      for (int q = 0; q < Q; ++q) {
        const int64_t n = first_query + q * cuda::kWarp;
        if (n < queries) {
          load_point(x[q], rows.queries, b * rows.query_count.value + n, arguments.dimensions, arguments.dtype);
        } else {
#pragma unroll
          for (int d = 0; d < D; ++d) {
            x[q][d] = NAN;  // loses every minimum
          }
        }
      }
      Running<float> running[Q];

      for (int64_t base = first_tile; base < last_tile; base += kStageTiles) {
        __syncthreads();  // the previous stage and its minima have been read
        load_stage(
            stage, rows.targets, b * rows.target_count, base * kTile, valid, arguments.dimensions, arguments.dtype);
        __syncthreads();
        const int tiles = static_cast<int>(min(static_cast<int64_t>(kStageTiles), last_tile - base));
#pragma unroll 1
        for (int t = 0; t < tiles; ++t) {
          unsigned minimum[Q];
#pragma unroll
          for (int q = 0; q < Q; ++q) {
            minimum[q] = kInfinityBits;
          }
#pragma unroll 2
          for (int j = 0; j < kTile; j += 4) {
            float y[D][4];
#pragma unroll
            for (int d = 0; d < D; ++d) {
              load_four(y[d], &stage[d][t * kTile + j]);
            }
            unsigned column[4];
#pragma unroll
            for (int i = 0; i < 4; i += 2) {
              column[i] = kInfinityBits;
              column[i + 1] = kInfinityBits;
#pragma unroll
              for (int q = 0; q < Q; q += 2) {
                const float d00 = scan_distance<D, Norm>(x[q], y, i);
                const float d01 = scan_distance<D, Norm>(x[q], y, i + 1);
                const float d10 = scan_distance<D, Norm>(x[q + 1], y, i);
                const float d11 = scan_distance<D, Norm>(x[q + 1], y, i + 1);
                minimum[q] = Running<float>::least(minimum[q], d00, d01);
                minimum[q + 1] = Running<float>::least(minimum[q + 1], d10, d11);
                column[i] = Running<float>::least(column[i], d00, d10);
                column[i + 1] = Running<float>::least(column[i + 1], d01, d11);
              }
            }
            uint4 reduced;
            reduced.x = __reduce_min_sync(cuda::kAllLanes, column[0]);
            reduced.y = __reduce_min_sync(cuda::kAllLanes, column[1]);
            reduced.z = __reduce_min_sync(cuda::kAllLanes, column[2]);
            reduced.w = __reduce_min_sync(cuda::kAllLanes, column[3]);
            if (lane == 0) {
              *reinterpret_cast<uint4*>(&least[warp][t * kTile + j]) = reduced;
            }
          }
#pragma unroll
          for (int q = 0; q < Q; ++q) {
            running[q].add(minimum[q], static_cast<int>(base) + t);
          }
        }
        __syncthreads();  // all warps' minima are there
        for (int j = threadIdx.x; j < tiles * kTile; j += blockDim.x) {
          const int64_t m = base * kTile + j;
          if (m < valid) {
            const int64_t slot = column_base + m;
            Running<float> state;
            if (group > first_group) {
              state.best = static_cast<const unsigned*>(columns.best)[slot];
              state.rival = static_cast<const unsigned*>(columns.rival)[slot];
              state.tile = columns.tile[slot];
            }
#pragma unroll
            for (int w = 0; w < kFusedWarps; ++w) {
              state.add(least[w][j], static_cast<int>(first_block) + w);
            }
            static_cast<unsigned*>(columns.best)[slot] = state.best;
            static_cast<unsigned*>(columns.rival)[slot] = state.rival;
            columns.tile[slot] = state.tile;
          }
        }
      }

#pragma unroll
      for (int q = 0; q < Q; ++q) {
        const int64_t n = first_query + q * cuda::kWarp;
        if (n < queries) {
          const int64_t slot = (row_split * batch + b) * rows.query_count.value + n;
          rows.tile[slot] = running[q].tile;
          static_cast<unsigned*>(rows.best)[slot] = running[q].best;
          static_cast<unsigned*>(rows.rival)[slot] = running[q].rival;
        }
      }
    }
  }
}

}  // namespace paperops::nearest

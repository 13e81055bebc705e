// The arguments of the nearest-neighbour kernels, and how their work is divided over a device: plain host code.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "../common/cuda.cuh"

namespace paperops::nearest {

using cuda::Dtype;

constexpr int kTile = 64;        // targets a tile: what finish rescans
constexpr int kFusedTile = 256;  // the same for the second side of the fused scan: what a warp holds
constexpr int kStageTiles = 4;   // tiles in shared memory at a time
constexpr int kScanThreads = 128;
constexpr int kFinishThreads = 128;

// One direction: the queries' and the targets' clouds, the workspace, and the results.
struct Side {
  const void* queries;            // [B, N, D]
  const void* targets;            // [B, M, D]
  const int64_t* query_lengths;   // [B] or null
  const int64_t* target_lengths;  // [B] or null
  cuda::Divisor query_count;      // N
  int64_t target_count;           // M
  cuda::Divisor groups;           // blocks' worth of queries in a cloud
  cuda::Divisor splits;           // ranges of tiles
  int64_t split_tiles;            // tiles in a range (fused, second side: groups of queries of the first)
  int tile_size;                  // targets a tile
  void* best;                     // [splits, B, N] of the filter's type
  void* rival;                    // [splits, B, N], float32 filter only
  int32_t* tile;                  // [splits, B, N]
  void* distances;                // [B, N] acc
  int64_t* indices;               // [B, N]
};

struct NearestArguments {
  Side sides[2];
  int side_count;
  int64_t batch;
  int dimensions;  // D, at most the kernel's
  Dtype dtype;
};

constexpr int kKnnMost = cuda::kWarp;
constexpr int kKnnWarps = 8;
constexpr int kKnnWidth = 256;  // targets in shared memory at a time

// Queries a warp takes.
__host__ __device__ constexpr int knn_queries(bool wide) {
  return wide ? 2 : 4;
}

struct KnnArguments {
  const void* queries;            // [B, N, D]
  const void* targets;            // [B, M, D]
  const int64_t* query_lengths;   // [B] or null
  const int64_t* target_lengths;  // [B] or null
  int64_t batch;
  cuda::Divisor query_count;
  int64_t target_count;  // below 2^32 - 1
  cuda::Divisor groups;  // blocks' worth of queries in a cloud
  cuda::Divisor splits;
  int64_t split_targets;  // a multiple of kKnnWidth
  int k;
  int dimensions;
  Dtype dtype;
  uint64_t* keys;       // [splits, B, N, k], or null: one split, which writes the results
  uint32_t* positions;  // [splits, B, N, k]
  void* distances;      // [B, N, k] acc
  int64_t* indices;     // [B, N, k]
};

constexpr int kGatherWarps = 8;
constexpr int kGatherBytes = 32768;         // of shared memory for the sums, at most

struct GatherSide {
  const void* points;                // [B, N, D]
  const void* others;                // [B, M, D]
  const int64_t* own_indices;        // [B, N, own] into others, or null
  const void* own_gradients;         // [B, N, own] acc
  const int64_t* incoming_indices;   // [B, M, incoming] into points, or null
  const void* incoming_gradients;    // [B, M, incoming] acc
  int64_t own;
  cuda::Divisor incoming = 0;
  int64_t point_count;  // N
  int64_t other_count;  // M
  cuda::Divisor tiles;
  void* gradient;  // [B, N, D]
};

struct GatherArguments {
  GatherSide sides[2];
  int64_t batch;
  int tile;  // points a block
  int dimensions;
  int norm;
  Dtype dtype;
};

// ---- division of the work -------------------------------------------------------------------------------------

// Dimensions the kernels are compiled for: a cloud takes the next one up, and zeros fill the difference.
constexpr int kMostDimensions = 8;

struct ScanPlan {
  int threads;            // a block
  int queries;            // a thread
  int64_t groups[2];      // a side
  int64_t splits[2];
  int64_t split_tiles[2];
  bool fused;
};

constexpr int kFusedDimensions = 4;
constexpr double kFullWarps = 12.0;

// The fused scan costs about 1.15 of one direction's for both, and its first side's cloud is padded to 1024 points.
inline void improve_by_fusing(
    ScanPlan& best, double best_cost, int64_t batch, int64_t first, int64_t second, int processors) {
  const int64_t groups = cuda::ceil_div<int64_t>(first, 4 * kFusedTile);
  const int64_t tiles = cuda::ceil_div<int64_t>(second, kTile);
  if (groups == 0 || tiles == 0) {
    return;
  }
  for (int64_t row_parts = 1; row_parts <= std::min<int64_t>(tiles, 64); ++row_parts) {
    const int64_t split_tiles = cuda::ceil_div(tiles, row_parts);
    for (int64_t column_parts = 1; column_parts <= std::min<int64_t>(groups, 32); ++column_parts) {
      const int64_t split_groups = cuda::ceil_div(groups, column_parts);
      ScanPlan plan{kScanThreads, 8, {groups, 0}, {1, 1}, {split_tiles, split_groups}, true};
      plan.splits[0] = cuda::ceil_div(tiles, split_tiles);
      plan.splits[1] = cuda::ceil_div(groups, split_groups);
      const double blocks =
          static_cast<double>(batch) * static_cast<double>(plan.splits[0]) * static_cast<double>(plan.splits[1]);
      const double whole_rounds = std::ceil(blocks / processors);
      const double work = static_cast<double>(split_groups) * (static_cast<double>(split_tiles) + 0.4) + 0.4;
      const double warps = kScanThreads / 32.0;
      const double resident = std::min(whole_rounds * warps, kFullWarps);
      const double cost = work * whole_rounds * warps * 8.0 * 1.15 * (kFullWarps / resident);
      if (cost < best_cost) {
        best_cost = cost;
        best = plan;
      }
    }
  }
}

// Least time, in units of one warp passing one tile of 64 targets on one multiprocessor, over the block shapes that
// are compiled and over the lengths of a split. A block's fixed cost is about 0.4 tiles. A multiprocessor needs 12
// warps to issue at its full rate; blocks come in whole numbers a multiprocessor, so the last round may be half empty.
inline ScanPlan plan_scan(
    int64_t batch, const int64_t (&queries)[2], const int64_t (&targets)[2], int sides, bool wide, int dimensions,
    int processors) {
  const int shapes[3][2] = {{kScanThreads, wide ? 2 : 8}, {32, wide ? 2 : 8}, {32, 2}};
  ScanPlan best{};
  double best_cost = -1.0;
  for (const auto& shape : shapes) {
    ScanPlan plan{shape[0], shape[1], {0, 0}, {1, 1}, {1, 1}, false};
    int64_t most_tiles = 1;
    for (int s = 0; s < sides; ++s) {
      plan.groups[s] = cuda::ceil_div<int64_t>(queries[s], plan.threads * plan.queries);
      most_tiles = std::max(most_tiles, cuda::ceil_div<int64_t>(targets[s], kTile));
    }
    for (int64_t parts = 1; parts <= std::min<int64_t>(most_tiles, 64); ++parts) {
      const int64_t split_tiles = cuda::ceil_div(most_tiles, parts);
      plan.split_tiles[0] = plan.split_tiles[1] = split_tiles;
      double blocks = 0.0;
      double tiles = 0.0;
      for (int s = 0; s < sides; ++s) {
        const int64_t side_tiles = cuda::ceil_div<int64_t>(targets[s], kTile);
        plan.splits[s] = std::max<int64_t>(1, cuda::ceil_div(side_tiles, split_tiles));
        const double side_blocks = static_cast<double>(batch) * static_cast<double>(plan.groups[s]);
        blocks += side_blocks * static_cast<double>(plan.splits[s]);
        tiles += side_blocks * (static_cast<double>(side_tiles) + 0.4 * static_cast<double>(plan.splits[s]));
      }
      const double warps = plan.threads / 32.0;
      const double rounds = blocks / processors;
      const double whole_rounds = std::ceil(rounds);
      // Two queries a thread read shared memory four times as often as eight.
      const double pair_cost = plan.queries == 8 || wide ? 8.0 : 2.0 * 1.1;
      const double resident = std::min(whole_rounds * warps, kFullWarps);
      const double block_cost = blocks == 0.0 ? 0.0 : tiles / blocks * warps * pair_cost;
      const double cost = block_cost * whole_rounds * (kFullWarps / std::max(resident, 1.0));
      if (best_cost < 0.0 || cost < best_cost) {
        best_cost = cost;
        best = plan;
      }
    }
  }
  if (sides == 2 && !wide && dimensions <= kFusedDimensions) {
    improve_by_fusing(best, best_cost, batch, queries[0], queries[1], processors);
  }
  return best;
}

struct KnnPlan {
  int64_t groups;
  int64_t splits;
  int64_t split_targets;
};

// Two blocks a multiprocessor fill it. A split starts with an empty list, so it should see many more targets than k.
inline KnnPlan plan_knn(int64_t batch, int64_t queries, int64_t targets, bool wide, int processors) {
  constexpr int64_t least_targets = 4 * kKnnWidth;
  KnnPlan plan{};
  plan.groups = cuda::ceil_div<int64_t>(queries, kKnnWarps * knn_queries(wide));
  const int64_t blocks = std::max<int64_t>(1, batch * plan.groups);
  const int64_t wanted = cuda::ceil_div<int64_t>(2 * processors, blocks);
  const int64_t most = std::min<int64_t>(64, cuda::ceil_div(targets, least_targets));
  const int64_t splits = std::max<int64_t>(1, std::min(wanted, most));
  plan.split_targets =
      std::max<int64_t>(1, cuda::ceil_div(cuda::ceil_div(targets, splits), int64_t{kKnnWidth})) * kKnnWidth;
  plan.splits = std::max<int64_t>(1, cuda::ceil_div(targets, plan.split_targets));
  return plan;
}

// Points a block of the backward takes: as many as shared memory holds, fewer where that leaves processors idle.
inline int plan_gather(
    int64_t batch, int64_t points, int64_t others, int dimensions, int element_size, int processors) {
  int tile = kGatherBytes / (kGatherWarps * element_size * dimensions);
  int power = 1024;
  while (power > tile) {
    power /= 2;
  }
  tile = power;
  while (tile > 64 && batch * (cuda::ceil_div<int64_t>(points, tile) + cuda::ceil_div<int64_t>(others, tile)) <
                          2 * static_cast<int64_t>(processors)) {
    tile /= 2;
  }
  return tile;
}

// ---- launches (one translation unit each) ---------------------------------------------------------------------

// arguments.dtype float64 selects float64 arithmetic. Nothing is launched where there is nothing to write.
void launch_nearest(const NearestArguments& arguments, const ScanPlan& plan, int norm, cudaStream_t stream);
void launch_knn(const KnnArguments& arguments, int norm, cudaStream_t stream);
void launch_gather(const GatherArguments& arguments, cudaStream_t stream);

// Calls `run` with the compiled dimension count for `dimensions`, as a constant.
template <int Value>
struct Constant {
  static constexpr int value = Value;
};

template <typename Run>
void with_dimensions(int dimensions, const Run& run) {
  switch (dimensions) {
    case 1: return run(Constant<1>{});
    case 2: return run(Constant<2>{});
    case 3: return run(Constant<3>{});
    case 4: return run(Constant<4>{});
    case 5:
    case 6: return run(Constant<6>{});
    default: return run(Constant<8>{});
  }
}

inline int compiled_dimensions(int dimensions) {
  return dimensions <= 4 ? dimensions : (dimensions <= 6 ? 6 : 8);
}

}  // namespace paperops::nearest

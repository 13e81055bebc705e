// What the parts of the CPU implementation tell each other: nearest_cpu.cpp plans and packs, the kernels of one
// instruction set (nearest_cpu_kernels.h) do the work on pairs, nearest_cpu_ops.cpp meets the dispatcher.
#pragma once

#include <cstdint>

#include "../common/instruction_set.h"

namespace paperops::nearest {

// Queries that are handled together, and after which the minima of the targets are folded in.
constexpr int64_t kQueryBlock = 64;
// Groups of queries that a target tells apart: the bits of a mask.
constexpr int64_t kMaskBits = 32;

struct Candidate {
  double distance;
  int64_t index;
};

// One cloud, `count` valid points.
template <typename T>
struct Cloud {
  const T* points;   // [count, D], as the caller's tensor
  const T* columns;  // [D, stride], the transpose, padded with NaN by at least one vector beyond count
  int64_t stride;
  int64_t count;
};

// The targets once more, in the order in which the kernel over pairs reads them: [tiles, D, group, lanes], where
// element (tile, d, v, lane) belongs to target (tile * lanes + lane) * group + v, NaN beyond the last. So the lanes of
// a vector are `group` targets apart, and the minimum that a lane holds after a tile is that of `group` neighbouring
// targets, which are contiguous in `columns`.
template <typename T>
struct Tiles {
  const T* data;
  int64_t count;
  int64_t group;
};

// What scan_queries hands on to resolve_targets, for one chunk of queries, in the order of the tiles:
// the least filter distance of each target, and a mask of the groups of queries that may hold its nearest.
template <typename T>
struct TargetMinima {
  T* minimum;      // [tiles * group * lanes]
  uint32_t* mask;  // likewise; bit g: queries [g * queries_per_bit, (g + 1) * queries_per_bit) of the chunk
};

// Finds the k nearest targets of queries [begin, end), and fills `minima` where it is there.
template <typename T>
struct ScanTask {
  Cloud<T> x;
  Cloud<T> y;
  Tiles<T> tiles;
  int64_t dimensions;
  int64_t norm;
  int64_t begin;
  int64_t end;
  int64_t k;
  T* distances;      // [end, k]
  int64_t* indices;  // [end, k]
  TargetMinima<T> minima;
  int64_t queries_per_bit;
  T* workspace;           // scan_workspace elements
  Candidate* candidates;  // candidate_capacity of them; used where k > 1
  int64_t candidate_capacity;
};

// Finds the nearest query of targets [begin, end) from the minima of all chunks.
template <typename T>
struct ResolveTask {
  Cloud<T> x;
  Cloud<T> y;
  Tiles<T> tiles;
  int64_t dimensions;
  int64_t norm;
  int64_t begin;
  int64_t end;
  int64_t chunks;
  int64_t queries_per_chunk;
  int64_t queries_per_bit;
  TargetMinima<T> minima;  // [chunks, minima_stride]
  int64_t minima_stride;
  T* distances;      // [end]
  int64_t* indices;  // [end]
};

// Points of a tile of a cloud that is sorted along a space-filling curve: one bounding box.
constexpr int64_t kBoxPoints = 64;

// A cloud in the order of a space-filling curve (`order`: index in the caller's tensor of each sorted point), with the
// bounding box of every kBoxPoints of its points. All coordinates are finite.
template <typename T>
struct SortedCloud {
  Cloud<T> cloud;
  const int64_t* order;  // [count]
  const T* lower;        // [D, box_stride], beyond the last box +inf
  const T* upper;        // [D, box_stride], beyond the last box -inf
  int64_t boxes;
  int64_t box_stride;  // a multiple of the lanes
};

// Finds the k nearest targets of the sorted queries [begin, end) without looking at all pairs.
template <typename T>
struct PrunedTask {
  SortedCloud<T> x;
  SortedCloud<T> y;
  int64_t dimensions;  // 1, 2 or 3
  int64_t norm;
  int64_t begin;
  int64_t end;
  int64_t k;
  T* distances;      // [N, k], in the caller's order
  int64_t* indices;  // [N, k]
  T* workspace;      // pruned_workspace elements
  int64_t* list;     // [box_stride]
  Candidate* candidates;
  int64_t candidate_capacity;
};

// The kernels of one instruction set.
template <typename T>
struct Kernels {
  int64_t lanes;
  void (*scan_queries)(const ScanTask<T>&);
  void (*resolve_targets)(const ResolveTask<T>&);
  void (*scan_pruned)(const PrunedTask<T>&);
};

inline int64_t scan_workspace(int64_t dimensions, int64_t tiles, int64_t group, int64_t lanes) {
  return kQueryBlock * dimensions + kQueryBlock * tiles * lanes + group * lanes;
}

// Boxes whose points give a query its first bound.
inline int64_t seed_boxes(int64_t k) { return 8 + k / 4; }

inline int64_t pruned_workspace(int64_t dimensions, int64_t box_stride, int64_t k, int64_t lanes) {
  return kQueryBlock * (dimensions + 1) + kQueryBlock * seed_boxes(k) * lanes + (2 * dimensions + 1) * box_stride;
}

// Moves the k first of `count` candidates to the front, in order (all of them where there are fewer).
void select_candidates(Candidate* candidates, int64_t count, int64_t k);

#if defined(PAPEROPS_X86)
template <typename T>
Kernels<T> kernels_avx512();
template <typename T>
Kernels<T> kernels_avx2();
#endif
template <typename T>
Kernels<T> kernels_portable();

// One call of knn or nearest.
template <typename T>
struct Problem {
  int64_t batch;
  int64_t x_size;
  int64_t y_size;
  int64_t dimensions;
  int64_t norm;
  int64_t k;
  const T* x;                // [B, N, D]
  const T* y;                // [B, M, D]
  const int64_t* x_lengths;  // [B] or null
  const int64_t* y_lengths;  // [B] or null
  T* x_distances;            // [B, N, k]
  int64_t* x_indices;        // [B, N, k]
  T* y_distances;            // [B, M], or null: only the neighbours of x are wanted
  int64_t* y_indices;        // [B, M], or null
};

template <typename T>
void find_neighbours(const Problem<T>& problem);

// The same for large clouds in few dimensions, in far fewer than N M steps: nearest_cpu_pruned.cpp. Returns false, and
// has written nothing, where the problem is not of that kind.
template <typename T>
bool find_neighbours_pruned(const Problem<T>& problem, const Kernels<T>& kernels);

// The gradient of a sum of pair distances with respect to the points of a, for one or both ways a pair can come about:
//   grad_a[i] = sum_s own[i, s] g(a_i, b_{own_index[i, s]}) + sum_{(j, s): other_index[j, s] = i} other[j, s] g(a_i, b_j)
// with g of pair_gradient; the second sum in order of (j, s). Either way may be absent (null). Sums are in float64.
template <typename T>
struct PairGradient {
  int64_t batch;
  int64_t a_size;
  int64_t b_size;
  int64_t dimensions;
  int64_t norm;
  const T* a;              // [B, a_size, D]
  const T* b;              // [B, b_size, D]
  const T* own;            // [B, a_size, own_k] or null
  const int64_t* own_index;
  int64_t own_k;
  const T* other;          // [B, b_size, other_k] or null
  const int64_t* other_index;
  int64_t other_k;
  T* gradient;             // [B, a_size, D]
};

template <typename T>
void pair_gradient_cpu(const PairGradient<T>& task);

}  // namespace paperops::nearest

// Nearest neighbours on the CPU: the plan of a call. Packs the clouds, cuts the work into tasks, and writes what needs
// no pairs (rows beyond a cloud's length, empty clouds). The pairs are in nearest_cpu_kernels.h.
#include "nearest_cpu.h"

#include <algorithm>
#include <limits>

#include "../common/instruction_set.h"
#include "../common/parallel.h"
#include "nearest.h"
#include "nearest_cpu_pack.h"

namespace paperops::nearest {

void select_candidates(Candidate* candidates, int64_t count, int64_t k) {
  const auto first = [](const Candidate& a, const Candidate& b) {
    return before(a.distance, a.index, b.distance, b.index);
  };
  if (count > 2 * k) {
    std::nth_element(candidates, candidates + k, candidates + count, first);
    count = k;
  }
  std::sort(candidates, candidates + count, first);
}

namespace {

// How the targets of one cloud are cut into tiles.
struct TileShape {
  int64_t count;
  int64_t group;
};

// `most` is the largest group. The group is then made as small as the number of tiles allows: less padding.
TileShape tile_shape(int64_t targets, int64_t most, int64_t lanes) {
  const int64_t count = std::max<int64_t>(1, divide_up(targets, most * lanes));
  return {count, std::max<int64_t>(1, divide_up(targets, count * lanes))};
}

// Larger groups mean fewer minima to keep and to look through, but more points to scan again in the end. For k
// neighbours there should be several groups for each.
int64_t largest_group(int64_t targets, int64_t k) {
  const int64_t most = targets >= 65536 ? 64 : 16;
  return k == 1 ? most : std::clamp<int64_t>(targets / (4 * k), 1, most);
}

// tile [D, group, lanes] <- columns, see Tiles. Tile number `tile` starts at point tile * lanes * group.
template <typename T>
void pack_tile(const Cloud<T>& cloud, int64_t dimensions, int64_t tile, int64_t group, int64_t lanes, T* packed) {
  const int64_t begin = tile * lanes * group;
  for (int64_t d = 0; d < dimensions; ++d) {
    for (int64_t v = 0; v < group; ++v) {
      for (int64_t lane = 0; lane < lanes; ++lane) {
        const int64_t i = begin + lane * group + v;
        *packed++ = i < cloud.count ? cloud.columns[d * cloud.stride + i] : std::numeric_limits<T>::quiet_NaN();
      }
    }
  }
}

// One call: its layout, its packed clouds, and its three steps.
template <typename T>
class Run {
 public:
  explicit Run(const Problem<T>& problem)
      : p_(problem),
        kernels_(PAPEROPS_CHOOSE(kernels, T)),
        both_(problem.y_distances != nullptr),
        parallel_(static_cast<double>(problem.batch) * problem.x_size * problem.y_size * problem.dimensions > 4e5),
        most_(largest_group(problem.y_size, problem.k)),
        most_tiles_(tile_shape(problem.y_size, most_, kernels_.lanes).count),
        x_stride_(column_stride(problem.x_size)),
        y_stride_(column_stride(problem.y_size)),
        tile_stride_(problem.y_size + kernels_.lanes * most_tiles_),
        x_columns_(both_ ? problem.batch * problem.dimensions * x_stride_ : 0),
        y_columns_(problem.batch * problem.dimensions * y_stride_),
        tiles_(problem.batch * problem.dimensions * tile_stride_) {
    plan_chunks();
  }

  void execute() {
    const Buffer<T> minimum(both_ ? p_.batch * chunks_ * tile_stride_ : 0);
    const Buffer<uint32_t> mask(both_ ? p_.batch * chunks_ * tile_stride_ : 0);
    run_tasks(p_.batch, parallel_, [&](const auto& next) {
      for (int64_t b = next(); b >= 0; b = next()) {
        pack(b);
      }
    });
    run_tasks(p_.batch * chunks_, parallel_, [&](const auto& next) {
      const Buffer<T> workspace(scan_workspace(p_.dimensions, most_tiles_, most_, kernels_.lanes));
      const int64_t capacity = p_.k > 1 ? 2 * p_.k + 4096 : 0;
      const Buffer<Candidate> candidates(capacity);
      for (int64_t task = next(); task >= 0; task = next()) {
        scan(task / chunks_, task % chunks_, {minimum.data(), mask.data()}, workspace.data(), candidates.data(), capacity);
      }
    });
    if (both_) {
      run_tasks(p_.batch * slices_, parallel_, [&](const auto& next) {
        for (int64_t task = next(); task >= 0; task = next()) {
          resolve(task / slices_, task % slices_, {minimum.data(), mask.data()});
        }
      });
    }
  }

 private:
  int64_t column_stride(int64_t points) const { return points + kernels_.lanes; }

  // Enough chunks to keep every thread busy; few, as each costs memory for every target.
  void plan_chunks() {
    const int64_t threads = parallel_ ? torch::stable::get_num_threads() : 1;
    const int64_t wanted = threads == 1 ? 1 : divide_up(4 * threads, p_.batch);
    const auto part = [&](int64_t points) { return divide_up(points, std::min(wanted, divide_up(points, 256))); };
    queries_per_bit_ = kQueryBlock * std::max<int64_t>(1, divide_up(part(p_.x_size), kQueryBlock * kMaskBits));
    queries_per_chunk_ = queries_per_bit_ * divide_up(part(p_.x_size), queries_per_bit_);
    chunks_ = divide_up(p_.x_size, queries_per_chunk_);
    targets_per_slice_ = part(p_.y_size);
    slices_ = divide_up(p_.y_size, targets_per_slice_);
  }

  Cloud<T> x_cloud(int64_t b) const {
    return {p_.x + b * p_.x_size * p_.dimensions, x_columns_.data() + (both_ ? b * p_.dimensions * x_stride_ : 0),
            x_stride_, clamp_length(p_.x_lengths, b, p_.x_size)};
  }

  Cloud<T> y_cloud(int64_t b) const {
    return {p_.y + b * p_.y_size * p_.dimensions, y_columns_.data() + b * p_.dimensions * y_stride_, y_stride_,
            clamp_length(p_.y_lengths, b, p_.y_size)};
  }

  Tiles<T> tiles(int64_t b, int64_t targets) const {
    const TileShape shape = tile_shape(targets, most_, kernels_.lanes);
    return {tiles_.data() + b * p_.dimensions * tile_stride_, shape.count, shape.group};
  }

  void pack(int64_t b) {
    const Cloud<T> x = x_cloud(b);
    const Cloud<T> y = y_cloud(b);
    if (both_) {
      pack_columns(x.points, x.count, p_.dimensions, x.stride, x_columns_.data() + b * p_.dimensions * x_stride_);
    }
    pack_columns(y.points, y.count, p_.dimensions, y.stride, y_columns_.data() + b * p_.dimensions * y_stride_);
    const Tiles<T> layout = tiles(b, y.count);
    T* packed = tiles_.data() + b * p_.dimensions * tile_stride_;
    for (int64_t tile = 0; tile < layout.count; ++tile) {
      pack_tile(y, p_.dimensions, tile, layout.group, kernels_.lanes,
                packed + tile * p_.dimensions * layout.group * kernels_.lanes);
    }
  }

  TargetMinima<T> minima_of(TargetMinima<T> all, int64_t b, int64_t chunk) const {
    const int64_t offset = (b * chunks_ + chunk) * tile_stride_;
    return {both_ ? all.minimum + offset : nullptr, both_ ? all.mask + offset : nullptr};
  }

  // The neighbours of one chunk of queries.
  void scan(int64_t b, int64_t chunk, TargetMinima<T> minima, T* workspace, Candidate* candidates, int64_t capacity) {
    const Cloud<T> x = x_cloud(b);
    const Cloud<T> y = y_cloud(b);
    T* distances = p_.x_distances + b * p_.x_size * p_.k;
    int64_t* indices = p_.x_indices + b * p_.x_size * p_.k;
    const int64_t begin = chunk * queries_per_chunk_;
    const int64_t end = std::min(begin + queries_per_chunk_, p_.x_size);
    const int64_t valid = std::clamp(x.count, begin, end);
    fill_rows(distances, indices, valid, end, p_.k, T(0));
    if (y.count == 0) {
      fill_rows(distances, indices, begin, valid, p_.k, std::numeric_limits<T>::infinity());
    } else if (begin < valid) {
      kernels_.scan_queries({x, y, tiles(b, y.count), p_.dimensions, p_.norm, begin, valid, p_.k, distances, indices,
                             minima_of(minima, b, chunk), queries_per_bit_, workspace, candidates, capacity});
    }
  }

  // The nearest query of one slice of targets.
  void resolve(int64_t b, int64_t slice, TargetMinima<T> minima) {
    const Cloud<T> x = x_cloud(b);
    const Cloud<T> y = y_cloud(b);
    T* distances = p_.y_distances + b * p_.y_size;
    int64_t* indices = p_.y_indices + b * p_.y_size;
    const int64_t begin = slice * targets_per_slice_;
    const int64_t end = std::min(begin + targets_per_slice_, p_.y_size);
    const int64_t valid = std::clamp(y.count, begin, end);
    fill_rows(distances, indices, valid, end, 1, T(0));
    if (x.count == 0) {
      fill_rows(distances, indices, begin, valid, 1, std::numeric_limits<T>::infinity());
    } else {
      const int64_t chunks = divide_up(x.count, queries_per_chunk_);
      kernels_.resolve_targets({x, y, tiles(b, y.count), p_.dimensions, p_.norm, begin, valid, chunks,
                                queries_per_chunk_, queries_per_bit_, minima_of(minima, b, 0), tile_stride_, distances,
                                indices});
    }
  }

  const Problem<T>& p_;
  const Kernels<T> kernels_;
  const bool both_;
  const bool parallel_;
  const int64_t most_;        // largest group
  const int64_t most_tiles_;  // tiles of a full cloud
  const int64_t x_stride_;
  const int64_t y_stride_;
  const int64_t tile_stride_;  // points of the tiles of a cloud, padding included
  const Buffer<T> x_columns_;  // [B, D, x_stride]
  const Buffer<T> y_columns_;  // [B, D, y_stride]
  const Buffer<T> tiles_;      // [B, tile_stride * D]
  int64_t queries_per_bit_ = 0;
  int64_t queries_per_chunk_ = 0;
  int64_t chunks_ = 0;
  int64_t targets_per_slice_ = 0;
  int64_t slices_ = 0;
};

}  // namespace

template <typename T>
void find_neighbours(const Problem<T>& p) {
  if (p.batch == 0) {
    return;
  }
  if (p.x_size > 0 && p.y_size > 0) {
    if (!find_neighbours_pruned(p, PAPEROPS_CHOOSE(kernels, T))) {
      Run<T>(p).execute();
    }
    return;
  }
  // One cloud has no room for points: the other's valid rows have no neighbour.
  for (int64_t b = 0; b < p.batch; ++b) {
    const T none = std::numeric_limits<T>::infinity();
    const int64_t n = clamp_length(p.x_lengths, b, p.x_size);
    fill_rows(p.x_distances + b * p.x_size * p.k, p.x_indices + b * p.x_size * p.k, 0, n, p.k, none);
    fill_rows(p.x_distances + b * p.x_size * p.k, p.x_indices + b * p.x_size * p.k, n, p.x_size, p.k, T(0));
    if (p.y_distances != nullptr) {
      const int64_t m = clamp_length(p.y_lengths, b, p.y_size);
      fill_rows(p.y_distances + b * p.y_size, p.y_indices + b * p.y_size, 0, m, 1, none);
      fill_rows(p.y_distances + b * p.y_size, p.y_indices + b * p.y_size, m, p.y_size, 1, T(0));
    }
  }
}

template void find_neighbours<float>(const Problem<float>&);
template void find_neighbours<double>(const Problem<double>&);

}  // namespace paperops::nearest

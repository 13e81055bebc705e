// What forward and backward share: a call's sizes, its inputs as the kernels want them, and how the work is cut up.
//
// A chunk is some whole items of the batch, a block some consecutive queries of an item. Queries of a block go through
// the kernels together, so that what is loaded of the keys serves several of them, and their weights stay in a
// second-level cache. All sizes are fixed by the shapes alone, and so are the bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>

#include "../common/blas.h"
#include "../common/tensors.h"
#include "invariant_point_attention_cpu.h"

namespace paperops::ipa {

using Optional = std::optional<Tensor>;

constexpr int64_t kMostQueries = 16;                  // of a block
constexpr int64_t kWeightBytes = int64_t{400} << 10;  // of a block's weights, where one query's are not more
constexpr int64_t kChunkResidues = 1024;
constexpr int64_t kParallelOperations = 200000;  // fewer do not pay for waking a thread

struct Sizes {
  int64_t batch;
  int64_t n;
  int64_t heads;
  int64_t channels;
  int64_t query_coordinates;  // 3 Pq
  int64_t value_coordinates;  // 3 Pv
  int64_t pair_channels;

  int64_t key_rows() const { return channels + query_coordinates; }
  int64_t value_rows() const { return channels + value_coordinates; }
  // Multiplications of the forward pass for one query.
  int64_t operations() const { return n * heads * (key_rows() + value_rows() + 2 * pair_channels); }
};

// The inputs of both ops, as the dispatcher gives them.
struct Given {
  const Tensor &q, &k, &v, &q_points, &k_points, &v_points, &z, &centres, &point_weights;
  const Optional &bias, &bias_weight, &bias_bias, &mask;
  double inf;
};

// Some queries of an item: its index within the chunk, and in the batch.
struct Block {
  int64_t item;
  int64_t batch;
  int64_t begin;
  int64_t count;
};

struct Blocks {
  // `row_bytes`: what a query's weights take.
  Blocks(int64_t n, int64_t row_bytes) : n(n) {
    queries = std::clamp<int64_t>(kWeightBytes / std::max<int64_t>(row_bytes, 1), 1, kMostQueries);
    queries = queries >= 8 ? queries / 8 * 8 : queries;
  }
  int64_t count() const { return divide_up(n, queries); }
  int64_t n;
  int64_t queries;
};

struct Chunk {
  int64_t first;
  int64_t items;
};

struct Chunks {
  Chunks(int64_t batch, int64_t n)
      : batch(batch), items(std::clamp<int64_t>(kChunkResidues / n, 1, batch)), count(divide_up(batch, items)) {}
  Chunk operator[](int64_t index) const { return {index * items, std::min(items, batch - index * items)}; }
  int64_t batch, items, count;
};

// Runs work(task, memory) for all tasks, each worker with `bytes` of memory of its own.
template <class Work>
void run_with_memory(int64_t tasks, int64_t operations, int64_t bytes, const Work& work) {
  run_tasks(tasks, operations >= kParallelOperations, [&](const auto& next) {
    const Buffer<char> memory(bytes);
    std::fill(memory.data(), memory.data() + bytes, char{0});  // the ends of rows are read
    for (int64_t task = next(); task >= 0; task = next()) {
      work(task, memory.data());
    }
  });
}

// Rows of keys of a tensor [B, N, N, width] of any strides.
template <typename X>
struct PairRows {
  PairRows() = default;
  explicit PairRows(const Tensor& tensor)
      : data(static_cast<const X*>(tensor.data_ptr())),
        strides{tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)} {}
  const X* at(int64_t b, int64_t i) const { return data + b * strides[0] + i * strides[1]; }

  const X* data = nullptr;
  int64_t strides[4] = {};
};

// Rows `stride` apart.
template <typename T>
struct Rows {
  const T* data;
  int64_t stride;
};

template <typename X>
struct Inputs {
  using T = Wide<X>;

  Inputs(const Sizes& s, const Given& given)
      : s(s),
        pitch(padded<T>(s.n)),
        heads_pitch(padded<T>(s.heads)),
        z_pitch(padded<T>(s.pair_channels)),
        q(given.q), k(given.k), v(given.v),
        q_points(given.q_points), k_points(given.k_points), v_points(given.v_points),
        centres(given.centres),
        point_weights(given.point_weights),
        z(given.z),
        weight(given.bias_weight.has_value() ? s.heads * z_pitch : 0),
        constant(given.bias_weight.has_value() ? s.heads : 0),
        scale(static_cast<T>(w_l() / std::sqrt(static_cast<double>(s.channels)))),
        inf(static_cast<T>(given.inf)) {
    if (given.mask.has_value()) {
      mask_values = as_contiguous(*given.mask);
      mask = static_cast<const bool*>(mask_values->data_ptr());
    }
    if (given.bias.has_value()) {
      bias = PairRows<X>(*given.bias);
      return;
    }
    const Elements<T> values(*given.bias_weight);
    std::fill(weight.data(), weight.data() + s.heads * z_pitch, T{0});
    for (int64_t h = 0; h < s.heads; ++h) {
      for (int64_t c = 0; c < s.pair_channels; ++c) {
        weight.data()[h * z_pitch + c] = static_cast<T>(w_l()) * values.data()[h * s.pair_channels + c];
      }
    }
    std::fill(constant.data(), constant.data() + s.heads, T{0});
    if (given.bias_bias.has_value()) {
      const Elements<T> constants(*given.bias_bias);
      std::transform(constants.data(), constants.data() + s.heads, constant.data(),
                     [](T value) { return static_cast<T>(w_l()) * value; });
    }
  }

  static double w_l() { return std::sqrt(1.0 / 3.0); }
  bool projected() const { return bias.data == nullptr; }
  bool valid(int64_t b, int64_t i) const { return mask == nullptr || mask[b * s.n + i]; }
  bool empty(int64_t b, int64_t i) const { return !valid(b, i) && std::isinf(inf); }

  // The rows of z of a query: where they are if kernels can read them there, else a copy in `memory` [N, z_pitch].
  Rows<T> z_rows(const Conversions<X>& conversions, int64_t b, int64_t i, T* memory) const {
    const X* from = z.at(b, i);
    if constexpr (std::is_same<X, T>::value) {
      if (z.strides[3] == 1 && s.pair_channels == z_pitch) {
        return {from, z.strides[2]};
      }
    }
    conversions.read(from, z.strides[2], z.strides[3], s.n, s.pair_channels, memory, z_pitch);
    return {memory, z_pitch};
  }

  // Where the kernels will read z of the next query of a block; null where that is not a row like that of this one.
  const T* z_ahead(const Block& block, int64_t i) const {
    if constexpr (std::is_same<X, T>::value) {
      if (i + 1 < block.begin + block.count && z.strides[3] == 1 && s.pair_channels == z_pitch) {
        return z.at(block.batch, i + 1);
      }
    }
    return nullptr;
  }

  // A point near the queries of a block, so that sums of points lose nothing far from the origin.
  void centre_near(const Block& block, T* centre) const {
    std::fill(centre, centre + 3, T{0});
    for (int64_t i = block.begin; i < block.begin + block.count; ++i) {
      const T* own = centres.data() + (block.batch * s.n + i) * 3;
      if (valid(block.batch, i) && std::isfinite(own[0] + own[1] + own[2])) {
        std::copy(own, own + 3, centre);
        return;
      }
    }
  }

  // q of a block's queries, scaled: to [count, H, C].
  void scaled_queries(const Block& block, T* to) const {
    const int64_t width = s.heads * s.channels;
    const T* from = q.data() + (block.batch * s.n + block.begin) * width;
    std::transform(from, from + block.count * width, to, [this](T value) { return value * scale; });
  }

  Points<T> points(const Block& block, int64_t head, const T* keys) const {
    const int64_t row = s.heads * s.query_coordinates;
    return {q_points.data() + (block.batch * s.n + block.begin) * row + head * s.query_coordinates,
            row, block.count, keys, s.query_coordinates, pitch};
  }

  const Sizes& s;
  int64_t pitch, heads_pitch, z_pitch;
  Elements<T> q, k, v, q_points, k_points, v_points, centres, point_weights;
  PairRows<X> z, bias;
  Buffer<T> weight;    // [H, z_pitch], W_L bias_weight
  Buffer<T> constant;  // [H], W_L bias_bias
  T scale, inf;
  std::optional<Tensor> mask_values;
  const bool* mask = nullptr;
};

// What the mask does to the pairs of the items of a chunk.
template <typename X>
class Masks {
 public:
  using T = Wide<X>;
  Masks(const Inputs<X>& in, const Chunk& chunk) : in_(in), rows_(chunk.items * 3 * in.pitch) {
    for (int64_t item = 0; item < chunk.items; ++item) {
      T* gone = row(item, 0);
      for (int64_t j = 0; j < in.pitch; ++j) {
        const bool valid = j < in.s.n && in.valid(chunk.first + item, j), missing = std::isinf(in.inf);
        gone[j] = valid || (j < in.s.n && !missing) ? 0 : 1;
        row(item, 1)[j] = valid || missing ? 0 : in.inf;
        row(item, 2)[j] = missing ? 0 : in.inf;
      }
    }
  }
  // Of a query that is not empty.
  Masked<T> operator()(int64_t item, int64_t b, int64_t i) const {
    if (in_.mask == nullptr || std::isinf(in_.inf)) {
      return {row(item, 0), nullptr};
    }
    return {row(item, 0), row(item, in_.valid(b, i) ? 1 : 2)};
  }

 private:
  T* row(int64_t item, int64_t which) const { return rows_.data() + (item * 3 + which) * in_.pitch; }
  const Inputs<X>& in_;
  Buffer<T> rows_;
};

// to [C + coordinates, pitch]: the values [N, H, C] of a head, then its points [N, H, coordinates], by channels.
template <typename T>
void pack_channels(const Sizes& s, int64_t head, const T* values, const T* points, int64_t coordinates, T* to,
                   int64_t pitch) {
  const auto pack = [&](const T* from, int64_t width) {
    for (int64_t c = 0; c < width; ++c, to += pitch) {
      for (int64_t j = 0; j < s.n; ++j) {
        to[j] = from[(j * s.heads + head) * width + c];
      }
      std::fill(to + s.n, to + pitch, T{0});
    }
  };
  pack(values, s.channels);
  pack(points, coordinates);
}

// to [N, stride]: the same by rows, ends filled with zeros. Points may be null.
template <typename T>
void pack_rows(const Sizes& s, int64_t head, const T* values, const T* points, int64_t coordinates, T* to,
               int64_t stride) {
  for (int64_t j = 0; j < s.n; ++j, to += stride) {
    const T* from = values + (j * s.heads + head) * s.channels;
    T* end = std::copy(from, from + s.channels, to);
    if (points != nullptr) {
      from = points + (j * s.heads + head) * coordinates;
      end = std::copy(from, from + coordinates, end);
    }
    std::fill(end, to + stride, T{0});
  }
}

}  // namespace paperops::ipa

// What forward, backward and the bare contraction share: a call's sizes, its parameters as the products want them, how
// positions are cut into chunks and blocks and channels into groups, and the contraction itself.
//
// A chunk is one or more whole items of the batch: small ones together, so that parallel regions and products are not tiny.
// Within a chunk a position is one index, 0 .. items * N * N - 1, and a channel's positions are contiguous. A block is
// kBlock<P> positions in order, whatever items they belong to; all sizes are fixed by the shapes alone, and so are the bits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "../common/blas.h"
#include "../common/pages.h"
#include "../common/tensors.h"
#include "triangle_multiplication_cpu.h"

namespace paperops::triangle {

// Positions of a block: rows of 128 channels then leave room for several such blocks in a second-level cache.
template <typename P>
constexpr int64_t kBlock = 2048 / static_cast<int64_t>(sizeof(P));
// Items smaller than this are handled several to a task.
constexpr int64_t kTaskPositions = 4096;
constexpr int64_t kChunkPositions = 16384;
constexpr int64_t kFixedBytes = int64_t{8} << 20;
constexpr int64_t kTileRows = 128, kTileColumns = 256;

struct Sizes {
  int64_t batch;
  int64_t n;
  int64_t channels;  // C
  int64_t hidden;    // D
  bool outgoing;
  bool gate_first;
  double eps;

  int64_t pairs() const { return n * n; }
  int64_t gate() const { return gate_first ? hidden : channels; }  // width of q
};

// The parameters in the order of the public functions; null for a None one.
struct Parameters {
  const std::optional<Tensor>& norm_in_weight;
  const std::optional<Tensor>& norm_in_bias;
  const Tensor& p_in_weight;
  const std::optional<Tensor>& p_in_bias;
  const Tensor& g_in_weight;
  const std::optional<Tensor>& g_in_bias;
  const std::optional<Tensor>& norm_out_weight;
  const std::optional<Tensor>& norm_out_bias;
  const Tensor& p_out_weight;
  const std::optional<Tensor>& p_out_bias;
  const Tensor& g_out_weight;
  const std::optional<Tensor>& g_out_bias;
};

// Channels [begin, end) of a and the same of b, handled together.
struct Group {
  int64_t begin;
  int64_t end;
  int64_t size() const { return end - begin; }
};

// A buffer of many positions.
template <typename T>
struct Large : Buffer<T> {
  explicit Large(int64_t size) : Buffer<T>(size) {
    prefer_large_pages(this->data(), size * static_cast<int64_t>(sizeof(T)));
  }
};

// Bytes for a and b of a group in the forward pass: with the rest below half of x at any N, or what is always allowed.
inline int64_t forward_budget(const Sizes& sizes, int64_t element) {
  return std::max<int64_t>(kFixedBytes, sizes.pairs() * sizes.channels * element / 4);
}

// Cuts `hidden` channels into equal groups (the last may be smaller) of at most `most`.
struct Groups {
  Groups(int64_t hidden, int64_t most) : hidden(hidden) {
    const int64_t count = divide_up(hidden, std::clamp<int64_t>(most, 1, hidden));
    size = divide_up(hidden, count);
    if (hidden >= 64 && most >= 8) {
      size = std::min(divide_up(size, 8) * 8, std::max<int64_t>(8, most / 8 * 8));  // whole cache lines
    }
  }
  int64_t count() const { return divide_up(hidden, size); }
  Group operator[](int64_t index) const { return {index * size, std::min((index + 1) * size, hidden)}; }

  int64_t hidden;
  int64_t size;
};

// Parameters packed once a call.
template <typename P, typename T>
struct Packed {
  Packed(const Sizes& sizes, const Parameters& given, const Groups& groups)
      : in_weight(4 * sizes.hidden * sizes.channels),
        in_bias(4 * sizes.hidden),
        out_weight(sizes.channels * sizes.hidden),
        gate_weight(sizes.gate() * sizes.channels),
        vectors(2 * (sizes.channels + sizes.hidden) + sizes.channels + sizes.gate()) {
    const Elements<T> p_weight(given.p_in_weight), g_weight(given.g_in_weight);
    Buffer<T> p_bias(2 * sizes.hidden), g_bias(2 * sizes.hidden);
    fill(p_bias.data(), given.p_in_bias, 2 * sizes.hidden, 0);
    fill(g_bias.data(), given.g_in_bias, 2 * sizes.hidden, 0);
    int64_t to = 0;
    for (int64_t index = 0; index < groups.count(); ++index) {
      each_row(sizes, groups[index], [&](bool of_g, int64_t row) {
        const T* from = (of_g ? g_weight : p_weight).data() + row * sizes.channels;
        std::transform(from, from + sizes.channels, in_weight.data() + to * sizes.channels,
                       [](T value) { return static_cast<P>(value); });
        in_bias.data()[to++] = (of_g ? g_bias : p_bias).data()[row];
      });
    }
    pack(given.p_out_weight, out_weight.data());
    pack(given.g_out_weight, gate_weight.data());
    T* vector = vectors.data();
    const auto next = [&](const std::optional<Tensor>& tensor, int64_t size, T otherwise) {
      fill(vector, tensor, size, otherwise);
      vector += size;
      return vector - size;
    };
    const T eps = static_cast<T>(sizes.eps);
    const T* weight = next(given.norm_in_weight, sizes.channels, 1);
    norm_in = {sizes.channels, weight, next(given.norm_in_bias, sizes.channels, 0), eps};
    weight = next(given.norm_out_weight, sizes.hidden, 1);
    norm_out = {sizes.hidden, weight, next(given.norm_out_bias, sizes.hidden, 0), eps};
    out_bias = next(given.p_out_bias, sizes.channels, 0);
    gate_bias = next(given.g_out_bias, sizes.gate(), 0);
  }

  // Visits the rows of the input projections in the order in which a group has them: p of a, p of b, g of a, g of b.
  template <class Visit>
  static void each_row(const Sizes& sizes, Group group, const Visit& visit) {
    for (const bool of_g : {false, true}) {
      for (const int64_t half : {int64_t{0}, sizes.hidden}) {
        for (int64_t d = group.begin; d < group.end; ++d) {
          visit(of_g, half + d);
        }
      }
    }
  }

  Buffer<P> in_weight;  // [4D, C]: group by group, each as each_row has it
  Buffer<T> in_bias;    // [4D] likewise
  Buffer<P> out_weight;   // [C, D]
  Buffer<P> gate_weight;  // [C or D, C]
  Norm<T> norm_in, norm_out;
  const T* out_bias;   // [C]
  const T* gate_bias;  // [C or D]

 private:
  static void pack(const Tensor& tensor, P* to) {
    const Elements<T> from(tensor);
    std::transform(from.data(), from.data() + tensor.numel(), to, [](T value) { return static_cast<P>(value); });
  }
  static void fill(T* to, const std::optional<Tensor>& tensor, int64_t size, T otherwise) {
    if (tensor.has_value()) {
      const Elements<T> from(*tensor);
      std::copy(from.data(), from.data() + size, to);
    } else {
      std::fill(to, to + size, otherwise);
    }
  }
  Buffer<T> vectors;
};

// Items [first, first + items) of the batch.
struct Chunk {
  int64_t first;
  int64_t items;
};

struct Chunks {
  explicit Chunks(int64_t batch, int64_t pairs)
      : batch(batch), items(std::clamp<int64_t>(kChunkPositions / pairs, 1, batch)) {}
  int64_t count() const { return divide_up(batch, items); }
  Chunk operator[](int64_t index) const { return {index * items, std::min(items, batch - index * items)}; }

  int64_t batch;
  int64_t items;
};

// Positions [begin, begin + count) of a chunk.
struct Block {
  int64_t begin;
  int64_t count;
};

template <typename P>
Block block_of(int64_t index, int64_t positions) {
  return {index * kBlock<P>, std::min(kBlock<P>, positions - index * kBlock<P>)};
}

// --- the contraction ------------------------------------------------------------------------------------------------

// Where the contraction of a group goes. Rows are always written; channels, for the backward pass, where not null.
template <typename X>
struct Contracted {
  X* rows;  // [batch, N, N, row_stride], at the group's first channel
  int64_t row_stride;
  X* channels;  // [batch, channel_count, N, N], at the group's first channel, or null
  int64_t channel_count;
};

// Tiles of the N x N results of some items.
struct Tiles {
  explicit Tiles(int64_t n)
      : n(n),
        rows(divide_up(n, divide_up(n, kTileRows))),
        columns(divide_up(n, divide_up(n, kTileColumns))),
        down(divide_up(n, rows)),
        across(divide_up(n, columns)) {}
  int64_t count() const { return down * across; }
  int64_t area() const { return rows * columns; }

  int64_t n, rows, columns, down, across;
};

// t_ij = sum_k a_ik b_jk, or sum_k a_ki b_kj, of a group's channels: ab [2 channels, pitch] of a chunk.
template <typename X, typename P>
void contract(const Kernels<X, P>& kernels, const Workspaces& workspaces, bool outgoing, int64_t n, Chunk chunk,
              int64_t channels, const P* ab, int64_t pitch, const Contracted<X>& out) {
  const Tiles tiles(n);
  const int64_t pairs = n * n, per_task = std::max<int64_t>(1, kTaskPositions / pairs);  // small items together
  const int64_t tasks = tiles.count() * divide_up(chunk.items, per_task);
  const auto tile = [&](int64_t item, int64_t index, P* t) {
    const int64_t i0 = index / tiles.across * tiles.rows, j0 = index % tiles.across * tiles.columns;
    const int64_t rows = std::min(tiles.rows, n - i0), columns = std::min(tiles.columns, n - j0);
    for (int64_t d = 0; d < channels; ++d) {
      P* a = const_cast<P*>(ab) + d * pitch + item * pairs;
      P* b = a + channels * pitch;
      const Matrix<P> left = outgoing ? Matrix<P>{a + i0 * n, rows, n, n} : Matrix<P>{a + i0, n, rows, n}.transposed();
      const Matrix<P> right = outgoing ? Matrix<P>{b + j0 * n, columns, n, n}.transposed() : Matrix<P>{b + j0, n, columns, n};
      multiply(Matrix<P>{t + d * rows * columns, rows, columns, columns}, left, right);
    }
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t position = (i0 + i) * n + j0, from = (chunk.first + item) * pairs + position;
      kernels.transpose_px(t + i * columns, rows * columns, channels, columns, out.rows + from * out.row_stride,
                           out.row_stride);
      for (int64_t d = 0; out.channels != nullptr && d < channels; ++d) {
        X* to = out.channels + ((chunk.first + item) * out.channel_count + d) * pairs + position;
        kernels.convert_px(t + (d * rows + i) * columns, columns, to);
      }
    }
  };
  run_in_threads(tasks, workspaces, [&](int64_t task, char* workspace) {
    const int64_t first = task / tiles.count() * per_task;
    for (int64_t item = first; item < std::min(first + per_task, chunk.items); ++item) {
      tile(item, task % tiles.count(), reinterpret_cast<P*>(workspace));
    }
  });
}

}  // namespace paperops::triangle

// Invariant point attention on the CPU, forward. Keys and values are packed by heads, then each block of queries goes its
// way:
//   for each head    logits = q k^T / sqrt(3 C) - point_weight |q_points - k_points|^2
//   for each query   z_i is read once for all heads: logits += bias; a = softmax; o_pair = a z_i
//   for each head    o, o_points = a (v, v_points)
// Beyond the results a call holds the packed keys and values of a chunk and, for each thread, a block's weights and,
// where it cannot be read in its place, z_i.
#include "invariant_point_attention_cpu_ops.h"

namespace paperops::ipa {
namespace {

template <typename X>
struct Forward {
  using T = Wide<X>;

  // A worker's memory.
  struct Workspace {
    Workspace(const Forward& f, char* memory) {
      const Sizes& s = f.s;
      Carver carver(memory);
      weights = carver.take<T>(f.blocks.queries * s.heads * f.in.pitch);
      queries = carver.take<T>(f.blocks.queries * s.heads * s.channels);
      z = carver.take<T>(s.n * f.in.z_pitch);
      bias = carver.take<T>(s.n * f.in.heads_pitch);
      pair = carver.take<T>(s.heads * f.in.z_pitch);
      means = carver.take<T>(f.blocks.queries * f.values_pitch);
      centre = carver.take<T>(f.values_pitch);
      used = carver.used();
    }
    T* weights;  // [queries, H, pitch]: logits, then weights
    T* queries;  // [queries, H, C]
    T* z;        // [N, z_pitch]
    T* bias;     // [N, heads_pitch]
    T* pair;     // [H, z_pitch]
    T* means;    // [queries, values_pitch]
    T* centre;   // [values_pitch]
    int64_t used;
  };

  const Sizes& s;
  const Inputs<X>& in;
  T *o, *o_points, *o_pair, *lse;
  const Kernels<T> kernels = ipa::kernels<T>();
  const Conversions<X> conversions = ipa::conversions<X>();
  const int64_t values_pitch = padded<T>(s.value_rows());
  const Blocks blocks{s.n, s.heads * in.pitch * static_cast<int64_t>(sizeof(T))};
  const Chunks chunks{s.batch, s.n};
  const Buffer<T> weight{in.projected() ? s.pair_channels * in.heads_pitch : 0};  // [Cz, heads_pitch]
  const Buffer<T> keys{chunks.items * s.heads * s.key_rows() * in.pitch};        // [items, H, C + 3 Pq, pitch]
  const Buffer<T> values{chunks.items * s.heads * s.n * values_pitch};           // [items, H, N, values_pitch]

  const T* keys_of(int64_t item, int64_t head) const {
    return keys.data() + (item * s.heads + head) * s.key_rows() * in.pitch;
  }
  const T* values_of(int64_t item, int64_t head) const {
    return values.data() + (item * s.heads + head) * s.n * values_pitch;
  }

  void pack(const Chunk& chunk, int64_t item, int64_t head) const {
    const int64_t row = (chunk.first + item) * s.n * s.heads;
    pack_channels(s, head, in.k.data() + row * s.channels, in.k_points.data() + row * s.query_coordinates,
                  s.query_coordinates, const_cast<T*>(keys_of(item, head)), in.pitch);
    pack_rows(s, head, in.v.data() + row * s.channels, in.v_points.data() + row * s.value_coordinates,
              s.value_coordinates, const_cast<T*>(values_of(item, head)), values_pitch);
  }

  // What z and the bias have to do with one query, whose logits [H, pitch] become weights.
  void attend(const Block& block, int64_t i, const Masks<X>& masks, T* weights, const Workspace& w) const {
    const int64_t b = block.batch;
    T* pair = o_pair + (b * s.n + i) * s.heads * s.pair_channels;
    if (in.empty(b, i)) {
      std::fill(weights, weights + s.heads * in.pitch, T{0});
      std::fill(pair, pair + s.heads * s.pair_channels, T{0});
      for (int64_t h = 0; h < s.heads; ++h) {
        lse[(b * s.heads + h) * s.n + i] = std::numeric_limits<T>::infinity();
      }
      return;
    }
    const Rows<T> z = in.z_rows(conversions, b, i, w.z);
    if (in.projected()) {
      kernels.product(s.n, in.heads_pitch, s.pair_channels, {z.data, z.stride, 1}, weight.data(), in.heads_pitch,
                      w.bias,                      in.heads_pitch, false);
      kernels.add_transposed(w.bias, in.heads_pitch, s.n, s.heads, 1, in.constant.data(), weights, in.pitch);
    } else {
      conversions.read(in.bias.at(b, i), in.bias.strides[2], in.bias.strides[3], s.n, s.heads, w.bias, in.heads_pitch);
      kernels.add_transposed(w.bias, in.heads_pitch, s.n, s.heads, static_cast<T>(in.w_l()), nullptr, weights,
                             in.pitch);
    }
    const Masked<T> masked = masks(block.item, b, i);
    for (int64_t h = 0; h < s.heads; ++h) {
      lse[(b * s.heads + h) * s.n + i] = kernels.softmax(weights + h * in.pitch, in.pitch, masked);
    }
    const bool direct = s.pair_channels == in.z_pitch;
    kernels.product_ahead(s.heads, in.z_pitch, s.n, {weights, in.pitch, 1}, z.data, z.stride, in.z_ahead(block, i),
                          direct ? pair : w.pair, in.z_pitch, false);
    for (int64_t h = 0; h < s.heads && !direct; ++h) {
      std::copy(w.pair + h * in.z_pitch, w.pair + h * in.z_pitch + s.pair_channels, pair + h * s.pair_channels);
    }
  }

  // The means of one head, about the block's centre, to o and o_points, about each query's.
  void store(const Block& block, int64_t head, const T* centre, const T* means) const {
    for (int64_t i = 0; i < block.count; ++i, means += values_pitch) {
      const int64_t query = block.batch * s.n + block.begin + i, row = query * s.heads + head;
      std::copy(means, means + s.channels, o + row * s.channels);
      const bool empty = std::isinf(lse[(block.batch * s.heads + head) * s.n + block.begin + i]);
      T* to = o_points + row * s.value_coordinates;
      for (int64_t x = 0; x < s.value_coordinates; ++x) {
        const T offset = in.centres.data()[query * 3 + x % 3] - centre[x % 3];
        to[x] = empty ? 0 : means[s.channels + x] - offset;
      }
    }
  }

  void attend(const Block& block, const Masks<X>& masks, const Workspace& w) const {
    const int64_t row = s.heads * in.pitch;
    in.scaled_queries(block, w.queries);
    for (int64_t h = 0; h < s.heads; ++h) {
      const T* head_keys = keys_of(block.item, h);
      T* logits = w.weights + h * in.pitch;
      kernels.product(block.count, in.pitch, s.channels, {w.queries + h * s.channels, s.heads * s.channels, 1},
                      head_keys, in.pitch, logits, row, false);
      kernels.add_distances(in.points(block, h, head_keys + s.channels * in.pitch), in.point_weights.data()[h], logits,
                            row);
    }
    for (int64_t i = 0; i < block.count; ++i) {
      attend(block, block.begin + i, masks, w.weights + i * row, w);
    }
    T centre[3];
    in.centre_near(block, centre);
    for (int64_t x = 0; x < s.value_coordinates; ++x) {
      w.centre[s.channels + x] = centre[x % 3];
    }
    for (int64_t h = 0; h < s.heads; ++h) {
      kernels.product_centred(block.count, values_pitch, s.n, {w.weights + h * in.pitch, row, 1},
                              values_of(block.item, h), values_pitch, w.centre, w.means, values_pitch);
      store(block, h, centre, w.means);
    }
  }

  void run() const {
    if (in.projected()) {
      std::fill(weight.data(), weight.data() + s.pair_channels * in.heads_pitch, T{0});
      kernels.transpose(in.weight.data(), in.z_pitch, s.pair_channels, s.heads, 1, weight.data(), in.heads_pitch);
    }
    const int64_t bytes = Workspace(*this, nullptr).used;
    for (int64_t c = 0; c < chunks.count; ++c) {
      const Chunk chunk = chunks[c];
      const int64_t operations = chunk.items * s.n * s.operations();
      const Masks<X> masks(in, chunk);
      run_with_memory(chunk.items * s.heads, operations, 0, [&](int64_t task, char*) {
        pack(chunk, task / s.heads, task % s.heads);
      });
      run_with_memory(chunk.items * blocks.count(), operations, bytes, [&](int64_t task, char* memory) {
        const int64_t item = task / blocks.count(), begin = task % blocks.count() * blocks.queries;
        const int64_t count = std::min(blocks.queries, s.n - begin);
        attend({item, chunk.first + item, begin, count}, masks, Workspace(*this, memory));
      });
    }
  }
};

}  // namespace

template <typename X>
void attend(const Sizes& sizes, const Given& given, const Tensor* results) {
  using T = Wide<X>;
  const Inputs<X> inputs(sizes, given);
  const auto data = [&](int index) { return static_cast<T*>(results[index].data_ptr()); };
  Forward<X>{sizes, inputs, data(0), data(1), data(2), data(3)}.run();
}

template void attend<float>(const Sizes&, const Given&, const Tensor*);
template void attend<double>(const Sizes&, const Given&, const Tensor*);
template void attend<Half>(const Sizes&, const Given&, const Tensor*);
template void attend<BFloat16>(const Sizes&, const Given&, const Tensor*);

}  // namespace paperops::ipa

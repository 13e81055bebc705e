// The gradients of invariant point attention on the CPU. Each block of queries goes its way, a = exp(logits - lse):
//   for each head    logits as in the forward pass; da = grad_o v + grad_o_points v_points
//   for each query   z_i is read once for all heads: logits += bias; da += grad_o_pair z_i; ds = a (da - delta);
//                    dz = a grad_o_pair + ds bias_weight, or dbias = ds; dbias_weight += ds z_i
//   for each head    dq, dq_points; and sums over queries: dk, dk_points, dv, dv_points, dpoint_weights
// delta = sum over j of a da is formed here: the given one comes of rounded outputs, and what a row of ds then lacks to its
// sum of 0 was most of the error of dbias_bias and dpoint_weights (measured: three to twelve times that of plain torch).
#include "../common/pages.h"
#include "invariant_point_attention_cpu_ops.h"
#include "invariant_point_attention_cpu_sums.h"

namespace paperops::ipa {
namespace {

template <typename X>
struct Backward {
  using T = Wide<X>;

  // A worker's memory.
  struct Workspace {
    Workspace(const Backward& f, char* memory) {
      const Sizes& s = f.s;
      const int64_t queries_count = f.blocks.queries;
      Carver carver(memory);
      weights = carver.take<T>(queries_count * f.row());
      queries = carver.take<T>(queries_count * s.heads * s.channels);
      values = carver.take<T>(s.value_coordinates * f.in.pitch);
      z = carver.take<T>(s.n * f.in.z_pitch);
      dz = carver.take<T>(s.n * f.in.z_pitch);
      dots = carver.take<T>(s.n * f.dots_pitch);
      by_channels = carver.take<T>(s.pair_channels * f.dots_pitch);
      by_heads = carver.take<T>(2 * s.heads * f.in.z_pitch);
      rows = carver.take<T>(queries_count * std::max(f.key_pitch, f.value_pitch));
      used = carver.used();
    }
    T* weights;      // [queries, 2 H, pitch]: logits and da, then a and ds
    T* queries;      // [queries, H, C]
    T* values;       // [3 Pv, pitch]: value points about the block's centre
    T* z;            // [N, z_pitch]
    T* dz;           // [N, z_pitch]
    T* dots;         // [N, dots_pitch]: z bias_weight^T (if that is given), z grad_o_pair^T; or a row of bias or dbias
    T* by_channels;  // [Cz, dots_pitch]: bias_weight (likewise), grad_o_pair
    T* by_heads;     // [2 H, z_pitch]: grad_o_pair, bias_weight
    T* rows;         // [queries, key_pitch or value_pitch]
    int64_t used;
  };

  const Sizes& s;
  const Inputs<X>& in;
  const Elements<T>&grad_o, &grad_o_points, &grad_o_pair, &lse;
  const Tensor* results;
  const Kernels<T> kernels = ipa::kernels<T>();
  const Conversions<X> conversions = ipa::conversions<X>();
  const int64_t projections = in.projected() ? s.heads : 0;  // rows of bias_weight
  const int64_t dots_pitch = padded<T>(projections + s.heads);
  const int64_t key_pitch = padded<T>(s.channels), value_pitch = padded<T>(s.value_rows());
  const Blocks blocks{s.n, row() * static_cast<int64_t>(sizeof(T))};
  const Chunks chunks{s.batch, s.n};
  const int64_t splits = std::min(kSplits, blocks.count());
  const int64_t sums_bytes = Sums<T>(s, in.pitch, in.z_pitch, nullptr).used;
  const Buffer<T> channels{chunks.items * s.heads * packed_channels() * in.pitch};
  const Buffer<T> rows{chunks.items * s.heads * s.n * key_pitch};  // [items, H, N, key_pitch]: k
  const Buffer<char> sums{chunks.items * splits * sums_bytes};
  const Buffer<T> constant{projections + s.heads};     // W_L bias_bias, 0
  const Buffer<T> total_weight{s.heads * in.z_pitch};  // of all items
  const Buffer<double> totals{2 * s.heads};

  int64_t row() const { return 2 * s.heads * in.pitch; }
  int64_t packed_channels() const { return s.key_rows() + s.value_rows(); }
  T* result(int index) const { return static_cast<T*>(results[index].data_ptr()); }
  X* narrow_result(int index) const { return static_cast<X*>(results[index].data_ptr()); }

  // k, k_points, v, v_points of a head by channels.
  T* channels_of(int64_t item, int64_t head) const {
    return channels.data() + (item * s.heads + head) * packed_channels() * in.pitch;
  }
  T* rows_of(int64_t item, int64_t head) const { return rows.data() + (item * s.heads + head) * s.n * key_pitch; }
  Sums<T> sums_of(int64_t item, int64_t split) const {
    return Sums<T>(s, in.pitch, in.z_pitch, sums.data() + (item * splits + split) * sums_bytes);
  }

  void pack(const Chunk& chunk, int64_t item, int64_t head) const {
    const int64_t first = (chunk.first + item) * s.n * s.heads;
    T* to = channels_of(item, head);
    pack_channels(s, head, in.k.data() + first * s.channels, in.k_points.data() + first * s.query_coordinates,
                  s.query_coordinates, to, in.pitch);
    pack_channels(s, head, in.v.data() + first * s.channels, in.v_points.data() + first * s.value_coordinates,
                  s.value_coordinates, to + s.key_rows() * in.pitch, in.pitch);
    pack_rows<T>(s, head, in.k.data() + first * s.channels, nullptr, 0, rows_of(item, head), key_pitch);
  }

  // Logits and da of a block and head, without what comes of z.
  void start(const Block& block, int64_t h, const T* centre, const Workspace& w) const {
    const int64_t first = (block.batch * s.n + block.begin) * s.heads + h;
    const T* keys = channels_of(block.item, h);
    const T* values = keys + s.key_rows() * in.pitch;
    T* logits = w.weights + h * in.pitch;
    T* da = logits + s.heads * in.pitch;
    const int64_t width = s.heads * s.channels, points_width = s.heads * s.value_coordinates;
    kernels.product(block.count, in.pitch, s.channels, {w.queries + h * s.channels, width, 1}, keys, in.pitch, logits, row(),
                    false);
    kernels.add_distances(in.points(block, h, keys + s.channels * in.pitch), in.point_weights.data()[h], logits, row());
    for (int64_t x = 0; x < s.value_coordinates; ++x) {
      kernels.shift(values + (s.channels + x) * in.pitch, in.pitch, centre[x % 3], w.values + x * in.pitch);
    }
    kernels.product(block.count, in.pitch, s.channels, {grad_o.data() + first * s.channels, width, 1}, values, in.pitch, da,
                    row(), false);
    kernels.product(block.count, in.pitch, s.value_coordinates,
                    {grad_o_points.data() + first * s.value_coordinates, points_width, 1}, w.values, in.pitch, da, row(),
                    true);
  }

  // What z and the bias have to do with one query: its logits and da [2 H, pitch] become a and ds.
  void attend(const Block& block, int64_t i, const Masks<X>& masks, T* logits, const Sums<T>& to,
              const Workspace& w) const {
    const int64_t b = block.batch, query = b * s.n + i, c = s.pair_channels;
    X* dz = narrow_result(6) + query * s.n * c;
    X* dbias = projections > 0 ? nullptr : narrow_result(7) + query * s.n * s.heads;
    T* da = logits + s.heads * in.pitch;
    if (in.empty(b, i)) {
      std::fill(logits, logits + row(), T{0});
      std::fill(dz, dz + s.n * c, X(0));
      if (dbias != nullptr) {
        std::fill(dbias, dbias + s.n * s.heads, X(0));
      }
      return;
    }
    const T* gradient = grad_o_pair.data() + query * s.heads * c;
    const Rows<T> z = in.z_rows(conversions, b, i, w.z);
    if (dbias != nullptr) {
      conversions.read(in.bias.at(b, i), in.bias.strides[2], in.bias.strides[3], s.n, s.heads, w.dots, dots_pitch);
      kernels.add_transposed(w.dots, dots_pitch, s.n, s.heads, static_cast<T>(in.w_l()), nullptr, logits, in.pitch);
    }
    kernels.transpose(gradient, c, c, s.heads, 1, w.by_channels + projections, dots_pitch);
    kernels.product(s.n, dots_pitch, c, {z.data, z.stride, 1}, w.by_channels, dots_pitch, w.dots, dots_pitch, false);
    kernels.add_transposed(w.dots, dots_pitch, s.n, projections + s.heads, 1, constant.data(),
                           projections > 0 ? logits : da, in.pitch);
    const Masked<T> masked = masks(block.item, b, i);
    for (int64_t h = 0; h < s.heads; ++h) {
      to.constant[h] += kernels.softmax_backward(logits + h * in.pitch, da + h * in.pitch, in.pitch, masked,
                                                 lse.data()[(b * s.heads + h) * s.n + i]);
    }
    for (int64_t h = 0; h < s.heads; ++h) {
      std::copy(gradient + h * c, gradient + (h + 1) * c, w.by_heads + h * in.z_pitch);
    }
    const bool direct = std::is_same<X, T>::value && c == in.z_pitch;
    T* wide_dz = direct ? reinterpret_cast<T*>(dz) : w.dz;
    kernels.product(s.n, in.z_pitch, projections + s.heads, {logits, 1, in.pitch}, w.by_heads, in.z_pitch, wide_dz,
                    in.z_pitch, false);
    if (!direct) {
      conversions.write(w.dz, in.z_pitch, s.n, c, 1, dz, c);
    }
    if (dbias != nullptr) {
      kernels.transpose(da, in.pitch, s.n, s.heads, static_cast<T>(in.w_l()), w.dots, dots_pitch);
      conversions.write(w.dots, dots_pitch, s.n, s.heads, 1, dbias, s.heads);
    } else {
      kernels.product_ahead(s.heads, in.z_pitch, s.n, {da, in.pitch, 1}, z.data, z.stride, in.z_ahead(block, i),
                            to.weight, in.z_pitch, true);
    }
  }

  // From the weights of a block and head to the gradients of queries, keys and values.
  void finish(const Block& block, int64_t h, const Sums<T>& to, const Workspace& w) const {
    const int64_t first = (block.batch * s.n + block.begin) * s.heads + h;
    const T* a = w.weights + h * in.pitch;
    const T* ds = a + s.heads * in.pitch;
    kernels.product(block.count, key_pitch, s.n, {ds, row(), 1}, rows_of(block.item, h), key_pitch, w.rows, key_pitch,
                    false);
    conversions.write(w.rows, key_pitch, block.count, s.channels, in.scale, narrow_result(0) + first * s.channels,
                      s.heads * s.channels);
    const T weight = in.point_weights.data()[h];
    to.point_weights[h] += kernels.point_gradients(
        in.points(block, h, channels_of(block.item, h) + s.channels * in.pitch), weight, ds, row(),
        result(3) + first * s.query_coordinates, s.heads * s.query_coordinates,
        to.points + h * s.query_coordinates * in.pitch);
    for (int64_t i = 0; i < block.count; ++i) {
      const T* from = w.queries + (i * s.heads + h) * s.channels;
      std::copy(from, from + s.channels, w.rows + i * key_pitch);
    }
    kernels.product(s.n, key_pitch, block.count, {ds, 1, row()}, w.rows, key_pitch, to.keys + h * s.n * key_pitch,
                    key_pitch, true);
    for (int64_t i = 0; i < block.count; ++i) {
      const int64_t query = first + i * s.heads;
      const T* from = grad_o.data() + query * s.channels;
      T* end = std::copy(from, from + s.channels, w.rows + i * value_pitch);
      from = grad_o_points.data() + query * s.value_coordinates;
      std::copy(from, from + s.value_coordinates, end);
    }
    kernels.product(s.n, value_pitch, block.count, {a, 1, row()}, w.rows, value_pitch,
                    to.values + h * s.n * value_pitch, value_pitch, true);
  }

  void attend(const Block& block, const Masks<X>& masks, const Sums<T>& to, const Workspace& w) const {
    T centre[3];
    in.centre_near(block, centre);
    in.scaled_queries(block, w.queries);
    for (int64_t h = 0; h < s.heads; ++h) {
      start(block, h, centre, w);
    }
    for (int64_t i = 0; i < block.count; ++i) {
      attend(block, block.begin + i, masks, w.weights + i * row(), to, w);
    }
    for (int64_t h = 0; h < s.heads; ++h) {
      finish(block, h, to, w);
    }
  }

  // The blocks of a split of an item, in order.
  void attend(const Chunk& chunk, int64_t item, int64_t split, const Masks<X>& masks, const Workspace& w) const {
    char* memory = sums.data() + (item * splits + split) * sums_bytes;
    std::fill(memory, memory + sums_bytes, char{0});
    const Sums<T> to = sums_of(item, split);
    if (projections > 0) {  // these stay the same
      kernels.transpose(in.weight.data(), in.z_pitch, s.pair_channels, s.heads, 1, w.by_channels, dots_pitch);
      std::copy(in.weight.data(), in.weight.data() + s.heads * in.z_pitch, w.by_heads + s.heads * in.z_pitch);
    }
    for (int64_t block = split * blocks.count() / splits; block < (split + 1) * blocks.count() / splits; ++block) {
      const int64_t begin = block * blocks.queries;
      attend({item, chunk.first + item, begin, std::min(blocks.queries, s.n - begin)}, masks, to, w);
    }
  }

  // Adds the splits' sums of a head and stores them.
  void collect(const Chunk& chunk, int64_t item, int64_t h) const {
    const Sums<T> first = sums_of(item, 0);
    const auto add = [&](T* Sums<T>::*part, int64_t size) {
      for (int64_t split = 1; split < splits; ++split) {
        kernels.accumulate(sums_of(item, split).*part + h * size, size, first.*part + h * size);
      }
      return first.*part + h * size;
    };
    const int64_t query = (chunk.first + item) * s.n * s.heads + h;
    const T* keys = add(&Sums<T>::keys, s.n * key_pitch);
    conversions.write(keys, key_pitch, s.n, s.channels, 1, narrow_result(1) + query * s.channels, s.heads * s.channels);
    const T* values = add(&Sums<T>::values, s.n * value_pitch);
    conversions.write(values, value_pitch, s.n, s.channels, 1, narrow_result(2) + query * s.channels,
                      s.heads * s.channels);
    const T* points = add(&Sums<T>::points, s.query_coordinates * in.pitch);
    kernels.transpose(points, in.pitch, s.n, s.query_coordinates, 1, result(4) + query * s.query_coordinates,
                      s.heads * s.query_coordinates);
    for (int64_t j = 0; j < s.n; ++j) {
      const T* from = values + j * value_pitch + s.channels;
      std::copy(from, from + s.value_coordinates, result(5) + (query + j * s.heads) * s.value_coordinates);
    }
  }

  // Adds the splits' sums that are one for all items.
  void collect(int64_t items) const {
    for (int64_t part = 0; part < items * splits; ++part) {
      const Sums<T> from = sums_of(part / splits, part % splits);
      kernels.accumulate(from.weight, s.heads * in.z_pitch, total_weight.data());
      for (int64_t h = 0; h < s.heads; ++h) {
        totals.data()[h] += from.constant[h];
        totals.data()[s.heads + h] += from.point_weights[h];
      }
    }
  }

  void run() const {
    std::fill(total_weight.data(), total_weight.data() + s.heads * in.z_pitch, T{0});
    std::fill(totals.data(), totals.data() + 2 * s.heads, 0.0);
    std::fill(constant.data(), constant.data() + projections + s.heads, T{0});
    if (projections > 0) {
      std::copy(in.constant.data(), in.constant.data() + s.heads, constant.data());
    }
    const int64_t bytes = Workspace(*this, nullptr).used;
    prefer_large_pages(sums.data(), chunks.items * splits * sums_bytes);
    for (int64_t c = 0; c < chunks.count; ++c) {
      const Chunk chunk = chunks[c];
      const int64_t operations = chunk.items * s.n * s.operations();
      const Masks<X> masks(in, chunk);
      const auto each_head = [&](int64_t task) { return std::make_pair(task / s.heads, task % s.heads); };
      run_with_memory(chunk.items * s.heads, operations, 0, [&](int64_t task, char*) {
        pack(chunk, each_head(task).first, each_head(task).second);
      });
      run_with_memory(chunk.items * splits, operations, bytes, [&](int64_t task, char* memory) {
        attend(chunk, task / splits, task % splits, masks, Workspace(*this, memory));
      });
      collect(chunk.items);
      run_with_memory(chunk.items * s.heads, operations, 0, [&](int64_t task, char*) {
        collect(chunk, each_head(task).first, each_head(task).second);
      });
    }
    for (int64_t h = 0; h < s.heads; ++h) {
      store_gradient(results[8], total_weight.data() + h * in.z_pitch, s.pair_channels, in.w_l(), h * s.pair_channels);
    }
    store_gradient(results[9], totals.data(), s.heads, in.w_l());
    store_gradient(results[10], totals.data() + s.heads, s.heads, -1);
  }
};

}  // namespace

template <typename X>
void attend_backward(const Sizes& sizes, const GivenGradients& gradients, const Given& given, const Tensor* results) {
  using T = Wide<X>;
  const Inputs<X> inputs(sizes, given);
  const Elements<T> o(gradients.o), o_points(gradients.o_points), o_pair(gradients.o_pair), lse(gradients.lse);
  Backward<X>{sizes, inputs, o, o_points, o_pair, lse, results}.run();
}

#define PAPEROPS_INSTANCE(X) \
  template void attend_backward<X>(const Sizes&, const GivenGradients&, const Given&, const Tensor*);
PAPEROPS_INSTANCE(float)
PAPEROPS_INSTANCE(double)
PAPEROPS_INSTANCE(Half)
PAPEROPS_INSTANCE(BFloat16)

}  // namespace paperops::ipa

// The gradients of the triangle multiplicative update on the CPU. For each chunk of the batch, passes over its blocks of
// positions and products of whole channels in turn:
//   pass 0        from grad, t and x: dW_o, db_o, dW_q, db_q, the norm of t, dt (by channels), the gate's part of dh;
//                 then a, b and their gates of the first group of channels
//   products      da and db of group 0 from dt, a and b
//   pass g        dp and dg of group g - 1, with them dh, dW_p, dW_g, db_p, db_g; then a, b and gates of group g
//   ...
//   last pass     as before, then dx and the norm of x from dh
// Blocks belong to at most kSplits splits. A split goes through its blocks in order and has sums of its own for the
// parameters; at the end the splits' sums are added in order.
#include <vector>

#include "triangle_multiplication_cpu_ops.h"

namespace paperops::triangle {
namespace {

constexpr int64_t kSplits = 16;

// Sums over positions for every parameter. in_* are in the order of Packed.
template <typename T>
struct Sums {
  Sums(const Sizes& s, T* memory) : begin(memory) {
    in_weight = take(4 * s.hidden * s.channels);
    in_bias = take(4 * s.hidden);
    out_weight = take(s.channels * s.hidden);
    out_bias = take(s.channels);
    gate_weight = take(s.gate() * s.channels);
    gate_bias = take(s.gate());
    norm_in_weight = take(s.channels);
    norm_in_bias = take(s.channels);
    norm_out_weight = take(s.hidden);
    norm_out_bias = take(s.hidden);
  }
  T* begin;
  int64_t size = 0;
  T *in_weight, *in_bias, *out_weight, *out_bias, *gate_weight, *gate_bias;
  T *norm_in_weight, *norm_in_bias, *norm_out_weight, *norm_out_bias;

 private:
  T* take(int64_t count) {
    size += (count + 15) / 16 * 16;
    return begin == nullptr ? nullptr : begin + size - (count + 15) / 16 * 16;
  }
};

// A worker's memory during a pass.
template <typename P, typename T>
struct PassWorkspace {
  PassWorkspace(const Sizes& s, int64_t group, char* memory) {
    Carver carver(memory);
    h = carver.take<P>(kBlock<P> * s.channels);
    q = carver.take<P>(kBlock<P> * s.gate());
    z = carver.take<P>(kBlock<P> * s.channels);
    t = carver.take<P>(kBlock<P> * s.hidden);
    n = carver.take<P>(kBlock<P> * s.hidden);
    dn = carver.take<P>(kBlock<P> * s.hidden);
    pg = carver.take<P>(4 * group * kBlock<P>);
    narrow = std::is_same<P, T>::value ? nullptr
                                       : carver.take<P>(s.channels * std::max({kBlock<P>, 4 * group, s.hidden, s.gate()}));
    mean = carver.take<T>(kBlock<P>);
    scale = carver.take<T>(kBlock<P>);
    used = carver.used();
  }
  P* h;       // [count, C]
  P* q;       // [count, C or D], then dq
  P* z;       // [count, C]: W_o n, then do; or dy
  P* t;       // [count, D]
  P* n;       // [count, D], or q n
  P* dn;      // [count, D], then dt
  P* pg;      // [4 Dg, count], or dp and dg
  P* narrow;  // products on their way to sums in T
  T* mean;    // [count] of t
  T* scale;
  int64_t used;
};

template <typename X, typename P>
struct Backward {
  using T = Wide<X>;
  using Workspace = PassWorkspace<P, T>;

  const Sizes& s;
  const X* grad;  // [B, N, N, C]
  const X* t;     // [B, D, N, N]
  const X* x;     // [B, N, N, C]
  const T* mask;  // [B, N, N] or null
  const Packed<P, T>& packed;
  const Groups& groups;
  X* dx;           // [B, N, N, C]
  int64_t pitch;   // positions of the largest chunk
  const Kernels<X, P> kernels = triangle::kernels<X, P>();
  const bool dh_in_dx = std::is_same<X, T>::value;
  const Large<P> dt{s.hidden * pitch};  // [D, pitch]
  const Large<P> ab{2 * groups.size * pitch};  // [2 Dg, pitch]
  const Large<P> gates{2 * groups.size * pitch};
  const Large<P> dab{2 * groups.size * pitch};
  const Large<T> dh_buffer{dh_in_dx ? 0 : pitch * s.channels};
  const Buffer<T> mean{pitch}, scale{pitch};  // of x

  // out (rows x columns, in T) = or += a b
  void product(T* out, const Matrix<P>& a, const Matrix<P>& b, bool add, P* narrow) const {
    if constexpr (std::is_same<P, T>::value) {
      multiply(Matrix<T>{out, a.rows, b.columns, b.columns}, a, b, add);
    } else {
      multiply(Matrix<P>{narrow, a.rows, b.columns, b.columns}, a, b);
      kernels.add_pt(narrow, a.rows * b.columns, add, out);
    }
  }

  Matrix<P> gate_weight() const { return {packed.gate_weight.data(), s.gate(), s.channels, s.channels}; }
  Matrix<P> out_weight() const { return {packed.out_weight.data(), s.channels, s.hidden, s.hidden}; }
  Matrix<P> in_weight(Group group) const {
    return {packed.in_weight.data() + 4 * group.begin * s.channels, 4 * group.size(), s.channels, s.channels};
  }

  // t of a block by rows.
  void load_t(Chunk chunk, Block block, P* rows) const {
    for (int64_t done = 0; done < block.count;) {
      const int64_t item = (block.begin + done) / s.pairs(), offset = (block.begin + done) % s.pairs();
      const int64_t count = std::min(block.count - done, s.pairs() - offset);
      kernels.transpose_xp(t + (chunk.first + item) * s.hidden * s.pairs() + offset, s.pairs(), s.hidden, count,
                           rows + done * s.hidden, s.hidden);
      done += count;
    }
  }

  // From the result's gradient to dt, and the gate's part of dh.
  void leave_output(Chunk chunk, Block block, T* dh, const Sums<T>& sums, const Workspace& w) const {
    const int64_t count = block.count, c = s.channels, d = s.hidden, width = s.gate();
    const X* dy = grad + (chunk.first * s.pairs() + block.begin) * c;
    const Statistics<T> known = {w.mean, w.scale};
    const Matrix<P> h = {w.h, count, c, c}, q = {w.q, count, width, width}, z = {w.z, count, c, c};
    const Matrix<P> n = {w.n, count, d, d}, dn = {w.dn, count, d, d};
    load_t(chunk, block, w.t);
    kernels.measure_p(w.t, d, count, packed.norm_out, known);
    kernels.normalise_p(w.t, d, count, packed.norm_out, known, w.n);
    multiply(q, h, gate_weight().transposed());
    if (s.gate_first) {
      kernels.convert_xp(dy, count * c, w.z);
      multiply(dn, z, out_weight());
      kernels.gate_rows_backward(packed.gate_bias, count, d, w.q, w.n, w.dn);
    } else {
      multiply(z, n, out_weight().transposed());
      kernels.finish_backward(dy, packed.gate_bias, packed.out_bias, count, c, w.q, w.z);
      multiply(dn, z, out_weight());
    }
    product(sums.out_weight, z.transposed(), n, true, w.narrow);
    kernels.row_sums(w.z, count, c, sums.out_bias);
    product(sums.gate_weight, q.transposed(), h, true, w.narrow);
    kernels.row_sums(w.q, count, width, sums.gate_bias);
    product(dh, q, gate_weight(), false, w.narrow);
    kernels.norm_sums_p(w.dn, w.t, count, d, known, sums.norm_out_weight, sums.norm_out_bias);
    kernels.normalise_backward_p(w.dn, w.t, count, packed.norm_out, known, w.dn);
    kernels.transpose_pp(w.dn, d, count, d, dt.data() + block.begin, pitch);
  }

  // From da and db of a group to dh.
  void leave_group(Chunk chunk, Block block, Group group, T* dh, const Sums<T>& sums, const Workspace& w) const {
    kernels.gate_backward(dab.data() + block.begin, ab.data() + block.begin, gates.data() + block.begin, pitch,
                          2 * group.size(), block.count, mask_of(chunk, block), w.pg, kBlock<P>,
                          sums.in_bias + 4 * group.begin);
    const Matrix<P> dpg = {w.pg, 4 * group.size(), block.count, kBlock<P>};
    product(sums.in_weight + 4 * group.begin * s.channels, dpg, {w.h, block.count, s.channels, s.channels}, true, w.narrow);
    product(dh, dpg.transposed(), in_weight(group), true, w.narrow);
  }

  // a, b and their gates of a group.
  void project(Chunk chunk, Block block, Group group, const Workspace& w) const {
    multiply({w.pg, 4 * group.size(), block.count, kBlock<P>}, in_weight(group),
             Matrix<P>{w.h, block.count, s.channels, s.channels}.transposed());
    kernels.gate(w.pg, kBlock<P>, 2 * group.size(), block.count, packed.in_bias.data() + 4 * group.begin,
                 mask_of(chunk, block), ab.data() + block.begin, gates.data() + block.begin, pitch);
  }

  const T* mask_of(Chunk chunk, Block block) const {
    return mask == nullptr ? nullptr : mask + chunk.first * s.pairs() + block.begin;
  }

  void pass(Chunk chunk, Block block, int64_t g, const Sums<T>& sums, const Workspace& w) const {
    const int64_t position = chunk.first * s.pairs() + block.begin;
    const X* rows = x + position * s.channels;
    const Statistics<T> known = {mean.data() + block.begin, scale.data() + block.begin};
    T* dh = dh_in_dx ? reinterpret_cast<T*>(dx) + position * s.channels : dh_buffer.data() + block.begin * s.channels;
    if (g == 0) {
      kernels.measure_x(rows, s.channels, block.count, packed.norm_in, known);
    }
    kernels.normalise_x(rows, s.channels, block.count, packed.norm_in, known, w.h);
    if (g == 0) {
      leave_output(chunk, block, dh, sums, w);
    } else {
      leave_group(chunk, block, groups[g - 1], dh, sums, w);
    }
    if (g < groups.count()) {
      project(chunk, block, groups[g], w);
    } else {
      kernels.norm_sums_x(dh, rows, block.count, s.channels, known, sums.norm_in_weight, sums.norm_in_bias);
      kernels.normalise_backward_x(dh, rows, block.count, packed.norm_in, known, dx + position * s.channels);
    }
  }

  // da and db of a group: da_ik = sum_j dt_ij b_jk and db_jk = sum_i dt_ij a_ik, or
  // da_ki = sum_j b_kj dt_ij and db_kj = sum_i a_ki dt_ij. One task: some rows of one channel's, or some items whole.
  void multiply_channels(const Workspaces& workspaces, Chunk chunk, Group group) const {
    const int64_t n = s.n, parts = divide_up(n, kTileColumns), height = divide_up(n, parts);
    const int64_t units = chunk.items * 2 * group.size() * parts, per_task = std::max<int64_t>(1, kTaskPositions / s.pairs());
    run_in_threads(divide_up(units, per_task), workspaces, [&](int64_t task, char*) {
      for (int64_t unit = task * per_task; unit < std::min((task + 1) * per_task, units); ++unit) {
        const int64_t first = unit % parts * height, rows = std::min(height, n - first);
        const int64_t k = unit / parts % (2 * group.size()), item = unit / parts / (2 * group.size()) * s.pairs();
        const bool of_a = k < group.size();
        const int64_t d = of_a ? k : k - group.size(), other = of_a ? k + group.size() : d;
        if (rows <= 0) {
          continue;
        }
        const Matrix<P> dt_all = {dt.data() + (group.begin + d) * pitch + item, n, n, n};
        const Matrix<P> factor = {ab.data() + other * pitch + item, n, n, n};
        const Matrix<P> out = {dab.data() + k * pitch + item + first * n, rows, n, n};
        const auto rows_of = [&](const Matrix<P>& all) {
          return Matrix<P>{all.data + first * all.row_stride, rows, n, all.row_stride, all.column_stride};
        };
        if (s.outgoing) {
          multiply(out, rows_of(of_a ? dt_all : dt_all.transposed()), factor);
        } else {
          multiply(out, rows_of(factor), of_a ? dt_all.transposed() : dt_all);
        }
      }
    });
  }

  void run(const Chunks& chunks, const Large<T>& all_sums, int64_t splits) const {
    const int64_t sums_size = Sums<T>(s, nullptr).size;
    const Workspaces workspaces(Workspace(s, groups.size, nullptr).used);
    for (int64_t c = 0; c < chunks.count(); ++c) {
      const Chunk chunk = chunks[c];
      const int64_t positions = chunk.items * s.pairs(), blocks = divide_up(positions, kBlock<P>);
      for (int64_t g = 0; g <= groups.count(); ++g) {
        run_in_threads(splits, workspaces, [&](int64_t split, char* workspace) {
          const Sums<T> sums(s, all_sums.data() + split * sums_size);
          const Workspace w(s, groups.size, workspace);
          for (int64_t block = split * blocks / splits; block < (split + 1) * blocks / splits; ++block) {
            pass(chunk, block_of<P>(block, positions), g, sums, w);
          }
        });
        if (g < groups.count()) {
          multiply_channels(workspaces, chunk, groups[g]);
        }
      }
    }
  }
};

// Values into a parameter's gradient; nothing where the parameter is None (an empty tensor).
template <typename T>
void store_gradient(const Tensor& to, const T* values, int64_t count, int64_t offset = 0) {
  if (to.numel() == 0) {
    return;
  }
  const auto copy = [&](auto zero) {
    using S = decltype(zero);
    std::transform(values, values + count, static_cast<S*>(to.data_ptr()) + offset,
                   [](T value) { return static_cast<S>(value); });
  };
  switch (to.scalar_type()) {
    case ScalarType::Half: return copy(Half{});
    case ScalarType::BFloat16: return copy(BFloat16{});
    case ScalarType::Double: return copy(double{});
    default: return copy(float{});
  }
}

}  // namespace

template <typename X, typename P>
void update_backward(const Sizes& sizes, const Tensor& grad, const Tensor& t, const Tensor& x,
                     const std::optional<Tensor>& mask, const Parameters& parameters, const Tensor& dx,
                     const Tensor* gradients) {
  using T = Wide<X>;
  const Tensor grad_rows = as_contiguous(grad), t_channels = as_contiguous(t), x_rows = as_contiguous(x);
  const Elements<T> mask_values(mask);
  const Chunks chunks(sizes.batch, sizes.pairs());
  const int64_t positions = chunks.items * sizes.pairs();
  // Six rows a channel: a and b, their gates, their gradients. Three bytes an element of x: little beside dt and dh.
  const int64_t budget = std::max<int64_t>(kFixedBytes, 3 * sizes.pairs() * sizes.channels);
  const Groups groups(sizes.hidden, budget / (6 * positions * static_cast<int64_t>(sizeof(P))));
  const Packed<P, T> packed(sizes, parameters, groups);
  const int64_t splits = std::min(kSplits, divide_up(positions, kBlock<P>));
  const int64_t size = Sums<T>(sizes, nullptr).size;
  const Large<T> memory(splits * size);
  std::fill(memory.data(), memory.data() + splits * size, T{0});
  const auto data = [](const Tensor& tensor) { return static_cast<X*>(tensor.data_ptr()); };
  Backward<X, P>{sizes,  data(grad_rows), data(t_channels), data(x_rows), mask_values.data(),
                 packed, groups,          data(dx),         positions}
      .run(chunks, memory, splits);
  for (int64_t split = 1; split < splits; ++split) {
    std::transform(memory.data(), memory.data() + size, memory.data() + split * size, memory.data(),
                   [](T a, T b) { return a + b; });
  }
  const Sums<T> sums(sizes, memory.data());
  const int64_t c = sizes.channels, d = sizes.hidden;
  int64_t from = 0;
  for (int64_t index = 0; index < groups.count(); ++index) {
    Packed<P, T>::each_row(sizes, groups[index], [&](bool of_g, int64_t row) {
      store_gradient(gradients[of_g ? 4 : 2], sums.in_weight + from * c, c, row * c);
      store_gradient(gradients[of_g ? 5 : 3], sums.in_bias + from++, 1, row);
    });
  }
  store_gradient(gradients[0], sums.norm_in_weight, c);
  store_gradient(gradients[1], sums.norm_in_bias, c);
  store_gradient(gradients[6], sums.norm_out_weight, d);
  store_gradient(gradients[7], sums.norm_out_bias, d);
  store_gradient(gradients[8], sums.out_weight, c * d);
  store_gradient(gradients[9], sums.out_bias, c);
  store_gradient(gradients[10], sums.gate_weight, sizes.gate() * c);
  store_gradient(gradients[11], sums.gate_bias, sizes.gate());
}

#define PAPEROPS_INSTANCE(X, P)                                                                             \
  template void update_backward<X, P>(const Sizes&, const Tensor&, const Tensor&, const Tensor&,            \
                                      const std::optional<Tensor>&, const Parameters&, const Tensor&, const Tensor*);
PAPEROPS_TRIANGLE_TYPES(PAPEROPS_INSTANCE)

}  // namespace paperops::triangle

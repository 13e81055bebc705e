// The triangle multiplicative update on the CPU, forward. For each chunk of the batch:
//   for each group of channels:
//     h = LN(x), p, g = W h, a, b = mask sigmoid(g) p     by blocks of positions, stored by channels
//     t = contraction of a and b                          by tiles of each item, stored by rows, and by channels if kept
//   y = sigmoid(W_q h) (W_o LN(t))                        by blocks of positions
// The rows of t lie in the result's own memory until y overwrites them (where D > C: in a buffer). Beyond the result, a call
// holds a and b of one group, the statistics of x, and blocks.
#include "triangle_multiplication_cpu_plan.h"
#include "triangle_multiplication_cpu_ops.h"

namespace paperops::triangle {
namespace {

template <typename X, typename P>
struct Forward {
  using T = Wide<X>;

  const Sizes& s;
  const X* x;     // [B, N, N, C]
  const T* mask;  // [B, N, N] or null
  const Packed<P, T>& packed;
  const Kernels<X, P> kernels = triangle::kernels<X, P>();
  X* out;     // [B, N, N, C]
  X* kept;    // [B, D, N, N] or null
  X* rows;    // t by rows
  int64_t row_stride;

  // a and b of a group, for a block of a chunk.
  void project(Chunk chunk, Block block, Group group, Statistics<T> statistics, P* ab, int64_t pitch, char* workspace) const {
    Carver carver(workspace);
    P* h = carver.take<P>(kBlock<P> * s.channels);         // [count, C]
    P* pg = carver.take<P>(4 * group.size() * kBlock<P>);  // [4 Dg, count]
    const int64_t position = chunk.first * s.pairs() + block.begin;
    const Statistics<T> known = {statistics.mean + block.begin, statistics.scale + block.begin};
    if (group.begin == 0) {
      kernels.measure_x(x + position * s.channels, s.channels, block.count, packed.norm_in, known);
    }
    kernels.normalise_x(x + position * s.channels, s.channels, block.count, packed.norm_in, known, h);
    multiply(Matrix<P>{pg, 4 * group.size(), block.count, kBlock<P>},
             Matrix<P>{packed.in_weight.data() + 4 * group.begin * s.channels, 4 * group.size(), s.channels, s.channels},
             Matrix<P>{h, block.count, s.channels, s.channels}.transposed());
    kernels.gate(pg, kBlock<P>, 2 * group.size(), block.count, packed.in_bias.data() + 4 * group.begin,
                 mask == nullptr ? nullptr : mask + position, ab + block.begin, nullptr, pitch);
  }

  // y of a block, from the rows of t.
  void finish(Chunk chunk, Block block, Statistics<T> statistics, char* workspace) const {
    Carver carver(workspace);
    P* h = carver.take<P>(kBlock<P> * std::max(s.channels, s.hidden));  // [count, C], then n [count, D]
    P* q = carver.take<P>(kBlock<P> * s.gate());                        // [count, C or D]
    P* z = carver.take<P>(kBlock<P> * s.channels);                      // [count, C]
    T* mean = carver.take<T>(kBlock<P>);
    T* scale = carver.take<T>(kBlock<P>);
    const int64_t position = chunk.first * s.pairs() + block.begin;
    kernels.normalise_x(x + position * s.channels, s.channels, block.count, packed.norm_in,
                        {statistics.mean + block.begin, statistics.scale + block.begin}, h);
    multiply(Matrix<P>{q, block.count, s.gate(), s.gate()}, Matrix<P>{h, block.count, s.channels, s.channels},
             Matrix<P>{packed.gate_weight.data(), s.gate(), s.channels, s.channels}.transposed());
    const X* t = rows + position * row_stride;
    P* n = h;
    kernels.measure_x(t, row_stride, block.count, packed.norm_out, {mean, scale});
    kernels.normalise_x(t, row_stride, block.count, packed.norm_out, {mean, scale}, n);
    if (s.gate_first) {
      kernels.gate_rows(q, packed.gate_bias, block.count, s.hidden, n);
    }
    multiply(Matrix<P>{z, block.count, s.channels, s.channels}, Matrix<P>{n, block.count, s.hidden, s.hidden},
             Matrix<P>{packed.out_weight.data(), s.channels, s.hidden, s.hidden}.transposed());
    X* y = out + position * s.channels;
    if (s.gate_first) {
      kernels.add_bias(z, packed.out_bias, block.count, s.channels, y);
    } else {
      kernels.finish(q, packed.gate_bias, z, packed.out_bias, block.count, s.channels, y);
    }
  }

  int64_t workspace_bytes(int64_t group) const {
    Carver project, finish, contract;
    project.take<P>(kBlock<P> * s.channels);
    project.take<P>(4 * group * kBlock<P>);
    finish.take<P>(kBlock<P> * std::max(s.channels, s.hidden));
    finish.take<P>(kBlock<P> * s.gate());
    finish.take<P>(kBlock<P> * s.channels);
    finish.take<T>(kBlock<P>);
    finish.take<T>(kBlock<P>);
    contract.take<P>(group * Tiles(s.n).area());
    return std::max({project.used(), finish.used(), contract.used()});
  }

  void run(const Chunks& chunks, const Groups& groups) const {
    const Workspaces workspaces(workspace_bytes(groups.size));
    const int64_t pitch = chunks.items * s.pairs();
    const Large<P> ab(2 * groups.size * pitch);
    const Buffer<T> mean(pitch), scale(pitch);
    const Statistics<T> statistics = {mean.data(), scale.data()};
    for (int64_t c = 0; c < chunks.count(); ++c) {
      const Chunk chunk = chunks[c];
      const int64_t positions = chunk.items * s.pairs(), blocks = divide_up(positions, kBlock<P>);
      for (int64_t g = 0; g < groups.count(); ++g) {
        const Group group = groups[g];
        run_in_threads(blocks, workspaces, [&](int64_t block, char* workspace) {
          project(chunk, block_of<P>(block, positions), group, statistics, ab.data(), pitch, workspace);
        });
        contract<X, P>(kernels, workspaces, s.outgoing, s.n, chunk, group.size(), ab.data(), pitch,
                       {rows + group.begin, row_stride, kept == nullptr ? nullptr : kept + group.begin * s.pairs(),
                        s.hidden});
      }
      run_in_threads(blocks, workspaces, [&](int64_t block, char* workspace) {
        finish(chunk, block_of<P>(block, positions), statistics, workspace);
      });
    }
  }
};

}  // namespace

template <typename X, typename P>
void update(const Sizes& sizes, const Tensor& x, const std::optional<Tensor>& mask, const Parameters& parameters,
            const Tensor& out, const Tensor* kept) {
  using T = Wide<X>;
  const Tensor x_rows = as_contiguous(x);
  const Elements<T> mask_values(mask);
  const Chunks chunks(sizes.batch, sizes.pairs());
  const int64_t positions = chunks.items * sizes.pairs();
  const Groups groups(sizes.hidden, forward_budget(sizes, sizeof(X)) / (2 * positions * static_cast<int64_t>(sizeof(P))));
  const Packed<P, T> packed(sizes, parameters, groups);
  const bool inside = sizes.hidden <= sizes.channels;
  const Large<X> beside(inside ? 0 : sizes.batch * sizes.pairs() * sizes.hidden);
  X* result = static_cast<X*>(out.data_ptr());
  Forward<X, P> forward{sizes, static_cast<const X*>(x_rows.data_ptr()), mask_values.data(), packed};
  forward.out = result;
  forward.kept = kept == nullptr ? nullptr : static_cast<X*>(kept->data_ptr());
  forward.rows = inside ? result : beside.data();
  forward.row_stride = inside ? sizes.channels : sizes.hidden;
  forward.run(chunks, groups);
}

#define PAPEROPS_INSTANCE(X, P)                                                                                     \
  template void update<X, P>(const Sizes&, const Tensor&, const std::optional<Tensor>&, const Parameters&, const Tensor&, \
                             const Tensor*);
PAPEROPS_TRIANGLE_TYPES(PAPEROPS_INSTANCE)

}  // namespace paperops::triangle

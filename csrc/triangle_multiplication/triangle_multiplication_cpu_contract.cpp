// The bare contraction on the CPU: for each group of channels a and b are transposed to channels, masked, and contracted as
// in the triangle multiplicative update.
#include "triangle_multiplication_cpu_ops.h"

namespace paperops::triangle {

template <typename X, typename P>
void contract_pairs(const Sizes& s, const Tensor& a, const Tensor& b, const std::optional<Tensor>& mask,
                    const Tensor& out) {
  using T = Wide<X>;
  const Kernels<X, P> kernels = triangle::kernels<X, P>();
  const Tensor factors[2] = {as_contiguous(a), as_contiguous(b)};
  const Elements<T> mask_values(mask);
  const Chunks chunks(s.batch, s.pairs());
  const int64_t pitch = chunks.items * s.pairs(), d = s.hidden;
  const Groups groups(d, forward_budget(s, sizeof(X)) / (2 * pitch * static_cast<int64_t>(sizeof(P))));
  const Workspaces workspaces(groups.size * Tiles(s.n).area() * static_cast<int64_t>(sizeof(P)));
  const Large<P> ab(2 * groups.size * pitch);  // [2 Dg, pitch]
  for (int64_t c = 0; c < chunks.count(); ++c) {
    const Chunk chunk = chunks[c];
    const int64_t positions = chunk.items * s.pairs();
    for (int64_t g = 0; g < groups.count(); ++g) {
      const Group group = groups[g];
      run_in_threads(divide_up(positions, kBlock<P>), workspaces, [&](int64_t index, char*) {
        const Block block = block_of<P>(index, positions);
        const int64_t position = chunk.first * s.pairs() + block.begin;
        for (int64_t half = 0; half < 2; ++half) {
          P* to = ab.data() + half * group.size() * pitch + block.begin;
          kernels.transpose_xp(static_cast<const X*>(factors[half].data_ptr()) + position * d + group.begin, d,
                               block.count, group.size(), to, pitch);
          if (mask_values.data() != nullptr) {
            kernels.scale(to, pitch, group.size(), block.count, mask_values.data() + position);
          }
        }
      });
      contract<X, P>(kernels, workspaces, s.outgoing, s.n, chunk, group.size(), ab.data(), pitch,
                     {static_cast<X*>(out.data_ptr()) + group.begin, d, nullptr, d});
    }
  }
}

#define PAPEROPS_INSTANCE(X, P)                                                                                    \
  template void contract_pairs<X, P>(const Sizes&, const Tensor&, const Tensor&, const std::optional<Tensor>&, \
                                     const Tensor&);
PAPEROPS_TRIANGLE_TYPES(PAPEROPS_INSTANCE)

}  // namespace paperops::triangle

// Gradients of nearest-neighbour distances on the CPU: see PairGradient.
//
// A task owns a range of points of a: it gathers their own pairs, then reads all of the other cloud's indices and takes
// those that fall into its range, in order. So every sum has a fixed order whatever the number of tasks, and no two
// tasks write the same element.
#include <algorithm>

#include "../common/parallel.h"
#include "nearest.h"
#include "nearest_cpu.h"

namespace paperops::nearest {
namespace {

// sums [end - begin, D] for the points [begin, end) of the cloud b of the batch.
template <typename T, int Norm>
void accumulate(const PairGradient<T>& task, int64_t b, int64_t begin, int64_t end, double* sums) {
  const int64_t dimensions = task.dimensions;
  const T* a_points = task.a + b * task.a_size * dimensions;
  const T* b_points = task.b + b * task.b_size * dimensions;
  const auto add = [&](int64_t i, int64_t j, T gradient) {
    const T* p = a_points + i * dimensions;
    const T* q = b_points + j * dimensions;
    double* sum = sums + (i - begin) * dimensions;
    for (int64_t d = 0; d < dimensions; ++d) {
      sum[d] += pair_gradient<Norm, double>(gradient, p[d], q[d]);
    }
  };
  std::fill(sums, sums + (end - begin) * dimensions, 0.0);
  if (task.own != nullptr) {
    const int64_t offset = b * task.a_size * task.own_k;
    for (int64_t row = begin * task.own_k; row < end * task.own_k; ++row) {
      const int64_t j = task.own_index[offset + row];
      if (j >= 0 && j < task.b_size) {
        add(row / task.own_k, j, task.own[offset + row]);
      }
    }
  }
  if (task.other != nullptr) {
    const int64_t offset = b * task.b_size * task.other_k;
    for (int64_t row = 0; row < task.b_size * task.other_k; ++row) {
      const int64_t i = task.other_index[offset + row];
      if (i >= begin && i < end) {
        add(i, row / task.other_k, task.other[offset + row]);
      }
    }
  }
}

}  // namespace

template <typename T>
void pair_gradient_cpu(const PairGradient<T>& task) {
  if (task.batch == 0 || task.a_size == 0) {
    return;
  }
  const int64_t pairs = (task.own != nullptr ? task.a_size * task.own_k : 0) +
                        (task.other != nullptr ? task.b_size * task.other_k : 0);
  const bool parallel = task.batch * pairs * task.dimensions > 30000;
  // Every part reads all indices of the other cloud: no more parts than there are threads to use them.
  const int64_t threads = parallel ? torch::stable::get_num_threads() : 1;
  const int64_t parts = std::clamp<int64_t>((threads + task.batch - 1) / task.batch, 1, (task.a_size + 63) / 64);
  const int64_t part = (task.a_size + parts - 1) / parts;
  run_tasks(task.batch * parts, parallel, [&](const auto& next) {
    const Buffer<double> sums(part * task.dimensions);
    for (int64_t t = next(); t >= 0; t = next()) {
      const int64_t b = t / parts;
      const int64_t begin = std::min(t % parts * part, task.a_size);
      const int64_t end = std::min(begin + part, task.a_size);
      task.norm == 1 ? accumulate<T, 1>(task, b, begin, end, sums.data())
                     : accumulate<T, 2>(task, b, begin, end, sums.data());
      T* gradient = task.gradient + (b * task.a_size + begin) * task.dimensions;
      for (int64_t i = 0; i < (end - begin) * task.dimensions; ++i) {
        gradient[i] = static_cast<T>(sums.data()[i]);
      }
    }
  });
}

template void pair_gradient_cpu<float>(const PairGradient<float>&);
template void pair_gradient_cpu<double>(const PairGradient<double>&);

}  // namespace paperops::nearest

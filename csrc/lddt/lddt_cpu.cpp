// lDDT on the CPU: the counts of each residue. Schema and checks are in paperops/ops/lddt.py.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "../common/tensors.h"
#include "lddt_cpu.h"

namespace paperops::lddt {
namespace {

constexpr int64_t kLanes = 16;  // the widest vector's
constexpr int64_t kRows = 16;   // residues of a task

template <typename T>
void pack(const T* pred, const T* target, const bool* mask, int64_t n, int64_t stride, T* columns) {
  for (int64_t i = 0; i < stride; ++i) {
    for (int64_t c = 0; c < 3; ++c) {
      const bool there = i < n && mask[i];
      columns[c * stride + i] = there ? target[3 * i + c] : std::numeric_limits<T>::quiet_NaN();
      columns[(3 + c) * stride + i] = there ? pred[3 * i + c] : T(0);
    }
  }
}

template <typename T>
void count_all(const Tensor& pred, const Tensor& target, const Tensor& mask, double cutoff, int64_t* pairs, int64_t* kept) {
  const int64_t batch = pred.size(0), n = pred.size(1), stride = divide_up(n, kLanes) * kLanes;
  const Elements<T> pred_elements(pred), target_elements(target);
  const Tensor contiguous = as_contiguous(mask);
  const bool* valid = static_cast<const bool*>(contiguous.data_ptr());
  const Buffer<T> columns(batch * 6 * stride);
  for (int64_t b = 0; b < batch; ++b) {
    pack(pred_elements.data() + b * n * 3, target_elements.data() + b * n * 3, valid + b * n, n, stride,
         columns.data() + b * 6 * stride);
  }
  const Count<T> count = PAPEROPS_CHOOSE(count, T);
  const int64_t tasks = divide_up(n, kRows);
  run_tasks(batch * tasks, batch * n * n > 60000, [&](const auto& next) {
    for (int64_t task = next(); task >= 0; task = next()) {
      const int64_t b = task / tasks, begin = task % tasks * kRows;
      const Chain<T> chain = {columns.data() + b * 6 * stride, stride, static_cast<T>(cutoff * cutoff)};
      for (int64_t i = begin; i < std::min(n, begin + kRows); ++i) {
        count(chain, i, pairs + b * n + i, kept + b * n + i);
      }
    }
  });
}

std::tuple<Tensor, Tensor> lddt(const Tensor& pred, const Tensor& target, const Tensor& mask, double cutoff) {
  STD_TORCH_CHECK(pred.dim() == 3 && pred.size(2) == 3, "pred_positions must be [B, N, 3]");
  STD_TORCH_CHECK(target.dim() == 3 && target.size(0) == pred.size(0) && target.size(1) == pred.size(1) &&
                      target.size(2) == 3 && target.scalar_type() == pred.scalar_type(),
                  "target_positions must have the shape and dtype of pred_positions");
  STD_TORCH_CHECK(mask.dim() == 2 && mask.size(0) == pred.size(0) && mask.size(1) == pred.size(1) &&
                      mask.scalar_type() == ScalarType::Bool,
                  "mask must be [B, N] and bool");
  const Tensor pairs = empty_cpu({pred.size(0), pred.size(1)}, ScalarType::Long);
  const Tensor kept = empty_cpu({pred.size(0), pred.size(1)}, ScalarType::Long);
  (pred.scalar_type() == ScalarType::Double ? count_all<double> : count_all<float>)(
      pred, target, mask, cutoff, static_cast<int64_t*>(pairs.data_ptr()), static_cast<int64_t*>(kept.data_ptr()));
  return {pairs, kept};
}

}  // namespace
}  // namespace paperops::lddt

STABLE_TORCH_LIBRARY_IMPL(paperops, CPU, m) {
  m.impl("lddt.native", TORCH_BOX(&paperops::lddt::lddt));
}

// The predicted TM-score on the CPU. Schema, checks and the derivative are in paperops/ops/predicted_tm_score.py.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../common/tensors.h"
#include "predicted_tm_score_cpu.h"

namespace paperops::tm_score {
namespace {

using Optional = std::optional<Tensor>;

constexpr double kEps = 1e-8;  // EPS of the definition

// The first of the rows whose score times weight is the largest; NaN, the first of them, is larger than all.
template <typename T>
int64_t best_row(const T* scores, const T* weights, int64_t n) {
  int64_t best = 0;
  T most = scores[0] * weights[0];
  for (int64_t i = 1; i < n && most == most; ++i) {
    const T value = scores[i] * weights[i];
    if (value > most || value != value) {
      best = i;
      most = value;
    }
  }
  return best;
}

template <typename X>
void score_all(const Tensor& logits, const Tensor& weights, const Optional& chains, const Tensor& bin_scores,
               const Tensor& score, const Tensor& row) {
  using T = Wide<X>;
  const int64_t batch = logits.size(0), n = logits.size(1), bins = logits.size(3);
  const Tensor x = as_contiguous(logits);
  const X* values = static_cast<const X*>(x.data_ptr());
  const Elements<T> weight(weights), bin_score(bin_scores);
  const Integers chain(chains);
  const Buffer<T> by_row(batch * n);
  const SumRow<X> sum_row = PAPEROPS_CHOOSE(sum_row, X);
  run_tasks(batch * n, logits.numel() > 20000, [&](const auto& next) {
    for (int64_t task = next(); task >= 0; task = next()) {
      const int64_t b = task / n;
      const int64_t* own_chains = chain.data() == nullptr ? nullptr : chain.data() + b * n;
      const T own = weight.data()[task];
      const Sums sums = sum_row({values + task * n * bins, weight.data() + b * n, own_chains,
                                 bin_score.data() + b * bins, n, bins, own,
                                 own_chains == nullptr ? 0 : own_chains[task - b * n]});
      by_row.data()[task] = static_cast<T>(own * sums.expected / (kEps + own * sums.weights));
    }
  });
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t best = n == 0 ? 0 : best_row(by_row.data() + b * n, weight.data() + b * n, n);
    static_cast<int64_t*>(row.data_ptr())[b] = best;
    static_cast<T*>(score.data_ptr())[b] = n == 0 ? T(0) : by_row.data()[b * n + best];
  }
}

std::tuple<Tensor, Tensor> predicted_tm_score(const Tensor& logits, const Tensor& weights, const Optional& chains,
                                              const Tensor& bin_scores) {
  STD_TORCH_CHECK(logits.dim() == 4 && logits.size(1) == logits.size(2), "logits must be [B, N, N, bins]");
  const int64_t batch = logits.size(0), n = logits.size(1);
  const ScalarType wide = accumulator(logits.scalar_type());
  STD_TORCH_CHECK(weights.dim() == 2 && weights.size(0) == batch && weights.size(1) == n && weights.scalar_type() == wide,
                  "weights must be [B, N], float64 for float64 and float32 otherwise");
  STD_TORCH_CHECK(!chains.has_value() || (chains->dim() == 2 && chains->size(0) == batch && chains->size(1) == n),
                  "chains must be [B, N]");
  STD_TORCH_CHECK(bin_scores.dim() == 2 && bin_scores.size(0) == batch && bin_scores.size(1) == logits.size(3) &&
                      bin_scores.scalar_type() == wide,
                  "bin_scores must be [B, bins], of the dtype of weights");
  const Tensor score = empty_cpu({batch}, wide), row = empty_cpu({batch}, ScalarType::Long);
  switch (logits.scalar_type()) {
    case ScalarType::Float: score_all<float>(logits, weights, chains, bin_scores, score, row); break;
    case ScalarType::Double: score_all<double>(logits, weights, chains, bin_scores, score, row); break;
    case ScalarType::Half: score_all<Half>(logits, weights, chains, bin_scores, score, row); break;
    case ScalarType::BFloat16: score_all<BFloat16>(logits, weights, chains, bin_scores, score, row); break;
    default: STD_TORCH_CHECK(false, "expected float16, bfloat16, float32 or float64");
  }
  return {score, row};
}

}  // namespace
}  // namespace paperops::tm_score

STABLE_TORCH_LIBRARY_IMPL(paperops, CPU, m) {
  m.impl("predicted_tm_score.native", TORCH_BOX(&paperops::tm_score::predicted_tm_score));
}

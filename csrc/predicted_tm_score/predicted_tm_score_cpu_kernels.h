// Expectations under the softmax of a row's logits, for one instruction set. A translation unit sets the macros of
// common/simd.h first.
#pragma once

#include <limits>

#include "../common/simd.h"
#include "../common/simd_math.h"
#include "predicted_tm_score_cpu.h"

namespace paperops::PAPEROPS_SIMD_NAMESPACE {
namespace {

using namespace paperops::tm_score;

// The largest lane. NaN is passed over: the exponentials that follow find it.
template <typename T>
PAPEROPS_INLINE T largest(Vector<T> a) {
  T lanes[Simd<T>::lanes];
  store_vector(lanes, a);
  for (int64_t width = Simd<T>::lanes / 2; width > 0; width /= 2) {
    for (int64_t lane = 0; lane < width; ++lane) {
      lanes[lane] = lanes[lane + width] > lanes[lane] ? lanes[lane + width] : lanes[lane];
    }
  }
  return lanes[0];
}

// A vector of logits; what fills it up beyond the last is -inf, which adds nothing.
template <typename T, typename X>
PAPEROPS_INLINE Vector<T> load_logits(const X* p, Whole) {
  return load_vector(p);
}
template <typename T, typename X>
PAPEROPS_INLINE Vector<T> load_logits(const X* p, Part part) {
  T copy[Simd<T>::lanes];
  for (int64_t lane = 0; lane < Simd<T>::lanes; ++lane) {
    copy[lane] = lane < part.count ? static_cast<T>(p[lane]) : -std::numeric_limits<T>::infinity();
  }
  return load_vector(copy);
}

template <typename X>
PAPEROPS_INLINE Wide<X> expected_score(const X* logits, const Wide<X>* scores, int64_t bins) {
  using T = Wide<X>;
  using S = Simd<T>;
  const Vector<T> least = S::broadcast(-std::numeric_limits<T>::infinity());
  Vector<T> most = least;
  each_vector<T>(bins, [&](int64_t bin, auto extent) __attribute__((always_inline)) {
    const Vector<T> x = load_logits<T>(logits + bin, extent);
    most = x > most ? x : most;
  });
  const Vector<T> top = S::broadcast(largest<T>(most));
  Vector<T> total = S::broadcast(0), weighted = total;
  each_vector<T>(bins, [&](int64_t bin, auto extent) __attribute__((always_inline)) {
    const Vector<T> e = only<T>(exponential<T>(load_logits<T>(logits + bin, extent) - top), extent);
    total = total + e;
    weighted = S::multiply_add(e, load<T>(scores + bin, extent), weighted);
  });
  return sum<T>(weighted) / sum<T>(total);
}

template <typename X>
Sums sum_row(const Row<X>& row) {
  Sums sums = {0, 0};
  for (int64_t j = 0; j < row.residues; ++j) {
    const Wide<X> weight = row.weights[j];
    if (weight * row.weight == 0 || (row.chains != nullptr && row.chains[j] == row.chain)) {
      continue;
    }
    sums.expected += static_cast<double>(weight) * expected_score<X>(row.logits + j * row.bins, row.bin_scores, row.bins);
    sums.weights += weight;
  }
  return sums;
}

}  // namespace
}  // namespace paperops::PAPEROPS_SIMD_NAMESPACE

// The kernels of one instruction set, for every type of logits.
#define PAPEROPS_TM_SCORE_ROWS(SET)                      \
  namespace paperops::tm_score {                         \
  template <>                                            \
  SumRow<float> sum_row_##SET<float>() {                 \
    return &SET::sum_row<float>;                         \
  }                                                      \
  template <>                                            \
  SumRow<double> sum_row_##SET<double>() {               \
    return &SET::sum_row<double>;                        \
  }                                                      \
  template <>                                            \
  SumRow<Half> sum_row_##SET<Half>() {                   \
    return &SET::sum_row<Half>;                          \
  }                                                      \
  template <>                                            \
  SumRow<BFloat16> sum_row_##SET<BFloat16>() {           \
    return &SET::sum_row<BFloat16>;                      \
  }                                                      \
  }

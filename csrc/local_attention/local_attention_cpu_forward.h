// Forward pass of a task: logits of two rows of queries, softmax over their slots, means of the values. For one instruction
// set, see common/simd.h.
#pragma once

#include "local_attention_cpu_pairs.h"

namespace paperops::PAPEROPS_SIMD_NAMESPACE {
namespace {

// A worker's memory.
template <typename X>
struct ForwardScratch {
  using T = Wide<X>;
  ForwardScratch(const Problem<X>& p, T* memory) : memory_(memory) {
    apart = rows_apart(p.stride, p.dilation);
    const int64_t rows = ring_size(p.rows, apart), row = p.channels * p.columns.plane;
    keys = {take(rows * row), rows, row};
    values = {take(rows * row), rows, row};
    for (int64_t n = 0; n < 2; ++n) {
      q[n] = take(p.channels * p.columns.padded);
      weights[n] = take(p.slots() * p.columns.padded);
      out[n] = take(p.channels * p.columns.padded);
      inverse[n] = take(p.columns.padded);
    }
    logsumexp = take(p.columns.padded);
    size = taken_;
  }

  int64_t apart, size;
  Ring<T> keys, values;
  T *q[2], *weights[2], *out[2], *inverse[2];
  T* logsumexp;

 private:
  T* take(int64_t count) {
    T* start = memory_ == nullptr ? nullptr : memory_ + taken_;
    taken_ += round_up(count);
    return start;
  }
  T* memory_;
  int64_t taken_ = 0;
};

// Logits to weights that are not divided by their sum yet; its inverse, and logsumexp [padded].
template <typename X, typename T>
void softmax(const Problem<X>& p, int64_t i, T* weights, T* inverse, T* logsumexp) {
  using S = Simd<T>;
  const int64_t pitch = p.columns.padded, kernel = p.kernel();
  const Vector<T> none = S::broadcast(-std::numeric_limits<T>::infinity()), zero = S::broadcast(T{0});
  for (int64_t j = 0; j < p.columns.queries; j += S::lanes) {
    Vector<T> most = none;
    each_slot(p, i, [&](int64_t a, int64_t b) {
      most = S::maximum(S::load(weights + (a * kernel + b) * pitch + j), most);
    });
    most = most == none ? zero : most;
    Vector<T> sum = zero;
    each_slot(p, i, [&](int64_t a, int64_t b) {
      T* slot = weights + (a * kernel + b) * pitch + j;
      const Vector<T> weight = exponential_below<T>(S::load(slot) - most);
      S::store(slot, weight);
      sum = sum + weight;
    });
    S::store(inverse + j, sum == zero ? zero : S::broadcast(T{1}) / sum);
    S::store(logsumexp + j, most);
    T sums[S::lanes];
    S::store(sums, sum);
    for (int64_t lane = 0; lane < S::lanes; ++lane) {
      logsumexp[j + lane] += std::log(sums[lane]);
    }
  }
}

template <typename X>
int64_t forward_scratch(const Problem<X>& p) {
  return ForwardScratch<X>(p, nullptr).size;
}

template <typename X>
void forward(const Problem<X>& p, const Task& task, Wide<X>* memory) {
  using T = Wide<X>;
  using S = Simd<T>;
  const ForwardScratch<X> scratch(p, memory);
  const Columns& columns = p.columns;
  const int64_t padded = columns.padded, apart = scratch.apart;
  const Run queries{0, columns.queries, 0, p.stride};
  const T* bias = p.bias == nullptr ? nullptr : p.bias + task.head * p.slots();
  Buffer<Visit> list(2 * p.kernel());
  int64_t next = p.rows.lowest[task.i0];  // row to be staged
  each_pair(
      task, apart,
      [&](int64_t, int64_t last) {
        for (; next <= p.rows.highest[last]; ++next) {
          stage_keys(p, task, scratch.keys, scratch.values, next);
        }
      },
      [&](const Pair& pair) {
        for (int64_t n = 0; n < pair.count; ++n) {
          const int64_t row = pair.row(n, apart) * p.stride;
          stage(p.q.at(task.item, task.head, row), p.q, p.channels, &queries, 1, scratch.q[n], padded);
          const Vector<T> scale = S::broadcast(p.scale);
          for (int64_t e = 0; e < p.channels * padded; e += S::lanes) {
            S::store(scratch.q[n] + e, scale * S::load(scratch.q[n] + e));
          }
        }
        const Visits visits = visits_of(p.rows, pair, apart, list.data());
        dot_pair(p, visits, pair, apart, bias, scratch.q, padded, scratch.keys, scratch.weights, padded);
        for (int64_t n = 0; n < pair.count; ++n) {
          const int64_t i = pair.row(n, apart);
          fill_masked(p, i, scratch.weights[n], padded, -std::numeric_limits<T>::infinity());
        }
        for (int64_t n = 0; n < pair.count; ++n) {
          softmax(p, pair.row(n, apart), scratch.weights[n], scratch.inverse[n], scratch.logsumexp);
          const int64_t line = (task.item * p.heads + task.head) * p.rows.queries + pair.row(n, apart);
          std::memcpy(p.logsumexp + line * columns.queries, scratch.logsumexp, columns.queries * sizeof(T));
        }
        if (pair.count == 2) {
          weigh<2>(visits, scratch.weights, padded, columns, p.channels, scratch.values, scratch.inverse, scratch.out, padded);
        } else {
          weigh<1>(visits, scratch.weights, padded, columns, p.channels, scratch.values, scratch.inverse, scratch.out, padded);
        }
        for (int64_t n = 0; n < pair.count; ++n) {
          X* row = p.out.at(task.item, task.head, pair.row(n, apart));
          unstage(scratch.out[n], padded, p.channels, columns.queries, p.out, row);
        }
      });
}

}  // namespace
}  // namespace paperops::PAPEROPS_SIMD_NAMESPACE

// Backward pass of a task: weights and their gradients of two rows of queries, what these give to q, and to the rings of sums
// of k and v, which are written when no later row of queries reaches them. For one instruction set, see common/simd.h.
//
// P = exp(logit - logsumexp), dS = P (grad . v - delta), dq = scale sum dS k, dk = sum dS (scale q), dv = sum P grad. delta is
// sum P (grad . v): in exact numbers that is grad . out, but out is rounded to its dtype.
#pragma once

#include "local_attention_cpu_pairs.h"

namespace paperops::PAPEROPS_SIMD_NAMESPACE {
namespace {

// A worker's memory. Rows of weights, of q and of grad have zeros around the queries, as wide as the window reaches.
template <typename X>
struct BackwardScratch {
  using T = Wide<X>;
  BackwardScratch(const Problem<X>& p, T* memory) : memory_(memory) {
    apart = rows_apart(p.stride, p.dilation);
    const int64_t rows = ring_size(p.rows, apart), row = p.channels * p.columns.plane, halo = round_up(p.columns.reach);
    pitch = halo + p.columns.padded + halo;
    for (Ring<T>* ring : {&keys, &values, &dkeys, &dvalues}) {
      *ring = {take(rows * row), rows, row};
    }
    for (int64_t n = 0; n < 2; ++n) {
      q[n] = take(p.channels * pitch + halo) + halo;
      grad[n] = take(p.channels * pitch + halo) + halo;
      weights[n] = take(p.slots() * pitch + halo) + halo;
      dlogits[n] = take(p.slots() * pitch + halo) + halo;
      out[n] = take(p.channels * p.columns.padded);
      logsumexp[n] = take(p.columns.padded);
    }
    dbias = take(p.slots() * kRound);
    scale = take(p.columns.padded);
    width = round_up(p.columns.size);
    line = take(p.channels * width);
    size = taken_;
  }

  int64_t apart, pitch, width, size;
  Ring<T> keys, values, dkeys, dvalues;
  T *q[2], *grad[2], *weights[2], *dlogits[2], *out[2], *logsumexp[2];
  T* dbias;  // [k * k, lanes]
  T* scale;  // [padded]
  T* line;   // [D, width]: a row of the map

 private:
  T* take(int64_t count) {
    T* start = memory_ == nullptr ? nullptr : memory_ + taken_;
    taken_ += round_up(count);
    return start;
  }
  T* memory_;
  int64_t taken_ = 0;
};

// Logits become P, and grad . v in `dlogits` becomes dS; both 0 beyond the queries. Sums dS by slot and lane.
template <typename X, typename T>
void differentiate(const Problem<X>& p, int64_t i, T* weights, T* dlogits, int64_t pitch, const T* logsumexp,
                   T* dbias) {
  using S = Simd<T>;
  const Vector<T> zero = S::broadcast(T{0});
  T numbers[S::lanes];
  for (int64_t lane = 0; lane < S::lanes; ++lane) {
    numbers[lane] = static_cast<T>(lane);
  }
  const Vector<T> lanes = S::load(numbers);
  for (int64_t j = 0; j < p.columns.queries; j += S::lanes) {
    const Vector<T> lse = S::load(logsumexp + j);
    const Vector<T> left = S::broadcast(static_cast<T>(p.columns.queries - j));  // queries that are there
    Vector<T> total = zero, delta = zero;
    each_slot(p, i, [&](int64_t a, int64_t b) {
      const int64_t at = (a * p.kernel() + b) * pitch + j;
      const Vector<T> found = exponential_below<T>(S::load(weights + at) - lse), weight = lanes < left ? found : zero;
      S::store(weights + at, weight);
      total = total + weight;
      delta = S::multiply_add(weight, S::load(dlogits + at), delta);
    });
    // The weights' sum is off from 1 by the rounding of the logsumexp, which a large delta would show.
    const Vector<T> one = S::broadcast(T{1}), inverse = one / (total == zero ? one : total);
    delta = delta * inverse;
    each_slot(p, i, [&](int64_t a, int64_t b) {
      const int64_t at = (a * p.kernel() + b) * pitch + j;
      const Vector<T> weight = S::load(weights + at) * inverse, dlogit = weight * (S::load(dlogits + at) - delta);
      S::store(weights + at, weight);
      S::store(dlogits + at, lanes < left ? dlogit : zero);
    });
  }
  fill_masked(p, i, dlogits, pitch, T{0});
  each_slot(p, i, [&](int64_t a, int64_t b) {
    const int64_t slot = a * p.kernel() + b;
    Vector<T> sum = S::load(dbias + slot * kRound);
    for (int64_t j = 0; j < p.columns.queries; j += S::lanes) {
      sum = sum + S::load(dlogits + slot * pitch + j);
    }
    S::store(dbias + slot * kRound, sum);
  });
}

// The sums of a staged row as columns of the map: the channels' sums at an address that is returned, `pitch` apart.
template <typename T>
T* collect(const Columns& columns, int64_t channels, T* sums, T* line, int64_t width, int64_t* pitch) {
  const Run* whole = nullptr;
  for (const Run& run : columns.runs) {
    whole = run.step == 1 && run.count == columns.size ? &run : whole;
  }
  if (whole == nullptr) {
    std::memset(line, 0, channels * width * sizeof(T));
  }
  T* found = whole == nullptr ? line : sums + whole->place;
  *pitch = whole == nullptr ? width : columns.plane;
  for (const Run& run : columns.runs) {
    if (&run == whole) {
      continue;
    }
    const T* from = sums + run.place;
    T* to = found + run.source;
    for (int64_t c = 0; c < channels; ++c, from += columns.plane, to += *pitch) {
      for (int64_t n = 0; n < run.count; ++n) {
        to[n * run.step] += from[n];
      }
    }
  }
  return found;
}

template <typename X>
int64_t backward_scratch(const Problem<X>& p) {
  return BackwardScratch<X>(p, nullptr).size;
}

// What a pair needs of q, grad and logsumexp.
template <typename X, typename T>
void stage_queries(const Problem<X>& p, const Task& task, const BackwardScratch<X>& scratch, int64_t n, int64_t i) {
  using S = Simd<T>;
  const Columns& columns = p.columns;
  const int64_t pitch = scratch.pitch;
  const Run strided{0, columns.queries, 0, p.stride}, all{0, columns.queries, 0, 1};
  stage(p.q.at(task.item, task.head, i * p.stride), p.q, p.channels, &strided, 1, scratch.q[n], pitch);
  stage(p.grad.at(task.item, task.head, i), p.grad, p.channels, &all, 1, scratch.grad[n], pitch);
  const Vector<T> scale = S::broadcast(p.scale);
  for (int64_t e = 0; e < p.channels * pitch; e += S::lanes) {
    S::store(scratch.q[n] + e, scale * S::load(scratch.q[n] + e));
  }
  const T* lse = p.logsumexp + ((task.item * p.heads + task.head) * p.rows.queries + i) * columns.queries;
  for (int64_t j = 0; j < columns.queries; ++j) {
    // Where no slot is left all weights are 0.
    scratch.logsumexp[n][j] = lse[j] == -std::numeric_limits<T>::infinity() ? -lse[j] : lse[j];
  }
}

// The gradient of row i of queries to dq, and zeros where no query sits.
template <typename X, typename T>
void write_queries(const Problem<X>& p, const Task& task, const BackwardScratch<X>& scratch, T* sums, int64_t i) {
  const Columns& columns = p.columns;
  const int64_t padded = columns.padded;
  X* row = p.dq.at(task.item, task.head, i * p.stride);
  if (p.stride == 1) {
    return unstage(sums, padded, p.channels, columns.size, p.dq, row);
  }
  for (int64_t c = 0; c < p.channels; ++c) {
    T* line = scratch.line + c * scratch.width;
    for (int64_t j = 0; j < columns.size; ++j) {
      line[j] = 0;
    }
    for (int64_t j = 0; j < columns.queries; ++j) {
      line[j * p.stride] = sums[c * padded + j];
    }
  }
  unstage(scratch.line, scratch.width, p.channels, columns.size, p.dq, row);
  for (int64_t r = i * p.stride + 1; r < (i + 1) * p.stride && r < p.rows.size; ++r) {
    clear(p.dq, p.dq.at(task.item, task.head, r), p.channels, columns.size);
  }
}

// Row `row` of the sums of k and v, to where the task leaves them.
template <typename X, typename T>
void write_keys(const Problem<X>& p, const Task& task, const Partial<T>& partial, const BackwardScratch<X>& scratch,
                int64_t row) {
  const Columns& columns = p.columns;
  for (const bool of_keys : {true, false}) {
    int64_t pitch = 0;
    T* ring = (of_keys ? scratch.dkeys : scratch.dvalues)(row);
    const T* sums = collect(columns, p.channels, ring, scratch.line, scratch.width, &pitch);
    if (T* partial_sums = of_keys ? partial.dk : partial.dv; partial_sums != nullptr) {
      T* to = partial_sums + (row - partial.first) * p.channels * columns.size;
      for (int64_t c = 0; c < p.channels; ++c) {
        move<T>(sums + c * pitch, to + c * columns.size, columns.size);
      }
    } else {
      const Map<X>& map = of_keys ? p.dk : p.dv;
      unstage(sums, pitch, p.channels, columns.size, map, map.at(task.item, task.head, row));
    }
  }
}

template <typename X>
void backward(const Problem<X>& p, const Task& task, const Partial<Wide<X>>& partial, Wide<X>* memory) {
  using T = Wide<X>;
  using S = Simd<T>;
  const BackwardScratch<X> scratch(p, memory);
  const Columns& columns = p.columns;
  const int64_t pitch = scratch.pitch, apart = scratch.apart, kernel = p.kernel();
  const int64_t row_elements = p.channels * columns.plane;
  const T* bias = p.bias == nullptr ? nullptr : p.bias + task.head * p.slots();
  Buffer<Visit> list(2 * kernel);
  Buffer<const T*> of(kernel);
  Buffer<T*> to(kernel);
  std::memset(scratch.dbias, 0, p.slots() * kRound * sizeof(T));
  for (int64_t j = 0; j < columns.padded; ++j) {
    scratch.scale[j] = p.scale;
  }
  const T* const scale[2] = {scratch.scale, scratch.scale};
  int64_t next = p.rows.lowest[task.i0], written = next;  // rows to be staged, and to be written
  each_pair(
      task, apart,
      [&](int64_t first, int64_t last) {
        for (; written < p.rows.lowest[first]; ++written) {
          if (written >= next) {  // between windows that are further apart than wide: no query reaches it
            std::memset(scratch.dkeys(written), 0, row_elements * sizeof(T));
            std::memset(scratch.dvalues(written), 0, row_elements * sizeof(T));
          }
          write_keys(p, task, partial, scratch, written);
        }
        next = std::max(next, written);
        for (; next <= p.rows.highest[last]; ++next) {
          stage_keys(p, task, scratch.keys, scratch.values, next);
          std::memset(scratch.dkeys(next), 0, row_elements * sizeof(T));
          std::memset(scratch.dvalues(next), 0, row_elements * sizeof(T));
        }
      },
      [&](const Pair& pair) {
        for (int64_t n = 0; n < pair.count; ++n) {
          stage_queries<X, T>(p, task, scratch, n, pair.row(n, apart));
        }
        const Visits visits = visits_of(p.rows, pair, apart, list.data());
        dot_pair(p, visits, pair, apart, bias, scratch.q, pitch, scratch.keys, scratch.weights, pitch);
        dot_pair<X, T>(p, visits, pair, apart, nullptr, scratch.grad, pitch, scratch.values, scratch.dlogits, pitch);
        for (int64_t n = 0; n < pair.count; ++n) {
          const int64_t i = pair.row(n, apart);
          fill_masked(p, i, scratch.weights[n], pitch, -std::numeric_limits<T>::infinity());
          differentiate(p, i, scratch.weights[n], scratch.dlogits[n], pitch, scratch.logsumexp[n], scratch.dbias);
        }
        if (pair.count == 2) {
          weigh<2>(visits, scratch.dlogits, pitch, columns, p.channels, scratch.keys, scale, scratch.out, columns.padded);
        } else {
          weigh<1>(visits, scratch.dlogits, pitch, columns, p.channels, scratch.keys, scale, scratch.out, columns.padded);
        }
        for (int64_t n = 0; n < pair.count; ++n) {
          const int64_t i = pair.row(n, apart);
          write_queries<X, T>(p, task, scratch, scratch.out[n], i);
          for (const bool of_keys : {true, false}) {
            int64_t rows = 0;
            for (int64_t a = 0; a < kernel; ++a) {
              if (p.rows.key(i, a) != kNone) {
                of.data()[rows] = (of_keys ? scratch.dlogits : scratch.weights)[n] + a * kernel * pitch;
                to.data()[rows++] = (of_keys ? scratch.dkeys : scratch.dvalues)(p.rows.key(i, a));
              }
            }
            spread(of.data(), to.data(), rows, pitch, (of_keys ? scratch.q : scratch.grad)[n], pitch, p.channels, columns);
          }
        }
      });
  for (; written < next; ++written) {
    write_keys(p, task, partial, scratch, written);
  }
  if (partial.dk == nullptr) {  // rows that no query reaches
    for (int64_t row = 0; row < p.rows.size; ++row) {
      if (row < p.rows.lowest[task.i0] || row >= next) {
        clear(p.dk, p.dk.at(task.item, task.head, row), p.channels, columns.size);
        clear(p.dv, p.dv.at(task.item, task.head, row), p.channels, columns.size);
      }
    }
  }
  for (int64_t slot = 0; slot < p.slots() && partial.dbias != nullptr; ++slot) {
    partial.dbias[slot] = sum<T>(S::load(scratch.dbias + slot * kRound));
  }
}

// A row of dk or dv from what `count` tasks have left of it, [D, w] each, in order.
template <typename X>
void finish(const Problem<X>& p, const Map<X>& map, X* row, const Wide<X>* const* sums, int64_t count, Wide<X>* line) {
  const int64_t elements = p.channels * p.columns.size;
  for (int64_t e = 0; e < elements; ++e) {
    Wide<X> total = 0;
    for (int64_t n = 0; n < count; ++n) {
      total += sums[n][e];
    }
    line[e] = total;
  }
  unstage(line, p.columns.size, p.channels, p.columns.size, map, row);
}

}  // namespace
}  // namespace paperops::PAPEROPS_SIMD_NAMESPACE

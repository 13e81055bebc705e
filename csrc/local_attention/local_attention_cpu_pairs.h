// How a task goes down the map: pairs of rows of queries that share rows of keys, and rings of staged rows. For one
// instruction set, see common/simd.h.
#pragma once

#include "local_attention_cpu_exponential.h"
#include "local_attention_cpu_products.h"
#include "local_attention_cpu_rows.h"

namespace paperops::PAPEROPS_SIMD_NAMESPACE {
namespace {

using local_attention::kNone;
using local_attention::kRound;
using local_attention::Padding;
using local_attention::Partial;
using local_attention::Problem;
using local_attention::round_up;
using local_attention::Rows;
using local_attention::Task;

constexpr int64_t kAhead = 4;  // rows of keys are asked for before they are staged

// Rows of queries i and i + apart hold rows of keys in common; pairs are taken from blocks of 2 * apart rows.
PAPEROPS_INLINE int64_t rows_apart(int64_t stride, int64_t dilation) {
  int64_t a = stride, b = dilation;
  while (b != 0) {
    const int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return dilation / a;
}

struct Pair {
  int64_t i, count;  // rows i and, if there are two, i + apart
  int64_t row(int64_t n, int64_t apart) const { return i + n * apart; }
};

// Calls begin(first, last) at every block of rows of queries, and then work(pair) for its pairs.
template <class Begin, class Work>
PAPEROPS_INLINE void each_pair(const Task& task, int64_t apart, const Begin& begin, const Work& work) {
  for (int64_t block = task.i0; block < task.i1; block += 2 * apart) {
    const int64_t end = block + 2 * apart < task.i1 ? block + 2 * apart : task.i1;
    begin(block, end - 1);
    for (int64_t i = block; i < block + apart && i < end; ++i) {
      work(Pair{i, i + apart < end ? int64_t{2} : int64_t{1}});
    }
  }
}

// Rows of keys that a block of rows of queries needs at the most, those in between included.
PAPEROPS_INLINE int64_t ring_size(const Rows& rows, int64_t apart) {
  int64_t size = 1;
  for (int64_t i = 0; i < rows.queries; ++i) {
    const int64_t last = i + 2 * apart - 1 < rows.queries ? i + 2 * apart - 1 : rows.queries - 1;
    const int64_t count = rows.highest[last] - rows.lowest[i] + 1;
    size = count > size ? count : size;
  }
  return size;
}

// The rows of keys of a pair, first those that both rows of queries hold. `list` has room for 2 k of them.
inline Visits visits_of(const Rows& rows, const Pair& pair, int64_t apart, Visit* list) {
  const int64_t kernel = rows.kernel;
  Visit* next = list;
  Visits visits{{list, nullptr, nullptr, nullptr}};
  const auto taken = [&](int64_t n, int64_t a) {
    for (const Visit* visit = list; visit < next; ++visit) {
      if (visit->a[n] == a) {
        return true;
      }
    }
    return false;
  };
  for (int64_t a = 0; a < kernel && pair.count == 2; ++a) {
    const int64_t row = rows.key(pair.i, a);
    for (int64_t other = 0; other < kernel && row != kNone; ++other) {
      if (rows.key(pair.i + apart, other) == row && !taken(1, other)) {
        *next++ = {row, {a, other}};
        break;
      }
    }
  }
  const Visit* both = next;
  for (int64_t n = 0; n < 2; ++n) {
    visits.begin[n + 1] = next;
    for (int64_t a = 0; a < kernel && n < pair.count; ++a) {
      const int64_t row = rows.key(pair.row(n, apart), a);
      bool shared = false;
      for (const Visit* visit = list; visit < both; ++visit) {
        shared = shared || visit->a[n] == a;
      }
      if (row != kNone && !shared) {
        *next++ = {row, {n == 0 ? a : kNone, n == 1 ? a : kNone}};
      }
    }
  }
  visits.begin[3] = next;
  return visits;
}

// Staged rows of keys, the last `size` of them.
template <typename T>
struct Ring {
  T* data;
  int64_t size, row_elements;
  T* operator()(int64_t row) const { return data + row % size * row_elements; }
};

// Stages row `row` of k and v, and asks for one that will be staged later.
template <typename X, typename T>
void stage_keys(const Problem<X>& p, const Task& task, const Ring<T>& keys, const Ring<T>& values, int64_t row) {
  const Columns& columns = p.columns;
  const int64_t later = row + kAhead < p.rows.size ? row + kAhead : p.rows.size - 1;
  const int64_t runs = static_cast<int64_t>(columns.runs.size());
  prefetch(p.k.at(task.item, task.head, later), p.k, p.channels, columns.size);
  prefetch(p.v.at(task.item, task.head, later), p.v, p.channels, columns.size);
  stage(p.k.at(task.item, task.head, row), p.k, p.channels, columns.runs.data(), runs, keys(row), columns.plane);
  stage(p.v.at(task.item, task.head, row), p.v, p.channels, columns.runs.data(), runs, values(row), columns.plane);
}

// Weights of both rows of a pair, [k * k, pitch] each, from both rows' x [D, x_pitch] and the staged rows of a ring.
// Slots whose row of keys is outside the map have the bias, as keys of zeros.
template <typename X, typename T>
void dot_pair(const Problem<X>& p, const Visits& visits, const Pair& pair, int64_t apart, const T* bias, const T* const* x,
              int64_t x_pitch, const Ring<T>& ring, T* const* weights, int64_t pitch) {
  const int64_t kernel = p.kernel();
  const auto start = [&](int64_t a) { return bias == nullptr ? nullptr : bias + a * kernel; };
  for (const Visit* visit = visits.begin[0]; visit < visits.begin[1]; ++visit) {
    const int64_t a = visit->a[0], other = visit->a[1];
    const Slots<T, 2> slots{
        {x[0], x[1]}, {weights[0] + a * kernel * pitch, weights[1] + other * kernel * pitch}, {start(a), start(other)}};
    dot(slots, pitch, x_pitch, p.channels, ring(visit->row), p.columns);
  }
  for (int64_t n = 0; n < pair.count; ++n) {
    for (const Visit* visit = visits.begin[n + 1]; visit < visits.begin[n + 2]; ++visit) {
      const int64_t a = visit->a[n];
      const Slots<T, 1> slots{{x[n]}, {weights[n] + a * kernel * pitch}, {start(a)}};
      dot(slots, pitch, x_pitch, p.channels, ring(visit->row), p.columns);
    }
    for (int64_t a = 0; a < kernel && p.padding == Padding::zeros; ++a) {
      for (int64_t b = 0; b < kernel && p.rows.key(pair.row(n, apart), a) == kNone; ++b) {
        T* to = weights[n] + (a * kernel + b) * pitch;
        for (int64_t j = 0; j < p.columns.queries; ++j) {  // beyond them there are zeros
          to[j] = bias == nullptr ? T{0} : bias[a * kernel + b];
        }
      }
    }
  }
}

// Calls work(a, b) for the slots that row i of queries has: all, or under Padding::mask those whose row is there.
template <typename X, class Work>
PAPEROPS_INLINE void each_slot(const Problem<X>& p, int64_t i, const Work& work) {
  for (int64_t a = 0; a < p.kernel(); ++a) {
    if (p.padding == Padding::mask && p.rows.key(i, a) == kNone) {
      continue;
    }
    for (int64_t b = 0; b < p.kernel(); ++b) {
      work(a, b);
    }
  }
}

// Under Padding::mask, `value` for the queries that have no key in the slots of column b.
template <typename X, typename T>
PAPEROPS_INLINE void fill_masked(const Problem<X>& p, int64_t i, T* weights, int64_t pitch, T value) {
  if (p.padding != Padding::mask) {
    return;
  }
  each_slot(p, i, [&](int64_t a, int64_t b) {
    T* slot = weights + (a * p.kernel() + b) * pitch;
    for (int64_t j = 0; j < p.columns.first[b]; ++j) {
      slot[j] = value;
    }
    for (int64_t j = p.columns.end[b]; j < p.columns.queries; ++j) {
      slot[j] = value;
    }
  });
}

}  // namespace
}  // namespace paperops::PAPEROPS_SIMD_NAMESPACE

// What the parts of the CPU implementation tell each other. local_attention_cpu_window.h says where keys lie, once a call;
// the kernels of one instruction set (local_attention_cpu_kernels.h) do a task; local_attention_cpu_ops.cpp meets the
// dispatcher.
//
// A task has one item and head, and some rows of queries. It goes down the map with a ring of staged rows of keys and values,
// in the type that is computed in: each row is converted once, its border resolved, whatever the strides of the tensors.
// Lanes of a vector are queries side by side.
#pragma once

#include <cstdint>

#include "../common/instruction_set.h"
#include "../common/parallel.h"
#include "../common/types.h"
#include "local_attention_cpu_window.h"

namespace paperops::local_attention {

// A tensor [B, H, D, h, w] of any strides.
template <typename X>
struct Map {
  X* data = nullptr;
  int64_t item = 0, head = 0, channel = 0, row = 0, column = 0;  // strides

  X* at(int64_t b, int64_t h, int64_t r) const { return data + b * item + h * head + r * row; }
};

// A call. X is the type of the maps, T what is computed in.
template <typename X>
struct Problem {
  using T = Wide<X>;
  int64_t batch, heads, channels;
  const Rows& rows;
  const Columns& columns;
  Padding padding;
  int64_t stride, dilation;
  T scale;
  const T* bias;  // [H, k, k], or null
  Map<const X> q, k, v;
  Map<X> out;       // of the forward pass
  T* logsumexp;     // [B, H, Ho, Wo]: written by the forward pass, read by the backward pass
  Map<const X> grad;  // of the backward pass, and so on
  Map<X> dq, dk, dv;

  int64_t kernel() const { return rows.kernel; }
  int64_t slots() const { return rows.kernel * rows.kernel; }
};

// Rows [i0, i1) of queries of one item and head.
struct Task {
  int64_t item, head, i0, i1;
};

// Where a task of the backward pass leaves its sums.
template <typename T>
struct Partial {
  T* dbias;        // [k * k], or null
  T* dk = nullptr;  // [rows, D, w], the first of them `first` of the map; or null: the task has all rows, and writes dk
  T* dv = nullptr;
  int64_t first = 0;
};

template <typename X>
struct Kernels {
  using T = Wide<X>;
  int64_t (*forward_scratch)(const Problem<X>&);  // elements that a worker needs, zeroed before its first task
  int64_t (*backward_scratch)(const Problem<X>&);
  void (*forward)(const Problem<X>&, const Task&, T* scratch);
  void (*backward)(const Problem<X>&, const Task&, const Partial<T>&, T* scratch);
  // One row of dk or dv from the sums [D, w] that `count` tasks have left of it, in order.
  void (*finish)(const Problem<X>&, const Map<X>&, X* row, const T* const* sums, int64_t count, T* scratch);
};

#if defined(PAPEROPS_X86)
template <typename X>
Kernels<X> kernels_avx512();
template <typename X>
Kernels<X> kernels_avx2();
#endif
template <typename X>
Kernels<X> kernels_portable();

template <typename X>
Kernels<X> kernels() {
  return PAPEROPS_CHOOSE(kernels, X);
}

}  // namespace paperops::local_attention

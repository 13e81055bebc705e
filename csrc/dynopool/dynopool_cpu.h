// What the parts of the CPU implementation tell each other. dynopool_cpu_axis.h says where samples lie, once a call and axis;
// the kernels of one instruction set (dynopool_cpu_kernels.h) do a task; dynopool_cpu_ops.cpp meets the dispatcher.
//
// Two layouts. Planes (contiguous): lanes of a vector are columns, and a task has up to four channels, whose choices share
// bytes. Pixels (channels_last): lanes are channels. In both a row of samples is interpolated between two rows of x once,
// for all of its columns.
#pragma once

#include <cstdint>

#include "../common/instruction_set.h"
#include "../common/parallel.h"
#include "../common/types.h"
#include "dynopool_cpu_axis.h"

namespace paperops::dynopool {

// Of four samples the maximum or the mean; one sample at the centre of a cell; one at i / r.
enum class Mode : int64_t { max = 0, mean = 1, centres = 2, corners = 3 };

constexpr int64_t kPacked = 4;  // channels whose choices share a byte

// A call. X is the type of the maps, T what is computed in.
template <typename X>
struct Problem {
  using T = Wide<X>;
  int64_t batch;
  int64_t channels;
  Mode mode;
  bool zeros;  // the pixels around the map are there, and 0
  bool channels_last;
  const Axis<T>& rows;
  const Axis<T>& columns;
  const X* x;               // [B, C, H, W], or null
  const X* grad;            // [B, C, Ho, Wo], or null
  const uint8_t* chosen;    // [B, ceil(C / 4), Ho, Wo], or null
  X* out;                   // [B, C, Ho, Wo], or null
  uint8_t* choices;         // [B, ceil(C / 4), Ho, Wo], or null
  X* dx;                    // [B, C, H, W], or null
  const X* zero_row;        // a row of zeros, of what a row of x is in memory

  int64_t groups() const { return divide_up(channels, kPacked); }
  int64_t pixels() const { return rows.pixels * columns.pixels; }
  int64_t cells() const { return rows.cells * columns.cells; }
  int64_t row_size() const { return columns.pixels * (channels_last ? channels : 1); }
  const X* x_end() const { return x + batch * channels * pixels(); }
};

// Channels [c0, c1) of an item and rows [r0, r1): of cells, or in the backward pass of pixels. c0 is a multiple of four.
struct Task {
  int64_t item, c0, c1, r0, r1;
};

// Memory that a thread keeps from task to task.
template <typename T>
class Scratch {
 public:
  T* get(int64_t size) {
    if (size > size_) {
      buffer_ = Buffer<T>(size);
      size_ = size;
    }
    return buffer_.data();
  }

 private:
  Buffer<T> buffer_{0};
  int64_t size_ = 0;
};

template <typename X>
struct Kernels {
  using T = Wide<X>;
  void (*forward)(const Problem<X>&, const Task&, Scratch<T>&);
  void (*backward)(const Problem<X>&, const Task&, Scratch<T>&);
  // sums [2] += over the task's samples of their gradient by their row (column), times its derivative by a = 1 / r.
  void (*slopes)(const Problem<X>&, const Task&, Scratch<T>&, double* sums);
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

}  // namespace paperops::dynopool

// What the parts of the CPU implementation tell each other. The kernels of one instruction set (shift_conv_cpu_kernels.h)
// do a task; shift_conv_cpu_ops.cpp cuts a call into tasks and meets the dispatcher.
//
// A task copies the rows it needs, with their border of zeros, to planes in memory of its own, of either layout and by
// the stride's phases: pixel y lies in phase (y + k / 2) mod s, row (y + k / 2) div s. There tap (dy, dx) of the cell at
// row i and column j is element (i + dy div s) * pitch + j + dx div s of phase (dy mod s, dx mod s): whatever the stride
// and the width, a tap is a constant shift of one long row, and vectors run over it from end to end. The few columns
// between two rows are computed too and not used. The bias is one more map, 1 inside and 0 outside.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/instruction_set.h"
#include "../common/parallel.h"
#include "../common/types.h"

namespace paperops::shift_conv {

constexpr int64_t kOuts = 4;      // maps of a result that are computed together: weights are packed for as many
constexpr int64_t kSlack = 128;   // elements after a plane that may be read
constexpr int64_t kAligned = 16;  // elements of a cache line

inline int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// Maps in a tensor: element (channel, y, x) is at data + channel * channel_stride + y * row_stride + x * column_stride.
template <typename X>
struct Maps {
  X* data;
  int64_t channel_stride, row_stride, column_stride;
};

// Where pixels lie in planes: pixel = row * step + phase - before, per axis.
struct Lattice {
  int64_t step, before, height, width, phases, pitch;
};

struct Sizes {
  int64_t batch, maps, depth, height, width, channels, kernel, stride;
  bool bias;

  int64_t taps() const { return kernel * kernel; }                        // also the number of mixed maps
  int64_t per_group() const { return channels / depth; }
  int64_t taps_pitch() const { return round_up(taps(), kAligned); }       // of weights that are not packed
  int64_t inputs() const { return maps + (bias ? 1 : 0); }                // the map of ones counted
  int64_t rows() const { return divide_up(height, stride); }              // of cells
  int64_t columns() const { return divide_up(width, stride); }
  int64_t reach() const { return (kernel - 1) / stride; }
  int64_t phases() const { return std::min(kernel, stride); }
  int64_t pitch() const { return columns() + reach(); }
  Lattice pixels() const { return {stride, kernel / 2, height, width, phases(), pitch()}; }
  Lattice cells() const { return {1, 0, rows(), columns(), 1, pitch()}; }

  // Whether one convolution with the merged weights costs no more multiply-adds than mixing first: of an image and group.
  bool merged() const {
    const int64_t count = rows() * columns(), side = phases();
    return per_group() * maps * taps() * (count + taps()) <= count * taps() * (maps * side * side + per_group() * taps());
  }
};

// A call. X is the type of the maps, T what is computed in.
template <typename X>
struct Problem {
  using T = Wide<X>;
  Sizes sizes;
  bool merged;
  const X* x;            // [B, T, D, h, w], or null
  int64_t x_strides[5];
  const X* grad;         // [B, C, Ho, Wo], or null
  int64_t grad_strides[4];
  X* out;                // [B, C, Ho, Wo], or null
  int64_t out_strides[4];
  X* dx;                 // [B, T, D, h, w], or null
  int64_t dx_strides[5];
  // Packed for `convolve`. Merged: conv [C / D] from [inputs] for each group, back [maps] from [C / D] for each group and
  // phase. Otherwise conv [C / D] from [K] and back [K] from [C / D], and mix [K] from [inputs], unmix [maps] from [K].
  const T *conv, *back, *mix, *unmix;
};

// Groups [d0, d1) of an item and rows [r0, r1): of cells, or in the backward pass of phases of pixels.
struct Task {
  int64_t item, d0, d1, r0, r1;
};

// What tasks of a call have in common.
struct Bands {
  int64_t groups;  // of a task
  int64_t rows;    // of a task at most

  int64_t plane(const Sizes& s) const { return round_up((rows + s.reach()) * s.pitch() + kSlack, kAligned); }
};

// Sums over the pixels of a run of tasks, kept as vectors: [groups][C / D][inputs or K][taps], and [K][inputs].
template <typename T>
struct Sums {
  T* conv;
  T* fc;
};

template <typename X>
struct Kernels {
  using T = Wide<X>;
  int64_t lanes;
  int64_t (*scratch)(const Problem<X>&, const Bands&);  // elements that a task needs
  void (*forward)(const Problem<X>&, const Bands&, const Task&, T* scratch);
  void (*backward)(const Problem<X>&, const Bands&, const Task&, T* scratch, const Sums<T>& sums);
  // totals[n] = sum of the lanes of sums[n], for n < count; one in each `run` elements, `pitch` apart.
  void (*add_lanes)(const T* sums, int64_t runs, int64_t run, int64_t pitch, T* totals);
  // out[a] = sum over b of matrix[a * row_stride + b * column_stride] in[b], rows of `pitch` elements.
  void (*mix_rows)(const T* in, const T* matrix, int64_t row_stride, int64_t column_stride, int64_t rows, int64_t columns,
                   int64_t pitch, T* out);
  // out[b] = sum over n of the product of rows a[n * a_stride] and b[n * b_stride + b * pitch].
  void (*multiply_rows)(const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t count, int64_t columns,
                        int64_t pitch, T* out);
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

}  // namespace paperops::shift_conv

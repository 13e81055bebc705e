// The tasks of shift_conv_cpu.h for one instruction set: included by shift_conv_cpu_{portable,avx2,avx512}.cpp, see
// common/simd.h.
#pragma once

#include "shift_conv_cpu_stage.h"

namespace paperops::PAPEROPS_SIMD_NAMESPACE {
namespace {

using shift_conv::Bands;
using shift_conv::kAligned;
using shift_conv::Kernels;
using shift_conv::kSlack;
using shift_conv::Problem;
using shift_conv::round_up;
using shift_conv::Sizes;
using shift_conv::Sums;
using shift_conv::Task;

// The memory of a task. Without memory it only adds up what there is.
template <typename X>
struct Work {
  using T = Wide<X>;

  Work(const Problem<X>& p, const Bands& bands, T* memory) {
    const Sizes& s = p.sizes;
    const int64_t groups = bands.groups, sides = s.phases() * s.phases();
    plane = bands.plane(s);
    phases = sides * plane;
    const int64_t before = s.reach() * (s.pitch() + 1);  // elements before the first cell that are read
    front = round_up(before, kAligned) - s.reach() * s.pitch();
    grad_plane = round_up(front + plane, kAligned);
    shifts = reinterpret_cast<int64_t*>(take(memory, columns(p) * kWords));
    back_shifts = reinterpret_cast<int64_t*>(take(memory, s.taps() * kWords));
    x = take(memory, p.x != nullptr ? groups * s.inputs() * phases : 0);
    mixed = take(memory, p.merged || p.x == nullptr ? 0 : s.taps() * phases);
    out = take(memory, p.out != nullptr ? groups * s.per_group() * plane : 0);
    grad = take(memory, p.grad != nullptr ? groups * s.per_group() * grad_plane : 0);
    dmixed = take(memory, p.merged || p.grad == nullptr ? 0 : s.taps() * phases);
    dx = take(memory, p.dx != nullptr ? groups * s.maps * phases : 0);
  }
  static constexpr int64_t kWords = sizeof(int64_t) / sizeof(T);
  static int64_t columns(const Problem<X>& p) {  // of the largest sum over planes and taps
    return larger(p.merged ? p.sizes.inputs() : p.sizes.taps(), 1) * p.sizes.taps() + p.sizes.inputs();
  }
  T* take(T* memory, int64_t size) {
    T* piece = memory + used;
    used += round_up(size, kAligned) + kSlack;
    return piece;
  }

  int64_t used = 0;
  int64_t plane, phases, front, grad_plane;
  int64_t *shifts, *back_shifts;
  T *x, *mixed, *out, *grad, *dmixed, *dx;
};

template <typename X>
int64_t scratch(const Problem<X>& p, const Bands& bands) {
  return Work<X>(p, bands, nullptr).used;
}

// Where tap (dy, dx) of the first cell lies, from the first plane on.
template <typename T>
PAPEROPS_INLINE void tap_shifts(const Sizes& s, int64_t plane, int64_t* shifts) {
  for (int64_t dy = 0; dy < s.kernel; ++dy) {
    for (int64_t dx = 0; dx < s.kernel; ++dx) {
      const int64_t phase = dy % s.stride * s.phases() + dx % s.stride;
      shifts[dy * s.kernel + dx] = phase * plane + dy / s.stride * s.pitch() + dx / s.stride;
    }
  }
}

// The same for each of some planes that are `pitch` apart.
PAPEROPS_INLINE void repeat_shifts(int64_t* shifts, int64_t taps, int64_t planes, int64_t pitch) {
  for (int64_t n = taps; n < planes * taps; ++n) {
    shifts[n] = shifts[n - taps] + pitch;
  }
}

constexpr int64_t kNoShift[1] = {0};

// Rows [r0, r1 + reach) of x of the task's groups.
template <typename X, typename T = Wide<X>>
void stage_x(const Problem<X>& p, const Task& task, const Work<X>& work) {
  const Sizes& s = p.sizes;
  const int64_t last = task.r1 + s.reach();
  for (int64_t t = 0; t < s.maps; ++t) {
    const Maps<const X> maps{p.x + task.item * p.x_strides[0] + t * p.x_strides[1] + task.d0 * p.x_strides[2],
                             p.x_strides[2], p.x_strides[3], p.x_strides[4]};
    stage<T>(maps, s.pixels(), task.d1 - task.d0, task.r0, last, work.x + t * work.phases, s.inputs() * work.phases,
             work.plane, work.plane);
  }
  for (int64_t d = 0; d < task.d1 - task.d0 && s.bias; ++d) {
    stage_ones(s.pixels(), task.r0, last, work.x + (d * s.inputs() + s.maps) * work.phases, work.plane, work.plane);
  }
}

// The mixed maps of one group of the task.
template <typename X, typename T = Wide<X>>
void mix(const Problem<X>& p, const Work<X>& work, int64_t d) {
  const Reads<T> in{work.x + d * p.sizes.inputs() * work.phases, work.phases, p.sizes.inputs(), kNoShift, 1};
  convolve(in, p.mix, p.sizes.taps(), work.mixed, work.phases, work.phases);
}

template <typename X>
void forward(const Problem<X>& p, const Bands& bands, const Task& task, Wide<X>* memory) {
  using T = Wide<X>;
  const Sizes& s = p.sizes;
  const Work<X> work(p, bands, memory);
  const int64_t many = s.per_group(), groups = task.d1 - task.d0;
  const int64_t planes = p.merged ? s.inputs() : s.taps();
  tap_shifts<T>(s, work.plane, work.shifts);
  stage_x(p, task, work);
  for (int64_t d = 0; d < groups; ++d) {
    if (!p.merged) {
      mix(p, work, d);
    }
    const Reads<T> in{p.merged ? work.x + d * planes * work.phases : work.mixed, work.phases, planes, work.shifts, s.taps()};
    const T* weights = p.conv + (task.d0 + d) * many * planes * s.taps();
    convolve(in, weights, many, work.out + d * many * work.plane, work.plane,
             (task.r1 - task.r0 - 1) * s.pitch() + s.columns());
  }
  const Maps<X> maps{p.out + task.item * p.out_strides[0] + task.d0 * many * p.out_strides[1], p.out_strides[1],
                     p.out_strides[2], p.out_strides[3]};
  unstage(work.out, work.plane, work.plane, s.cells(), groups * many, task.r0, s.rows(), task.r0, task.r1, maps);
}

// What `outs` planes of each phase have of the gradients of one group's cells.
template <typename X, typename T = Wide<X>>
void pull(const Problem<X>& p, const Work<X>& work, const Task& task, int64_t d, int64_t outs, T* to) {
  const Sizes& s = p.sizes;
  const int64_t many = s.per_group(), rows = task.r1 - task.r0;
  const T* weights = p.back + (task.d0 + d) * outs * many * s.taps();
  const T* grad = work.grad + d * many * work.grad_plane + work.front + s.reach() * s.pitch();
  for (int64_t number = 0; number < s.phases() * s.phases(); ++number) {
    int64_t taps = 0;
    for (int64_t dy = number / s.phases(); dy < s.kernel; dy += s.stride) {
      for (int64_t dx = number % s.phases(); dx < s.kernel; dx += s.stride) {
        work.back_shifts[taps++] = -(dy / s.stride * s.pitch() + dx / s.stride);
      }
    }
    const Reads<T> in{grad, work.grad_plane, many, work.back_shifts, taps};
    convolve(in, weights, outs, to + number * work.plane, work.phases, rows * s.pitch());
    weights += outs * many * taps;
  }
}

template <typename X>
void backward(const Problem<X>& p, const Bands& bands, const Task& task, Wide<X>* memory, const Sums<Wide<X>>& sums) {
  using T = Wide<X>;
  const Sizes& s = p.sizes;
  const Work<X> work(p, bands, memory);
  const int64_t many = s.per_group(), groups = task.d1 - task.d0, rows = task.r1 - task.r0;
  const int64_t planes = p.merged ? s.inputs() : s.taps(), columns = planes * s.taps();
  const Maps<const X> grads{p.grad + task.item * p.grad_strides[0] + task.d0 * many * p.grad_strides[1], p.grad_strides[1],
                            p.grad_strides[2], p.grad_strides[3]};
  stage(grads, s.cells(), groups * many, task.r0 - s.reach(), task.r1, work.grad + work.front, work.grad_plane, int64_t{0},
        work.grad_plane - work.front);
  for (int64_t c = 0; c < groups * many; ++c) {
    zero(work.grad + c * work.grad_plane, work.front);
  }
  int64_t* const by_map = work.shifts + columns;
  if (p.x != nullptr) {
    stage_x(p, task, work);
    tap_shifts<T>(s, work.plane, work.shifts);
    repeat_shifts(work.shifts, s.taps(), planes, work.phases);
    by_map[0] = 0;
    repeat_shifts(by_map, 1, s.inputs(), work.phases);
  }
  const int64_t cells = smaller(rows, s.rows() - task.r0) * s.pitch();  // negative where there are none
  for (int64_t d = 0; d < groups; ++d) {
    const T* x = work.x + d * s.inputs() * work.phases;
    if (p.x != nullptr) {
      if (!p.merged) {
        mix(p, work, d);
      }
      const T* grad = work.grad + d * many * work.grad_plane + work.front + s.reach() * s.pitch();
      const Columns<T> in{p.merged ? x : work.mixed, work.shifts, columns};
      correlate(grad, work.grad_plane, many, in, cells, sums.conv + d * many * columns * kLanes<T>);
    }
    T* dx = work.dx + d * s.maps * work.phases;
    if (p.merged) {
      if (p.dx != nullptr) {
        pull(p, work, task, d, s.maps, dx);
      }
      continue;
    }
    pull(p, work, task, d, s.taps(), work.dmixed);
    for (int64_t n = 0; n < s.taps() * s.phases() * s.phases(); ++n) {  // the rows that are not this task's
      zero(work.dmixed + n * work.plane + rows * s.pitch(), work.plane - rows * s.pitch());
    }
    if (p.x != nullptr) {
      correlate(work.dmixed, work.phases, s.taps(), {x, by_map, s.inputs()}, work.phases, sums.fc);
    }
    if (p.dx != nullptr) {
      const Reads<T> in{work.dmixed, work.phases, s.taps(), kNoShift, 1};
      convolve(in, p.unmix, s.maps, dx, work.phases, work.phases);
    }
  }
  if (p.dx == nullptr) {
    return;
  }
  // Pixels of this task's rows; those below all rows, which no cell reaches, are the last one's.
  const int64_t total = s.rows() + s.reach(), half = s.kernel / 2;
  const int64_t y0 = larger(task.r0 * s.stride - half, 0);
  const int64_t y1 = task.r1 == total ? s.height : smaller(task.r1 * s.stride - half, s.height);
  for (int64_t t = 0; t < s.maps; ++t) {
    const Maps<X> maps{p.dx + task.item * p.dx_strides[0] + t * p.dx_strides[1] + task.d0 * p.dx_strides[2], p.dx_strides[2],
                       p.dx_strides[3], p.dx_strides[4]};
    unstage(work.dx + t * work.phases, s.maps * work.phases, work.plane, s.pixels(), groups, task.r0, total, y0, y1, maps);
  }
}

// The sums of the lanes of `count` vectors, eight at a time where they can be turned.
template <typename T>
void add_row(const T* sums, int64_t count, T* totals) {
  int64_t n = 0;
  if constexpr (kTurns<T>) {
    for (; n + 8 <= count; n += 8) {
      T parts[kLanes<T> * 8];
      for (int64_t lane = 0; lane < kLanes<T>; lane += 8) {
        turn_eight(sums + n * kLanes<T> + lane, kLanes<T>, parts + lane * 8, 8);
      }
      for (int64_t i = 0; i < 8; ++i) {
        T total = parts[i];
        for (int64_t lane = 1; lane < kLanes<T>; ++lane) {
          total += parts[lane * 8 + i];
        }
        totals[n + i] = total;
      }
    }
  }
  for (; n < count; ++n) {
    T total = sums[n * kLanes<T>];
    for (int64_t lane = 1; lane < kLanes<T>; ++lane) {
      total += sums[n * kLanes<T> + lane];
    }
    totals[n] = total;
  }
}

template <typename T>
void add_lanes(const T* sums, int64_t runs, int64_t run, int64_t pitch, T* totals) {
  for (int64_t r = 0; r < runs; ++r) {
    add_row(sums + r * run * kLanes<T>, run, totals + r * pitch);
  }
}

template <typename T>
void mix_rows(const T* in, const T* matrix, int64_t row_stride, int64_t column_stride, int64_t rows, int64_t columns,
              int64_t pitch, T* out) {
  for (int64_t a = 0; a < rows; ++a) {
    for (int64_t n = 0; n < pitch; n += kLanes<T>) {
      Vector<T> total{};
      for (int64_t b = 0; b < columns; ++b) {
        const Vector<T> factor = Simd<T>::broadcast(matrix[a * row_stride + b * column_stride]);
        total = Simd<T>::multiply_add(factor, Simd<T>::load(in + b * pitch + n), total);
      }
      Simd<T>::store(out + a * pitch + n, total);
    }
  }
}

template <typename T>
void multiply_rows(const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t count, int64_t columns, int64_t pitch,
                   T* out) {
  for (int64_t column = 0; column < columns; ++column) {
    Vector<T> total{};
    for (int64_t n = 0; n < count; ++n) {
      for (int64_t i = 0; i < pitch; i += kLanes<T>) {
        total = Simd<T>::multiply_add(Simd<T>::load(a + n * a_stride + i),
                                      Simd<T>::load(b + n * b_stride + column * pitch + i), total);
      }
    }
    out[column] = sum<T>(total);
  }
}

}  // namespace
}  // namespace paperops::PAPEROPS_SIMD_NAMESPACE

#define PAPEROPS_SHIFT_CONV_INSTANCE(NAME, X)                                                                         \
  template <>                                                                                                         \
  Kernels<X> NAME<X>() {                                                                                              \
    namespace isa = ::paperops::PAPEROPS_SIMD_NAMESPACE;                                                              \
    using T = Wide<X>;                                                                                                \
    return {isa::Simd<T>::lanes, isa::scratch<X>,  isa::forward<X>, isa::backward<X>, isa::add_lanes<T>,              \
            isa::mix_rows<T>,    isa::multiply_rows<T>};                                                              \
  }
#define PAPEROPS_SHIFT_CONV_INSTANCES(NAME)  \
  PAPEROPS_SHIFT_CONV_INSTANCE(NAME, float)  \
  PAPEROPS_SHIFT_CONV_INSTANCE(NAME, double) \
  PAPEROPS_SHIFT_CONV_INSTANCE(NAME, Half)   \
  PAPEROPS_SHIFT_CONV_INSTANCE(NAME, BFloat16)

// What the parts of the CPU implementation tell each other. The kernels of one instruction set
// (frame_aligned_point_error_cpu_kernels.h) take one frame and some points; frame_aligned_point_error_cpu.cpp says which,
// and meets the dispatcher. Names are those of paperops/ops/frame_aligned_point_error.py.
//
// T is float, or double for float64. Within a call of a kernel sums are of T, lane by lane; above it they are double.
#pragma once

#include <cstdint>

#include "../common/instruction_set.h"

namespace paperops::fape {

// Whole vectors of every instruction set: kernels see nothing else. Points that are not there have weight 0.
template <typename T>
constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));

template <typename T>
constexpr int64_t padded(int64_t count) {
  return (count + kLine<T> - 1) / kLine<T> * kLine<T>;
}

// The kinds of pairs: within a chain, and between chains.
constexpr int kKinds = 2;

template <typename T>
struct Frame {
  T pred_rotation[9], pred_origin[3], target_rotation[9], target_origin[3];
  T chain;
  T limit[kKinds];      // the clamps
  T slope[kKinds][2];   // the loss's derivative by a distance, but for the point's weight: up to the clamp, and beyond
  T eps;
};

template <typename T>
struct Points {
  const T* coordinates;  // [6, pitch]: the prediction's x, y, z, then the target's
  int64_t pitch;
  const T* weights;
  const T* chains;  // null: all pairs are within a chain
  int64_t count;    // a multiple of kLine
};

// What a frame and some points add up to.
struct Sums {
  double values[kKinds][3];  // of the points' weights times the clamped distance, times the distance, and alone
  double local[3];           // of the gradients by points, in the frame
  double moment[9];          // of x - t times them, [3, 3]
};

template <typename T>
struct Kernels {
  // Adds to sums; gradients of points, those of the loss by x, are added to dx [3, dx_pitch], unless it is null.
  void (*add_pairs)(const Frame<T>& frame, const Points<T>& points, T* dx, int64_t dx_pitch, Sums& sums);
};

#define PAPEROPS_FAPE_DECLARE(ISA) \
  template <typename T>            \
  Kernels<T> kernels_##ISA();
#if defined(PAPEROPS_X86)
PAPEROPS_FAPE_DECLARE(avx512)
PAPEROPS_FAPE_DECLARE(avx2)
#endif
PAPEROPS_FAPE_DECLARE(portable)
#undef PAPEROPS_FAPE_DECLARE

template <typename T>
Kernels<T> kernels() {
  return PAPEROPS_CHOOSE(kernels, T);
}

}  // namespace paperops::fape

// The kernels of one instruction set: included as common/simd.h is.
//
// For a frame and a vector of points, with v = x - t:
//   e = R_p^T v_p - R_t^T v_t          9 differences, 18 products and sums
//   d = sqrt(|e|^2 + eps)              3, a root
//   values += w (min(d, c), d, 1)      4
// and for the gradients, with s = w a(d) / d and g = s e in the frame
//   dx += R_p g, moment += v_p g^T, local += g          4, a division, 3, 9, 9, 3
// that is 34 and 62 vector operations beside root and division. Root and division have a unit of their own, which takes
// about half as long as all the rest on the processors of today.
#pragma once

#include <cstdint>

#include "../common/simd_math.h"
#include "frame_aligned_point_error_cpu.h"

namespace paperops::PAPEROPS_SIMD_NAMESPACE {
namespace {

using fape::Frame;
using fape::Kernels;
using fape::kKinds;
using fape::Points;
using fape::Sums;

// Values of one kind.
template <typename T>
struct Values {
  Vector<T> clamped{}, plain{}, weight{};

  PAPEROPS_INLINE void add(Values& v, Vector<T> w, Vector<T> clamped, Vector<T> distance) {
    v.clamped = Simd<T>::multiply_add(w, clamped, v.clamped);
    v.plain = Simd<T>::multiply_add(w, distance, v.plain);
    v.weight = v.weight + w;
  }
  PAPEROPS_INLINE void finish(const Values& v, double* sums) {
    sums[0] += sum<T>(v.clamped);
    sums[1] += sum<T>(v.plain);
    sums[2] += sum<T>(v.weight);
  }
};

// Component c of R^T v.
template <typename T>
PAPEROPS_INLINE Vector<T> turned_back(const T* rotation, const Vector<T>* v, int c) {
  using S = Simd<T>;
  const Vector<T> two = S::multiply_add(v[1], S::broadcast(rotation[3 + c]), v[0] * S::broadcast(rotation[c]));
  return S::multiply_add(v[2], S::broadcast(rotation[6 + c]), two);
}

template <typename T, bool kGradients, bool kChains>
void add_pairs_of(const Frame<T>& frame, const Points<T>& points, T* dx, int64_t dx_pitch, Sums& sums) {
  using S = Simd<T>;
  using V = Vector<T>;
  const int64_t pitch = points.pitch;
  const V zero{}, own = S::broadcast(frame.chain);
  Values<T> values[kKinds];
  V local[3] = {}, moment[9] = {};
  for (int64_t i = 0; i < points.count; i += S::lanes) {
    V v[3], u[3], error[3];
    for (int c = 0; c < 3; ++c) {
      v[c] = S::load(points.coordinates + c * pitch + i) - S::broadcast(frame.pred_origin[c]);
      u[c] = S::load(points.coordinates + (3 + c) * pitch + i) - S::broadcast(frame.target_origin[c]);
    }
    for (int c = 0; c < 3; ++c) {  // each product by itself, so that equal ones cancel
      error[c] = turned_back<T>(frame.pred_rotation, v, c) - turned_back<T>(frame.target_rotation, u, c);
    }
    V square = S::broadcast(frame.eps);
    for (int c = 0; c < 3; ++c) {
      square = S::multiply_add(error[c], error[c], square);
    }
    const V distance = S::square_root(square);
    const V weight = S::load(points.weights + i);
    V limit = S::broadcast(frame.limit[0]), near = S::broadcast(frame.slope[0][0]), far = S::broadcast(frame.slope[0][1]);
    if constexpr (kChains) {
      const V chain = S::load(points.chains + i);
      limit = chain == own ? limit : S::broadcast(frame.limit[1]);
      near = chain == own ? near : S::broadcast(frame.slope[1][0]);
      far = chain == own ? far : S::broadcast(frame.slope[1][1]);
      const V clamped = distance > limit ? limit : distance;  // NaN stays
      Values<T>::add(values[0], chain == own ? weight : zero, clamped, distance);
      Values<T>::add(values[1], chain == own ? zero : weight, clamped, distance);
    } else {
      Values<T>::add(values[0], weight, distance > limit ? limit : distance, distance);
    }
    if constexpr (kGradients) {
      const V slope = weight * (distance <= limit ? near : far) / distance;
      for (int c = 0; c < 3; ++c) {
        error[c] = error[c] * slope;
        local[c] = local[c] + error[c];
      }
      for (int k = 0; k < 3; ++k) {
        V d = S::load(dx + k * dx_pitch + i);
        for (int c = 0; c < 3; ++c) {
          d = S::multiply_add(error[c], S::broadcast(frame.pred_rotation[3 * k + c]), d);
          moment[3 * k + c] = S::multiply_add(v[k], error[c], moment[3 * k + c]);
        }
        S::store(dx + k * dx_pitch + i, d);
      }
    }
  }
  for (int kind = 0; kind < (kChains ? kKinds : 1); ++kind) {
    Values<T>::finish(values[kind], sums.values[kind]);
  }
  if constexpr (kGradients) {
    for (int c = 0; c < 3; ++c) {
      sums.local[c] += sum<T>(local[c]);
    }
    for (int c = 0; c < 9; ++c) {
      sums.moment[c] += sum<T>(moment[c]);
    }
  }
}

template <typename T>
void add_run(const Frame<T>& frame, const Points<T>& points, T* dx, int64_t dx_pitch, Sums& sums) {
  if (dx == nullptr) {
    return points.chains == nullptr ? add_pairs_of<T, false, false>(frame, points, dx, dx_pitch, sums)
                                    : add_pairs_of<T, false, true>(frame, points, dx, dx_pitch, sums);
  }
  return points.chains == nullptr ? add_pairs_of<T, true, false>(frame, points, dx, dx_pitch, sums)
                                  : add_pairs_of<T, true, true>(frame, points, dx, dx_pitch, sums);
}

// In runs of as many points as a lane may add up in T without losing digits that matter.
template <typename T>
void add_pairs(const Frame<T>& frame, const Points<T>& points, T* dx, int64_t dx_pitch, Sums& sums) {
  constexpr int64_t kRun = 64 * Simd<T>::lanes;
  for (int64_t start = 0; start < points.count; start += kRun) {
    Points<T> run = points;
    run.coordinates += start;
    run.weights += start;
    run.chains = points.chains == nullptr ? nullptr : points.chains + start;
    run.count = points.count - start < kRun ? points.count - start : kRun;
    add_run(frame, run, dx == nullptr ? nullptr : dx + start, dx_pitch, sums);
  }
}

}  // namespace
}  // namespace paperops::PAPEROPS_SIMD_NAMESPACE

// Defines the instances of the header's functions for this instruction set.
#define PAPEROPS_FAPE_KERNELS(ISA, T)                           \
  template <>                                                   \
  Kernels<T> kernels_##ISA<T>() {                               \
    return {::paperops::PAPEROPS_SIMD_NAMESPACE::add_pairs<T>}; \
  }
#define PAPEROPS_FAPE_INSTANCES(ISA) \
  PAPEROPS_FAPE_KERNELS(ISA, float)  \
  PAPEROPS_FAPE_KERNELS(ISA, double)

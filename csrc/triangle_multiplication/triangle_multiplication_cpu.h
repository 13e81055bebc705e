// What the parts of the CPU implementation tell each other. The products are torch's BLAS (common/blas.h); the kernels of one
// instruction set (triangle_multiplication_cpu_kernels.h) do what lies between them; ..._forward.cpp and ..._backward.cpp
// say in which order; ..._ops.cpp meets the dispatcher. Names are those of paperops/ops/triangle_multiplication.py.
//
// Three types: X of x, out and t; P of the products' operands (float for float16, which processors multiply slowly, and for
// bfloat16 where they do); T of statistics, gates and sums: float, or double for float64.
//
// Two layouts. Rows: a position (a pair i, j) is a row of channels. Channels: a channel is a row of positions, `pitch` apart.
#pragma once

#include <cstdint>

#include "../common/instruction_set.h"
#include "../common/types.h"

namespace paperops::triangle {

// All X with their P.
#define PAPEROPS_TRIANGLE_TYPES(DO, ...) \
  DO(float, float, ##__VA_ARGS__)        \
  DO(double, double, ##__VA_ARGS__)      \
  DO(Half, float, ##__VA_ARGS__)         \
  DO(BFloat16, float, ##__VA_ARGS__)     \
  DO(BFloat16, BFloat16, ##__VA_ARGS__)

// LayerNorm of rows of `width` channels.
template <typename T>
struct Norm {
  int64_t width;
  const T* weight;  // [width]
  const T* bias;    // [width]
  T eps;
};

// Mean and 1 / sqrt(variance + eps) of each row.
template <typename T>
struct Statistics {
  T* mean;
  T* scale;
};

// The kernels of one instruction set. All sums are in T, in an order that depends on sizes alone.
template <typename X, typename P>
struct Kernels {
  using T = Wide<X>;

  // Statistics of rows v (row_stride apart).
  void (*measure_x)(const X* v, int64_t row_stride, int64_t rows, const Norm<T>& norm, Statistics<T> statistics);
  void (*measure_p)(const P* v, int64_t row_stride, int64_t rows, const Norm<T>& norm, Statistics<T> statistics);
  // out = (v - mean) scale weight + bias; rows of out are contiguous.
  void (*normalise_x)(const X* v, int64_t row_stride, int64_t rows, const Norm<T>& norm, Statistics<T> known, P* out);
  void (*normalise_p)(const P* v, int64_t row_stride, int64_t rows, const Norm<T>& norm, Statistics<T> known, P* out);
  // out = scale (u - mean(u) - v' mean(u v')), u = grad weight, v' = (v - mean) scale. All rows contiguous.
  void (*normalise_backward_x)(const T* grad, const X* v, int64_t rows, const Norm<T>& norm, Statistics<T> known, X* out);
  void (*normalise_backward_p)(const P* grad, const P* v, int64_t rows, const Norm<T>& norm, Statistics<T> known, P* out);
  // weight += sum of grad v', bias += sum of grad, over the rows.
  void (*norm_sums_x)(const T* grad, const X* v, int64_t rows, int64_t width, Statistics<T> known, T* weight, T* bias);
  void (*norm_sums_p)(const P* grad, const P* v, int64_t rows, int64_t width, Statistics<T> known, T* weight, T* bias);
  // total += sum over the rows.
  void (*row_sums)(const P* v, int64_t rows, int64_t width, T* total);

  // out[c, r] = v[r, c], rows of out out_stride apart, v's v_stride.
  void (*transpose_xp)(const X* v, int64_t v_stride, int64_t rows, int64_t columns, P* out, int64_t out_stride);
  void (*transpose_px)(const P* v, int64_t v_stride, int64_t rows, int64_t columns, X* out, int64_t out_stride);
  void (*transpose_pp)(const P* v, int64_t v_stride, int64_t rows, int64_t columns, P* out, int64_t out_stride);
  void (*convert_px)(const P* v, int64_t count, X* out);
  void (*convert_xp)(const X* v, int64_t count, P* out);
  // out = v + what is in out already, or v.
  void (*add_pt)(const P* v, int64_t count, bool add, T* out);
  // v *= factor, channels.
  void (*scale)(P* v, int64_t pitch, int64_t channels, int64_t positions, const T* factor);

  // ab = mask sigmoid(g + bias) (p + bias), channels. pg [2 channels, pg_pitch] has the rows of p, then of g, and bias
  // [2 channels] likewise; mask [positions] or null. sigmoid is stored where `gates` is not null.
  void (*gate)(const P* pg, int64_t pg_pitch, int64_t channels, int64_t positions, const T* bias, const T* mask, P* ab,
               P* gates, int64_t pitch);
  // dpg [2 channels, dpg_pitch]: dp = dab mask gate, then dg = dab ab (1 - gate); bias [2 channels] += their sums.
  void (*gate_backward)(const P* dab, const P* ab, const P* gates, int64_t pitch, int64_t channels, int64_t positions,
                        const T* mask, P* dpg, int64_t dpg_pitch, T* bias);

  // out = sigmoid(q + q_bias) (v + v_bias), rows.
  void (*finish)(const P* q, const T* q_bias, const P* v, const T* v_bias, int64_t rows, int64_t width, X* out);
  // v = sigmoid(q + q_bias) v, and out = v + bias, rows: the same for the gate before the projection.
  void (*gate_rows)(const P* q, const T* q_bias, int64_t rows, int64_t width, P* v);
  void (*add_bias)(const P* v, const T* bias, int64_t rows, int64_t width, X* out);
  // With s = sigmoid(q + q_bias): v = dy s and q = dy (v + v_bias) s (1 - s), in place.
  void (*finish_backward)(const X* dy, const T* q_bias, const T* v_bias, int64_t rows, int64_t width, P* q, P* v);
  // With s as above: du = du s, n = n s, and q = du n s (1 - s) of the values before, in place.
  void (*gate_rows_backward)(const T* q_bias, int64_t rows, int64_t width, P* q, P* n, P* du);
};

#if defined(PAPEROPS_X86)
template <typename X, typename P>
Kernels<X, P> kernels_avx512();
template <typename X, typename P>
Kernels<X, P> kernels_avx2();
#endif
template <typename X, typename P>
Kernels<X, P> kernels_portable();

template <typename X, typename P>
Kernels<X, P> kernels() {
  return PAPEROPS_CHOOSE(kernels, X, P);
}

}  // namespace paperops::triangle

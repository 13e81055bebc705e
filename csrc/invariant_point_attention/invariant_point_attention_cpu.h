// What the parts of the CPU implementation tell each other. The kernels of one instruction set
// (invariant_point_attention_cpu_{product,kernels}.h) do the arithmetic; ..._forward.cpp and ..._backward.cpp say in
// which order; ..._ops.cpp meets the dispatcher. Names are those of paperops/ops/invariant_point_attention.py.
//
// Two types: X of q, k, v, z and bias; T of everything that is computed: float, or double for float64. In scratch memory
// a row of keys has `pitch` elements, N rounded up to whole cache lines, and so have rows of channels: kernels see whole
// vectors only. Weights of the keys that are not there are 0.
#pragma once

#include <cstdint>

#include "../common/instruction_set.h"
#include "../common/types.h"

namespace paperops::ipa {

// `count` rounded up to whole cache lines: whole vectors of every instruction set.
template <typename T>
constexpr int64_t padded(int64_t count) {
  constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(T));
  return (count + line - 1) / line * line;
}

// Element (row, column) of a matrix, at data[row row_stride + column column_stride].
template <typename T>
struct Strided {
  const T* data;
  int64_t row_stride;
  int64_t column_stride;
};

// The pairs of a query that are not as they are: a logit becomes -inf where `gone` is not 0, and else loses `less`.
template <typename T>
struct Masked {
  const T* gone;  // [pitch]
  const T* less;  // [pitch], or null
};

// Points of some queries and of all keys, of one head.
template <typename T>
struct Points {
  const T* queries;  // [count, coordinates], rows query_stride apart
  int64_t query_stride;
  int64_t count;
  const T* keys;  // [coordinates, pitch]
  int64_t coordinates;
  int64_t pitch;
};

// The kernels of one instruction set. All sums are formed in an order that depends on sizes alone.
template <typename T>
struct Kernels {
  // out[m, n] = (or +=) sum over k of left(m, k) right[k, n]. Rows of right and out are right_stride and out_stride
  // apart; `columns` is a multiple of padded<T>(1).
  void (*product)(int64_t rows, int64_t columns, int64_t depth, Strided<T> left, const T* right, int64_t right_stride,
                  T* out, int64_t out_stride, bool add);
  // The same of right[k, n] - centre[n].
  void (*product_centred)(int64_t rows, int64_t columns, int64_t depth, Strided<T> left, const T* right,
                          int64_t right_stride, const T* centre, T* out, int64_t out_stride);
  // As product, while memory is asked for `next` (or null), of the same size and stride as `right`.
  void (*product_ahead)(int64_t rows, int64_t columns, int64_t depth, Strided<T> left, const T* right,
                        int64_t right_stride, const T* next, T* out, int64_t out_stride, bool add);
  // logits[i, j] -= weight sum over x of (queries[i, x] - keys[x, j])^2
  void (*add_distances)(const Points<T>& points, T weight, T* logits, int64_t stride);
  // With t_ijx = ds[i, j] (queries[i, x] - keys[x, j]): dq[i, x] = -2 weight sum_j t, dk[x, j] += 2 weight sum_i t; returned
  // is the sum over i, j of ds times the squared distance.
  double (*point_gradients)(const Points<T>& points, T weight, const T* ds, int64_t stride, T* dq, int64_t dq_stride,
                            T* dk);
  // to[h, j] += scale from[j, h] + constant[h], rows of `from` stride apart; a null constant is 0.
  void (*add_transposed)(const T* from, int64_t stride, int64_t keys, int64_t heads, T scale, const T* constant, T* to,
                         int64_t pitch);
  // to[j, h] = scale from[h, j]
  void (*transpose)(const T* from, int64_t pitch, int64_t keys, int64_t heads, T scale, T* to, int64_t stride);
  // A row of logits becomes the weights; returned is its logsumexp, inf (and all weights 0) where every logit is -inf.
  T (*softmax)(T* row, int64_t pitch, Masked<T> masked);
  // The logits become the weights a = exp(logits - lse), da becomes ds = a (da - the sum of a da); the a are divided by their
  // sum first; returned is the sum of ds.
  T (*softmax_backward)(T* logits, T* da, int64_t pitch, Masked<T> masked, T lse);
  // to[i] = from[i] - value
  void (*shift)(const T* from, int64_t count, T value, T* to);
  // total[i] += part[i]
  void (*accumulate)(const T* part, int64_t count, T* total);
};

// Between X in the caller's tensors and T in scratch memory.
template <typename X>
struct Conversions {
  using T = Wide<X>;
  // to[r, c] = from(r, c)
  void (*read)(const X* from, int64_t row_stride, int64_t column_stride, int64_t rows, int64_t columns, T* to,
               int64_t to_stride);
  // to[r, c] = factor from[r, c]
  void (*write)(const T* from, int64_t from_stride, int64_t rows, int64_t columns, T factor, X* to,
                int64_t to_stride);
};

#define PAPEROPS_IPA_DECLARE(ISA)    \
  template <typename T>              \
  Kernels<T> kernels_##ISA();        \
  template <typename X>              \
  Conversions<X> conversions_##ISA();
#if defined(PAPEROPS_X86)
PAPEROPS_IPA_DECLARE(avx512)
PAPEROPS_IPA_DECLARE(avx2)
#endif
PAPEROPS_IPA_DECLARE(portable)
#undef PAPEROPS_IPA_DECLARE

template <typename T>
Kernels<T> kernels() {
  return PAPEROPS_CHOOSE(kernels, T);
}

template <typename X>
Conversions<X> conversions() {
  return PAPEROPS_CHOOSE(conversions, X);
}

}  // namespace paperops::ipa

// Sums over shifted rows: convolutions of planes, and the gradients of their weights. For one instruction set.
#pragma once

#include "../common/simd_math.h"
#include "shift_conv_cpu.h"

namespace paperops::PAPEROPS_SIMD_NAMESPACE {
namespace {

using shift_conv::kOuts;

template <typename T>
constexpr int64_t kLanes = Simd<T>::lanes;

PAPEROPS_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
PAPEROPS_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

#if PAPEROPS_SIMD_BITS == 512
constexpr int kVectors = 4;  // with kOuts results each 16 sums in registers, of 32
constexpr int kTaps = 6;     // of a step of `correlate`, for kOuts gradients each
#elif PAPEROPS_SIMD_BITS == 256
constexpr int kVectors = 2;
constexpr int kTaps = 3;
#else
constexpr int kVectors = 2;
constexpr int kTaps = 3;
#endif
constexpr int64_t kChain = 40;   // about so many products are summed before they are added to the others: short chains
constexpr int64_t kTile = 1024;  // elements of a row of `correlate`: what it reads stays in the first cache

// Planes read at shifts: plane i begins at data + i * pitch, and tap number `tap` reads it `offsets[tap]` further on.
template <typename T>
struct Reads {
  const T* data;
  int64_t pitch;
  int64_t planes;
  const int64_t* offsets;
  int64_t taps;
};

template <typename T, int kRows, int kColumns>
PAPEROPS_INLINE void convolve_tile(const Reads<T>& in, int64_t first, int64_t last, const T* weights, T* out,
                                   int64_t out_pitch, int64_t n) {
  using S = Simd<T>;
  Vector<T> sums[kRows][kColumns] = {};
  weights += first * in.taps * kRows;
  for (int64_t i = first; i < last; ++i) {
    const T* plane = in.data + i * in.pitch + n;
    for (int64_t tap = 0; tap < in.taps; ++tap, weights += kRows) {
      const T* from = plane + in.offsets[tap];
      Vector<T> read[kColumns];
      for (int v = 0; v < kColumns; ++v) {
        read[v] = S::load(from + v * S::lanes);
      }
      for (int m = 0; m < kRows; ++m) {
        const Vector<T> factor = S::broadcast(weights[m]);
        for (int v = 0; v < kColumns; ++v) {
          sums[m][v] = S::multiply_add(factor, read[v], sums[m][v]);
        }
      }
    }
  }
  for (int m = 0; m < kRows; ++m) {
    for (int v = 0; v < kColumns; ++v) {
      T* to = out + m * out_pitch + n + v * S::lanes;
      S::store(to, first > 0 ? S::load(to) + sums[m][v] : sums[m][v]);
    }
  }
}

template <typename T, int kColumns, int kRows = kOuts>
PAPEROPS_INLINE void convolve_rows(int64_t rows, const Reads<T>& in, const T* weights, T* out, int64_t out_pitch, int64_t n) {
  if (rows == kRows) {
    const int64_t step = larger(1, kChain / in.taps);
    for (int64_t first = 0; first < in.planes; first += step) {
      convolve_tile<T, kRows, kColumns>(in, first, smaller(first + step, in.planes), weights, out, out_pitch, n);
    }
  } else if constexpr (kRows > 1) {
    convolve_rows<T, kColumns, kRows - 1>(rows, in, weights, out, out_pitch, n);
  }
}

template <typename T, int kColumns>
PAPEROPS_INLINE void convolve_columns(const Reads<T>& in, const T* weights, int64_t outs, T* out, int64_t out_pitch, int64_t n) {
  for (int64_t o = 0; o < outs; o += kOuts) {
    convolve_rows<T, kColumns>(smaller(kOuts, outs - o), in, weights + o * in.planes * in.taps, out + o * out_pitch,
                               out_pitch, n);
  }
}

// out[o][n] = sum over planes i and taps of weights[o][i][tap] in[i][n + offset], for n < count, and up to a vector more.
// Weights are packed: by blocks of kOuts results (the last one smaller), and in a block [i][tap][o].
template <typename T>
void convolve(const Reads<T>& in, const T* weights, int64_t outs, T* out, int64_t out_pitch, int64_t count) {
  int64_t n = 0;
  for (; n + (kVectors - 1) * kLanes<T> < count; n += kVectors * kLanes<T>) {
    convolve_columns<T, kVectors>(in, weights, outs, out, out_pitch, n);
  }
  if constexpr (kVectors > 2) {
    for (; n + kLanes<T> < count; n += 2 * kLanes<T>) {
      convolve_columns<T, 2>(in, weights, outs, out, out_pitch, n);
    }
  }
  for (; n < count; n += kLanes<T>) {
    convolve_columns<T, 1>(in, weights, outs, out, out_pitch, n);
  }
}

// `shifts` are those of columns, (plane, tap) each, from in.data on.
template <typename T>
struct Columns {
  const T* data;
  const int64_t* shifts;
  int64_t count;
};

template <typename T, int kRows, int kColumns>
PAPEROPS_INLINE void correlate_tile(const T* grad, int64_t grad_pitch, const T* data, const int64_t* shifts, int64_t begin,
                                    int64_t end, T* sums, int64_t row_pitch) {
  using S = Simd<T>;
  Vector<T> own[kRows][kColumns] = {};
  const T* from[kColumns];
  for (int q = 0; q < kColumns; ++q) {
    from[q] = data + shifts[q];
  }
  for (int64_t n = begin; n < end; n += S::lanes) {
    Vector<T> g[kRows];
    for (int m = 0; m < kRows; ++m) {
      g[m] = S::load(grad + m * grad_pitch + n);
    }
    for (int q = 0; q < kColumns; ++q) {
      const Vector<T> read = S::load(from[q] + n);
      for (int m = 0; m < kRows; ++m) {
        own[m][q] = S::multiply_add(g[m], read, own[m][q]);
      }
    }
  }
  for (int m = 0; m < kRows; ++m) {
    for (int q = 0; q < kColumns; ++q) {
      T* to = sums + m * row_pitch + q * S::lanes;
      S::store(to, S::load(to) + own[m][q]);
    }
  }
}

template <typename T, int kRows, int kColumns = kTaps>
PAPEROPS_INLINE void correlate_columns(int64_t columns, const T* grad, int64_t grad_pitch, const T* data,
                                       const int64_t* shifts, int64_t begin, int64_t end, T* sums, int64_t row_pitch) {
  if (columns == kColumns) {
    correlate_tile<T, kRows, kColumns>(grad, grad_pitch, data, shifts, begin, end, sums, row_pitch);
  } else if constexpr (kColumns > 1) {
    correlate_columns<T, kRows, kColumns - 1>(columns, grad, grad_pitch, data, shifts, begin, end, sums, row_pitch);
  }
}

template <typename T, int kRows = kOuts>
void correlate_rows(int64_t rows, const T* grad, int64_t grad_pitch, const Columns<T>& in, int64_t begin, int64_t end,
                    T* sums) {
  if (rows == kRows) {
    for (int64_t q = 0; q < in.count; q += kTaps) {
      correlate_columns<T, kRows>(smaller(kTaps, in.count - q), grad, grad_pitch, in.data, in.shifts + q, begin,
                                  end, sums + q * kLanes<T>, in.count * kLanes<T>);
    }
  } else if constexpr (kRows > 1) {
    correlate_rows<T, kRows - 1>(rows, grad, grad_pitch, in, begin, end, sums);
  }
}

// sums[o][column] += sum over n < count of grad[o][n] in[n + shift], a vector each; from count to a vector more grad is 0.
template <typename T>
void correlate(const T* grad, int64_t grad_pitch, int64_t outs, const Columns<T>& in, int64_t count, T* sums) {
  for (int64_t begin = 0; begin < count; begin += kTile) {
    for (int64_t o = 0; o < outs; o += kOuts) {
      correlate_rows<T>(smaller(kOuts, outs - o), grad + o * grad_pitch, grad_pitch, in, begin,
                        smaller(begin + kTile, count), sums + o * in.count * kLanes<T>);
    }
  }
}

}  // namespace
}  // namespace paperops::PAPEROPS_SIMD_NAMESPACE

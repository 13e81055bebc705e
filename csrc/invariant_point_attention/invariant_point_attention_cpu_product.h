// Small products of matrices for one instruction set, included by invariant_point_attention_cpu_kernels.h. One of the
// three sizes is always small here (heads, channels of a head, queries of a block), where a BLAS spends its time on
// packing.
//
// Tiles of kTileRows x 2 vectors of the result stay in registers; a step takes two vectors of a row of `right` and an
// element of each row of `left`. Sums over at most kDepth terms are formed apart before they are added up: short chains
// of roundings.
#pragma once

#include "../common/simd_math.h"
#include "invariant_point_attention_cpu.h"

namespace paperops::PAPEROPS_SIMD_NAMESPACE {
namespace {

using ipa::Strided;

#if PAPEROPS_SIMD_BITS == 512
constexpr int kTileRows = 8;  // of 32 registers, 16 hold sums
#elif PAPEROPS_SIMD_BITS == 256
constexpr int kTileRows = 6;  // of 16 registers, 12
#else
constexpr int kTileRows = 4;
#endif
constexpr int64_t kDepth = 128;

// What a product does beside: nothing, take a centre off the rows of `right`, or ask memory for the rows of the next
// product's `right`. A tile asks for the lines of its first vector, of its second, or of both.
enum class Also { nothing, centre, ahead_first, ahead_second, ahead_both };

template <typename T>
struct Operands {
  Strided<T> left;
  const T* right;
  int64_t right_stride;
  const T* beside;  // the centre [columns], or the next `right`
  T* out;
  int64_t out_stride;
  bool add;
};

template <typename T, int kRows, int kVectors, Also kAlso>
PAPEROPS_INLINE void product_tile(int64_t depth, const Operands<T>& o) {
  using S = Simd<T>;
  constexpr bool kFirst = kAlso == Also::ahead_first || kAlso == Also::ahead_both;
  constexpr bool kTwoLines = kVectors * S::lanes * sizeof(T) > 64;
  constexpr bool kSecond = kTwoLines && (kAlso == Also::ahead_second || kAlso == Also::ahead_both);
  const Strided<T> left = o.left;
  Vector<T> sums[kRows][kVectors] = {};
  Vector<T> centres[kVectors] = {};
  if constexpr (kAlso == Also::centre) {
    for (int v = 0; v < kVectors; ++v) {
      centres[v] = S::load(o.beside + v * S::lanes);
    }
  }
  const T *element = left.data, *right = o.right, *ahead = o.beside;
  for (int64_t k = 0; k < depth; ++k, element += left.column_stride, right += o.right_stride) {
    Vector<T> row[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      row[v] = S::load(right + v * S::lanes);
      if constexpr (kAlso == Also::centre) {
        row[v] -= centres[v];
      }
    }
    if constexpr (kFirst) {
      __builtin_prefetch(ahead, 0, 2);
    }
    if constexpr (kSecond) {
      __builtin_prefetch(ahead + S::lanes, 0, 2);
    }
    if constexpr (kFirst || kSecond) {
      ahead += o.right_stride;
    }
    for (int m = 0; m < kRows; ++m) {
      const Vector<T> factor = S::broadcast(element[m * left.row_stride]);
      for (int v = 0; v < kVectors; ++v) {
        sums[m][v] = S::multiply_add(factor, row[v], sums[m][v]);
      }
    }
  }
  for (int m = 0; m < kRows; ++m) {
    for (int v = 0; v < kVectors; ++v) {
      T* to = o.out + m * o.out_stride + v * S::lanes;
      S::store(to, o.add ? S::load(to) + sums[m][v] : sums[m][v]);
    }
  }
}

// A tile of `rows` <= kRows rows.
template <typename T, int kRows, int kVectors, Also kAlso>
void product_rows(int64_t rows, int64_t depth, const Operands<T>& o) {
  if (rows == kRows) {
    product_tile<T, kRows, kVectors, kAlso>(depth, o);
  } else if constexpr (kRows > 1) {
    product_rows<T, kRows - 1, kVectors, kAlso>(rows, depth, o);
  }
}

template <typename T, int kVectors, Also kAlso>
void product_columns(int64_t rows, int64_t depth, const Operands<T>& o) {
  // Tiles of nearly the same height: 12 rows are 6 and 6.
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t begin = rows * tile / tiles, count = rows * (tile + 1) / tiles - begin;
    Operands<T> own = o;
    own.left.data += begin * o.left.row_stride;
    own.out += begin * o.out_stride;
    if constexpr (kAlso != Also::ahead_both) {
      product_rows<T, kTileRows, kVectors, kAlso>(count, depth, own);
    } else if (tiles == 1) {
      product_rows<T, kTileRows, kVectors, Also::ahead_both>(count, depth, own);
    } else if (tile == 0) {
      product_rows<T, kTileRows, kVectors, Also::ahead_first>(count, depth, own);
    } else if (tile == 1) {
      product_rows<T, kTileRows, kVectors, Also::ahead_second>(count, depth, own);
    } else {
      product_rows<T, kTileRows, kVectors, Also::nothing>(count, depth, own);
    }
  }
}

template <typename T, Also kAlso>
void product(int64_t rows, int64_t columns, int64_t depth, Operands<T> o) {
  constexpr int64_t lanes = Simd<T>::lanes;
  for (int64_t k = 0; k < depth; k += kDepth) {
    const int64_t part = depth - k < kDepth ? depth - k : kDepth;
    Operands<T> own = o;
    for (int64_t n = 0; n < columns; n += 2 * lanes) {
      own.right = o.right + n;
      own.beside = kAlso == Also::nothing ? nullptr : o.beside + n;
      own.out = o.out + n;
      if (n + 2 * lanes <= columns) {
        product_columns<T, 2, kAlso>(rows, part, own);
      } else {
        product_columns<T, 1, kAlso>(rows, part, own);
      }
    }
    o.left.data += part * o.left.column_stride;
    o.right += part * o.right_stride;
    if (kAlso == Also::ahead_both) {
      o.beside += part * o.right_stride;
    }
    o.add = true;
  }
}

template <typename T>
void product(int64_t rows, int64_t columns, int64_t depth, Strided<T> left, const T* right, int64_t right_stride,
             T* out, int64_t out_stride, bool add) {
  product<T, Also::nothing>(rows, columns, depth, {left, right, right_stride, nullptr, out, out_stride, add});
}

template <typename T>
void product_centred(int64_t rows, int64_t columns, int64_t depth, Strided<T> left, const T* right,
                     int64_t right_stride, const T* centre, T* out, int64_t out_stride) {
  product<T, Also::centre>(rows, columns, depth, {left, right, right_stride, centre, out, out_stride, false});
}

template <typename T>
void product_ahead(int64_t rows, int64_t columns, int64_t depth, Strided<T> left, const T* right, int64_t right_stride,
                   const T* next, T* out, int64_t out_stride, bool add) {
  if (next == nullptr) {
    product<T, Also::nothing>(rows, columns, depth, {left, right, right_stride, nullptr, out, out_stride, add});
  } else {
    product<T, Also::ahead_both>(rows, columns, depth, {left, right, right_stride, next, out, out_stride, add});
  }
}

}  // namespace
}  // namespace paperops::PAPEROPS_SIMD_NAMESPACE

// The pairs of one residue, for one instruction set. A translation unit sets the macros of common/simd.h first.
#pragma once

#include "../common/simd.h"
#include "lddt_cpu.h"

namespace paperops::PAPEROPS_SIMD_NAMESPACE {
namespace {

using namespace paperops::lddt;

// |a - b|^2 for the points b of one vector; a is broadcast.
template <typename T>
PAPEROPS_INLINE typename Simd<T>::Vector squared_distances(const typename Simd<T>::Vector* a, const T* b, int64_t stride) {
  using S = Simd<T>;
  const auto x = a[0] - S::load(b), y = a[1] - S::load(b + stride), z = a[2] - S::load(b + 2 * stride);
  return S::multiply_add(z, z, S::multiply_add(y, y, x * x));
}

template <typename T>
void count_pairs(const Chain<T>& chain, int64_t i, int64_t* pairs, int64_t* kept) {
  using S = Simd<T>;
  constexpr uint32_t kAll = (uint32_t{1} << S::lanes) - 1;
  typename S::Vector own[6], bounds[4];
  for (int64_t c = 0; c < 6; ++c) {
    own[c] = S::broadcast(chain.columns[c * chain.stride + i]);
  }
  for (int64_t t = 0; t < 4; ++t) {
    bounds[t] = S::broadcast(static_cast<T>(0.5) * static_cast<T>(int64_t{1} << t));
  }
  const auto cutoff = S::broadcast(chain.squared_cutoff);
  int64_t found = 0, below = 0;
  for (int64_t j = 0; j < chain.stride; j += S::lanes) {
    const auto squared = squared_distances<T>(own, chain.columns + j, chain.stride);
    uint32_t near = ~S::not_greater(cutoff, squared) & kAll;
    if (i >= j && i < j + S::lanes) {
      near &= ~(uint32_t{1} << (i - j));
    }
    if (near == 0) {  // most vectors of a long chain
      continue;
    }
    const auto predicted = squared_distances<T>(own + 3, chain.columns + 3 * chain.stride + j, chain.stride);
    const auto error = S::absolute(S::square_root(squared) - S::square_root(predicted));
    found += __builtin_popcount(near);
    for (int64_t t = 0; t < 4; ++t) {
      below += __builtin_popcount(~S::not_greater(bounds[t], error) & near);
    }
  }
  *pairs = found;
  *kept = below;
}

template <typename T>
Count<T> count() {
  return &count_pairs<T>;
}

}  // namespace
}  // namespace paperops::PAPEROPS_SIMD_NAMESPACE

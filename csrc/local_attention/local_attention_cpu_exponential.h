// e^x where x is at most a little above 0, as of logits less their maximum. For one instruction set, see common/simd.h.
#pragma once

#include "../common/simd_math.h"

namespace paperops::PAPEROPS_SIMD_NAMESPACE {
namespace {

// As common/simd_math.h, `exponential`, but 0 below the least normal number, so that 2^n is one factor. NaN stays NaN.
template <typename T>
PAPEROPS_INLINE Vector<T> exponential_below(Vector<T> x) {
  using S = Simd<T>;
  using K = ExpConstants<T>;
  const Vector<T> least = S::broadcast(sizeof(T) == 4 ? T(-87) : T(-708)), magic = S::broadcast(K::round);
  const auto small = x < least;
  x = small ? least : x;
  const Vector<T> shifted = S::multiply_add(x, S::broadcast(K::log2_e), magic);  // n in its lowest bits
  const Vector<T> n = shifted - magic;
  Vector<T> r = S::multiply_add(n, S::broadcast(-K::ln2_high), x);
  r = S::multiply_add(n, S::broadcast(-K::ln2_low), r);
  T factorial = 1;
  for (int k = 2; k <= K::degree; ++k) {
    factorial *= static_cast<T>(k);
  }
  Vector<T> series = S::broadcast(1 / factorial);
  for (int k = K::degree; k > 0; --k) {  // unrolled, and the divisions done, by the compiler
    factorial /= static_cast<T>(k);
    series = S::multiply_add(series, r, S::broadcast(1 / factorial));
  }
  const Bits<T> power = ((Bits<T>)shifted - (Bits<T>)magic + K::bias) << K::mantissa;
  return small ? S::broadcast(T{0}) : series * (Vector<T>)power;
}

}  // namespace
}  // namespace paperops::PAPEROPS_SIMD_NAMESPACE

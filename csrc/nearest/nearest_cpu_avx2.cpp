// The kernels for AVX2 and FMA, run only where the processor has them.
//
// The instruction set is enabled from here to the end of the file, after the standard headers, so that no function of
// theirs that other files share is compiled for it. It stays enabled to the end: templates are instantiated there.
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "nearest_cpu.h"

#if defined(PAPEROPS_X86)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,popcnt"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,bmi,popcnt")
#endif

#define PAPEROPS_SIMD_BITS 256
#define PAPEROPS_SIMD_NAMESPACE avx2
#include "nearest_cpu_kernels.h"

namespace paperops::nearest {
template <>
Kernels<float> kernels_avx2<float>() {
  return avx2::kernels<float>();
}
template <>
Kernels<double> kernels_avx2<double>() {
  return avx2::kernels<double>();
}
}  // namespace paperops::nearest

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif

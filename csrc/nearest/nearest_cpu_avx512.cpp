// The kernels for AVX-512, see common/target_avx512.h.
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "nearest_cpu.h"

#if defined(PAPEROPS_X86)
#include "../common/target_avx512.h"
#include "nearest_cpu_kernels.h"

namespace paperops::nearest {
template <>
Kernels<float> kernels_avx512<float>() {
  return avx512::kernels<float>();
}
template <>
Kernels<double> kernels_avx512<double>() {
  return avx512::kernels<double>();
}
}  // namespace paperops::nearest

#include "../common/target_end.h"
#endif

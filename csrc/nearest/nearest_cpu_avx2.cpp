// The kernels for AVX2, see common/target_avx2.h.
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "nearest_cpu.h"

#if defined(PAPEROPS_X86)
#include "../common/target_avx2.h"
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

#include "../common/target_end.h"
#endif

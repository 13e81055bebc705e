// The kernels for AVX-512, see common/target_avx512.h.
#include <cstdint>
#include <limits>

#include "structural_violations_cpu.h"

#if defined(PAPEROPS_X86)
#include "../common/target_avx512.h"
#include "structural_violations_cpu_kernels.h"

namespace paperops::structural_violations {
template <>
Kernels<float> kernels_avx512<float>() {
  return avx512::kernels<float>();
}
template <>
Kernels<double> kernels_avx512<double>() {
  return avx512::kernels<double>();
}
}  // namespace paperops::structural_violations

#include "../common/target_end.h"
#endif

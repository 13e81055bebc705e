// The kernels for AVX2, see common/target_avx2.h.
#include <cstdint>
#include <limits>

#include "structural_violations_cpu.h"

#if defined(PAPEROPS_X86)
#include "../common/target_avx2.h"
#include "structural_violations_cpu_kernels.h"

namespace paperops::structural_violations {
template <>
Kernels<float> kernels_avx2<float>() {
  return avx2::kernels<float>();
}
template <>
Kernels<double> kernels_avx2<double>() {
  return avx2::kernels<double>();
}
}  // namespace paperops::structural_violations

#include "../common/target_end.h"
#endif

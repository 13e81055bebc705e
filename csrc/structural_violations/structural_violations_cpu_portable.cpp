// The kernels for any processor: whatever the compiler assumes by default.
#define PAPEROPS_SIMD_BITS 0
#define PAPEROPS_SIMD_NAMESPACE portable
#include "structural_violations_cpu_kernels.h"

namespace paperops::structural_violations {
template <>
Kernels<float> kernels_portable<float>() {
  return portable::kernels<float>();
}
template <>
Kernels<double> kernels_portable<double>() {
  return portable::kernels<double>();
}
}  // namespace paperops::structural_violations

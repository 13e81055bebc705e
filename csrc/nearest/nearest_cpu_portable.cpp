// The kernels for any processor: whatever the compiler assumes by default.
#include <type_traits>

#define PAPEROPS_SIMD_BITS 0
#define PAPEROPS_SIMD_NAMESPACE portable
#include "nearest_cpu_kernels.h"

namespace paperops::nearest {
template <>
Kernels<float> kernels_portable<float>() {
  return portable::kernels<float>();
}
template <>
Kernels<double> kernels_portable<double>() {
  return portable::kernels<double>();
}
}  // namespace paperops::nearest

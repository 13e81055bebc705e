// The kernel for any processor: whatever the compiler assumes by default.
#define PAPEROPS_SIMD_BITS 0
#define PAPEROPS_SIMD_NAMESPACE portable
#include "lddt_cpu_kernels.h"

namespace paperops::lddt {
template <>
Count<float> count_portable<float>() {
  return portable::count<float>();
}
template <>
Count<double> count_portable<double>() {
  return portable::count<double>();
}
}  // namespace paperops::lddt

// The kernel for AVX-512, see common/target_avx512.h.
#include "lddt_cpu.h"

#if defined(PAPEROPS_X86)
#include <limits>

#include "../common/target_avx512.h"
#include "lddt_cpu_kernels.h"

namespace paperops::lddt {
template <>
Count<float> count_avx512<float>() {
  return avx512::count<float>();
}
template <>
Count<double> count_avx512<double>() {
  return avx512::count<double>();
}
}  // namespace paperops::lddt

#include "../common/target_end.h"
#endif

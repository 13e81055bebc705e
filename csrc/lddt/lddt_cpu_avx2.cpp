// The kernel for AVX2, see common/target_avx2.h.
#include "lddt_cpu.h"

#if defined(PAPEROPS_X86)
#include <limits>

#include "../common/target_avx2.h"
#include "lddt_cpu_kernels.h"

namespace paperops::lddt {
template <>
Count<float> count_avx2<float>() {
  return avx2::count<float>();
}
template <>
Count<double> count_avx2<double>() {
  return avx2::count<double>();
}
}  // namespace paperops::lddt

#include "../common/target_end.h"
#endif

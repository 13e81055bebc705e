// The kernels for AVX2, see common/target_avx2.h.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "dynopool_cpu.h"

#if defined(PAPEROPS_X86)
#include "../common/target_avx2.h"
#include "dynopool_cpu_kernels.h"

namespace paperops::dynopool {
PAPEROPS_DYNOPOOL_INSTANCES(kernels_avx2)
}  // namespace paperops::dynopool

#include "../common/target_end.h"
#endif

// The kernels for any processor: whatever the compiler assumes by default.
#include <cstring>
#include <type_traits>

#define PAPEROPS_SIMD_BITS 0
#define PAPEROPS_SIMD_NAMESPACE portable
#include "dynopool_cpu_kernels.h"

namespace paperops::dynopool {
PAPEROPS_DYNOPOOL_INSTANCES(kernels_portable)
}  // namespace paperops::dynopool

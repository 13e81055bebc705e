// The kernels for any processor: whatever the compiler assumes by default.
#include <cstring>
#include <type_traits>

#define PAPEROPS_SIMD_BITS 0
#define PAPEROPS_SIMD_NAMESPACE portable
#include "shift_conv_cpu_kernels.h"

namespace paperops::shift_conv {
PAPEROPS_SHIFT_CONV_INSTANCES(kernels_portable)
}  // namespace paperops::shift_conv

// The kernels for any processor: whatever the compiler assumes by default.
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <type_traits>

#define PAPEROPS_SIMD_BITS 0
#define PAPEROPS_SIMD_NAMESPACE portable
#include "local_attention_cpu_kernels.h"

namespace paperops::local_attention {
PAPEROPS_LOCAL_ATTENTION_INSTANCES(kernels_portable)
}  // namespace paperops::local_attention

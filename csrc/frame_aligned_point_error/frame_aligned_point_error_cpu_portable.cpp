// The kernels for any processor: whatever the compiler assumes by default.
#include <cmath>
#include <cstring>

#define PAPEROPS_SIMD_BITS 0
#define PAPEROPS_SIMD_NAMESPACE portable
#include "frame_aligned_point_error_cpu_kernels.h"

namespace paperops::fape {
PAPEROPS_FAPE_INSTANCES(portable)
}  // namespace paperops::fape

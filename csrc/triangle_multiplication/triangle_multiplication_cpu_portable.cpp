// The kernels for any processor: whatever the compiler assumes by default.
#include <cmath>
#include <cstring>

#define PAPEROPS_SIMD_BITS 0
#define PAPEROPS_SIMD_NAMESPACE portable
#include "triangle_multiplication_cpu_kernels.h"

namespace paperops::triangle {
PAPEROPS_TRIANGLE_INSTANCES(kernels_portable)
}  // namespace paperops::triangle

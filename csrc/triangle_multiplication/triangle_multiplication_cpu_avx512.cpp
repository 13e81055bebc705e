// The kernels for AVX-512, see common/target_avx512.h.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "triangle_multiplication_cpu.h"

#if defined(PAPEROPS_X86)
#include "../common/target_avx512.h"
#include "triangle_multiplication_cpu_kernels.h"

namespace paperops::triangle {
PAPEROPS_TRIANGLE_INSTANCES(kernels_avx512)
}  // namespace paperops::triangle

#include "../common/target_end.h"
#endif

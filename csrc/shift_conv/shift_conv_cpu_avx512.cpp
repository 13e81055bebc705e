// The kernels for AVX-512, see common/target_avx512.h.
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "shift_conv_cpu.h"

#if defined(PAPEROPS_X86)
#include "../common/target_avx512.h"
#include "shift_conv_cpu_kernels.h"

namespace paperops::shift_conv {
PAPEROPS_SHIFT_CONV_INSTANCES(kernels_avx512)
}  // namespace paperops::shift_conv

#include "../common/target_end.h"
#endif

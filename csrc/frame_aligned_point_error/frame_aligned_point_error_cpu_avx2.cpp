// The kernels for AVX2, see common/target_avx2.h.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "frame_aligned_point_error_cpu.h"

#if defined(PAPEROPS_X86)
#include "../common/target_avx2.h"
#include "frame_aligned_point_error_cpu_kernels.h"

namespace paperops::fape {
PAPEROPS_FAPE_INSTANCES(avx2)
}  // namespace paperops::fape

#include "../common/target_end.h"
#endif

// The kernels for AVX2, see common/target_avx2.h.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <type_traits>

#include "local_attention_cpu.h"

#if defined(PAPEROPS_X86)
#include "../common/target_avx2.h"
#include "local_attention_cpu_kernels.h"

namespace paperops::local_attention {
PAPEROPS_LOCAL_ATTENTION_INSTANCES(kernels_avx2)
}  // namespace paperops::local_attention

#include "../common/target_end.h"
#endif

// The kernels for AVX-512, see common/target_avx512.h.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "invariant_point_attention_cpu.h"

#if defined(PAPEROPS_X86)
#include "../common/target_avx512.h"
#include "invariant_point_attention_cpu_kernels.h"

namespace paperops::ipa {
PAPEROPS_IPA_INSTANCES(avx512)
}  // namespace paperops::ipa

#include "../common/target_end.h"
#endif

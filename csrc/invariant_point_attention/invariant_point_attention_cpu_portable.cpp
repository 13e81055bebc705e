// The kernels for any processor: whatever the compiler assumes by default.
#include <cmath>
#include <cstring>

#define PAPEROPS_SIMD_BITS 0
#define PAPEROPS_SIMD_NAMESPACE portable
#include "invariant_point_attention_cpu_kernels.h"

namespace paperops::ipa {
PAPEROPS_IPA_INSTANCES(portable)
}  // namespace paperops::ipa

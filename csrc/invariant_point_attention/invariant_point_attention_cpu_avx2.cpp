// The kernels for AVX2, FMA and F16C, run only where the processor has them.
//
// The instruction set is enabled from here to the end of the file, after the standard headers, so that no function of
// theirs that other files share is compiled for it. It stays enabled to the end: templates are instantiated there.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "invariant_point_attention_cpu.h"

#if defined(PAPEROPS_X86)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi,popcnt"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,bmi,popcnt")
#endif

#define PAPEROPS_SIMD_BITS 256
#define PAPEROPS_SIMD_NAMESPACE avx2
#include "invariant_point_attention_cpu_kernels.h"

namespace paperops::ipa {
PAPEROPS_IPA_INSTANCES(avx2)
}  // namespace paperops::ipa

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif

// The kernels for AVX-512 (F, DQ, BW, VL), run only where the processor has them.
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
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c,bmi,popcnt"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c,bmi,popcnt")
#endif

#define PAPEROPS_SIMD_BITS 512
#define PAPEROPS_SIMD_NAMESPACE avx512
#include "invariant_point_attention_cpu_kernels.h"

namespace paperops::ipa {
PAPEROPS_IPA_INSTANCES(avx512)
}  // namespace paperops::ipa

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif

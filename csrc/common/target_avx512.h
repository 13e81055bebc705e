// Enables AVX-512 (F, DQ, BW, VL) for the functions from here to common/target_end.h, run only where the processor has them.
//
// Included once in a file, after all headers that other files include too: no function that is shared may be compiled
// for it. target_end.h stands at the end, since templates are instantiated there.
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c,bmi,popcnt"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c,bmi,popcnt")
#endif

#define PAPEROPS_SIMD_BITS 512
#define PAPEROPS_SIMD_NAMESPACE avx512

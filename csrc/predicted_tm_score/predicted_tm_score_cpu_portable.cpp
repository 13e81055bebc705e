// The kernel for any processor: whatever the compiler assumes by default.
#define PAPEROPS_SIMD_BITS 0
#define PAPEROPS_SIMD_NAMESPACE portable
#include "predicted_tm_score_cpu_kernels.h"

PAPEROPS_TM_SCORE_ROWS(portable)

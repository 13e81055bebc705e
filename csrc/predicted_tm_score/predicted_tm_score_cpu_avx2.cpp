// The kernel for AVX2, see common/target_avx2.h.
#include <cstring>
#include <limits>
#include <type_traits>

#include "predicted_tm_score_cpu.h"

#if defined(PAPEROPS_X86)
#include "../common/target_avx2.h"
#include "predicted_tm_score_cpu_kernels.h"

PAPEROPS_TM_SCORE_ROWS(avx2)

#include "../common/target_end.h"
#endif

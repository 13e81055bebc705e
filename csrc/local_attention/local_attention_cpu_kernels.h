// The kernels of one instruction set: included by local_attention_cpu_{portable,avx2,avx512}.cpp, see common/simd.h.
#pragma once

#include "local_attention_cpu_backward.h"
#include "local_attention_cpu_forward.h"

#define PAPEROPS_LOCAL_ATTENTION_INSTANCE(NAME, X)                                                                       \
  template <>                                                                                                            \
  Kernels<X> NAME<X>() {                                                                                                 \
    namespace isa = ::paperops::PAPEROPS_SIMD_NAMESPACE;                                                                 \
    return {isa::forward_scratch<X>, isa::backward_scratch<X>, isa::forward<X>, isa::backward<X>, isa::finish<X>};       \
  }
#define PAPEROPS_LOCAL_ATTENTION_INSTANCES(NAME)    \
  PAPEROPS_LOCAL_ATTENTION_INSTANCE(NAME, float)    \
  PAPEROPS_LOCAL_ATTENTION_INSTANCE(NAME, double)   \
  PAPEROPS_LOCAL_ATTENTION_INSTANCE(NAME, Half)     \
  PAPEROPS_LOCAL_ATTENTION_INSTANCE(NAME, BFloat16)

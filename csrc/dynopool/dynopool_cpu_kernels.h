// The kernels of one instruction set: included by dynopool_cpu_{portable,avx2,avx512}.cpp, see common/simd.h.
#pragma once

#include "dynopool_cpu_pixels.h"
#include "dynopool_cpu_planes.h"

namespace paperops::PAPEROPS_SIMD_NAMESPACE {
namespace {

// work(mode, reach) with both as constants.
template <class Work>
PAPEROPS_INLINE void with_mode(Mode mode, const Work& work) {
  switch (mode) {
    case Mode::max: return work(std::integral_constant<Mode, Mode::max>{});
    case Mode::mean: return work(std::integral_constant<Mode, Mode::mean>{});
    default: return work(std::integral_constant<Mode, Mode::centres>{});
  }
}
template <typename T, class Work>
PAPEROPS_INLINE void with_reach(int64_t span, const Work& work) {
#if PAPEROPS_SIMD_BITS == 512
  switch (reach_of<T>(span)) {
    case Reach::two: return work(std::integral_constant<Reach, Reach::two>{});
    case Reach::four: return work(std::integral_constant<Reach, Reach::four>{});
    default: break;
  }
#endif
  work(std::integral_constant<Reach, Reach::any>{});
}

template <typename X>
void forward(const Problem<X>& p, const Task& task, Scratch<Wide<X>>& scratch) {
  with_mode(p.mode, [&](auto mode) {
    if (p.channels_last) {
      forward_pixels<mode.value>(p, task, scratch);
    } else {
      with_reach<Wide<X>>(p.columns.span, [&](auto reach) { forward_planes<mode.value, reach.value>(p, task, scratch); });
    }
  });
}

template <typename X>
void backward(const Problem<X>& p, const Task& task, Scratch<Wide<X>>& scratch) {
  with_mode(p.mode, [&](auto mode) {
    if (p.channels_last) {
      backward_pixels<mode.value>(p, task, scratch);
    } else {
      with_reach<Wide<X>>(p.columns.reverse_span,
                          [&](auto reach) { backward_planes<mode.value, reach.value>(p, task, scratch); });
    }
  });
}

template <typename X>
void slopes(const Problem<X>& p, const Task& task, Scratch<Wide<X>>& scratch, double* sums) {
  with_mode(p.mode, [&](auto mode) {
    if (p.channels_last) {
      slopes_pixels<mode.value>(p, task, scratch, sums);
    } else {
      with_reach<Wide<X>>(p.columns.span, [&](auto reach) { slopes_planes<mode.value, reach.value>(p, task, scratch, sums); });
    }
  });
}

}  // namespace
}  // namespace paperops::PAPEROPS_SIMD_NAMESPACE

#define PAPEROPS_DYNOPOOL_INSTANCE(NAME, X)                          \
  template <>                                                        \
  Kernels<X> NAME<X>() {                                             \
    namespace isa = ::paperops::PAPEROPS_SIMD_NAMESPACE;             \
    return {isa::forward<X>, isa::backward<X>, isa::slopes<X>};      \
  }
#define PAPEROPS_DYNOPOOL_INSTANCES(NAME)    \
  PAPEROPS_DYNOPOOL_INSTANCE(NAME, float)    \
  PAPEROPS_DYNOPOOL_INSTANCE(NAME, double)   \
  PAPEROPS_DYNOPOOL_INSTANCE(NAME, Half)     \
  PAPEROPS_DYNOPOOL_INSTANCE(NAME, BFloat16)

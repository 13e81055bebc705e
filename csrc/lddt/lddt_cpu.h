// lDDT on the CPU: what lddt_cpu.cpp packs, and the kernel of one instruction set (lddt_cpu_kernels.h) that counts.
#pragma once

#include <cstdint>

#include "../common/instruction_set.h"

namespace paperops::lddt {

// One item's positions, [6, stride]: x, y and z true, then predicted. The true ones of what is masked, and of what fills
// up the last vector, are NaN: no pair with them has a distance below the cutoff.
template <typename T>
struct Chain {
  const T* columns;
  int64_t stride;
  T squared_cutoff;
};

// Counts the pairs of residue i with others, and the thresholds that their errors stay below.
template <typename T>
using Count = void (*)(const Chain<T>& chain, int64_t i, int64_t* pairs, int64_t* kept);

template <typename T>
Count<T> count_portable();
template <typename T>
Count<T> count_avx2();
template <typename T>
Count<T> count_avx512();

}  // namespace paperops::lddt

// Which instruction set the CPU kernels use.
#pragma once

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__) || defined(_M_X64)
#define PAPEROPS_X86 1
#endif

namespace paperops {

enum class InstructionSet { portable, avx2, avx512 };

// The best instruction set that both the processor and the variable PAPEROPS_CPU_ISA (for tests) allow.
inline InstructionSet choose_instruction_set() {
#if defined(PAPEROPS_X86)
  const char* limit = std::getenv("PAPEROPS_CPU_ISA");
  const InstructionSet allowed = limit == nullptr || *limit == 0 || std::strcmp(limit, "avx512") == 0
                                     ? InstructionSet::avx512
                                 : std::strcmp(limit, "avx2") == 0 ? InstructionSet::avx2
                                                                   : InstructionSet::portable;
  __builtin_cpu_init();
  if (allowed >= InstructionSet::avx512 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
    return InstructionSet::avx512;
  }
  // Every processor with AVX2 and FMA has F16C too.
  if (allowed >= InstructionSet::avx2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return InstructionSet::avx2;
  }
#endif
  return InstructionSet::portable;
}

inline InstructionSet instruction_set() {
  static const InstructionSet chosen = choose_instruction_set();
  return chosen;
}

// NAME<...>() for the instruction set in use: one of the function templates NAME_portable, NAME_avx2, NAME_avx512.
#if defined(PAPEROPS_X86)
#define PAPEROPS_CHOOSE(NAME, ...)                                                        \
  (::paperops::instruction_set() == ::paperops::InstructionSet::avx512 ? NAME##_avx512<__VA_ARGS__>() \
   : ::paperops::instruction_set() == ::paperops::InstructionSet::avx2 ? NAME##_avx2<__VA_ARGS__>()   \
                                                                       : NAME##_portable<__VA_ARGS__>())
#else
#define PAPEROPS_CHOOSE(NAME, ...) NAME##_portable<__VA_ARGS__>()
#endif

// Whether the processor multiplies bfloat16 itself, so that torch's products of bfloat16 are faster than of float32.
inline bool has_bfloat16_products() {
#if defined(PAPEROPS_X86)
  return instruction_set() == InstructionSet::avx512 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

}  // namespace paperops

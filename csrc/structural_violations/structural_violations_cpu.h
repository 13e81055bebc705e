// What the parts of the CPU implementation tell each other: structural_violations_cpu.cpp packs and plans, the kernels of
// one instruction set (structural_violations_cpu_kernels.h) look at pairs, structural_violations_cpu_ops.cpp meets the
// dispatcher.
#pragma once

#include <cstdint>

#include "../common/instruction_set.h"

namespace paperops::structural_violations {

constexpr int64_t kAtoms = 14;
constexpr int64_t kPlaces = 16;  // of a residue's atoms in memory: whole vectors of every kind
constexpr int64_t kTypes = 21;
constexpr int64_t kCysteine = 4;
// The places of atoms that can be bound to another residue's.
constexpr int64_t kNitrogen = 0, kCarbon = 2, kSulphur = 5;

// The residues of one item. What an atom that is not there holds is 0.
template <typename T>
struct Residues {
  int64_t count;
  int64_t stride;       // of the rows of spheres, a multiple of all vectors' lanes
  const T* atoms;       // [N, 4, kPlaces]: x, y, z, radius
  const T* spheres;     // [4, stride]: centre x, y, z, and how far from it the atoms' spheres reach; beyond N, -inf
  const uint32_t* there;  // [N]: bit a: the atom a is there
  const int64_t* aatype;
  const int64_t* residue_index;
  const int64_t* asym_id;  // or null: one chain
  T tolerance;
};

// Bounds of the distances within a residue, [kTypes, kAtoms, kPlaces] each; from an atom to itself anything is allowed.
template <typename T>
struct Bounds {
  const T* lower;
  const T* upper;
};

// The sums and numbers of residues [begin, end).
template <typename T>
struct SumTask {
  Residues<T> residues;
  Bounds<T> bounds;
  int64_t begin;
  int64_t end;
  T* clash_loss;       // [N, 14]
  int64_t* clashes;    // [N, 14]
  T* within_loss;      // [N, 14]
  int64_t* violations;  // [N, 14]
};

// The gradient of residues [begin, end).
template <typename T>
struct GradientTask {
  Residues<T> residues;
  Bounds<T> bounds;
  int64_t begin;
  int64_t end;
  const T* grad_clash;   // [N, kPlaces]
  const T* grad_within;  // [N, kPlaces]
  T* gradient;           // [N, 14, 3]
};

// The kernels of one instruction set.
template <typename T>
struct Kernels {
  void (*sum)(const SumTask<T>&);
  void (*differentiate)(const GradientTask<T>&);
};

#if defined(PAPEROPS_X86)
template <typename T>
Kernels<T> kernels_avx512();
template <typename T>
Kernels<T> kernels_avx2();
#endif
template <typename T>
Kernels<T> kernels_portable();

// One call of the op.
template <typename T>
struct Problem {
  int64_t batch;
  int64_t n;
  const T* positions;            // [B, N, 14, 3]
  const bool* atoms;             // [B, N, 14]
  const int64_t* aatype;         // [B, N]
  const int64_t* residue_index;  // [B, N]
  const int64_t* asym_id;        // [B, N] or null
  const T* radii;                // [21, 14]
  const T* lower;                // [21, 14, 14]
  const T* upper;                // [21, 14, 14]
  double tolerance;
};

template <typename T>
struct Sums {
  T* clash_loss;        // [B, N, 14]
  int64_t* clashes;     // [B, N, 14]
  int64_t* pairs;       // [B, N]
  T* within_loss;       // [B, N, 14]
  int64_t* violations;  // [B, N, 14]
};

template <typename T>
void sum_violations(const Problem<T>& problem, const Sums<T>& sums);

// The gradient [B, N, 14, 3] of positions from those of both losses, [B, N, 14].
template <typename T>
void differentiate_violations(const Problem<T>& problem, const T* grad_clash, const T* grad_within, T* gradient);

}  // namespace paperops::structural_violations

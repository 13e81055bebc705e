// The work on pairs, for one instruction set: included by structural_violations_cpu_{portable,avx2,avx512}.cpp, see
// common/simd.h.
//
// A residue's atoms lie in the lanes of one or a few vectors, and meet the atoms of another residue one by one. Each
// residue goes through all others in order, and keeps its own sums only: every pair is looked at from both sides, and
// nothing depends on who does it.
//   - Two residues whose bounding spheres are too far from each other are passed over: for most that is all.
//   - Of the others, an atom meets a residue's by 3 subtractions, 3 multiply-adds and a comparison of squares; only where
//     that finds one near are roots taken.
// A NaN is near to everything, since every comparison asks for what is surely far.
#pragma once

#include "../common/simd.h"
#include "structural_violations_cpu.h"

namespace paperops::PAPEROPS_SIMD_NAMESPACE {
namespace {

using namespace paperops::structural_violations;

template <typename T>
constexpr int64_t kVectors = kPlaces / Simd<T>::lanes;  // of a residue

constexpr double kDistanceEps = 1e-10;  // added to the square of a distance before the root
// What rounding can do to the squares of distances, generously: nothing near may be taken for far.
constexpr double kSphereMargin = 1 + 1e-4, kSphereOffset = 1e-6, kAtomMargin = 1 + 1e-5;

// One residue's atoms against one of another: differences (theirs to ours) and squared distances, and what distance they
// may have: less is a clash.
template <typename T>
struct Row {
  typename Simd<T>::Vector x[kVectors<T>], y[kVectors<T>], z[kVectors<T>], square[kVectors<T>], touching[kVectors<T>];
};

template <typename T>
PAPEROPS_INLINE void differences(const T* ours, const T* theirs, int64_t b, int64_t v, Row<T>& row) {
  using S = Simd<T>;
  row.x[v] = S::load(ours + v * S::lanes) - S::broadcast(theirs[b]);
  row.y[v] = S::load(ours + kPlaces + v * S::lanes) - S::broadcast(theirs[kPlaces + b]);
  row.z[v] = S::load(ours + 2 * kPlaces + v * S::lanes) - S::broadcast(theirs[2 * kPlaces + b]);
  const auto yz = S::multiply_add(row.z[v], row.z[v], S::broadcast(static_cast<T>(kDistanceEps)));
  row.square[v] = S::multiply_add(row.x[v], row.x[v], S::multiply_add(row.y[v], row.y[v], yz));
}

// Fills the row. Returns the bits of our atoms, there or not, that the other may clash with.
template <typename T>
PAPEROPS_INLINE uint32_t meet(const T* ours, const T* theirs, int64_t b, T tolerance, Row<T>& row) {
  using S = Simd<T>;
  uint32_t near = 0;
  for (int64_t v = 0; v < kVectors<T>; ++v) {
    differences(ours, theirs, b, v, row);
    const auto radii = S::load(ours + 3 * kPlaces + v * S::lanes) + S::broadcast(theirs[3 * kPlaces + b]);
    row.touching[v] = radii - S::broadcast(tolerance);
    const auto limit = row.touching[v] * row.touching[v] * S::broadcast(static_cast<T>(kAtomMargin));
    near |= S::not_greater(row.square[v], limit) << (v * S::lanes);
  }
  return near;
}

// The atoms of residue i that cannot clash with the atom b of residue j: a peptide bond's or a disulfide bridge's other.
template <typename T>
struct Excluded {
  uint32_t by[kAtoms] = {};

  PAPEROPS_INLINE Excluded make(const Residues<T>& r, int64_t i, int64_t j) {
    Excluded excluded;
    // Unsigned, for residue numbers may be anything.
    const uint64_t step = static_cast<uint64_t>(r.residue_index[j]) - static_cast<uint64_t>(r.residue_index[i]);
    if (r.asym_id == nullptr || r.asym_id[i] == r.asym_id[j]) {
      excluded.by[kNitrogen] = step == 1 ? uint32_t{1} << kCarbon : 0;
      excluded.by[kCarbon] = step == ~uint64_t{0} ? uint32_t{1} << kNitrogen : 0;
    }
    excluded.by[kSulphur] = r.aatype[i] == kCysteine && r.aatype[j] == kCysteine ? uint32_t{1} << kSulphur : 0;
    return excluded;
  }
};

// Sets the lanes of these bits to 0.
template <typename T>
PAPEROPS_INLINE void clear(typename Simd<T>::Vector* values, uint32_t bits) {
  using S = Simd<T>;
  T lanes[kPlaces];
  for (int64_t v = 0; v < kVectors<T>; ++v) {
    S::store(lanes + v * S::lanes, values[v]);
  }
  for (; bits != 0; bits &= bits - 1) {
    lanes[__builtin_ctz(bits)] = 0;
  }
  for (int64_t v = 0; v < kVectors<T>; ++v) {
    values[v] = S::load(lanes + v * S::lanes);
  }
}

// Calls visit(j) for every residue that may clash with residue i, in order.
template <typename T, class Visit>
PAPEROPS_INLINE void each_near(const Residues<T>& r, int64_t i, const Visit& visit) {
  using S = Simd<T>;
  const T *x = r.spheres, *y = x + r.stride, *z = y + r.stride, *reach = z + r.stride;
  const auto centre_x = S::broadcast(x[i]), centre_y = S::broadcast(y[i]), centre_z = S::broadcast(z[i]);
  const auto own = S::broadcast(reach[i] - r.tolerance);
  const auto margin = S::broadcast(static_cast<T>(kSphereMargin)), offset = S::broadcast(static_cast<T>(kSphereOffset));
  for (int64_t begin = 0; begin < r.count; begin += S::lanes) {
    const auto dx = S::load(x + begin) - centre_x, dy = S::load(y + begin) - centre_y;
    const auto dz = S::load(z + begin) - centre_z;
    const auto square = S::multiply_add(dx, dx, S::multiply_add(dy, dy, dz * dz));
    const auto limit = S::maximum(own + S::load(reach + begin), S::broadcast(0));
    uint32_t near = S::not_greater(square, S::multiply_add(limit * limit, margin, offset));
    for (; near != 0; near &= near - 1) {
      const int64_t j = begin + __builtin_ctz(near);
      if (j != i && j < r.count) {
        visit(j);
      }
    }
  }
}

// --- sums ------------------------------------------------------------------------------------------------------------

// Sums of a residue's atoms: of a few values in T, of all in float64.
template <typename T>
struct Totals {
  double sum[kPlaces] = {};
  int64_t count[kPlaces] = {};

  PAPEROPS_INLINE void add(Totals& totals, const typename Simd<T>::Vector* sum, const typename Simd<T>::Vector* count) {
    using S = Simd<T>;
    T sums[kPlaces], counts[kPlaces];
    for (int64_t v = 0; v < kVectors<T>; ++v) {
      S::store(sums + v * S::lanes, sum[v]);
      S::store(counts + v * S::lanes, count[v]);
    }
    for (int64_t a = 0; a < kPlaces; ++a) {
      totals.sum[a] += static_cast<double>(sums[a]);
      totals.count[a] += static_cast<int64_t>(counts[a]);
    }
  }
  PAPEROPS_INLINE void write(const Totals& totals, uint32_t there, double factor, T* sum, int64_t* count) {
    for (int64_t a = 0; a < kAtoms; ++a) {
      const bool is = there >> a & 1;
      sum[a] = is ? static_cast<T>(factor * totals.sum[a]) : T(0);
      count[a] = is ? totals.count[a] : 0;
    }
  }
};

template <typename T>
PAPEROPS_INLINE void add_clashes(const Residues<T>& r, int64_t i, int64_t j, Totals<T>& totals) {
  using S = Simd<T>;
  const auto zero = S::broadcast(0), one = S::broadcast(1);
  typename S::Vector sum[kVectors<T>], count[kVectors<T>];
  for (int64_t v = 0; v < kVectors<T>; ++v) {
    sum[v] = count[v] = zero;
  }
  const T *ours = r.atoms + i * 4 * kPlaces, *theirs = r.atoms + j * 4 * kPlaces;
  const auto excluded = Excluded<T>::make(r, i, j);
  bool any = false;
  Row<T> row;
  for (uint32_t bits = r.there[j]; bits != 0; bits &= bits - 1) {
    const int64_t b = __builtin_ctz(bits);
    if ((meet(ours, theirs, b, r.tolerance, row) & r.there[i]) == 0) {
      continue;
    }
    any = true;
    typename S::Vector overlap[kVectors<T>];
    for (int64_t v = 0; v < kVectors<T>; ++v) {
      overlap[v] = row.touching[v] - S::square_root(row.square[v]);
      overlap[v] = overlap[v] <= zero ? zero : overlap[v];
    }
    if (excluded.by[b] != 0) {
      clear<T>(overlap, excluded.by[b]);
    }
    for (int64_t v = 0; v < kVectors<T>; ++v) {
      sum[v] += overlap[v];
      count[v] += overlap[v] > zero ? one : zero;
    }
  }
  if (any) {
    Totals<T>::add(totals, sum, count);
  }
}

template <typename T>
PAPEROPS_INLINE void add_within(const Residues<T>& r, const Bounds<T>& bounds, int64_t i, Totals<T>& totals) {
  using S = Simd<T>;
  const auto zero = S::broadcast(0), one = S::broadcast(1);
  typename S::Vector sum[kVectors<T>], count[kVectors<T>];
  for (int64_t v = 0; v < kVectors<T>; ++v) {
    sum[v] = count[v] = zero;
  }
  const T* atoms = r.atoms + i * 4 * kPlaces;
  const int64_t type = r.aatype[i] * kAtoms * kPlaces;
  Row<T> row;
  for (uint32_t bits = r.there[i]; bits != 0; bits &= bits - 1) {
    const int64_t b = __builtin_ctz(bits);
    for (int64_t v = 0; v < kVectors<T>; ++v) {
      differences(atoms, atoms, b, v, row);
      const auto distance = S::square_root(row.square[v]);
      const auto below = S::load(bounds.lower + type + b * kPlaces + v * S::lanes) - distance;
      const auto above = distance - S::load(bounds.upper + type + b * kPlaces + v * S::lanes);
      const auto error = (below <= zero ? zero : below) + (above <= zero ? zero : above);
      sum[v] += error;
      count[v] += error > zero ? one : zero;
    }
  }
  Totals<T>::add(totals, sum, count);
}

template <typename T>
void sum(const SumTask<T>& task) {
  const Residues<T>& r = task.residues;
  for (int64_t i = task.begin; i < task.end; ++i) {
    Totals<T> clashes, within;
    if (r.there[i] != 0) {
      each_near(r, i, [&](int64_t j) __attribute__((always_inline)) { add_clashes(r, i, j, clashes); });
      add_within(r, task.bounds, i, within);
    }
    const int64_t at = i * kAtoms;
    Totals<T>::write(clashes, r.there[i], 1, task.clash_loss + at, task.clashes + at);
    Totals<T>::write(within, r.there[i], 2, task.within_loss + at, task.violations + at);  // each pair twice
  }
}

// --- gradients -------------------------------------------------------------------------------------------------------

// The force on a residue's atoms: of a few pairs in T, of all in float64.
template <typename T>
struct Force {
  typename Simd<T>::Vector x[kVectors<T>], y[kVectors<T>], z[kVectors<T>];

  PAPEROPS_INLINE void begin(Force& force) {
    for (int64_t v = 0; v < kVectors<T>; ++v) {
      force.x[v] = force.y[v] = force.z[v] = Simd<T>::broadcast(0);
    }
  }
  PAPEROPS_INLINE void add(Force& force, const Row<T>& row, const typename Simd<T>::Vector* weight) {
    using S = Simd<T>;
    for (int64_t v = 0; v < kVectors<T>; ++v) {
      force.x[v] = S::multiply_add(weight[v], row.x[v], force.x[v]);
      force.y[v] = S::multiply_add(weight[v], row.y[v], force.y[v]);
      force.z[v] = S::multiply_add(weight[v], row.z[v], force.z[v]);
    }
  }
  PAPEROPS_INLINE void finish(const Force& force, double sign, double (*total)[3]) {
    using S = Simd<T>;
    T lanes[3][kPlaces];
    for (int64_t v = 0; v < kVectors<T>; ++v) {
      S::store(lanes[0] + v * S::lanes, force.x[v]);
      S::store(lanes[1] + v * S::lanes, force.y[v]);
      S::store(lanes[2] + v * S::lanes, force.z[v]);
    }
    for (int64_t a = 0; a < kAtoms; ++a) {
      for (int64_t d = 0; d < 3; ++d) {
        total[a][d] += sign * static_cast<double>(lanes[d][a]);
      }
    }
  }
};

// A pair's overlap is in the sums of both atoms: c_ia + c_jb times its derivative, -(x_ia - x_jb) / d.
template <typename T>
PAPEROPS_INLINE void push_clashes(const GradientTask<T>& task, int64_t i, int64_t j, double (*total)[3]) {
  using S = Simd<T>;
  const Residues<T>& r = task.residues;
  const auto zero = S::broadcast(0);
  const T *ours = r.atoms + i * 4 * kPlaces, *theirs = r.atoms + j * 4 * kPlaces;
  const T *own = task.grad_clash + i * kPlaces, *others = task.grad_clash + j * kPlaces;
  const auto excluded = Excluded<T>::make(r, i, j);
  bool any = false;
  Row<T> row;
  Force<T> force;
  Force<T>::begin(force);
  for (uint32_t bits = r.there[j]; bits != 0; bits &= bits - 1) {
    const int64_t b = __builtin_ctz(bits);
    if ((meet(ours, theirs, b, r.tolerance, row) & r.there[i]) == 0) {
      continue;
    }
    any = true;
    typename S::Vector weight[kVectors<T>];
    for (int64_t v = 0; v < kVectors<T>; ++v) {
      const auto distance = S::square_root(row.square[v]);
      const auto both = S::load(own + v * S::lanes) + S::broadcast(others[b]);
      weight[v] = row.touching[v] <= distance ? zero : both / distance;
    }
    if (excluded.by[b] != 0) {
      clear<T>(weight, excluded.by[b]);
    }
    Force<T>::add(force, row, weight);
  }
  if (any) {
    Force<T>::finish(force, -1, total);
  }
}

// An error within a residue is in both atoms' sums, twice.
template <typename T>
PAPEROPS_INLINE void push_within(const GradientTask<T>& task, int64_t i, double (*total)[3]) {
  using S = Simd<T>;
  const Residues<T>& r = task.residues;
  const auto zero = S::broadcast(0);
  const T* atoms = r.atoms + i * 4 * kPlaces;
  const T* own = task.grad_within + i * kPlaces;
  const int64_t type = r.aatype[i] * kAtoms * kPlaces;
  Row<T> row;
  Force<T> force;
  Force<T>::begin(force);
  for (uint32_t bits = r.there[i]; bits != 0; bits &= bits - 1) {
    const int64_t b = __builtin_ctz(bits);
    typename S::Vector weight[kVectors<T>];
    for (int64_t v = 0; v < kVectors<T>; ++v) {
      differences(atoms, atoms, b, v, row);
      const auto distance = S::square_root(row.square[v]);
      const auto pull = (S::load(own + v * S::lanes) + S::broadcast(own[b])) / distance;
      const auto lower = S::load(task.bounds.lower + type + b * kPlaces + v * S::lanes);
      const auto upper = S::load(task.bounds.upper + type + b * kPlaces + v * S::lanes);
      weight[v] = (distance <= upper ? zero : pull) - (distance >= lower ? zero : pull);
    }
    Force<T>::add(force, row, weight);
  }
  Force<T>::finish(force, 2, total);
}

template <typename T>
void differentiate(const GradientTask<T>& task) {
  const Residues<T>& r = task.residues;
  for (int64_t i = task.begin; i < task.end; ++i) {
    double total[kAtoms][3] = {};
    if (r.there[i] != 0) {
      each_near(r, i, [&](int64_t j) __attribute__((always_inline)) { push_clashes(task, i, j, total); });
      push_within(task, i, total);
    }
    for (int64_t a = 0; a < kAtoms; ++a) {
      for (int64_t d = 0; d < 3; ++d) {
        task.gradient[(i * kAtoms + a) * 3 + d] = r.there[i] >> a & 1 ? static_cast<T>(total[a][d]) : T(0);
      }
    }
  }
}

template <typename T>
Kernels<T> kernels() {
  return {sum<T>, differentiate<T>};
}

}  // namespace
}  // namespace paperops::PAPEROPS_SIMD_NAMESPACE

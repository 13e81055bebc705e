// Structural violations on the CPU: packs the atoms, hands out the residues to threads, and counts the pairs.
#include "structural_violations_cpu.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "../common/parallel.h"

namespace paperops::structural_violations {
namespace {

constexpr int64_t kTask = 8;       // residues of a task
constexpr int64_t kParallel = 64;  // residues from which threads are woken

template <typename T>
Kernels<T> kernels() {
  return PAPEROPS_CHOOSE(kernels, T);
}

// Calls body(item, begin, end) on threads, for ranges of each item's residues.
template <class Body>
void each_range(int64_t batch, int64_t n, const Body& body) {
  const int64_t ranges = divide_up(n, kTask);
  run_tasks(batch * ranges, batch * n >= kParallel, [&](const auto& next) {
    for (int64_t task = next(); task >= 0; task = next()) {
      const int64_t begin = task % ranges * kTask;
      body(task / ranges, begin, std::min(begin + kTask, n));
    }
  });
}

// All atoms and bounds as the kernels read them.
template <typename T>
class Packed {
 public:
  explicit Packed(const Problem<T>& problem)
      : problem_(problem),
        stride_(divide_up(problem.n, kPlaces) * kPlaces),
        atoms_(problem.batch * problem.n * 4 * kPlaces),
        spheres_(problem.batch * 4 * stride_),
        there_(problem.batch * problem.n),
        lower_(kTypes * kAtoms * kPlaces),
        upper_(kTypes * kAtoms * kPlaces) {
    const T infinity = std::numeric_limits<T>::infinity();
    std::fill_n(spheres_.data(), problem.batch * 4 * stride_, -infinity);
    each_range(problem.batch, problem.n, [&](int64_t item, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        pack(item, i);
      }
    });
    for (int64_t row = 0; row < kTypes * kAtoms; ++row) {
      for (int64_t a = 0; a < kPlaces; ++a) {
        const bool other = a < kAtoms && a != row % kAtoms;
        lower_.data()[row * kPlaces + a] = other ? problem.lower[row * kAtoms + a] : -infinity;
        upper_.data()[row * kPlaces + a] = other ? problem.upper[row * kAtoms + a] : infinity;
      }
    }
  }

  Residues<T> residues(int64_t item) const {
    const int64_t at = item * problem_.n;
    return {problem_.n,
            stride_,
            atoms_.data() + at * 4 * kPlaces,
            spheres_.data() + item * 4 * stride_,
            there_.data() + at,
            problem_.aatype + at,
            problem_.residue_index + at,
            problem_.asym_id == nullptr ? nullptr : problem_.asym_id + at,
            static_cast<T>(problem_.tolerance)};
  }
  Bounds<T> bounds() const { return {lower_.data(), upper_.data()}; }

 private:
  // The atoms of residue i, and a sphere that holds theirs.
  void pack(int64_t item, int64_t i) {
    const int64_t residue = item * problem_.n + i;
    const bool* is = problem_.atoms + residue * kAtoms;
    const T* position = problem_.positions + residue * kAtoms * 3;
    const T* radius = problem_.radii + problem_.aatype[residue] * kAtoms;
    T* atoms = atoms_.data() + residue * 4 * kPlaces;
    std::fill_n(atoms, 4 * kPlaces, T(0));
    uint32_t there = 0;
    T centre[3] = {}, reach = -std::numeric_limits<T>::infinity();
    for (int64_t a = 0; a < kAtoms; ++a) {
      if (is[a]) {
        there |= uint32_t{1} << a;
        for (int64_t d = 0; d < 3; ++d) {
          atoms[d * kPlaces + a] = position[3 * a + d];
          centre[d] += position[3 * a + d];
        }
        atoms[3 * kPlaces + a] = radius[a];
      }
    }
    there_.data()[residue] = there;
    if (there != 0) {
      T furthest = 0, largest = -std::numeric_limits<T>::infinity();
      for (T& c : centre) {
        c /= static_cast<T>(__builtin_popcount(there));
      }
      for (int64_t a = 0; a < kAtoms; ++a) {
        if (is[a]) {
          T square = 0;
          for (int64_t d = 0; d < 3; ++d) {
            const T difference = position[3 * a + d] - centre[d];
            square += difference * difference;
          }
          furthest = square <= furthest ? furthest : square;  // where one is not finite, the centre is not, and none is
          largest = std::max(largest, radius[a]);
        }
      }
      reach = std::sqrt(furthest) + largest;
      if (!(reach < std::numeric_limits<T>::infinity())) {  // no finite sphere holds it: it is near to everything
        std::fill_n(centre, 3, T(0));
        reach = std::numeric_limits<T>::infinity();
      }
    }
    T* sphere = spheres_.data() + item * 4 * stride_ + i;
    for (int64_t d = 0; d < 3; ++d) {
      sphere[d * stride_] = centre[d];
    }
    sphere[3 * stride_] = reach;
  }

  const Problem<T>& problem_;
  int64_t stride_;
  Buffer<T> atoms_, spheres_;
  Buffer<uint32_t> there_;
  Buffer<T> lower_, upper_;
};

// The number of pairs of each residue's atoms with those of others that can clash. All pairs, less those that are bound:
// the residues that a residue follows, and that follow it, are found in a sorted list of all.
template <typename T>
void count_pairs(const Residues<T>& r, int64_t* pairs) {
  using Key = std::tuple<int64_t, int64_t>;  // chain and number
  const auto key = [&](int64_t i) { return Key(r.asym_id == nullptr ? 0 : r.asym_id[i], r.residue_index[i]); };
  const auto has = [&](int64_t i, int64_t atom) { return static_cast<int64_t>(r.there[i] >> atom & 1); };
  const auto bridge = [&](int64_t i) { return r.aatype[i] == kCysteine ? has(i, kSulphur) : 0; };
  std::vector<int64_t> order(r.count);
  int64_t total = 0, bridges = 0;
  for (int64_t i = 0; i < r.count; ++i) {
    order[i] = i;
    total += __builtin_popcount(r.there[i]);
    bridges += bridge(i);
  }
  std::sort(order.begin(), order.end(), [&](int64_t i, int64_t j) { return key(i) < key(j); });
  // How many of the residues before each place of the order have the atom.
  std::vector<int64_t> nitrogens(r.count + 1), carbons(r.count + 1);
  for (int64_t place = 0; place < r.count; ++place) {
    nitrogens[place + 1] = nitrogens[place] + has(order[place], kNitrogen);
    carbons[place + 1] = carbons[place] + has(order[place], kCarbon);
  }
  const auto numbered = [&](const std::vector<int64_t>& before, const Key& wanted) {
    const auto low = std::lower_bound(order.begin(), order.end(), wanted,
                                      [&](int64_t i, const Key& value) { return key(i) < value; });
    const auto high = std::upper_bound(low, order.end(), wanted,
                                       [&](const Key& value, int64_t i) { return value < key(i); });
    return before[high - order.begin()] - before[low - order.begin()];
  };
  const auto moved = [](int64_t number, uint64_t by) {  // may pass the largest integer
    return static_cast<int64_t>(static_cast<uint64_t>(number) + by);
  };
  for (int64_t i = 0; i < r.count; ++i) {
    const auto [chain, number] = key(i);
    const int64_t own = __builtin_popcount(r.there[i]);
    int64_t bound = bridge(i) * (bridges - 1);
    if (has(i, kCarbon)) {
      bound += numbered(nitrogens, Key(chain, moved(number, 1)));
    }
    if (has(i, kNitrogen)) {
      bound += numbered(carbons, Key(chain, moved(number, ~uint64_t{0})));
    }
    pairs[i] = own * (total - own) - bound;
  }
}

}  // namespace

template <typename T>
void sum_violations(const Problem<T>& problem, const Sums<T>& sums) {
  const Packed<T> packed(problem);
  const Kernels<T> run = kernels<T>();
  run_tasks(problem.batch, problem.batch * problem.n >= kParallel, [&](const auto& next) {
    for (int64_t item = next(); item >= 0; item = next()) {
      count_pairs(packed.residues(item), sums.pairs + item * problem.n);
    }
  });
  each_range(problem.batch, problem.n, [&](int64_t item, int64_t begin, int64_t end) {
    const int64_t at = item * problem.n * kAtoms;
    run.sum({packed.residues(item), packed.bounds(), begin, end, sums.clash_loss + at, sums.clashes + at,
             sums.within_loss + at, sums.violations + at});
  });
}

template <typename T>
void differentiate_violations(const Problem<T>& problem, const T* grad_clash, const T* grad_within, T* gradient) {
  const Packed<T> packed(problem);
  const Kernels<T> run = kernels<T>();
  const int64_t residues = problem.batch * problem.n;
  Buffer<T> clash(residues * kPlaces), within(residues * kPlaces);
  for (int64_t i = 0; i < residues; ++i) {
    for (int64_t a = 0; a < kPlaces; ++a) {
      clash.data()[i * kPlaces + a] = a < kAtoms ? grad_clash[i * kAtoms + a] : T(0);
      within.data()[i * kPlaces + a] = a < kAtoms ? grad_within[i * kAtoms + a] : T(0);
    }
  }
  each_range(problem.batch, problem.n, [&](int64_t item, int64_t begin, int64_t end) {
    const int64_t at = item * problem.n;
    run.differentiate({packed.residues(item), packed.bounds(), begin, end, clash.data() + at * kPlaces,
                       within.data() + at * kPlaces, gradient + at * kAtoms * 3});
  });
}

template void sum_violations<float>(const Problem<float>&, const Sums<float>&);
template void sum_violations<double>(const Problem<double>&, const Sums<double>&);
template void differentiate_violations<float>(const Problem<float>&, const float*, const float*, float*);
template void differentiate_violations<double>(const Problem<double>&, const double*, const double*, double*);

}  // namespace paperops::structural_violations

// Structural violations on the CPU: the dispatcher's side. Schemas and checks of the arguments are in paperops/ops/; what
// is checked here only keeps a direct call from reading outside its tensors.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "../common/tensors.h"
#include "structural_violations_cpu.h"

namespace paperops::structural_violations {
namespace {

using Optional = std::optional<Tensor>;

struct Given {
  const Tensor& positions;
  const Tensor& atoms;
  const Tensor& aatype;
  const Tensor& residue_index;
  const Optional& asym_id;
  const Tensor& radii;
  const Tensor& lower;
  const Tensor& upper;
  double tolerance;
};

void check(const char* name, const Tensor& tensor, std::initializer_list<int64_t> sizes, ScalarType type) {
  bool fits = tensor.dim() == static_cast<int64_t>(sizes.size()) && tensor.scalar_type() == type;
  for (int64_t d = 0; fits && d < tensor.dim(); ++d) {
    fits = tensor.size(d) == sizes.begin()[d];
  }
  STD_TORCH_CHECK(fits, name, " has the wrong shape or dtype");
}

void check(const Given& given) {
  const ScalarType type = given.positions.scalar_type();
  STD_TORCH_CHECK(given.positions.dim() == 4 && (type == ScalarType::Float || type == ScalarType::Double),
                  "positions must be [B, N, 14, 3], float32 or float64");
  const int64_t b = given.positions.size(0), n = given.positions.size(1);
  check("positions", given.positions, {b, n, kAtoms, 3}, type);
  check("atoms", given.atoms, {b, n, kAtoms}, ScalarType::Bool);
  check("aatype", given.aatype, {b, n}, ScalarType::Long);
  check("residue_index", given.residue_index, {b, n}, ScalarType::Long);
  if (given.asym_id.has_value()) {
    check("asym_id", *given.asym_id, {b, n}, ScalarType::Long);
  }
  check("radii", given.radii, {kTypes, kAtoms}, type);
  check("lower", given.lower, {kTypes, kAtoms, kAtoms}, type);
  check("upper", given.upper, {kTypes, kAtoms, kAtoms}, type);
}

// Calls work(problem) with the tensors' memory.
template <typename T, class Work>
void with_problem(const Given& given, const Work& work) {
  const Elements<T> positions(given.positions), radii(given.radii), lower(given.lower), upper(given.upper);
  const Integers aatype(given.aatype), residue_index(given.residue_index), asym_id(given.asym_id);
  const Tensor atoms = as_contiguous(given.atoms);
  const int64_t b = given.positions.size(0), n = given.positions.size(1);
  for (int64_t i = 0; i < b * n; ++i) {
    STD_TORCH_CHECK(aatype.data()[i] >= 0 && aatype.data()[i] < kTypes, "aatype must be from 0 to 20");
  }
  work(Problem<T>{b, n, positions.data(), static_cast<const bool*>(atoms.data_ptr()), aatype.data(),
                  residue_index.data(), asym_id.data(), radii.data(), lower.data(), upper.data(), given.tolerance});
}

template <typename T>
T* elements(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& positions, const Tensor& atoms, const Tensor& aatype, const Tensor& residue_index,
    const Optional& asym_id, const Tensor& radii, const Tensor& lower, const Tensor& upper, double tolerance) {
  const Given given{positions, atoms, aatype, residue_index, asym_id, radii, lower, upper, tolerance};
  check(given);
  const ScalarType type = positions.scalar_type();
  const int64_t b = positions.size(0), n = positions.size(1);
  const Tensor clash_loss = empty_cpu({b, n, kAtoms}, type), within_loss = empty_cpu({b, n, kAtoms}, type);
  const Tensor clashes = empty_cpu({b, n, kAtoms}, ScalarType::Long), pairs = empty_cpu({b, n}, ScalarType::Long);
  const Tensor violations = empty_cpu({b, n, kAtoms}, ScalarType::Long);
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    with_problem<T>(given, [&](const Problem<T>& problem) {
      sum_violations<T>(problem, {elements<T>(clash_loss), elements<int64_t>(clashes), elements<int64_t>(pairs),
                                  elements<T>(within_loss), elements<int64_t>(violations)});
    });
  };
  type == ScalarType::Double ? run(double{}) : run(float{});
  return {clash_loss, clashes, pairs, within_loss, violations};
}

Tensor backward(const Tensor& grad_clash, const Tensor& grad_within, const Tensor& positions, const Tensor& atoms,
                const Tensor& aatype, const Tensor& residue_index, const Optional& asym_id, const Tensor& radii,
                const Tensor& lower, const Tensor& upper, double tolerance) {
  const Given given{positions, atoms, aatype, residue_index, asym_id, radii, lower, upper, tolerance};
  check(given);
  const ScalarType type = positions.scalar_type();
  const int64_t b = positions.size(0), n = positions.size(1);
  check("grad_clash", grad_clash, {b, n, kAtoms}, type);
  check("grad_within", grad_within, {b, n, kAtoms}, type);
  const Tensor gradient = empty_cpu({b, n, kAtoms, 3}, type);
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const Elements<T> clash(grad_clash), within(grad_within);
    with_problem<T>(given, [&](const Problem<T>& problem) {
      differentiate_violations<T>(problem, clash.data(), within.data(), elements<T>(gradient));
    });
  };
  type == ScalarType::Double ? run(double{}) : run(float{});
  return gradient;
}

}  // namespace
}  // namespace paperops::structural_violations

STABLE_TORCH_LIBRARY_IMPL(paperops, CPU, m) {
  m.impl("structural_violations.native", TORCH_BOX(&paperops::structural_violations::forward));
  m.impl("structural_violations_backward.native", TORCH_BOX(&paperops::structural_violations::backward));
}

"""What is particular to structural violations, beyond the generic checks."""

import math

import pytest
import torch
from paperops.benchmarks import memory

import paperops
from paperops import backends, reference, residues
from paperops.geometry import Frames
from paperops.testing.structural_violations import CYSTEINE, PROLINE, UNKNOWN, protein_arguments
from paperops.testing.targets import INTERPRETED, targets

CPU = torch.device("cpu")
# The family has no CUDA C++.
backend = pytest.mark.parametrize("target", targets("cuda"), ids="-".join)
kernels = pytest.mark.parametrize("target", targets("cuda", "reference"), ids="-".join)
ALANINE, GLYCINE = residues.LETTERS.index("A"), residues.LETTERS.index("G")
N, CA, C, CB, SG = 0, 1, 2, 4, 5


def violations(target, **given):
    with paperops.use_backend(target[1]):
        return paperops.structural_violations(**given)


def gradient(target, **given):
    """Of a loss that reaches everything that is differentiable, each element with a weight of its own."""
    positions = given["positions"].detach().clone().requires_grad_()
    found = [value for value in violations(target, **{**given, "positions": positions}) if value.requires_grad]
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value) for value in found]
    with paperops.use_backend(target[1]):
        return torch.autograd.grad(found, positions, weights)[0]


def atoms_at(target, places, **numbers):
    """Residues that have nothing but the atoms of ``places``: {(residue, atom): position}; alanines in a chain."""
    n = 1 + max(residue for residue, _ in places)
    positions, mask = torch.zeros(1, n, 14, 3, dtype=torch.float64), torch.zeros(1, n, 14, dtype=torch.bool)
    for (residue, atom), position in places.items():
        positions[0, residue, atom] = torch.tensor(position, dtype=torch.float64)
        mask[0, residue, atom] = True
    given = {"aatype": [ALANINE] * n, "residue_index": list(range(n))} | numbers
    found = {name: torch.tensor([value]).to(target[0]) for name, value in given.items()}
    return {"positions": positions.to(target[0]), "mask": mask.to(target[0])} | found


# --- the equations, term by term -------------------------------------------------------------------------------------


class TermByTerm:
    """Equations 44 to 47 with Python's own numbers, one pair at a time."""

    def __init__(self, given, item, factor=12.0, tolerance=1.5):
        self.aatype, self.number = given["aatype"][item].tolist(), given["residue_index"][item].tolist()
        asym_id = given.get("asym_id")
        self.chain = [0] * len(self.aatype) if asym_id is None else asym_id[item].tolist()
        self.factor, self.tolerance = factor, tolerance
        table = residues.tables()
        self.lower, self.upper = (bound.tolist() for bound in residues.distance_bounds(tolerance, factor))
        self.radii = table.radii.tolist()
        self.atoms = [
            {
                a: given["positions"][item, i, a].tolist()
                for a in range(14)
                if given["mask"][item, i, a] and table.atom14_exists[self.aatype[i], a]
            }
            for i in range(len(self.aatype))
        ]
        self.clashes(), self.within(), self.bonds()

    def follows(self, i, j):
        return self.number[j] - self.number[i] == 1 and self.chain[i] == self.chain[j]

    def can_clash(self, i, a, j, b):
        bond = (self.follows(i, j) and (a, b) == (C, N)) or (self.follows(j, i) and (a, b) == (N, C))
        return not bond and not (self.aatype[i] == self.aatype[j] == CYSTEINE and a == b == SG)

    def clashes(self):
        n = len(self.atoms)
        self.clash_sum = [[0.0] * 14 for _ in range(n)]
        self.clash_count = [[0] * 14 for _ in range(n)]
        total, pairs = 0.0, 0
        for i in range(n):
            for j in range(i + 1, n):
                for a, x in self.atoms[i].items():
                    for b, y in self.atoms[j].items():
                        if not self.can_clash(i, a, j, b):
                            continue
                        reach = self.radii[self.aatype[i]][a] + self.radii[self.aatype[j]][b] - self.tolerance
                        overlap = max(0.0, reach - math.sqrt(math.dist(x, y) ** 2 + 1e-10))
                        total, pairs = total + overlap, pairs + 1
                        for residue, atom in ((i, a), (j, b)):
                            self.clash_sum[residue][atom] += overlap
                            self.clash_count[residue][atom] += overlap > 0
        self.clash_mean = total / pairs if pairs else 0.0

    def within(self):
        self.within_sum = [[0.0] * 14 for _ in self.atoms]
        self.within_violated = [[False] * 14 for _ in self.atoms]
        for i, atoms in enumerate(self.atoms):
            for a, x in atoms.items():
                for b, y in atoms.items():
                    if a != b:
                        low, high = self.lower[self.aatype[i]][a][b], self.upper[self.aatype[i]][a][b]
                        distance = math.sqrt(math.dist(x, y) ** 2 + 1e-10)
                        error = max(0.0, low - distance) + max(0.0, distance - high)
                        self.within_sum[i][a] += 2 * error
                        self.within_violated[i][a] |= error > 0

    def bonds(self):
        n = len(self.atoms)
        terms = [[], [], []]
        self.bond_sum, self.bond_violated = [0.0] * n, [False] * n
        for i in range(n - 1):
            one, two = self.atoms[i], self.atoms[i + 1]
            if not (self.follows(i, i + 1) and C in one and N in two):
                continue
            kind = int(self.aatype[i + 1] == PROLINE)

            def excess(value, mean, deviation):
                return max(0.0, math.sqrt((value - mean) ** 2 + 1e-6) - self.factor * deviation)

            def arm(start, end):
                length = math.sqrt(math.dist(start, end) ** 2 + 1e-6)
                return length, [(e - s) / length for s, e in zip(start, end, strict=True)]

            length, to_n = arm(one[C], two[N])
            found = [(0, excess(length, residues.C_N_LENGTH[kind], residues.C_N_LENGTH_DEVIATION[kind]))]
            if CA in one:
                cosine = sum(a * b for a, b in zip(arm(one[C], one[CA])[1], to_n, strict=True))
                found.append((1, excess(cosine, *residues.COS_CA_C_N)))
            if CA in two:
                cosine = sum(-a * b for a, b in zip(to_n, arm(two[N], two[CA])[1], strict=True))
                found.append((2, excess(cosine, *residues.COS_C_N_CA)))
            for which, value in found:
                terms[which].append(value)
                for residue in (i, i + 1):
                    self.bond_sum[residue] += value / 2
                    self.bond_violated[residue] |= value > 0
        self.means = [sum(values) / len(values) if values else 0.0 for values in terms]


@backend
@pytest.mark.parametrize("case", ["chain", "chains", "spread", "masked"])
def test_term_by_term(target, case):
    given = protein_arguments(2, 13, torch.device(target[0]), torch.float64, None if case == "chain" else 2.5)
    tolerances = {}
    if case == "chains":
        number = given["residue_index"]
        given |= {"asym_id": number // 5, "residue_index": number % 5 + 2 * (number % 5 > 2)}
        given["aatype"][:, ::2] = CYSTEINE
        given["aatype"][:, 3] = UNKNOWN
        given["mask"] = torch.ones_like(given["mask"])
        tolerances = {"violation_tolerance_factor": 4.0, "clash_overlap_tolerance": 0.3}
    if case == "masked":
        generator = torch.Generator().manual_seed(0)
        given["mask"] = (torch.rand(given["mask"].shape, generator=generator) > 0.4).to(target[0])
        given["aatype"][:, 1::3] = PROLINE
    found = violations(target, **given, **tolerances)
    for item in range(2):
        exact = TermByTerm(given, item, *tolerances.values())
        assert exact.clash_mean > 0 or case == "chain"
        means = [found.c_n_loss_mean, found.ca_c_n_loss_mean, found.c_n_ca_loss_mean]
        assert [float(mean[item]) for mean in means] == pytest.approx(exact.means, abs=1e-12)
        assert float(found.clash_mean_loss[item]) == pytest.approx(exact.clash_mean, abs=1e-12)
        assert found.per_residue_bond_loss_sum[item].tolist() == pytest.approx(exact.bond_sum, abs=1e-12)
        assert found.per_residue_connection_violation_mask[item].tolist() == exact.bond_violated
        for sums, expected in (
            (found.per_atom_clash_loss_sum, exact.clash_sum),
            (found.per_atom_within_loss_sum, exact.within_sum),
        ):
            torch.testing.assert_close(sums[item].cpu(), torch.tensor(expected, dtype=torch.float64))
        assert found.per_atom_num_clashes[item].tolist() == exact.clash_count
        assert found.per_atom_clash_mask[item].tolist() == [[count > 0 for count in row] for row in exact.clash_count]
        assert found.per_atom_within_violation_mask[item].tolist() == exact.within_violated
        assert found.per_residue_violation_mask[item].tolist() == [
            bond or any(count) or any(within)
            for bond, count, within in zip(exact.bond_violated, exact.clash_count, exact.within_violated, strict=True)
        ]
        atoms = sum(len(atoms) for atoms in exact.atoms)
        assert int(found.num_atoms[item]) == atoms
        everything = sum(map(sum, exact.clash_sum)) + sum(map(sum, exact.within_sum))
        assert float(found.loss[item]) == pytest.approx(sum(exact.means) + everything / atoms, abs=1e-12)


# --- by hand ---------------------------------------------------------------------------------------------------------


@backend
def test_a_clash_of_two_atoms(target):
    """Two CB 1 A from each other may be 1.7 + 1.7 - 1.5 A apart: they overlap by 0.9 A."""
    given = atoms_at(target, {(0, CB): [5.0, 0, 0], (3, CB): [5.0, 0, 1.0]})
    given["positions"].requires_grad_()
    found = violations(target, **given)
    assert found.clash_mean_loss.tolist() == pytest.approx([0.9], abs=1e-9)
    assert found.per_atom_num_clashes[0, :, CB].tolist() == [1, 0, 0, 1]
    assert found.per_residue_violation_mask[0].tolist() == [True, False, False, True]
    assert found.loss.tolist() == pytest.approx([0.9])  # once for either atom, over two atoms
    with paperops.use_backend(target[1]):
        (pull,) = torch.autograd.grad(found.loss.sum(), given["positions"])
    expected = torch.zeros_like(pull)
    expected[0, 0, CB, 2], expected[0, 3, CB, 2] = 1, -1
    torch.testing.assert_close(pull, expected)


@backend
def test_a_stretched_bond(target):
    """C and N 2 A apart: 2 - 1.329 less twelve deviations of 0.014 A."""
    given = atoms_at(target, {(0, C): [0.0, 0, 0], (1, N): [2.0, 0, 0], (2, N): [9.0, 0, 0]})
    found = violations(target, **given)
    length = math.sqrt(4 + 1e-6)
    expected = math.sqrt((length - residues.C_N_LENGTH[0]) ** 2 + 1e-6) - 12 * residues.C_N_LENGTH_DEVIATION[0]
    assert expected == pytest.approx(2 - 1.329 - 12 * 0.014, abs=1e-5)
    assert float(found.c_n_loss_mean) == pytest.approx(expected, abs=1e-12)
    assert float(found.clash_mean_loss) == float(found.ca_c_n_loss_mean) == float(found.c_n_ca_loss_mean) == 0
    assert found.per_residue_bond_loss_sum[0].tolist() == pytest.approx([expected / 2, expected / 2, 0])
    assert found.per_residue_connection_violation_mask[0].tolist() == [True, True, False]
    given["aatype"][0, 1] = PROLINE
    assert float(violations(target, **given).c_n_loss_mean) == pytest.approx(2 - 1.341 - 12 * 0.016, abs=1e-5)


@backend
@pytest.mark.parametrize("order", [1, -1])
def test_a_bond_is_no_clash_within_its_chain(target, order):
    """Whichever of the two residues stands first; of residues that do not follow each other it is a clash."""
    places = {(0, C if order == 1 else N): [0.0, 0, 0], (1, N if order == 1 else C): [1.3, 0, 0]}
    numbers = [4, 5][::order]
    bound = violations(target, **atoms_at(target, places, residue_index=numbers))
    assert not bound.per_atom_clash_mask.any() and float(bound.clash_mean_loss) == 0
    overlap = pytest.approx(1.7 + 1.55 - 1.5 - 1.3, abs=1e-9)
    for apart in ({"residue_index": [4, 6]}, {"residue_index": numbers, "asym_id": [0, 1]}, {"residue_index": [4, 4]}):
        found = violations(target, **atoms_at(target, places, **apart))
        assert float(found.clash_mean_loss) == overlap
        assert float(found.c_n_loss_mean) == 0


@backend
def test_a_disulfide_bridge_is_no_clash(target):
    """That of two cysteines; another atom in the place of SG is."""
    places = {(0, SG): [0.0, 0, 0], (4, SG): [1.0, 0, 0]}
    types = [CYSTEINE] + [GLYCINE] * 3
    for other, radius, clashes in ((CYSTEINE, 1.8, 0), (PROLINE, 1.7, 1)):
        found = violations(target, **atoms_at(target, places, aatype=[*types, other]))
        assert found.per_atom_num_clashes[0, :, SG].tolist() == [clashes, 0, 0, 0, clashes]
        assert float(found.clash_mean_loss) == pytest.approx(clashes * (1.8 + radius - 1.5 - 1.0), abs=1e-9)


# --- invariance ------------------------------------------------------------------------------------------------------


@kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_moving_everything_changes_nothing(target, dtype):
    """A rotation and a translation by 300 A round a coordinate to eps 300 / 2: an error is off by twice that."""
    given = protein_arguments(1, 24 if INTERPRETED else 60, torch.device(target[0]), dtype)
    turn = Frames.from_quaternion(torch.tensor([0.3, -0.5, 0.7, 0.2], dtype=torch.float64))
    turn = Frames(turn.rotations.to(target[0]), torch.tensor([173.0, -173.0, 173.0]).double().to(target[0]))
    moved = given | {"positions": turn.apply(given["positions"].double()).to(dtype)}
    one, other = violations(target, **given), violations(target, **moved)
    size = torch.finfo(dtype).eps * float(moved["positions"].abs().max())
    assert int(one.per_atom_num_clashes.sum()) > (4 if INTERPRETED else 20)
    assert torch.equal(one.per_atom_num_clashes, other.per_atom_num_clashes)
    assert (one.loss - other.loss).abs().max() < 16 * size
    most = int(one.per_atom_num_clashes.max()) + 2 * 13
    assert (one.per_atom_clash_loss_sum - other.per_atom_clash_loss_sum).abs().max() < 2 * most * size
    assert (one.per_atom_within_loss_sum - other.per_atom_within_loss_sum).abs().max() < 4 * most * size
    expected = gradient(target, **given) @ turn.rotations.to(dtype).T
    found = gradient(target, **moved)
    # A direction is off by a coordinate's error over the length: bonds are about 1 A long, few clashes much shorter.
    assert (found - expected).abs().max() < 64 * most * size * float(expected.abs().max())


@kernels
def test_the_order_of_residues_does_not_matter_for_clashes(target):
    given = protein_arguments(1, 41, torch.device(target[0]), torch.float64)
    order = torch.randperm(41, generator=torch.Generator().manual_seed(0)).to(target[0])
    one, other = violations(target, **given), violations(target, **{k: v[:, order] for k, v in given.items()})
    assert torch.equal(one.per_atom_num_clashes[:, order], other.per_atom_num_clashes)
    torch.testing.assert_close(one.per_atom_clash_loss_sum[:, order], other.per_atom_clash_loss_sum)
    torch.testing.assert_close(one.clash_mean_loss, other.clash_mean_loss)


@kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_no_clash_is_passed_over(target, dtype):
    """Far apart, close together, in one heap: counts and sums are those of all pairs."""
    cases = (2, 70, None), (2, 40, 1.0), (2, 40, 4.0), (2, 40, 20.0)
    for *size, spread in ((1, 30, None), (1, 15, 1.0), (1, 25, 10.0)) if INTERPRETED else cases:
        given = protein_arguments(*size, torch.device(target[0]), dtype, spread)
        found = violations(target, **given)
        exact = reference.structural_violations(**{k: v.double() if k == "positions" else v for k, v in given.items()})
        assert int(exact.per_atom_num_clashes.sum()) > 0
        assert torch.equal(found.per_atom_num_clashes, exact.per_atom_num_clashes)


# --- what is not there, and what is not a number ---------------------------------------------------------------------


@backend
def test_what_a_masked_atom_holds_does_not_matter(target):
    given = protein_arguments(*((1, 9) if INTERPRETED else (2, 23)), torch.device(target[0]), torch.float64, spread=3.0)
    generator = torch.Generator().manual_seed(0)
    mask = given["mask"].bool() & (torch.rand(given["mask"].shape, generator=generator) > 0.3).to(target[0])
    expected, pull = violations(target, **given | {"mask": mask}), gradient(target, **given | {"mask": mask})
    assert not pull[~mask].any()
    for value in (math.nan, math.inf, 1e30):
        there = given | {"mask": 0.3 * mask.double(), "positions": given["positions"].clone()}
        there["positions"][~mask] = value
        for one, other in zip(expected, violations(target, **there), strict=True):
            assert torch.equal(one, other)
        assert torch.equal(pull, gradient(target, **there))


@backend
def test_a_nan_is_passed_on(target):
    """An atom at NaN may be anywhere: no sum over pairs with it is a number."""
    given = protein_arguments(2, 23, torch.device(target[0]), torch.float64)
    given["positions"][0, 11, 1, 2] = math.nan
    found = violations(target, **given)
    assert found.loss.isnan().tolist() == found.clash_mean_loss.isnan().tolist() == [True, False]
    there = given["mask"][0].bool()
    there[11] = False  # within a residue there are no clashes
    assert found.per_atom_clash_loss_sum[0].isnan()[there].all()


@backend
def test_degenerate_structures_have_finite_gradients(target):
    for n in (1, 2, 9):
        given = protein_arguments(1, n, torch.device(target[0]), torch.float32)
        for positions in (torch.zeros_like(given["positions"]), torch.full_like(given["positions"], 1000.0)):
            found = violations(target, **given | {"positions": positions})
            assert all(value.isfinite().all() for value in found)
            assert gradient(target, **given | {"positions": positions}).isfinite().all()
        nothing = violations(target, **given | {"mask": torch.zeros_like(given["mask"])})
        assert not any(value.any() for value in nothing)
        assert not nothing.loss.any()


# --- size ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(backends.missing("native", "cpu") is not None, reason="no native library")
def test_memory_grows_with_the_number_of_residues():
    peaks = []
    for n in (4096, 8192):  # at which the resident set tells
        given = protein_arguments(1, n, CPU, torch.float32)
        positions = given["positions"].requires_grad_()

        def both(given=given, positions=positions):
            with paperops.use_backend("native"):
                return torch.autograd.grad(paperops.structural_violations(**given).loss.sum(), positions)

        both()
        peaks.append(memory.peak(both, CPU))
    small, large = peaks
    assert large < 2.5 * small + 1e6, peaks
    assert large < 8192 * 14 * 200, peaks  # a few numbers an atom


def test_compiles_with_tolerances_that_change():
    """torch.compile makes a number that differs between calls symbolic."""
    torch.compiler.reset()
    function = torch.compile(
        lambda factor, *given: paperops.structural_violations(*given, None, factor).loss,
        fullgraph=True,
        backend="aot_eager",
    )
    generator = torch.Generator().manual_seed(0)
    positions = 3 * torch.randn(1, 4, 14, 3, generator=generator, dtype=torch.float64)
    given = (positions, torch.ones(1, 4, 14), torch.tensor([[0, 4, 14, 18]]), torch.arange(4)[None])
    for factor in (12.0, 11.0, 3.0):
        assert torch.equal(function(factor, *given), paperops.structural_violations(*given, None, factor).loss)

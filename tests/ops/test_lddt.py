"""What is particular to lddt, beyond the generic checks."""

import math

import pytest
import torch
from paperops.benchmarks import memory

import paperops
from paperops import backends
from paperops.geometry import Frames
from paperops.testing.lddt import lddt_arguments
from paperops.testing.targets import targets

CPU = torch.device("cpu")
backend = pytest.mark.parametrize("target", targets("cuda"), ids="-".join)


def score(target, **given):
    with paperops.use_backend(target[1]):
        return paperops.lddt(**given)


@backend
def test_term_by_term(target):
    """With Python's own numbers, one pair at a time."""
    given = lddt_arguments(2, 23, torch.device(target[0]), torch.float64)
    pred, true, mask = (value.tolist() for value in given.values())
    found = score(target, **given, per_residue=True).tolist()
    whole = score(target, **given).tolist()
    for b in range(2):
        all_pairs = all_kept = 0
        for i in range(23):
            pairs = kept = 0
            for j in range(23):
                distance = math.dist(true[b][i], true[b][j])
                if i != j and mask[b][i] and mask[b][j] and distance < 15:
                    error = abs(math.dist(pred[b][i], pred[b][j]) - distance)
                    pairs += 1
                    kept += sum(error < threshold for threshold in (0.5, 1, 2, 4))
            assert found[b][i] == pytest.approx(kept / (4 * pairs) if pairs else 1, abs=1e-15)
            all_pairs, all_kept = all_pairs + pairs, all_kept + kept
        assert whole[b] == pytest.approx(all_kept / (4 * all_pairs), abs=1e-15)


@backend
def test_of_the_truth_itself_it_is_one(target):
    given = lddt_arguments(2, 40, torch.device(target[0]), torch.float32)
    given["pred_positions"] = given["target_positions"]
    assert (score(target, **given) == 1).all() and (score(target, **given, per_residue=True) == 1).all()


@backend
def test_where_there_is_no_pair_it_is_one(target):
    """Masked residues, residues far from all others, a whole item without anything."""
    given = lddt_arguments(2, 9, torch.device(target[0]), torch.float32)
    given["mask"][:] = True
    given["mask"][0] = False
    given["target_positions"][1, 4] += 1000
    assert score(target, **given)[0] == 1
    found = score(target, **given, per_residue=True)
    assert (found[0] == 1).all() and found[1, 4] == 1
    assert (found[1] < 1).sum() > 4


@backend
def test_moving_one_of_both_changes_nothing(target):
    """Each by a rotation and a translation of its own: only distances count."""
    given = lddt_arguments(1, 40, torch.device(target[0]), torch.float32)
    turn = Frames.from_quaternion(
        torch.tensor([0.3, -0.5, 0.7, 0.2]), torch.tensor([173.0, -173.0, 173.0])
    )  # 300 units, where a coordinate is known to 2e-5
    moved = given | {"pred_positions": turn.apply(given["pred_positions"].cpu()).to(given["pred_positions"])}
    assert torch.equal(score(target, **given, per_residue=True), score(target, **moved, per_residue=True))


@backend
def test_nan_of_residues_that_are_there(target):
    """A pair without a true distance does not count, one without a predicted distance is missed."""
    given = lddt_arguments(1, 12, torch.device(target[0]), torch.float64)
    given["mask"][:] = True
    rest = given | {name: value[:, 1:] for name, value in given.items()}
    without = score(target, **rest, per_residue=True)
    truth = given["target_positions"].clone()
    truth[:, 0] = float("nan")
    found = score(target, **(given | {"target_positions": truth}), per_residue=True)
    assert found[0, 0] == 1 and torch.equal(found[:, 1:], without)
    prediction = given["pred_positions"].clone()
    prediction[:, 0] = float("nan")
    missed = score(target, **(given | {"pred_positions": prediction}), per_residue=True)
    assert missed[0, 0] == 0 and (missed[:, 1:] <= without).all() and (missed[:, 1:] < without).any()


@backend
def test_a_distance_on_the_bound_is_beyond_it(target):
    """15 A exactly, of numbers without a rounding: not below the cutoff; nor an error of exactly 2 A below 2."""
    true = torch.tensor([[[0.0, 0.0, 0.0], [9.0, 12.0, 0.0], [3.0, 4.0, 0.0]]], device=target[0])
    pred = torch.tensor([[[0.0, 0.0, 0.0], [9.0, 12.0, 0.0], [4.2, 5.6, 0.0]]], device=target[0]).double()
    pred[0, 2] = torch.tensor([7.0, 0.0, 0.0])
    mask = torch.ones(1, 3, device=target[0])
    found = score(target, pred_positions=pred, target_positions=true.double(), mask=mask, per_residue=True)
    assert found[0, 0] == 0.25  # of residue 2 alone, |7 - 5| = 2, below 4


@backend
def test_never_requires_a_gradient(target):
    given = lddt_arguments(1, 8, torch.device(target[0]), torch.float32)
    for name in ("pred_positions", "target_positions"):
        given[name].requires_grad_()
    assert not score(target, **given).requires_grad
    assert not paperops.reference.lddt(**given).requires_grad


@pytest.mark.skipif(backends.missing("native", "cpu") is not None, reason="no native library")
def test_memory():
    """Nothing that grows as N^2."""
    given = lddt_arguments(1, 2048, CPU, torch.float32)
    with paperops.use_backend("native"):
        assert memory.peak(lambda: paperops.lddt(**given, per_residue=True), CPU) < 2048 * 200

"""The frame aligned point errors and the renaming of symmetric atoms against Algorithms 28 and 26, in float64."""

import math

import pytest
import torch

from paperops.geometry import Frames, swap_symmetric_atoms
from paperops.models.alphafold2 import (
    backbone_fape,
    rename_symmetric_atoms,
    sidechain_fape,
)
from paperops.residues import ATOM14, LETTERS, tables
from paperops.testing.values import assert_same, random, random_frames

# --- frame aligned point error --------------------------------------------------------------------------------------


def algorithm_28(pred, true, frames_kept, x, x_true, points_kept, pairs, clamp, scale, eps):
    """One sample; the sum of terms, the number of pairs."""
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(pred.translations)):
        for j in range(len(x)):
            if frames_kept[i] and points_kept[j] and pairs(i, j):
                ours = pred.rotations[i].T @ (x[j] - pred.translations[i])
                theirs = true.rotations[i].T @ (x_true[j] - true.translations[i])
                distance = torch.sqrt(((ours - theirs) ** 2).sum() + eps)
                total = total + (distance if clamp is None else distance.clamp(max=clamp)) / scale
    return total


@pytest.mark.parametrize("chains", [False, True])
@pytest.mark.parametrize("share", [1.0, 0.0, "each"])
def test_backbone_fape(share, chains):
    n, blocks, eps = 5, 3, 1e-4
    leaves = [value.requires_grad_() for value in random_frames(blocks, 2, n)]
    true = random_frames(2, n, seed=10)
    mask = torch.tensor([[1, 1, 0, 1, 1], [1, 1, 1, 1, 1]]).double()
    asym_id = torch.tensor([[1, 1, 1, 2, 2], [4, 7, 7, 4, 9]]) if chains else None
    shares = torch.tensor([1.0, 0.25], dtype=torch.float64) if share == "each" else torch.full((2,), share).double()
    found = backbone_fape(
        *leaves, *true, mask, asym_id=asym_id, clamped_share=shares if share == "each" else share,
        l1_clamp_distance=9.0, between_l1_clamp_distance=12.0,
    )  # fmt: skip
    expected = []
    for sample in range(2):
        kept, of_blocks = mask[sample].bool(), []
        for block in range(blocks):
            pred = Frames(*(value[block, sample] for value in leaves))
            target = Frames(*(value[sample] for value in true))
            kinds = [(lambda i, j: True, 9.0, 10.0)]
            if chains:
                same = asym_id[sample][:, None] == asym_id[sample]
                kinds = [
                    (lambda i, j, same=same: bool(same[i, j]), 9.0, 10.0),
                    (lambda i, j, same=same: not same[i, j], 12.0, 20.0),
                ]
            value = torch.zeros((), dtype=torch.float64)
            for pairs, clamp, scale in kinds:
                count = sum(bool(kept[i] and kept[j] and pairs(i, j)) for i in range(n) for j in range(n))
                norm = eps + count if chains else (eps + int(kept.sum())) ** 2
                for weight, bound in ((shares[sample], clamp), (1 - shares[sample], None)):
                    args = (kept, pred.translations, target.translations, kept, pairs, bound, scale, eps)
                    value = value + weight * algorithm_28(pred, target, *args) / norm
            of_blocks.append(value)
        expected.append(sum(of_blocks) / blocks)
    assert_same(found, torch.stack(expected), leaves)


def test_sidechain_fape():
    n, eps = 3, 1e-4
    pred, true = random_frames(2, n, 8), random_frames(2, n, 8, seed=10)
    matrices = torch.zeros(2, n, 8, 4, 4, dtype=torch.float64)
    matrices[..., :3, :3], matrices[..., :3, 3], matrices[..., 3, 3] = *pred, 1
    leaves = [matrices.requires_grad_(), (8 * random(2, n, 14, 3, seed=20)).requires_grad_()]
    x_true = 8 * random(2, n, 14, 3, seed=21)
    frames_mask, mask = random(2, n, 8, seed=22) > -0.5, random(2, n, 14, seed=23) > -0.5
    found = sidechain_fape(*leaves, *true, frames_mask, x_true, mask.double())
    expected = []
    for sample in range(2):
        groups = leaves[0][sample].flatten(0, 1)
        value = algorithm_28(
            Frames(groups[:, :3, :3], groups[:, :3, 3]), Frames(*(v[sample].flatten(0, 1) for v in true)),
            frames_mask[sample].flatten(), leaves[1][sample].flatten(0, 1), x_true[sample].flatten(0, 1),
            mask[sample].flatten(), lambda i, j: True, 10.0, 10.0, eps,
        )  # fmt: skip
        expected.append(value / (eps + int(frames_mask[sample].sum())) / (eps + int(mask[sample].sum())))
    assert_same(found, torch.stack(expected), leaves)


def test_fape_is_invariant_and_knows_hands():
    """Moving all of the prediction changes nothing: within 300 Angstrom's roundings; its mirror image does."""
    pred, true, mask = random_frames(2, 3, 7), random_frames(3, 7, seed=10), torch.ones(3, 7)
    before = backbone_fape(*pred, *true, mask)
    turn = Frames.from_quaternion(random(4, seed=30), 300 * random(3, seed=31))
    torch.testing.assert_close(backbone_fape(*turn.compose(pred), *true, mask), before, rtol=0, atol=1e-12)
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    image = mirror @ true.rotations @ mirror, true.translations @ mirror
    ones = [value[None] for value in true]
    assert (backbone_fape(*ones, *true, mask) < 0.0011).all()
    assert (backbone_fape(*(value[None] for value in image), *true, mask) > 0.1).all()


def test_what_masked_residues_hold_does_not_matter_to_fape():
    mask = torch.tensor([[1, 0, 1, 1]])
    pred, true = random_frames(2, 1, 4), random_frames(1, 4, seed=10)
    clean = backbone_fape(*pred, *true, mask.bool())
    leaves = [value.masked_fill((mask == 0).reshape(1, 4, *(1,) * (value.dim() - 3)), math.nan) for value in pred]
    target = [value.masked_fill((mask == 0).reshape(1, 4, *(1,) * (value.dim() - 2)), math.nan) for value in true]
    leaves = [value.requires_grad_() for value in leaves]
    found = backbone_fape(*leaves, *target, mask.bool())
    assert torch.equal(found, clean)
    assert all(value.isfinite().all() for value in torch.autograd.grad(found.sum(), leaves))


# --- renaming -------------------------------------------------------------------------------------------------------


def algorithm_26(pred, true, mask, aatype):
    """One chain: which residues' atoms get the other names."""
    pairs = {"D": [("OD1", "OD2")], "E": [("OE1", "OE2")]}
    pairs |= {letter: [("CD1", "CD2"), ("CE1", "CE2")] for letter in "FY"}
    letters = [LETTERS[number] if number < 20 else "X" for number in aatype]
    swaps = []
    for letter, number in zip(letters, aatype, strict=True):
        names, swap = ATOM14[number], {}
        for a, b in pairs.get(letter, []):
            swap |= {names.index(a): names.index(b), names.index(b): names.index(a)}
        swaps.append(swap)
    result = []
    for i, swap in enumerate(swaps):
        sums = [0.0, 0.0]
        for a, b in swap.items():
            if not (mask[i, a] and mask[i, b]):
                continue
            for j in range(len(swaps)):
                for c in range(14):
                    if mask[j, c] and c not in swaps[j]:
                        ours = (pred[i, a] - pred[j, c]).norm()
                        for number, atom in enumerate((a, b)):
                            sums[number] += abs(ours - (true[i, atom] - true[j, c]).norm())
        result.append(bool(sums[1] < sums[0]))
    return torch.tensor(result)


@pytest.mark.parametrize("distances", [1 << 23, 100])
def test_renaming_is_algorithm_26(distances, monkeypatch):
    """In one piece, and in pieces of one residue."""
    monkeypatch.setattr("paperops.models.alphafold2.symmetry._DISTANCES", distances)
    aatype = torch.tensor([[LETTERS.index(letter) for letter in "DFAYERD"] + [20], list(range(8))])
    there = tables().atom14_exists[aatype] & (random(2, 8, 14, seed=3) > -1.2)
    pred, true = 6 * random(2, 8, 14, 3, seed=1), 6 * random(2, 8, 14, 3, seed=2)
    true = torch.where(there[..., None], true, math.nan)
    found = rename_symmetric_atoms(torch.where(there[..., None], pred, math.inf), true, there.double(), aatype)
    expected = torch.stack([algorithm_26(*item) for item in zip(pred, true, there, aatype, strict=True)])
    assert torch.equal(found.swapped, expected)
    assert expected.any() and not expected[:, [2, 5, 7]][0].any()
    other = swap_symmetric_atoms(aatype, true, there)
    for sample in range(2):
        for i in range(8):
            positions, mask = (other.positions, other.mask) if expected[sample, i] else (true, there)
            assert torch.equal(found.mask[sample, i], mask[sample, i].bool())
            kept = found.mask[sample, i]
            assert torch.equal(found.positions[sample, i][kept], positions[sample, i][kept])
            assert not found.positions[sample, i][~kept].any()


def test_renaming_finds_the_names_of_a_copy():
    """Of a prediction that is the truth, in the other names, 300 Angstrom away in float32 and turned: every residue."""
    aatype = torch.tensor([LETTERS.index(letter) for letter in "DEFYDEFYAG"])
    there = tables().atom14_exists[aatype]
    true = (8 * random(10, 14, 3)).float()
    turn = Frames.from_quaternion(random(4, seed=30), 300 * random(3, seed=31))
    pred = turn.apply(true.double().reshape(-1, 3)).reshape(10, 14, 3).float()
    expected = torch.tensor([1, 1, 1, 1, 1, 1, 1, 1, 0, 0]).bool()
    swapped = swap_symmetric_atoms(aatype, true, there).positions
    assert torch.equal(rename_symmetric_atoms(pred, swapped, there, aatype).swapped, expected)
    assert not rename_symmetric_atoms(pred, true, there, aatype).swapped.any()
    for n in (0, 1):
        found = rename_symmetric_atoms(pred[:n], swapped[:n], there[:n], aatype[:n])
        assert torch.equal(found.swapped, torch.zeros(n).bool() if n == 0 else expected[:1])

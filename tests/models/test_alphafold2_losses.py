"""The losses against their definitions, term by term, in float64: values and all gradients."""

import math

import pytest
import torch

import paperops
from paperops.geometry import Frames
from paperops.models.alphafold2 import (
    FINE_TUNING_WEIGHTS,
    WEIGHTS,
    aligned_error_loss,
    backbone_fape,
    plddt_loss,
    rename_symmetric_atoms,
    sidechain_fape,
    torsion_angle_loss,
    violation_loss,
)
from paperops.residues import tables
from paperops.testing.values import assert_same, random, random_frames

# --- torsions -------------------------------------------------------------------------------------------------------


def test_torsion_loss_is_algorithm_27():
    blocks, n, eps = 2, 4, 1e-6
    raw = random(blocks, 2, n, 7, 2).requires_grad_()
    target, other = (value / value.norm(dim=-1, keepdim=True) for value in random(2, 2, n, 7, 2, seed=1))
    mask, residues = random(2, n, 7, seed=2) > 0, torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1]])
    hidden = (~mask)[..., None]
    found = torsion_angle_loss(
        raw.masked_fill((residues == 0)[..., None, None], math.nan), target.masked_fill(hidden, math.nan),
        other.masked_fill(hidden, math.inf), mask, residues.double(), norm_weight=0.1,
    )  # fmt: skip
    expected = []
    for sample in range(2):
        angles, lengths = [], []
        for block in range(blocks):
            for i in range(n):
                for f in range(7):
                    a = raw[block, sample, i, f]
                    if not residues[sample, i]:
                        continue
                    lengths.append((torch.sqrt(a[0] ** 2 + a[1] ** 2 + eps) - 1).abs())
                    if mask[sample, i, f]:
                        unit = a / torch.sqrt(a[0] ** 2 + a[1] ** 2)
                        both = [((unit - value[sample, i, f]) ** 2).sum() for value in (target, other)]
                        angles.append(min(both))
        expected.append(sum(angles) / len(angles) + 0.1 * sum(lengths) / len(lengths))
    assert_same(found, torch.stack(expected), [raw])


def test_torsion_loss_degenerate():
    raw = torch.zeros(1, 3, 7, 2, requires_grad=True)
    target = torch.zeros(3, 7, 2)
    found = torsion_angle_loss(raw, target, target, torch.ones(3, 7))
    assert found.item() == pytest.approx(0.02 * 0.999)
    assert torch.autograd.grad(found, raw)[0].isfinite().all()
    assert torsion_angle_loss(raw, target, target, torch.zeros(3, 7), torch.zeros(3)).item() == 0
    assert torsion_angle_loss(raw[:, :0], target[:0], target[:0], torch.zeros(0, 7)).item() == 0


# --- heads ----------------------------------------------------------------------------------------------------------


def test_plddt_loss():
    n, bins = 9, 10
    true = 6 * random(2, n, 3)
    pred = true + random(2, n, 3, seed=1) * torch.tensor([0.3, 3.0])[:, None, None]
    logits = random(2, n, bins, seed=2).requires_grad_()
    mask = torch.tensor([[1] * 9, [1, 1, 0, 1, 1, 1, 0, 1, 1]]).bool()
    hide = (~mask)[..., None]
    found = plddt_loss(
        logits.masked_fill(hide, math.nan), pred.masked_fill(hide, math.nan), true.masked_fill(hide, math.inf), mask
    )
    expected, bins_seen = [], set()
    for sample in range(2):
        terms = []
        for i in range(n):
            if not mask[sample, i]:
                continue
            score, count = 0, 0
            for j in range(n):
                distance = (true[sample, i] - true[sample, j]).norm()
                if j != i and mask[sample, j] and distance < 15:
                    error = (distance - (pred[sample, i] - pred[sample, j]).norm()).abs()
                    score += sum(bool(error < bound) for bound in (0.5, 1, 2, 4))
                    count += 4
            number = min(bins - 1, int(score * bins / count)) if count else bins - 1
            bins_seen.add(number)
            row = logits[sample, i]
            terms.append(torch.log(torch.exp(row).sum()) - row[number])
        expected.append(sum(terms) / len(terms))
    assert len(bins_seen) > 3
    assert_same(found, torch.stack(expected), [logits])
    some = plddt_loss(logits, pred, true, mask, resolution=torch.tensor([2.0, 3.5]))
    torch.testing.assert_close(some, found * torch.tensor([1, 0]))


def test_aligned_error_loss():
    n, bins = 4, 8
    pred, true = random_frames(2, n), random_frames(2, n, seed=10)
    logits = random(2, n, n, bins, seed=2).requires_grad_()
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1]]).bool()
    gone = ~mask
    hidden = [value.masked_fill(gone.reshape(2, n, *(1,) * (value.dim() - 2)), math.nan) for value in (*pred, *true)]
    pairs = gone[:, :, None] | gone[:, None]
    found = aligned_error_loss(logits.masked_fill(pairs[..., None], math.nan), *hidden, mask, max_bin=24)
    expected, bins_seen = [], set()
    for sample in range(2):
        terms = []
        for i in range(n):
            for j in range(n):
                if mask[sample, i] and mask[sample, j]:
                    ours = pred.rotations[sample, i].T @ (pred.translations[sample, j] - pred.translations[sample, i])
                    right = true.rotations[sample, i].T @ (true.translations[sample, j] - true.translations[sample, i])
                    error = float((ours - right).norm())
                    number = sum(error > 4 * edge for edge in range(bins - 1))  # the edges 0, 4, ..., 24
                    bins_seen.add(number)
                    row = logits[sample, i, j]
                    terms.append(torch.log(torch.exp(row).sum()) - row[number])
        expected.append(sum(terms) / len(terms))
    assert {0, bins - 1} < bins_seen
    assert_same(found, torch.stack(expected), [logits])
    some = aligned_error_loss(logits, *pred, *true, mask, max_bin=24, resolution=torch.tensor([0.05, 0.1]).double())
    torch.testing.assert_close(some, found * torch.tensor([0, 1]))


def test_nothing_to_count_is_0():
    logits, x = torch.zeros(2, 3, 50, requires_grad=True), torch.zeros(2, 3, 3)
    nothing, ones = torch.zeros(2, 3), Frames.identity(2, 3)
    pairs = torch.zeros(2, 3, 3, 64, requires_grad=True)
    for found, leaf in (
        (plddt_loss(logits, x, x, nothing), logits),
        (aligned_error_loss(pairs, *ones, *ones, nothing), pairs),
        (plddt_loss(logits[:, :0], x[:, :0], x[:, :0], nothing[:, :0]), logits),
        (aligned_error_loss(pairs[:, :0, :0], *Frames.identity(2, 0), *Frames.identity(2, 0), nothing[:, :0]), pairs),
    ):
        assert torch.equal(found, torch.zeros(2))
        assert not torch.autograd.grad(found.sum(), leaf)[0].any()
    rotations, translations = (value[None].requires_grad_() for value in ones)
    found = backbone_fape(rotations, translations, *ones, nothing)
    assert torch.equal(found, torch.zeros(2))
    assert not any(value.any() for value in torch.autograd.grad(found.sum(), [rotations, translations]))


# --- violations -----------------------------------------------------------------------------------------------------


def test_violation_loss():
    aatype = torch.randint(0, 20, (2, 3, 5), generator=torch.Generator().manual_seed(0))
    positions = (3 * random(2, 3, 5, 14, 3)).requires_grad_()
    mask, index = torch.ones(2, 3, 5, 14), torch.arange(5).expand(2, 3, 5)
    found = violation_loss(positions, mask, aatype, index)
    expected = []
    for item in range(6):
        v = paperops.structural_violations(
            *(value.reshape(6, *value.shape[2:])[item : item + 1] for value in (positions, mask, aatype, index))
        )
        atoms = tables().atom14_exists[aatype.reshape(6, 5)[item]].sum()
        clash = (v.per_atom_clash_loss_sum + v.per_atom_within_loss_sum).sum() / (1e-6 + atoms)
        expected.append((v.c_n_loss_mean + v.ca_c_n_loss_mean + v.c_n_ca_loss_mean)[0] + clash)
    expected = torch.stack(expected).reshape(2, 3)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    for one, other in zip(*(torch.autograd.grad(value.sum(), positions) for value in (found, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


# --- together -------------------------------------------------------------------------------------------------------


def everything(pred, groups, atoms, logits, pairs, given):
    """All losses of one sample, weighed as AlphaFold2 does."""
    true, target, mask, aatype, index, angles, torsions = given
    chain = torch.ones_like(aatype)
    renamed = rename_symmetric_atoms(atoms, target, mask, aatype)
    every = torch.ones_like(aatype, dtype=torch.bool)
    eight = [value.unsqueeze(2).repeat_interleave(8, 2) for value in true]
    return torch.stack([
        WEIGHTS.backbone * backbone_fape(*pred, *true, every, asym_id=chain, clamped_share=0.9),
        WEIGHTS.sidechain * sidechain_fape(groups, atoms, *eight, mask[..., :8], renamed.positions, renamed.mask),
        WEIGHTS.torsion * torsion_angle_loss(angles, torsions, torsions, mask[..., :7]),
        WEIGHTS.plddt * plddt_loss(logits, atoms[..., 1, :], target[..., 1, :], every),
        WEIGHTS.aligned_error * aligned_error_loss(pairs, pred[0][-1], pred[1][-1], *true, every),
        FINE_TUNING_WEIGHTS.violation * violation_loss(atoms, mask, aatype, index),
    ])  # fmt: skip


def together(dtype):
    aatype = torch.randint(0, 20, (2, 6), generator=torch.Generator().manual_seed(0))
    pred, true = random_frames(2, 2, 6), random_frames(2, 6, seed=10)
    matrices = torch.eye(4, dtype=torch.float64).repeat(2, 6, 8, 1, 1)
    leaves = [*pred, matrices, 5 * random(2, 6, 14, 3, seed=5), random(2, 6, 50, seed=6), random(2, 6, 6, 64, seed=7)]
    angles, torsions = random(2, 2, 6, 7, 2, seed=8), random(2, 6, 7, 2, seed=9)
    mask, index = tables().atom14_exists[aatype], torch.arange(6).expand(2, 6)
    leaves = [value.to(dtype).requires_grad_() for value in [*leaves, angles]]
    true, target = [value.to(dtype) for value in true], (5 * random(2, 6, 14, 3, seed=11)).to(dtype)

    def call(function=everything):
        rotations, translations, groups, atoms, logits, pairs, turned = leaves
        given = (true, target, mask, aatype, index, turned, torsions.to(dtype))
        return function((rotations, translations), groups, atoms, logits, pairs, given)

    return call, leaves


def test_compile():
    call, leaves = together(torch.float32)
    compiled, eager = call(torch.compile(everything, fullgraph=True, backend="aot_eager")), call()
    torch.testing.assert_close(compiled, eager)
    for one, other in zip(*(torch.autograd.grad(value.sum(), leaves) for value in (compiled, eager)), strict=True):
        torch.testing.assert_close(one, other)


def test_the_slow_twin_and_single_precision():
    found, leaves = {}, {}
    for dtype in (torch.float64, torch.float32):
        call, given = together(dtype)
        found[dtype], leaves[dtype] = call(), given
        with paperops.use_backend("reference"):
            slow = call()
            right = torch.autograd.grad(slow.sum(), given)
        bound = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-6}
        torch.testing.assert_close(found[dtype], slow, **bound)
        for one, other in zip(torch.autograd.grad(found[dtype].sum(), given), right, strict=True):
            torch.testing.assert_close(one, other, **bound)
    assert found[torch.float32].dtype == torch.float32
    torch.testing.assert_close(found[torch.float32].double(), found[torch.float64], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    call, _ = together(torch.float32)
    with torch.autocast("cpu", dtype):
        inside = call()
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, call())
    found = together(dtype)[0]()
    assert found.dtype == torch.float32 and found.isfinite().all()
    torch.testing.assert_close(found[0], call()[0], rtol=0.05, atol=0.01)


# --- errors ---------------------------------------------------------------------------------------------------------


def test_refused():
    pred, true, mask = random_frames(2, 1, 4), random_frames(1, 4), torch.ones(1, 4)
    short = Frames(true.rotations[:, :3], true.translations[:, :3])
    atoms, there, aatype = random(1, 4, 14, 3), torch.ones(1, 4, 14), torch.zeros(1, 4, dtype=torch.int64)
    angles, torsions = random(2, 1, 4, 7, 2), random(1, 4, 7, 2)
    logits, pairs, x = torch.zeros(1, 4, 50).double(), torch.zeros(1, 4, 4, 64).double(), random(1, 4, 3)
    eight, matrices = random_frames(1, 4, 8), torch.zeros(1, 4, 8, 4, 4).double()
    for call, error, said in (
        (lambda: backbone_fape(*true, *true, mask), ValueError, r"target_translations must have shape \[4, 3\]"),
        (lambda: backbone_fape(*pred, *short, mask), ValueError, r"target_translations must have shape \[1, 4, 3\]"),
        (lambda: backbone_fape(*pred, *true, mask[:, :3]), ValueError, r"mask must have shape \[1, 4\]"),
        (lambda: backbone_fape(*pred, *true, None), TypeError, "mask must be a torch.Tensor"),
        (
            lambda: backbone_fape(*pred, *true, mask, asym_id=aatype[:, :3]),
            ValueError,
            r"asym_id must have shape \[1, 4\]",
        ),
        (
            lambda: backbone_fape(*pred, *true, mask, clamped_share=1.5),
            ValueError,
            "clamped_share must be a probability",
        ),
        (
            lambda: backbone_fape(*pred, *true, mask, clamped_share=torch.tensor([-0.5])),
            ValueError,
            "clamped_share must be from 0 to 1; got -0.5",
        ),
        (
            lambda: backbone_fape(*pred, *true, mask, clamped_share=torch.ones(3)),
            ValueError,
            r"clamped_share must be a number or floating, of shape \[1\], one a sample; got torch.float32 \[3\]",
        ),
        (lambda: backbone_fape(*pred, *true, mask, length_scale=-1), ValueError, "length_scale must be positive"),
        (lambda: backbone_fape(*pred, *true, mask, l1_clamp_distance=-1.0), ValueError, "l1_clamp_distance must"),
        (
            lambda: sidechain_fape(matrices[..., :3], atoms, *eight, mask, atoms, there),
            ValueError,
            r"sidechain_frames must have shape \[\*, N, 8, 4, 4\]; got \[1, 4, 8, 4, 3\]",
        ),
        (
            lambda: sidechain_fape(matrices, atoms, *eight, mask, atoms, there),
            ValueError,
            r"frames_mask must have shape \[1, 4, 8\] for sidechain_frames of \[1, 4, 8, 4, 4\]; got \[1, 4\]",
        ),
        (
            lambda: rename_symmetric_atoms(atoms[..., :4, :], atoms, there, aatype),
            ValueError,
            r"pred_positions must have shape \[\*, N, 14, 3\]; got \[1, 4, 4, 3\]",
        ),
        (
            lambda: rename_symmetric_atoms(atoms, atoms[:, :3], there, aatype),
            ValueError,
            "target_positions must have the shape of pred_positions",
        ),
        (
            lambda: rename_symmetric_atoms(atoms, atoms.float(), there, aatype),
            TypeError,
            "target_positions must have the dtype of pred_positions, torch.float64; got torch.float32",
        ),
        (lambda: rename_symmetric_atoms(atoms, atoms, there[:, :3], aatype), ValueError, "target_mask must have shape"),
        (lambda: rename_symmetric_atoms(atoms, atoms, there, aatype + 21), ValueError, "aatype must be types .*got 21"),
        (
            lambda: torsion_angle_loss(angles[..., :6, :], torsions, torsions, there[..., :7]),
            ValueError,
            r"unnormalized_angles must have shape \[blocks, \*, N, 7, 2\]; got \[2, 1, 4, 6, 2\]",
        ),
        (
            lambda: torsion_angle_loss(angles, torsions[:, :3], torsions, there[..., :7]),
            ValueError,
            r"target must have shape \[1, 4, 7, 2\]",
        ),
        (
            lambda: torsion_angle_loss(angles, torsions, torsions.float(), there[..., :7]),
            TypeError,
            "alternative_target must have dtype torch.float64",
        ),
        (lambda: torsion_angle_loss(angles, torsions, torsions, mask), ValueError, r"mask must have shape \[1, 4, 7\]"),
        (
            lambda: torsion_angle_loss(angles, torsions, torsions, there[..., :7], norm_weight=-1),
            ValueError,
            "norm_weight must be finite and not negative",
        ),
        (lambda: plddt_loss(logits.long(), x, x, mask), TypeError, "logits must have a floating dtype"),
        (lambda: plddt_loss(logits, x[:, :3], x, mask), ValueError, r"pred_positions must have shape \[1, 4, 3\]"),
        (lambda: plddt_loss(logits, x, x.float(), mask), TypeError, "target_positions must have the dtype of pred_"),
        (lambda: plddt_loss(logits, x, x, mask, cutoff=0), ValueError, "cutoff must be positive"),
        (
            lambda: plddt_loss(logits, x, x, mask, resolution=torch.ones(3)),
            ValueError,
            r"resolution must be floating, of shape \[1\], one a sample; got torch.float32 \[3\]",
        ),
        (lambda: aligned_error_loss(pairs[:, :3], *true, *true, mask), ValueError, "logits must be square"),
        (lambda: aligned_error_loss(pairs[..., :2], *true, *true, mask), ValueError, "no_bins must be at least 3"),
        (
            lambda: aligned_error_loss(pairs, *short, *true, mask),
            ValueError,
            r"translations must have shape \[1, 4, 3\]",
        ),
        (lambda: aligned_error_loss(pairs, *true, *true, mask, max_bin=0), ValueError, "max_bin must be positive"),
        (lambda: violation_loss(atoms[..., :4, :], there, aatype, aatype), ValueError, r"positions must have shape"),
        (
            lambda: violation_loss(atoms, there, aatype[0], aatype),
            ValueError,
            r"aatype must have the leading dimensions of positions, \[1\]; got \[4\]",
        ),
    ):
        with pytest.raises(error, match=said):
            call()

"""The losses against their definitions, term by term, in float64: values and all gradients."""

import math

import pytest
import torch

import paperops
from paperops.geometry import Frames, swap_symmetric_atoms
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
from paperops.residues import ATOM14, LETTERS, tables


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def frames(*shape, seed=0, spread=8.0):
    return Frames.from_quaternion(random(*shape, 4, seed=seed), spread * random(*shape, 3, seed=seed + 1))


def assert_same(found, expected, leaves):
    """Values and gradients."""
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    cotangent = random(*found.shape, seed=99)
    ours, right = (torch.autograd.grad(value, leaves, cotangent) for value in (found, expected))
    for one, other in zip(ours, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


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
    leaves = [value.requires_grad_() for value in frames(blocks, 2, n)]
    true = frames(2, n, seed=10)
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
    pred, true = frames(2, n, 8), frames(2, n, 8, seed=10)
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
    pred, true, mask = frames(2, 3, 7), frames(3, 7, seed=10), torch.ones(3, 7)
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
    pred, true = frames(2, 1, 4), frames(1, 4, seed=10)
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
    pred, true = frames(2, n), frames(2, n, seed=10)
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
    pred, true = frames(2, 2, 6), frames(2, 6, seed=10)
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
    pred, true, mask = frames(2, 1, 4), frames(1, 4), torch.ones(1, 4)
    short = Frames(true.rotations[:, :3], true.translations[:, :3])
    atoms, there, aatype = random(1, 4, 14, 3), torch.ones(1, 4, 14), torch.zeros(1, 4, dtype=torch.int64)
    angles, torsions = random(2, 1, 4, 7, 2), random(1, 4, 7, 2)
    logits, pairs, x = torch.zeros(1, 4, 50).double(), torch.zeros(1, 4, 4, 64).double(), random(1, 4, 3)
    eight, matrices = frames(1, 4, 8), torch.zeros(1, 4, 8, 4, 4).double()
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

"""Torsions to frames to atoms and back, against definitions written term by term in float64."""

import pytest
import torch

from paperops import residues
from paperops.geometry import (
    Frames,
    atom14_to_atom37,
    atom37_to_atom14,
    atom37_to_frames,
    atom37_to_torsions,
    frames_to_atom14,
    swap_symmetric_atoms,
    torsions_to_frames,
)
from paperops.residues import ATOM37, constants
from paperops.testing.values import random

DOUBLE = torch.float64
EVERY = torch.arange(21)


def backbone(*shape, seed=0, dtype=DOUBLE):
    found = Frames.from_quaternion(random(*shape, 4, seed=seed), 10 * random(*shape, 3, seed=seed + 1))
    return Frames(*(value.to(dtype) for value in found))


def unit(torsions):
    return torsions / torsions.norm(dim=-1, keepdim=True)


def structure(aatype, seed=0, dtype=DOUBLE):
    """Atoms by name of ideal residues at random torsions, their mask and the torsions."""
    frames, torsions = backbone(*aatype.shape, seed=seed), unit(random(*aatype.shape, 7, 2, seed=seed + 7))
    atoms = frames_to_atom14(aatype, *torsions_to_frames(aatype, *frames, torsions))
    placed = atom14_to_atom37(aatype, atoms, residues.tables().atom14_exists[aatype])
    return placed.positions.to(dtype), placed.mask, torsions, frames


# --- Algorithm 24, one residue, 4 x 4 matrices, from the data file --------------------------------------------------


def matrix(x, y, z, origin):
    found = torch.eye(4, dtype=DOUBLE)
    for column, axis in enumerate((x, y, z, origin)):
        found[:3, column] = axis
    return found


def literature_frame(axis, towards, origin):
    x = axis / torch.sqrt((axis * axis).sum())
    y = towards - (towards * x).sum() * x
    y = y / torch.sqrt((y * y).sum())
    return matrix(
        x, y, torch.stack([x[1] * y[2] - x[2] * y[1], x[2] * y[0] - x[0] * y[2], x[0] * y[1] - x[1] * y[0]]), origin
    )


def algorithm_24(name, rotation, translation, torsions):
    """The eight frames [8, 4, 4] and the atoms by name."""
    torsions = [pair / torch.sqrt((pair * pair).sum()) for pair in torsions]  # line 1
    turns = []
    for sine, cosine in torsions:  # Algorithm 25, makeRotX
        turn = torch.eye(4, dtype=DOUBLE)
        turn[1, 1], turn[1, 2], turn[2, 1], turn[2, 2] = cosine, -sine, sine, cosine
        turns.append(turn)
    residue = constants.RESIDUES.get(name, {"atoms": {}, "chi": []})
    at = {atom: torch.tensor(place, dtype=DOUBLE) for atom, (_, *place) in residue["atoms"].items()}
    literature = [torch.eye(4, dtype=DOUBLE) for _ in range(8)]
    if at:
        literature[2] = literature_frame(at["N"] - at["CA"], torch.tensor([1.0, 0, 0], dtype=DOUBLE), at["N"])
        literature[3] = literature_frame(at["C"] - at["CA"], at["CA"] - at["N"], at["C"])
    for number, (a, b, c, _) in enumerate(residue["chi"]):
        if number == 0:
            literature[4] = literature_frame(at[c] - at[b], at[a] - at[b], at[c])
        else:
            literature[4 + number] = literature_frame(at[c], torch.tensor([-1.0, 0, 0], dtype=DOUBLE), at[c])
    frames = [matrix(*rotation.unbind(-1), translation)]
    for group in range(1, 5):  # lines 2 to 6: omega, phi, psi, chi1
        frames.append(frames[0] @ literature[group] @ turns[group - 1])
    for group in range(5, 8):  # lines 7 to 9: chi2, chi3, chi4
        frames.append(frames[group - 1] @ literature[group] @ turns[group - 1])
    atoms = {}
    for atom, (group, *_) in residue["atoms"].items():  # line 11
        atoms[atom] = (frames[group] @ torch.cat([at[atom], torch.ones(1, dtype=DOUBLE)]))[:3]
    return torch.stack(frames), atoms


def test_algorithm_24_term_by_term_with_gradients():
    """All 21 types; values to 1e-13 and gradients to 1e-11 of the definition's."""
    inputs = [*backbone(21), 3 * random(21, 7, 2, seed=5)]
    ours = [value.clone().requires_grad_() for value in inputs]
    theirs = [value.clone().requires_grad_() for value in inputs]
    frames = torsions_to_frames(EVERY, *ours)
    atoms = frames_to_atom14(EVERY, *frames)
    expected_frames, expected_atoms = [], torch.zeros(21, 14, 3, dtype=DOUBLE)
    for number, name in enumerate(residues.NAMES):
        found, named = algorithm_24(name, *(value[number] for value in theirs))
        expected_frames.append(found)
        for place, atom in enumerate(residues.ATOM14[number]):
            if atom:
                expected_atoms[number, place] = named[atom]
    expected = torch.stack(expected_frames)
    exact = {"rtol": 0, "atol": 1e-13}
    torch.testing.assert_close(frames.rotations, expected[..., :3, :3], **exact)
    torch.testing.assert_close(frames.translations, expected[..., :3, 3], rtol=0, atol=2e-13)
    torch.testing.assert_close(atoms, expected_atoms, rtol=0, atol=2e-13)
    weights = [random(*value.shape, seed=9) for value in (frames.rotations, frames.translations, atoms)]
    (sum((w * v).sum() for w, v in zip(weights, (*frames, atoms)))).backward()
    (
        sum((w * v).sum() for w, v in zip(weights, (expected[..., :3, :3], expected[..., :3, 3], expected_atoms)))
    ).backward()
    for our, their in zip(ours, theirs):
        torch.testing.assert_close(our.grad, their.grad, rtol=1e-11, atol=1e-11)


def test_gradcheck():
    aatype = torch.tensor([1, 14, 20])
    inputs = [value.requires_grad_() for value in (*backbone(3), random(3, 7, 2, seed=3))]
    torch.autograd.gradcheck(lambda *given: frames_to_atom14(aatype, *torsions_to_frames(aatype, *given)), inputs)
    positions, mask, *_ = structure(torch.tensor([1, 3, 18, 7]))
    positions = positions.requires_grad_()
    aatype = torch.tensor([1, 3, 18, 7])
    torch.autograd.gradcheck(lambda given: atom37_to_torsions(aatype, given, mask).alternative_sin_cos, positions)
    torch.autograd.gradcheck(lambda given: atom37_to_frames(aatype, given, mask)[:2], positions)
    torch.autograd.gradcheck(lambda given: atom37_to_atom14(aatype, given, mask).positions, positions)


def test_torsions_of_length_other_than_1_are_normalised():
    frames, torsions = backbone(21), random(21, 7, 2)
    once = torsions_to_frames(EVERY, *frames, torsions)
    for factor in (1e-200, 1e200):
        again = torsions_to_frames(EVERY, *frames, torsions * factor)
        torch.testing.assert_close(tuple(again), tuple(once), rtol=0, atol=1e-12)


def test_torsions_of_zero_stand_for_angle_0_without_a_gradient():
    frames, torsions = backbone(21), torch.zeros(21, 7, 2, dtype=DOUBLE, requires_grad=True)
    found = torsions_to_frames(EVERY, *frames, torsions)
    angle_0 = torch.tensor([0.0, 1.0], dtype=DOUBLE).expand(21, 7, 2)
    torch.testing.assert_close(tuple(found), tuple(torsions_to_frames(EVERY, *frames, angle_0)), rtol=0, atol=0)
    found.translations.sum().backward()
    assert torch.equal(torsions.grad, torch.zeros_like(torsions))


def test_unknown_residues_have_their_backbones_frame_and_no_atoms():
    frames, aatype = backbone(2), torch.tensor([20, 20])
    angle_0 = torch.tensor([0.0, 1.0], dtype=DOUBLE).expand(2, 7, 2)
    found = torsions_to_frames(aatype, *frames, angle_0)
    torch.testing.assert_close(found.rotations, frames.rotations[:, None].expand(2, 8, 3, 3))
    assert not frames_to_atom14(aatype, *found).any()


# --- atoms to torsions ----------------------------------------------------------------------------------------------


def dihedral(a, b, c, d):
    """By the frame's y and z of the fourth atom, as the supplement's 1.8.1 has it."""
    x = (c - b) / torch.sqrt(((c - b) ** 2).sum())
    back = a - b
    y = back - (back * x).sum() * x
    y = y / torch.sqrt((y * y).sum())
    z = torch.stack([x[1] * y[2] - x[2] * y[1], x[2] * y[0] - x[0] * y[2], x[0] * y[1] - x[1] * y[0]])
    sine, cosine = ((d - c) * z).sum(), ((d - c) * y).sum()
    return torch.stack([sine, cosine]) / torch.sqrt(sine**2 + cosine**2)


def test_torsions_term_by_term():
    aatype = torch.randperm(20, generator=torch.Generator().manual_seed(3)).repeat(2)
    positions, mask, *_ = structure(aatype)
    torsions = atom37_to_torsions(aatype, positions, mask)
    for number, kind in enumerate(aatype.tolist()):
        at = {name: positions[number, index] for index, name in enumerate(ATOM37)}
        before = {name: positions[number - 1, index] for index, name in enumerate(ATOM37)}
        expected = {2: -dihedral(at["N"], at["CA"], at["C"], at["O"])}
        if number:
            expected[0] = dihedral(before["CA"], before["C"], at["N"], at["CA"])
            expected[1] = dihedral(before["C"], at["N"], at["CA"], at["C"])
        residue = constants.RESIDUES[residues.NAMES[kind]]
        for chi, names in enumerate(residue["chi"]):
            expected[3 + chi] = dihedral(*(at[name] for name in names))
        assert torsions.mask[number].nonzero()[:, 0].tolist() == sorted(expected)
        for torsion in range(7):
            value = expected.get(torsion, torch.tensor([0.0, 1.0], dtype=DOUBLE))
            torch.testing.assert_close(torsions.sin_cos[number, torsion], value, rtol=0, atol=1e-12)
            flipped = torsion - 2 in residue["pi_periodic"]
            other = torsions.alternative_sin_cos[number, torsion]
            torch.testing.assert_close(other, -value if flipped else value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_torsions_come_back(dtype, bound, offset):
    """Psi and the chis of ideal residues are the torsions that they were made with. Coordinates of 1000 A in float32
    are rounded by 3e-5 A, hence the angles by about 1e-4."""
    positions, mask, given, _ = structure(EVERY[:20])
    found = atom37_to_torsions(EVERY[:20], (positions + offset).to(dtype), mask)
    bound = 3e-4 if offset and dtype == torch.float32 else max(bound, 1e-11 if offset else 0)
    there = found.mask[:, 2:]
    assert torch.equal(there[:, 1:], residues.tables().chi_exists[:20]) and there[:, 0].all()
    error = (found.sin_cos[:, 2:].double() - given[:, 2:])[there].abs().max()
    assert error < bound


def test_atoms_come_back_through_frames_and_torsions():
    """Atoms to the backbone's frame and the torsions, and from these to atoms."""
    positions, mask, *_ = structure(EVERY[:20])
    groups, torsions = atom37_to_frames(EVERY[:20], positions, mask), atom37_to_torsions(EVERY[:20], positions, mask)
    frames = torsions_to_frames(EVERY[:20], groups.rotations[:, 0], groups.translations[:, 0], torsions.sin_cos)
    again = atom14_to_atom37(
        EVERY[:20], frames_to_atom14(EVERY[:20], *frames), residues.tables().atom14_exists[EVERY[:20]]
    )
    assert (again.positions - positions).norm(dim=-1).max() < 1e-12
    torch.testing.assert_close(frames.rotations[groups.mask], groups.rotations[groups.mask], rtol=0, atol=1e-12)


def test_symmetric_atoms_swapped_are_the_alternative_torsions_and_frames():
    positions, mask, *_ = structure(EVERY[:20])
    atoms = atom37_to_atom14(EVERY[:20], positions, mask)
    swapped = atom14_to_atom37(EVERY[:20], *swap_symmetric_atoms(EVERY[:20], *atoms))
    once, other = (atom37_to_torsions(EVERY[:20], given, mask) for given in (positions, swapped.positions))
    # Ideal aspartate's oxygens, among others, are not quite symmetric: 0.003 A, 0.003 in the sine.
    torch.testing.assert_close(other.sin_cos, once.alternative_sin_cos, rtol=0, atol=5e-3)
    assert (other.sin_cos - once.sin_cos).abs().amax((1, 2)).gt(0.1).nonzero()[:, 0].tolist() == [3, 6, 13, 18]
    groups, others = (atom37_to_frames(EVERY[:20], given, mask) for given in (positions, swapped.positions))
    torch.testing.assert_close(others.rotations, groups.alternative_rotations, rtol=0, atol=5e-3)
    torch.testing.assert_close(others.translations, groups.translations, rtol=0, atol=0)
    assert groups.ambiguous.nonzero().tolist() == [[3, 5], [6, 6], [13, 5], [18, 5]]
    twice = swap_symmetric_atoms(EVERY[:20], *swap_symmetric_atoms(EVERY[:20], *atoms))
    torch.testing.assert_close(tuple(twice), tuple(atoms), rtol=0, atol=0)


def test_frames_of_atoms_term_by_term():
    aatype = EVERY[:20]
    positions, mask, *_ = structure(aatype)
    positions = positions + 0.05 * random(*positions.shape, seed=11)  # no ideal residues
    groups = atom37_to_frames(aatype, positions, mask)
    for number in range(20):
        at = {name: positions[number, index] for index, name in enumerate(ATOM37)}
        expected = {
            0: literature_frame(at["C"] - at["CA"], at["N"] - at["CA"], at["CA"]),
            3: literature_frame(at["C"] - at["CA"], at["O"] - at["C"], at["C"]),
        }
        for chi, (_, b, c, d) in enumerate(constants.RESIDUES[residues.NAMES[number]]["chi"]):
            expected[4 + chi] = literature_frame(at[c] - at[b], at[d] - at[c], at[c])
        assert groups.mask[number].nonzero()[:, 0].tolist() == sorted(expected)
        for group in range(8):
            value = expected.get(group, torch.eye(4, dtype=DOUBLE))
            torch.testing.assert_close(groups.rotations[number, group], value[:3, :3], rtol=0, atol=1e-12)
            torch.testing.assert_close(groups.translations[number, group], value[:3, 3], rtol=0, atol=0)


def test_turned_and_moved():
    aatype = torch.arange(20)
    positions, mask, *_ = structure(aatype)
    motion = Frames(*(value[0] for value in backbone(1, seed=40)))
    moved = motion.apply(positions) + 300
    moved = moved.masked_fill(~mask[..., None], float("nan"))
    before, after = (atom37_to_torsions(aatype, given, mask) for given in (positions, moved))
    torch.testing.assert_close(after.sin_cos, before.sin_cos, rtol=0, atol=1e-11)
    mirrored = atom37_to_torsions(aatype, positions * torch.tensor([1.0, 1.0, -1.0]), mask)
    torch.testing.assert_close(mirrored.sin_cos[..., 0], -before.sin_cos[..., 0], rtol=0, atol=1e-12)
    old, new = atom37_to_frames(aatype, positions, mask), atom37_to_frames(aatype, moved, mask)
    there = old.mask
    torch.testing.assert_close(new.rotations[there], (motion.rotations @ old.rotations)[there], rtol=0, atol=1e-11)


# --- what is missing or degenerate ------------------------------------------------------------------------


def losses(aatype, positions, mask):
    """Something of every output."""
    torsions, groups = atom37_to_torsions(aatype, positions, mask), atom37_to_frames(aatype, positions, mask)
    atoms = atom37_to_atom14(aatype, positions, mask)
    return torch.cat([value.flatten() for value in (*torsions[:2], groups[0], groups[1], groups[3], atoms.positions)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_is_masked_may_be_anything(dtype):
    aatype = torch.arange(21)
    positions, mask, *_ = structure(aatype, dtype=dtype)
    mask = mask & (random(*mask.shape, seed=4) > -1)
    for junk in (float("nan"), float("inf"), 7.0):
        given = positions.masked_fill(~mask[..., None], junk).requires_grad_()
        clean = positions.masked_fill(~mask[..., None], 0).requires_grad_()
        found, expected = losses(aatype, given, mask.to(dtype)), losses(aatype, clean, mask)
        assert torch.equal(found, expected)
        weights = random(*found.shape, seed=8, dtype=dtype)
        (found * weights).sum().backward()
        (expected * weights).sum().backward()
        assert given.grad.isfinite().all() and torch.equal(given.grad, clean.grad)
        assert not given.grad[~mask].any()


def test_missing_atoms_mask_their_torsions_and_frames():
    aatype = torch.tensor([0, residues.LETTERS.index("K"), 0])
    positions, mask, *_ = structure(aatype)
    mask[1, ATOM37.index("CE")] = False
    torsions, groups = atom37_to_torsions(aatype, positions, mask), atom37_to_frames(aatype, positions, mask)
    assert torsions.mask[1].tolist() == [True, True, True, True, True, False, False]
    assert groups.mask[1].tolist() == [True, False, False, True, True, True, False, False]
    mask[0, ATOM37.index("C")] = False  # of the residue before
    torsions = atom37_to_torsions(aatype, positions, mask)
    assert torsions.mask[1, :3].tolist() == [False, False, True] and not torsions.mask[0, 2]


def test_numbers_of_residues_break_the_chain():
    aatype = torch.zeros(2, 4, dtype=torch.int64)
    positions, mask, *_ = structure(aatype)
    numbers = torch.tensor([[5, 6, 8, 9], [-1, 0, 1, 2]], dtype=torch.int32)
    torsions = atom37_to_torsions(aatype, positions, mask, residue_index=numbers)
    assert torsions.mask[..., 0].tolist() == [[False, True, False, True], [False, True, True, True]]
    assert torch.equal(torsions.mask[..., 0], torsions.mask[..., 1]) and torsions.mask[..., 2].all()


@pytest.mark.parametrize("case", ["one point", "on a line", "two coincide", "all masked", "no residue", "empty batch"])
def test_degenerate_is_finite(case):
    aatype = torch.arange(21)
    positions, mask, *_ = structure(aatype)
    positions = positions.float()
    if case == "one point":
        positions = torch.full_like(positions, 3.0)
    elif case == "on a line":
        positions = torch.arange(37.0)[:, None].expand(21, 37, 3).clone()
    elif case == "two coincide":
        positions[:, ATOM37.index("CB")] = positions[:, ATOM37.index("CA")]
    elif case == "all masked":
        mask = torch.zeros_like(mask)
    elif case == "no residue":
        aatype, positions, mask = aatype[:0], positions[:0], mask[:0]
    else:
        aatype, positions, mask = (value.expand(0, *value.shape) for value in (aatype, positions, mask))
    positions = positions.clone().requires_grad_()
    found = losses(aatype, positions, mask)
    (found * random(*found.shape, dtype=torch.float32)).sum().backward()
    assert found.isfinite().all() and positions.grad.isfinite().all()
    torsions = atom37_to_torsions(aatype, positions, mask)
    assert torsions.sin_cos.shape == (*aatype.shape, 7, 2)
    torch.testing.assert_close(torsions.sin_cos.norm(dim=-1), torch.ones(*aatype.shape, 7))
    if case in ("one point", "on a line", "all masked"):
        assert not torsions.mask.any() and not atom37_to_frames(aatype, positions, mask).mask.any()
    frames = torsions_to_frames(aatype, *Frames.identity(*aatype.shape), torsions.sin_cos)
    assert frames_to_atom14(aatype, *frames).shape == (*aatype.shape, 14, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    aatype = torch.arange(21)
    torsions = random(21, 7, 2, dtype=dtype)
    frames = backbone(21, dtype=dtype)
    found = torsions_to_frames(aatype, *frames, torsions)
    same = torsions_to_frames(aatype, frames.rotations.float(), frames.translations.float(), torsions.float())
    assert found.rotations.dtype == torch.float32 and torch.equal(found.translations, same.translations)
    assert frames_to_atom14(aatype, *frames_of(found, dtype)).dtype == torch.float32
    positions, mask, *_ = structure(aatype)
    assert atom37_to_torsions(aatype, positions.to(dtype), mask).sin_cos.dtype == torch.float32
    assert atom37_to_frames(aatype, positions.to(dtype), mask).rotations.dtype == torch.float32
    assert atom37_to_atom14(aatype, positions.to(dtype), mask).positions.dtype == dtype


def frames_of(frames, dtype):
    return Frames(*(value.to(dtype) for value in frames))


@pytest.mark.parametrize("shape", [(), (3,), (2, 1, 3)])
def test_leading_dimensions_are_free(shape):
    aatype = torch.randint(0, 21, (*shape, 4), generator=torch.Generator().manual_seed(1))
    frames, torsions = backbone(*shape, 4), random(*shape, 4, 7, 2)
    groups = torsions_to_frames(aatype, *frames, torsions)
    atoms = frames_to_atom14(aatype, *groups)
    flat = torsions_to_frames(
        aatype.flatten(),
        frames.rotations.reshape(-1, 3, 3),
        frames.translations.reshape(-1, 3),
        torsions.reshape(-1, 7, 2),
    )
    assert torch.equal(groups.translations.reshape(-1, 8, 3), flat.translations)
    placed = atom14_to_atom37(aatype, atoms, torch.ones(*shape, 4, 14))
    found = atom37_to_torsions(aatype, *placed)
    one = (0,) * len(shape)
    expected = atom37_to_torsions(aatype[one], placed.positions[one], placed.mask[one])
    assert torch.equal(found.sin_cos[one], expected.sin_cos) and torch.equal(found.mask[one], expected.mask)


def everything(aatype, rotations, translations, torsions):
    frames = torsions_to_frames(aatype, rotations, translations, torsions)
    atoms = frames_to_atom14(aatype, *frames)
    placed = atom14_to_atom37(aatype, atoms, torch.ones_like(atoms[..., 0]))
    measured = atom37_to_torsions(aatype, *placed)
    groups = atom37_to_frames(aatype, *placed)
    swapped = swap_symmetric_atoms(aatype, *atom37_to_atom14(aatype, *placed))
    return measured.alternative_sin_cos, groups.alternative_rotations, swapped.positions


def test_compiles_whole():
    aatype = torch.randint(0, 21, (2, 6), generator=torch.Generator().manual_seed(1))
    inputs = [*backbone(2, 6, dtype=torch.float32), random(2, 6, 7, 2, dtype=torch.float32)]
    compiled = torch.compile(everything, fullgraph=True, backend="aot_eager")
    for batch in (slice(0, 2), slice(0, 1)):
        given = [value[batch].clone().requires_grad_() for value in inputs]
        again = [value[batch].clone().requires_grad_() for value in inputs]
        found, expected = compiled(aatype[batch], *given), everything(aatype[batch], *again)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        sum(value.square().sum() for value in found).backward()
        sum(value.square().sum() for value in expected).backward()
        for one, other in zip(given, again):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-3)


def test_vmap():
    aatype = torch.randint(0, 21, (3, 6), generator=torch.Generator().manual_seed(1))
    inputs = [aatype, *backbone(3, 6), random(3, 6, 7, 2)]
    torch.testing.assert_close(torch.vmap(everything)(*inputs), everything(*inputs), rtol=1e-12, atol=1e-12)

"""The losses together: each term from the atoms of a true structure, and a structure module that learns one."""

import pytest
import torch

import paperops
from paperops.geometry import Frames, atom14_to_atom37, frames_to_atom14, swap_symmetric_atoms, torsions_to_frames
from paperops.models.alphafold2 import (
    FINE_TUNING_WEIGHTS,
    WEIGHTS,
    LossWeights,
    PerResidueLDDTCaPredictor,
    Structure,
    StructureModule,
    TMScoreHead,
    backbone_fape,
    sidechain_fape,
    structure_loss,
)
from paperops.residues import LETTERS, tables
from paperops.testing.values import random


def structure_of(aatype, seed=0, spread=6.0):
    """A structure of ideal residues, with random frames and torsions, as the module would give it in one block."""
    shape = tuple(aatype.shape)
    frames = Frames.from_quaternion(random(*shape, 4, seed=seed), spread * random(*shape, 3, seed=seed + 1))
    angles = torch.nn.functional.normalize(random(*shape, 7, 2, seed=seed + 2), dim=-1)
    groups = torsions_to_frames(aatype, *frames, angles)
    positions = frames_to_atom14(aatype, *groups)
    matrices = torch.cat([groups.rotations, groups.translations[..., None]], -1)
    last = torch.tensor([0.0, 0, 0, 1]).double().expand(*shape, 8, 1, 4)
    matrices = torch.cat([matrices, last], -2)
    raw, single = 1.5 * angles, random(*shape, 4)
    tensor7 = torch.cat([frames.to_quaternion(), frames.translations], -1)
    parts = (*frames, tensor7, matrices, positions, angles, raw, single)
    return Structure(*(value[None] for value in parts), single)


def atoms_of(structure, aatype):
    return atom14_to_atom37(aatype, structure.positions[-1], tables().atom14_exists[aatype])


LETTERED = torch.tensor([[LETTERS.index(letter) for letter in "MDEFYRKW"], [LETTERS.index(x) for x in "GAPYVDSE"]])
NUMBER = torch.arange(8).expand(2, 8)


def test_the_truth_has_no_loss():
    """FAPE sqrt(eps) / 10, no error of a chi; omega and phi, which hang on the residue before, are not ideal here."""
    structure = structure_of(LETTERED)
    found = structure_loss(structure, LETTERED, *atoms_of(structure, LETTERED), NUMBER)
    torch.testing.assert_close(found.backbone, torch.full((2,), 1e-3).double(), rtol=0.01, atol=0)
    torch.testing.assert_close(found.sidechain, torch.full((2,), 1e-3).double(), rtol=0.01, atol=0)
    chis = structure_loss(structure, LETTERED, *atoms_of(structure, LETTERED), 2 * NUMBER)  # no residue goes on
    torch.testing.assert_close(chis.torsion, torch.full((2,), 0.02 * 0.5).double(), rtol=1e-3, atol=1e-6)
    assert (found.torsion > chis.torsion + 0.1).all()
    total = WEIGHTS.backbone * found.backbone + WEIGHTS.sidechain * found.sidechain + WEIGHTS.torsion * found.torsion
    torch.testing.assert_close(found.loss, total)


def test_names_of_symmetric_atoms_do_not_matter():
    """A true structure whose symmetric atoms have each other's names gives the same losses.

    Up to 5e-5: ideal rings and carboxylates are flat and symmetric to about 1e-3 Angstrom. Without renaming: 1e-2.
    """
    true = structure_of(LETTERED, seed=10)
    pred = true._replace(positions=true.positions + 0.3 * random(1, 2, 8, 14, 3))
    exists = tables().atom14_exists[LETTERED]
    swapped = swap_symmetric_atoms(LETTERED, true.positions[-1], exists)
    first = structure_loss(pred, LETTERED, *atoms_of(true, LETTERED), NUMBER)
    second = structure_loss(pred, LETTERED, *atom14_to_atom37(LETTERED, *swapped), NUMBER)
    for name, one, other in zip(first._fields, first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}")
    groups = pred.sidechain_frames[-1], pred.positions[-1]
    target = true.sidechain_frames[-1][..., :3, :3], true.sidechain_frames[-1][..., :3, 3], torch.ones(2, 8, 8)
    kept, changed = (
        sidechain_fape(*groups, *target, value, exists) for value in (true.positions[-1], swapped.positions)
    )
    assert (kept - changed).abs().min() > 0.01


def test_terms_are_the_functions():
    """Heads, chains, masks and weights reach their terms."""
    pred, true = structure_of(LETTERED), structure_of(LETTERED, seed=10)
    given = (pred, LETTERED, *atoms_of(true, LETTERED), NUMBER)
    plddt, aligned = random(2, 8, 50, seed=3), random(2, 8, 8, 64, seed=4)
    heads = {"plddt_logits": plddt, "aligned_error_logits": aligned}
    plain, full = structure_loss(*given), structure_loss(*given, **heads, weights=FINE_TUNING_WEIGHTS)
    for name in ("plddt", "aligned_error", "violation"):
        assert not getattr(plain, name).any() and (getattr(full, name) > 0.1).all()
    expected = sum(w * term for w, term in zip(FINE_TUNING_WEIGHTS, full[1:], strict=True))
    torch.testing.assert_close(full.loss, expected)
    torch.testing.assert_close(
        plain.loss,
        expected
        - sum(
            getattr(FINE_TUNING_WEIGHTS, name) * getattr(full, name) for name in ("plddt", "aligned_error", "violation")
        ),
    )
    coarse = structure_loss(*given, **heads, resolution=torch.tensor([9.0, 2.0]))
    assert not coarse.plddt[0] and not coarse.aligned_error[0]
    torch.testing.assert_close(coarse.plddt[1], full.plddt[1])
    share = structure_loss(*given, clamped_share=torch.tensor([1.0, 0.0]))
    assert share.backbone[0] == plain.backbone[0] and share.backbone[1] > plain.backbone[1] + 0.1

    chains = torch.tensor([[0] * 4 + [1] * 4] * 2)
    apart = structure_loss(*given, asym_id=chains)
    target = true.rotations[0], true.translations[0]
    expected = backbone_fape(pred.rotations, pred.translations, *target, torch.ones(2, 8), asym_id=chains)
    torch.testing.assert_close(apart.backbone, expected)
    assert not torch.allclose(apart.backbone, plain.backbone)
    assert not torch.equal(apart.torsion, plain.torsion)  # the fifth residue has no residue before it


def test_masked_residues_do_not_count():
    keep = torch.tensor([1, 1, 1, 1, 1, 0, 0, 0]).expand(2, 8)
    pred, true = structure_of(LETTERED), structure_of(LETTERED, seed=10)
    pred = pred._replace(unnormalized_angles=pred.unnormalized_angles.masked_fill((keep == 0)[..., None, None], 0))
    positions, mask = atoms_of(true, LETTERED)
    options = {
        "weights": FINE_TUNING_WEIGHTS,
        "plddt_logits": random(2, 8, 50),
        "aligned_error_logits": random(2, 8, 8, 64),
    }
    found = structure_loss(
        pred, LETTERED, positions.masked_fill((keep == 0)[..., None, None], torch.nan), mask, NUMBER,
        residue_mask=keep.double(), **options,
    )  # fmt: skip
    short = Structure(*(value[:, :, :5] for value in pred[:-1]), pred.single[:, :5])
    options["plddt_logits"], options["aligned_error_logits"] = random(2, 8, 50)[:, :5], random(2, 8, 8, 64)[:, :5, :5]
    expected = structure_loss(short, LETTERED[:, :5], positions[:, :5], mask[:, :5], NUMBER[:, :5], **options)
    for name, one, other in zip(found._fields, found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
    for n in (0, 1):
        nothing = Structure(*(value[:, :, :n] for value in pred[:-1]), pred.single[:, :n])
        found = structure_loss(nothing, LETTERED[:, :n], positions[:, :n], mask[:, :n], NUMBER[:, :n])
        assert all(value.isfinite().all() for value in found)


def test_a_structure_is_learned():
    """From a fixed representation a small module comes near to five residues, in 150 steps, and its heads follow."""
    torch.manual_seed(0)
    aatype, number = LETTERED[0, 1:6], NUMBER[0, :5]
    true = structure_of(aatype, spread=3.0)
    positions, mask = (value.float() if value.is_floating_point() else value for value in atoms_of(true, aatype))
    module = StructureModule(
        c_s=32,
        c_z=8,
        c_ipa=8,
        c_resnet=32,
        no_heads_ipa=2,
        no_blocks=2,
        dropout_rate=0.0,
        no_qk_points=2,
        no_v_points=2,
    )
    plddt, aligned = PerResidueLDDTCaPredictor(50, 32, 16), TMScoreHead(8, 64)
    s, z = torch.randn(5, 32), torch.randn(5, 5, 8)
    parameters = [parameter for part in (module, plddt, aligned) for parameter in part.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=3e-3)
    losses = []
    for _ in range(150):
        structure = module(s, z, aatype)
        found = structure_loss(
            structure, aatype, positions, mask, 2 * number, plddt_logits=plddt(structure.single),
            aligned_error_logits=aligned(z),
        )  # fmt: skip
        optimiser.zero_grad()
        found.loss.backward()
        assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in parameters)
        optimiser.step()
        losses.append(found)
    assert losses[-1].backbone < 0.3 * losses[0].backbone and losses[-1].sidechain < 0.4 * losses[0].sidechain
    assert losses[-1].torsion < 0.3 * losses[0].torsion and losses[-1].aligned_error < losses[0].aligned_error


@pytest.mark.slow
def test_compile():
    pred, true = structure_of(LETTERED), structure_of(LETTERED, seed=10)
    pred = Structure(*(value.requires_grad_() for value in pred))
    positions, mask = atoms_of(true, LETTERED)

    def loss(pred):
        return structure_loss(pred, LETTERED, positions, mask, NUMBER, asym_id=NUMBER // 4, weights=FINE_TUNING_WEIGHTS)

    compiled, eager = torch.compile(loss, fullgraph=True, backend="aot_eager")(pred), loss(pred)
    torch.testing.assert_close(tuple(compiled), tuple(eager))
    leaves = [pred.rotations, pred.translations, pred.sidechain_frames, pred.positions, pred.unnormalized_angles]
    found, right = (torch.autograd.grad(value.loss.sum(), leaves) for value in (compiled, eager))
    torch.testing.assert_close(found, right)


def test_refused():
    pred = structure_of(LETTERED)
    positions, mask = atoms_of(pred, LETTERED)
    given = {"structure": pred, "aatype": LETTERED, "positions": positions, "mask": mask, "residue_index": NUMBER}
    for changed, error, said in (
        ({"structure": tuple(pred)}, TypeError, "structure must be a Structure, of a StructureModule; got tuple"),
        (
            {"positions": positions[:, :3]},
            ValueError,
            r"positions must have shape \[2, 8, 37, 3\], as structure's; got",
        ),
        ({"positions": positions.float()}, TypeError, "target_positions must have the dtype of pred_positions"),
        ({"mask": mask[..., :14]}, ValueError, r"mask must have shape \[2, 8, 37\], as structure's; got \[2, 8, 14\]"),
        ({"aatype": LETTERED[0]}, ValueError, r"aatype must have shape \[2, 8\], as structure's; got \[8\]"),
        ({"aatype": LETTERED + 20}, ValueError, "aatype must be types of residues, from 0 to 20"),
        ({"residue_index": NUMBER[:, :3]}, ValueError, r"residue_index must have shape \[2, 8\]"),
        ({"residue_index": NUMBER.double()}, TypeError, "residue_index must have an integer dtype"),
        ({"asym_id": NUMBER[:, :3]}, ValueError, r"asym_id must have shape \[2, 8\]"),
        ({"residue_mask": mask}, ValueError, r"residue_mask must have shape \[2, 8\]"),
        ({"plddt_logits": random(2, 3, 50)}, ValueError, r"pred_positions must have shape \[2, 3, 3\] for logits"),
        ({"weights": tuple(WEIGHTS)}, TypeError, "weights must be LossWeights; got tuple"),
        ({"clamped_share": 2.0}, ValueError, "clamped_share must be a probability"),
    ):
        with pytest.raises(error, match=said):
            structure_loss(**{**given, **changed})
    assert isinstance(WEIGHTS, LossWeights) and WEIGHTS.violation == 0
    with paperops.use_backend("reference"):
        slow = structure_loss(**given, weights=FINE_TUNING_WEIGHTS)
    torch.testing.assert_close(structure_loss(**given, weights=FINE_TUNING_WEIGHTS), slow)

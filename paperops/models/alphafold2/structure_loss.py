"""The losses of a predicted structure together, from the atoms of the true one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from paperops.geometry import atom37_to_atom14, atom37_to_frames, atom37_to_torsions
from paperops.models.alphafold2.confidence_losses import aligned_error_loss, plddt_loss
from paperops.models.alphafold2.fape import backbone_fape, sidechain_fape
from paperops.models.alphafold2.losses import WEIGHTS, LossWeights, torsion_angle_loss, violation_loss
from paperops.models.alphafold2.structure_module import Structure
from paperops.models.alphafold2.symmetry import rename_symmetric_atoms
from paperops.ops import _checks
from paperops.residues import tables

CA = 1
"""The place of CA in every residue's 14 atoms."""

_CHAINS_APART = 1 << 24


class StructureLoss(NamedTuple):
    """The losses of a structure, ``[*]`` each: their weighted sum, and the terms before they are weighted."""

    loss: Tensor
    """The sum, which is what is minimised."""
    backbone: Tensor
    """:func:`backbone_fape`."""
    sidechain: Tensor
    """:func:`sidechain_fape`, after the renaming of symmetric atoms."""
    torsion: Tensor
    """:func:`torsion_angle_loss`."""
    plddt: Tensor
    """:func:`plddt_loss`; 0 without its logits."""
    aligned_error: Tensor
    """:func:`aligned_error_loss`; 0 without its logits."""
    violation: Tensor
    """:func:`violation_loss`; 0 where its weight is."""


def structure_loss(
    structure: Structure,
    aatype: Tensor,
    positions: Tensor,
    mask: Tensor,
    residue_index: Tensor,
    *,
    residue_mask: Tensor | None = None,
    asym_id: Tensor | None = None,
    clamped_share: float | Tensor = 1.0,
    plddt_logits: Tensor | None = None,
    aligned_error_logits: Tensor | None = None,
    resolution: Tensor | None = None,
    weights: LossWeights = WEIGHTS,
) -> StructureLoss:
    """AlphaFold2's losses of a predicted structure against the atoms of the true one.

    The true frames, torsions and atoms are made here; symmetric atoms, with the frames that hang on them, are renamed
    to what is nearer to the prediction.

    Args:
        structure: what :class:`StructureModule` gives for ``[*, N]`` residues.
        aatype: ``[*, N]``, the residues' types, 0 to 20.
        positions: ``[*, N, 37, 3]``, the true atoms, in the order of :data:`paperops.residues.ATOM37`, in Angstrom, of
            the predicted atoms' dtype.
        mask: ``[*, N, 37]``, bool or floating, 1 = there. What is not there may be anything.
        residue_index: ``[*, N]``, the residues' numbers in their chains, integers.
        residue_mask: ``[*, N]``, bool or floating, the mask that the structure module had; None: all residues.
        asym_id: ``[*, N]``, the numbers of the residues' chains, integers; None: one chain. The
            backbone's loss is then the sum of that within and that between chains (AlphaFold-Multimer).
        clamped_share: as of :func:`backbone_fape`.
        plddt_logits: ``[*, N, bins]``, of :class:`PerResidueLDDTCaPredictor`.
        aligned_error_logits: ``[*, N, N, bins]``, of :class:`TMScoreHead`.
        resolution: ``[*]``, of each sample's experiment, in Angstrom, for the losses of the two heads.
        weights: of the terms. One of 0 leaves its term in the result, but for violations, which cost most.

    Returns:
        :class:`StructureLoss`. Differentiable in the structure and in the logits.

    Raises:
        TypeError, ValueError: for arguments that do not fit, each named.

    Source:
        Jumper et al., Nature 596 (2021), supplement, 1.9, equation 7.

    Example:
        >>> import torch
        >>> from paperops.models.alphafold2 import StructureModule, structure_loss
        >>> module = StructureModule(c_s=16, c_z=8, c_ipa=4, c_resnet=8, no_heads_ipa=2, no_blocks=2)
        >>> aatype, number = torch.randint(0, 20, (5,)), torch.arange(5)
        >>> structure = module(torch.randn(5, 16), torch.randn(5, 5, 8), aatype)
        >>> found = structure_loss(structure, aatype, 5 * torch.randn(5, 37, 3), torch.ones(5, 37), number)
        >>> found.loss.backward()
    """
    if not isinstance(structure, Structure):
        raise TypeError(f"structure must be a Structure, of a StructureModule; got {type(structure).__name__}")
    if not isinstance(weights, LossWeights):
        raise TypeError(f"weights must be LossWeights; got {type(weights).__name__}")
    shape = tuple(structure.translations.shape[1:-1])  # [*, N]
    for name, value, last in (("positions", positions, (37, 3)), ("mask", mask, (37,)), ("aatype", aatype, ())):
        if tuple(_checks.tensor(name, value).shape) != (*shape, *last):
            raise ValueError(f"{name} must have shape {[*shape, *last]}, as structure's; got {list(value.shape)}")
    residue_index = _checks.residue_numbers("residue_index", residue_index, shape, positions, "positions")
    present = mask != 0
    if residue_mask is not None:
        _checks.mask_of("residue_mask", residue_mask, shape, "residue", positions, "positions")
        present = present & (residue_mask != 0)[..., None]
    apart = residue_index
    if asym_id is not None:
        asym_id = _checks.residue_numbers("asym_id", asym_id, shape, positions, "positions")
        apart = apart + _CHAINS_APART * asym_id  # no two chains go on from each other

    groups = atom37_to_frames(aatype, positions, present)
    torsions = atom37_to_torsions(aatype, positions, present, residue_index=apart)
    atoms = structure.positions[-1]
    renamed = rename_symmetric_atoms(atoms, *atom37_to_atom14(aatype, positions, present), aatype)
    turned = torch.where(renamed.swapped[..., None, None, None], groups.alternative_rotations, groups.rotations)
    backbone = groups.rotations[..., 0, :, :], groups.translations[..., 0, :], groups.mask[..., 0]

    nothing = structure.translations.new_zeros(shape[:-1])
    terms = StructureLoss(
        loss=nothing,
        backbone=backbone_fape(
            structure.rotations, structure.translations, *backbone, asym_id=asym_id, clamped_share=clamped_share
        ),
        sidechain=sidechain_fape(
            structure.sidechain_frames[-1], atoms, turned, groups.translations, groups.mask, renamed.positions,
            renamed.mask,
        ),
        torsion=torsion_angle_loss(
            structure.unnormalized_angles, torsions.sin_cos, torsions.alternative_sin_cos, torsions.mask, residue_mask
        ),
        plddt=nothing if plddt_logits is None else plddt_loss(
            plddt_logits, atoms[..., CA, :], renamed.positions[..., CA, :], renamed.mask[..., CA], resolution=resolution
        ),
        aligned_error=nothing if aligned_error_logits is None else aligned_error_loss(
            aligned_error_logits, structure.rotations[-1], structure.translations[-1], *backbone, resolution=resolution
        ),
        violation=nothing if weights.violation == 0 else violation_loss(
            atoms, _predicted(aatype, residue_mask), aatype, residue_index, asym_id
        ),
    )  # fmt: skip
    weighted = [weight * term for weight, term in zip(weights, terms[1:], strict=True)]
    return terms._replace(loss=torch.stack(weighted).sum(0))


def _predicted(aatype: Tensor, residue_mask: Tensor | None) -> Tensor:
    """[*, N, 14]: the atoms that the structure module has placed."""
    exists = tables(aatype.device).atom14_exists[aatype.to(torch.int64)]
    return exists if residue_mask is None else exists & (residue_mask != 0)[..., None]

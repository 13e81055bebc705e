"""Renaming of the true structure's symmetric atoms to what is nearer to a prediction."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from paperops.geometry import swap_symmetric_atoms
from paperops.ops import _checks
from paperops.reference.nearest import result_dtype
from paperops.residues import tables

SYMMETRIC = 4
"""The most symmetric atoms that a residue has (phenylalanine and tyrosine)."""

_DISTANCES = 1 << 23
"""How many distances are held at a time."""


class RenamedAtoms(NamedTuple):
    """The true structure, renamed."""

    positions: Tensor
    """``[*, N, 14, 3]``, 0 where the mask is."""
    mask: Tensor
    """``[*, N, 14]``, bool."""
    swapped: Tensor
    """``[*, N]``, bool: the residues of which the atoms' names were exchanged."""


@torch.no_grad()
def rename_symmetric_atoms(
    pred_positions: Tensor, target_positions: Tensor, target_mask: Tensor, aatype: Tensor
) -> RenamedAtoms:
    r"""The true structure with symmetric atoms named so that it is as near to the prediction as can be.

    OD1 and OD2 of aspartate, OE1 and OE2 of glutamate, CD1 and CD2, CE1 and CE2 of phenylalanine and tyrosine are named
    by convention only. For each residue i of these, with S its symmetric atoms and all other atoms (j, b) of the chain,

    .. math::

        \sum_{a \in S} \sum_{(j, b)} \big| |x_{ia} - x_{jb}| - |\tilde x_{ia} - x^{true}_{jb}| \big|

    is found with both namings of the true atoms, and the smaller one's is taken (the given one where they are equal).
    Every loss then pulls each atom to one place.

    Args:
        pred_positions: ``[*, N, 14, 3]``, the predicted atoms, in Angstrom, in the order of
            :data:`paperops.residues.ATOM14`: of :class:`StructureModule`, ``positions[-1]``.
        target_positions: ``[*, N, 14, 3]``, the true atoms, of the prediction's dtype.
        target_mask: ``[*, N, 14]``, bool or floating, 1 = there. What is not there may be anything.
        aatype: ``[*, N]``, the residues' types, 0 to 20.

    Returns:
        :class:`RenamedAtoms`, without gradients. ``swapped`` says where a residue's alternative frames and torsions are
        to be taken too, by ``torch.where``.

    Raises:
        TypeError, ValueError: for arguments that do not fit, each named.

    A symmetric atom whose partner is missing does not count, and names are not exchanged for it alone.

    Source:
        Jumper et al., Nature 596 (2021), supplement, Algorithm 26 and table 3.

    Cost:
        56 N^2 distances three times over; a fixed number of them in memory at a time.

    Example:
        >>> import torch, paperops
        >>> from paperops.models.alphafold2 import rename_symmetric_atoms
        >>> aatype = torch.full((3,), paperops.residues.LETTERS.index("D"))
        >>> there = paperops.residues.tables().atom14_exists[aatype]
        >>> true = 5 * torch.randn(3, 14, 3)
        >>> other_names = paperops.geometry.swap_symmetric_atoms(aatype, true, there).positions
        >>> rename_symmetric_atoms(true, other_names, there, aatype).swapped
        tensor([True, True, True])
    """
    _check(pred_positions, target_positions, target_mask)
    leading, n = pred_positions.shape[:-3], pred_positions.shape[-3]
    swapped_atoms = swap_symmetric_atoms(aatype, target_positions, target_mask)  # checks aatype
    present = target_mask != 0
    target = target_positions.masked_fill(~present[..., None], 0)
    dtype = result_dtype(pred_positions.dtype)
    constants = tables(pred_positions.device, dtype)
    aatype = aatype.to(torch.int64)
    symmetric = constants.atom14_ambiguous[aatype] & present & swapped_atoms.mask  # [*, N, 14]
    others = present & ~constants.atom14_ambiguous[aatype]
    batch = math.prod(leading)
    pred, true, alternative = (
        value.to(dtype).reshape(batch, n, 14, 3)
        for value in (pred_positions.masked_fill(~present[..., None], 0), target, swapped_atoms.positions)
    )
    better = _is_better(pred, true, alternative, symmetric.reshape(batch, n, 14), others.reshape(batch, n, 14))
    swapped = better.reshape(*leading, n)
    positions = torch.where(swapped[..., None, None], swapped_atoms.positions, target)
    return RenamedAtoms(positions, torch.where(swapped[..., None], swapped_atoms.mask, present), swapped)


def _is_better(pred: Tensor, target: Tensor, alternative: Tensor, symmetric: Tensor, others: Tensor) -> Tensor:
    """[B, N]: whether the alternative names are the nearer ones. Chunks of residues bound the memory."""
    batch, n = symmetric.shape[:2]
    if batch * n == 0:
        return symmetric.new_zeros(batch, n)
    # the symmetric atoms come first, in their order
    places = torch.sort((~symmetric).to(torch.int8), dim=-1, stable=True).indices[..., :SYMMETRIC]  # [B, N, 4]
    kept = symmetric.gather(-1, places)
    index = places[..., None].expand(-1, -1, -1, 3)
    rows = [value.gather(2, index) for value in (pred, target, alternative)]  # [B, N, 4, 3]
    columns = [value.flatten(1, 2) for value in (pred, target)]  # [B, 14 N, 3]
    counted = others.flatten(1).to(pred.dtype)[:, None]  # [B, 1, 14 N]
    step = max(1, _DISTANCES // (batch * SYMMETRIC * 14 * n))
    found = []
    for start in range(0, n, step):
        piece = slice(start, start + step)
        of_pred = _distances(rows[0][:, piece], columns[0])  # [B, 4 step, 14 N]
        sums = []
        for row in rows[1:]:
            wrong = (of_pred - _distances(row[:, piece], columns[1])).abs_() * counted
            sums.append(wrong.sum(-1).unflatten(1, (-1, SYMMETRIC)).masked_fill(~kept[:, piece], 0).sum(-1))
        found.append(sums[1] < sums[0])
    return torch.cat(found, 1)


def _distances(rows: Tensor, columns: Tensor) -> Tensor:
    """[B, 4 step, M] of rows [B, step, 4, 3] and columns [B, M, 3], by differences."""
    return torch.cdist(rows.flatten(1, 2), columns, compute_mode="donot_use_mm_for_euclid_dist")


def _check(pred: Tensor, target: Tensor, mask: Tensor) -> None:
    _checks.vectors("pred_positions", pred, 3, "one point an atom")
    if pred.dim() < 3 or pred.shape[-2] != 14:
        raise ValueError(f"pred_positions must have shape [*, N, 14, 3]; got {list(pred.shape)}")
    _checks.vectors("target_positions", target, 3, "one point an atom", like=("pred_positions", pred))
    if target.shape != pred.shape:
        raise ValueError(
            f"target_positions must have the shape of pred_positions, {list(pred.shape)}; got {list(target.shape)}"
        )
    _checks.mask_of("target_mask", _checks.tensor("target_mask", mask), pred.shape[:-1], "atom", pred, "pred_positions")

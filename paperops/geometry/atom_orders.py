"""The two orders of a residue's atoms: 37 names, the same for all types, and the 14 places of each type."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from paperops import residues
from paperops.ops import _checks


class Atoms(NamedTuple):
    """Atoms of residues, in one of the two orders."""

    positions: Tensor
    """``[*, 14 or 37, 3]``, in Angstrom; 0 where the mask is."""
    mask: Tensor
    """``[*, 14 or 37]``, bool."""


def atom37_to_atom14(aatype: Tensor, positions: Tensor, mask: Tensor) -> Atoms:
    """Atoms by name in the 14 places of their residues' types.

    Args:
        aatype: ``[*]``, the residues' types, 0 to 20, integer.
        positions: ``[*, 37, 3]``, in the order of :data:`paperops.residues.ATOM37`.
        mask: ``[*, 37]``, bool or floating, 1 = there. What is not there may be anything.

    Returns:
        :class:`Atoms` ``[*, 14]`` in the order of :data:`paperops.residues.ATOM14`, in the positions' dtype and
        differentiable in them. Atoms that the type does not have, OXT among them, are left out.

    Raises:
        TypeError, ValueError: wrong dtypes, shapes or devices; a residue type outside 0 to 20.

    Example:
        >>> import torch, paperops
        >>> atoms = paperops.geometry.atom37_to_atom14(torch.tensor([7]), torch.rand(1, 37, 3), torch.ones(1, 37))
        >>> int(atoms.mask.sum())  # glycine
        4
    """
    aatype, positions, present = checked_atoms(aatype, positions, mask, 37)
    tables = residues.tables(positions.device)
    index = tables.atom37_of_atom14[aatype]
    there = picked_mask(present, index) & tables.atom14_exists[aatype]
    return Atoms(picked(positions, index).masked_fill(~there[..., None], 0), there)


def atom14_to_atom37(aatype: Tensor, positions: Tensor, mask: Tensor) -> Atoms:
    """Atoms in the 14 places of their residues' types by name: what :func:`atom37_to_atom14` undoes.

    Args:
        aatype: ``[*]``, the residues' types, 0 to 20, integer.
        positions: ``[*, 14, 3]``, in the order of :data:`paperops.residues.ATOM14`.
        mask: ``[*, 14]``, bool or floating, 1 = there. What is not there may be anything.

    Returns:
        :class:`Atoms` ``[*, 37]``, in the positions' dtype and differentiable in them.

    Raises:
        TypeError, ValueError: wrong dtypes, shapes or devices; a residue type outside 0 to 20.

    Example:
        >>> import torch, paperops
        >>> atoms = paperops.geometry.atom14_to_atom37(torch.tensor([7]), torch.rand(1, 14, 3), torch.ones(1, 14))
        >>> [name for name, there in zip(paperops.residues.ATOM37, atoms.mask[0]) if there]
        ['N', 'CA', 'C', 'O']
    """
    aatype, positions, present = checked_atoms(aatype, positions, mask, 14)
    tables = residues.tables(positions.device)
    index = tables.atom14_of_atom37[aatype]
    there = picked_mask(present, index) & tables.atom37_exists[aatype]
    return Atoms(picked(positions, index).masked_fill(~there[..., None], 0), there)


def swap_symmetric_atoms(aatype: Tensor, positions: Tensor, mask: Tensor) -> Atoms:
    """The same structure with the names of symmetric atoms exchanged: the alternative truth of Algorithm 26.

    OD1 and OD2 of aspartate, OE1 and OE2 of glutamate, CD1 and CD2, CE1 and CE2 of phenylalanine and tyrosine.

    Args:
        aatype: ``[*]``, the residues' types, 0 to 20, integer.
        positions: ``[*, 14, 3]``.
        mask: ``[*, 14]``, bool or floating, 1 = there. What is not there may be anything.

    Returns:
        :class:`Atoms` ``[*, 14]``, in the positions' dtype and differentiable in them.

    Raises:
        TypeError, ValueError: wrong dtypes, shapes or devices; a residue type outside 0 to 20.

    Source:
        Jumper et al., Nature 596 (2021), supplement, Algorithm 26 and table 3.

    Example:
        >>> import torch, paperops
        >>> aspartate, positions = torch.tensor([3]), torch.rand(1, 14, 3)
        >>> swapped = paperops.geometry.swap_symmetric_atoms(aspartate, positions, torch.ones(1, 14))
        >>> bool((swapped.positions[0, 6] == positions[0, 7]).all())  # OD1 and OD2
        True
    """
    aatype, positions, present = checked_atoms(aatype, positions, mask, 14)
    tables = residues.tables(positions.device)
    index = tables.swapped_atom14[aatype]
    there = picked_mask(present, index) & tables.atom14_exists[aatype]
    return Atoms(picked(positions, index).masked_fill(~there[..., None], 0), there)


def checked_atoms(aatype: Tensor, positions: Tensor, mask: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """aatype [*], positions [*, count, 3], 0 where the mask is, and the mask [*, count] as bool."""
    _checks.vectors("positions", positions, 3, "one point an atom")
    if positions.dim() < 2 or positions.shape[-2] != count:
        raise ValueError(f"positions must have shape [*, {count}, 3]; got {list(positions.shape)}")
    if mask is None:
        raise TypeError("mask must be a torch.Tensor; got NoneType")
    _checks.mask_of("mask", mask, tuple(positions.shape[:-1]), "atom", positions, "positions")
    aatype = _checks.residue_types("aatype", aatype, tuple(positions.shape[:-2]), positions, "positions")
    present = mask != 0
    return aatype, positions.masked_fill(~present[..., None], 0), present


def picked(positions: Tensor, index: Tensor) -> Tensor:
    """positions [*, A, 3] at index [*, K] -> [*, K, 3]; as a sum, since a gather's derivative has no fixed order."""
    chosen = index[..., None] == torch.arange(positions.shape[-2], device=positions.device)  # [*, K, A]
    return positions[..., None, :, :].masked_fill(~chosen[..., None], 0).sum(-2)


def picked_mask(present: Tensor, index: Tensor) -> Tensor:
    """present [*, A] at index [*, K] -> [*, K], bool."""
    return present.gather(-1, index)

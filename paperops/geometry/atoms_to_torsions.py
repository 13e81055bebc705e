"""The torsion angles of residues whose atoms are known."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from paperops import residues
from paperops.geometry.atom_orders import checked_atoms, picked, picked_mask
from paperops.reference.nearest import result_dtype
from paperops.residues import ATOM37

FLAT = 1e-6  # Angstrom^4: below it four atoms define no torsion
N, CA, C, O = (ATOM37.index(name) for name in ("N", "CA", "C", "O"))


class Torsions(NamedTuple):
    """Torsion angles of residues: omega, phi, psi, chi1 to chi4."""

    sin_cos: Tensor
    """``[*, N, 7, 2]``: (sin, cos); (0, 1) where the mask is 0."""
    alternative_sin_cos: Tensor
    """``[*, N, 7, 2]``: the same, half a turn on where that is the same structure."""
    mask: Tensor
    """``[*, N, 7]``, bool: whether the angle is defined."""


def atom37_to_torsions(
    aatype: Tensor, positions: Tensor, mask: Tensor, *, residue_index: Tensor | None = None
) -> Torsions:
    r"""The torsion angles of each residue, as the targets of AlphaFold2's torsion loss.

    For atoms a, b, c, d with :math:`u = b - a, v = c - b, w = d - c`:

    .. math:: (\sin, \cos) \propto (|v| \, u \cdot (v \times w), \; (u \times v) \cdot (v \times w))

    omega is of CA, C of the residue before and N, CA; phi of C before and N, CA, C; psi of N, CA, C, O, half a turn on:
    of the next N, if the peptide is flat; the chis are of the atoms of the supplement's table 2.

    Args:
        aatype: ``[*, N]``, the residues' types, 0 to 20, integer.
        positions: ``[*, N, 37, 3]``, in the order of :data:`paperops.residues.ATOM37`, in Angstrom.
        mask: ``[*, N, 37]``, bool or floating, 1 = there. What is not there may be anything.
        residue_index: ``[*, N]``, the residues' numbers, integer. If given, omega and phi are masked where the number
            does not go up by one; if not, residues are taken as bound to each other in their order.

    Returns:
        :class:`Torsions`: float64 for float64 positions and float32 otherwise, differentiable in the positions. An
        angle is masked where one of its atoms is not there, and where three of them lie on a line.

    Raises:
        TypeError, ValueError: wrong dtypes, shapes or devices; a residue type outside 0 to 20.

    Source:
        Jumper et al., Nature 596 (2021), supplement, 1.8.1 and table 2; OpenFold's ``atom37_to_torsion_angles``.

    Cost:
        About 10,000 operations a residue, in plain torch.

    Example:
        >>> import torch, paperops
        >>> aatype = torch.randint(0, 20, (5,))
        >>> torsions = paperops.geometry.atom37_to_torsions(aatype, torch.rand(5, 37, 3), torch.ones(5, 37))
        >>> torsions.sin_cos.shape, bool(torsions.mask[0, :2].any())  # nothing comes before the first residue
        (torch.Size([5, 7, 2]), False)
    """
    if isinstance(positions, Tensor) and positions.dim() < 3:
        raise ValueError(f"positions must have shape [*, N, 37, 3]; got {list(positions.shape)}")
    aatype, positions, present = checked_atoms(aatype, positions, mask, 37)
    positions = positions.to(result_dtype(positions.dtype))
    tables = residues.tables(positions.device, positions.dtype)

    before, present_before = _shifted(positions), _shifted(present)
    if residue_index is not None:
        present_before = present_before & _follows(residue_index, aatype)[..., None]
    backbone = [
        torch.stack([before[..., CA, :], before[..., C, :], positions[..., N, :], positions[..., CA, :]], -2),
        torch.stack([before[..., C, :], positions[..., N, :], positions[..., CA, :], positions[..., C, :]], -2),
        torch.stack([positions[..., atom, :] for atom in (N, CA, C, O)], -2),
    ]
    backbone_mask = [
        present_before[..., CA] & present_before[..., C] & present[..., N] & present[..., CA],
        present_before[..., C] & present[..., N] & present[..., CA] & present[..., C],
        present[..., N] & present[..., CA] & present[..., C] & present[..., O],
    ]
    index = tables.chi_atoms[aatype].flatten(-2)  # [*, N, 16]
    chi = picked(positions, index).unflatten(-2, (4, 4))  # [*, N, 4, 4, 3]
    chi_mask = picked_mask(present, index).unflatten(-1, (4, 4)).all(-1) & tables.chi_exists[aatype]
    atoms = torch.cat([torch.stack(backbone, -3), chi], -3)  # [*, N, 7, 4, 3]
    sin_cos, defined = _torsions(atoms, torch.cat([torch.stack(backbone_mask, -1), chi_mask], -1))

    numbers = torch.arange(7, device=positions.device)
    sin_cos = torch.where(((numbers == 2) & defined)[..., None], -sin_cos, sin_cos)  # O lies opposite to the next N
    periodic = torch.cat([torch.zeros_like(defined[..., :3]), tables.chi_pi_periodic[aatype]], -1)
    return Torsions(sin_cos, torch.where((periodic & defined)[..., None], -sin_cos, sin_cos), defined)


def _shifted(values: Tensor) -> Tensor:
    """Of each residue, what the one before has: values [*, N, 37] or [*, N, 37, 3]; 0 for the first."""
    dim = -2 if values.dtype == torch.bool else -3
    count = values.shape[dim]
    first = torch.zeros_like(values.narrow(dim, 0, min(count, 1)))
    return torch.cat([first, values.narrow(dim, 0, max(count - 1, 0))], dim)


def _follows(residue_index: Tensor, aatype: Tensor) -> Tensor:
    """Whether each residue's number is that of the one before and 1: [*, N]."""
    if not isinstance(residue_index, Tensor):
        raise TypeError(f"residue_index must be a torch.Tensor; got {type(residue_index).__name__}")
    if residue_index.is_floating_point() or residue_index.is_complex() or residue_index.dtype == torch.bool:
        raise TypeError(f"residue_index must have an integer dtype; got {residue_index.dtype}")
    if residue_index.shape != aatype.shape:
        raise ValueError(
            f"residue_index must have shape {list(aatype.shape)}, one number a residue; got {list(residue_index.shape)}"
        )
    if residue_index.device != aatype.device:
        raise ValueError(
            f"residue_index must be on the device of positions, {aatype.device}; got {residue_index.device}"
        )
    steps = residue_index[..., 1:].long() - residue_index[..., :-1].long()
    return torch.cat([torch.zeros_like(residue_index[..., :1], dtype=torch.bool), steps == 1], -1)


def _torsions(atoms: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(sin, cos) of atoms [*, 4, 3] where the mask [*] is, and where they are defined; (0, 1) elsewhere."""
    u, v, w = (atoms[..., 1:, :] - atoms[..., :-1, :]).unbind(-2)
    normal, next_normal = torch.linalg.cross(u, v), torch.linalg.cross(v, w)
    flat = normal.detach().square().sum(-1) * next_normal.detach().square().sum(-1) <= FLAT**2
    defined = mask & ~flat
    v = torch.where(defined[..., None], v, torch.ones_like(v))  # the root below has no derivative at 0
    sine = torch.sqrt(v.square().sum(-1)) * (u * next_normal).sum(-1)
    cosine = (normal * next_normal).sum(-1)
    sine, cosine = sine.masked_fill(~defined, 0), cosine.masked_fill(~defined, 1)
    length = torch.sqrt(sine.square() + cosine.square())
    return torch.stack([sine / length, cosine / length], -1), defined

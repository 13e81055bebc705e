"""The frames of the rigid groups of residues whose atoms are known."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from paperops import residues
from paperops.geometry.atom_orders import checked_atoms, picked, picked_mask
from paperops.geometry.frames import Frames
from paperops.reference.nearest import result_dtype
from paperops.residues import ATOM37
from paperops.residues.cached import constant

FLAT = 1e-6  # Angstrom^2: below it three atoms define no frame
N, CA, C, O = (ATOM37.index(name) for name in ("N", "CA", "C", "O"))


class RigidGroups(NamedTuple):
    """The frames of residues' eight rigid groups: backbone, pre-omega, phi, psi, chi1 to chi4."""

    rotations: Tensor
    """``[*, 8, 3, 3]``, from local to global; identities where the mask is 0."""
    translations: Tensor
    """``[*, 8, 3]``, in Angstrom; 0 where the mask is."""
    mask: Tensor
    """``[*, 8]``, bool: whether the group has atoms and its frame is defined."""
    alternative_rotations: Tensor
    """``[*, 8, 3, 3]``: the rotations if the names of symmetric atoms are exchanged."""
    ambiguous: Tensor
    """``[*, 8]``, bool: whether that makes a difference."""


def atom37_to_frames(aatype: Tensor, positions: Tensor, mask: Tensor) -> RigidGroups:
    r"""The true frames of each residue's rigid groups, as the targets of the side-chain FAPE.

    The backbone's is of C, CA, N (Algorithm 21). That of psi and of each chi has its origin at the third of the four
    atoms a, b, c, d of its torsion, the x axis from b to c, and d in the xy plane at positive y; for psi, d is O. The
    groups of omega and phi have no atoms, hence no frames.

    Args:
        aatype: ``[*]``, the residues' types, 0 to 20, integer.
        positions: ``[*, 37, 3]``, in the order of :data:`paperops.residues.ATOM37`, in Angstrom.
        mask: ``[*, 37]``, bool or floating, 1 = there. What is not there may be anything.

    Returns:
        :class:`RigidGroups`: float64 for float64 positions and float32 otherwise, differentiable in the positions. A
        frame is masked where one of its three atoms is not there, and where they lie on a line.

    Raises:
        TypeError, ValueError: wrong dtypes, shapes or devices; a residue type outside 0 to 20.

    Source:
        Jumper et al., Nature 596 (2021), supplement, 1.8.1 and 1.8.5, and tables 2 and 3; OpenFold's
        ``atom37_to_frames``.

    Cost:
        About 10,000 operations a residue, in plain torch.

    Example:
        >>> import torch, paperops
        >>> aatype, positions = torch.tensor([7]), torch.rand(1, 37, 3)  # glycine
        >>> groups = paperops.geometry.atom37_to_frames(aatype, positions, torch.ones(1, 37))
        >>> groups.mask[0].tolist()
        [True, False, False, True, False, False, False, False]
    """
    aatype, positions, present = checked_atoms(aatype, positions, mask, 37)
    positions = positions.to(result_dtype(positions.dtype))
    tables = residues.tables(positions.device, positions.dtype)

    atoms, has_frame = _defining_atoms(positions.device)
    index, exists = atoms[aatype].flatten(-2), has_frame[aatype]
    there = picked_mask(present, index).unflatten(-1, (8, 3)).all(-1)
    below, origin, in_plane = picked(positions, index).unflatten(-2, (8, 3)).unbind(-2)

    axis, towards = origin - below, in_plane - origin
    axis = torch.cat([-axis[..., :1, :], axis[..., 1:, :]], -2)  # of the backbone: C is at positive x
    area = torch.linalg.cross(axis, towards).detach().square().sum(-1)
    defined = exists & there & (area > FLAT**2)
    unit = torch.eye(3, dtype=axis.dtype, device=axis.device)
    axis = torch.where(defined[..., None], axis, unit[0])
    towards = torch.where(defined[..., None], towards, unit[1])
    rotations = Frames.from_three_points(axis, torch.zeros_like(axis), towards).rotations
    origin = origin.masked_fill(~defined[..., None], 0)

    periodic = torch.cat([torch.zeros_like(exists[..., :4]), tables.chi_pi_periodic[aatype]], -1)
    turned = torch.cat([rotations[..., :1], -rotations[..., 1:]], -1)  # by 180 degrees about x
    alternative = torch.where((periodic & defined)[..., None, None], turned, rotations)
    return RigidGroups(rotations, origin, defined, alternative, periodic & defined)


@constant
def _defining_atoms(device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each type's groups the atoms on the negative x axis, at the origin and in the xy plane, ``[21, 8, 3]``, as
    indices among the 37 names, and whether there are any, ``[21, 8]``."""
    tables = residues.tables(device)
    fixed = torch.tensor([[C, CA, N], [0, 0, 0], [0, 0, 0], [CA, C, O]], device=device)
    exists = torch.tensor([True, False, False, True], device=device)
    return (
        torch.cat([fixed.expand(21, 4, 3), tables.chi_atoms[..., 1:]], 1),
        torch.cat([exists.expand(21, 4), tables.chi_exists], 1),
    )

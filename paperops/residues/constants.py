"""Atoms, rigid groups and torsions of each residue type (AlphaFold2 supplement, tables 2 and 3)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from paperops.residues.cached import check_dtype, constant, device_of

DATA: dict[str, Any] = json.loads(Path(__file__).with_name("residues.json").read_text(encoding="utf-8"))
RESIDUES: dict[str, dict[str, Any]] = DATA["residues"]

NAMES: tuple[str, ...] = (*RESIDUES, "UNK")
"""Three-letter names in AlphaFold2's order; the last is the unknown type."""
LETTERS = "".join(residue["letter"] for residue in RESIDUES.values())
"""One-letter names of the 20 standard types, in the same order."""
ATOM37: tuple[str, ...] = tuple(DATA["atom37"])
"""The names of all atoms that a standard residue can have, in AlphaFold2's order."""
ATOM14: tuple[tuple[str, ...], ...] = tuple(
    tuple(names + [""] * (14 - len(names)))
    for names in [*(list(residue["atoms"]) for residue in RESIDUES.values()), []]
)
"""The names of each type's atoms in its 14 places, "" where there is none."""


class Tables(NamedTuple):
    """Tensors whose first dimension is the residue type, 0 to 20."""

    atom14_exists: Tensor
    """``[21, 14]`` bool: whether the type has an atom in this place."""
    atom37_exists: Tensor
    """``[21, 37]`` bool: whether the type has the atom of this name (OXT: none has)."""
    atom14_of_atom37: Tensor
    """``[21, 37]`` int64: the place among the 14 of each of the 37 names; 0 where there is none."""
    atom37_of_atom14: Tensor
    """``[21, 14]`` int64: the index among the 37 names of each of the 14 places; 0 where there is none."""
    atom14_group: Tensor
    """``[21, 14]`` int64: the atom's rigid group: 0 backbone, 1 pre-omega, 2 phi, 3 psi, 4 to 7 chi1 to chi4."""
    atom14_positions: Tensor
    """``[21, 14, 3]``: the atom's ideal position in its group's frame; 0 where there is none."""
    frame_rotations: Tensor
    """``[21, 8, 3, 3]``: each group's axes in its parent's frame, at torsion 0. Parents: the backbone, for chi2 to chi4
    the chi before. Identities for the backbone, for pre-omega, and where there is no such chi."""
    frame_translations: Tensor
    """``[21, 8, 3]``: each group's origin in its parent's frame."""
    chi_atoms: Tensor
    """``[21, 4, 4]`` int64: the four atoms of each chi, as indices among the 37 names; 0 where there is none."""
    chi_exists: Tensor
    """``[21, 4]`` bool."""
    chi_pi_periodic: Tensor
    """``[21, 4]`` bool: whether half a turn of this chi gives the same structure."""
    swapped_atom14: Tensor
    """``[21, 14]`` int64: the atom that renaming the symmetric ones (Algorithm 26) puts here; itself where none is."""
    atom14_ambiguous: Tensor
    """``[21, 14]`` bool: whether that is another one."""
    radii: Tensor
    """``[21, 14]``: van der Waals radii; 0 where there is no atom."""


def tables(device: torch.device | str | None = None, dtype: torch.dtype = torch.float64) -> Tables:
    """The constants as tensors, made once for each device and dtype; not to be written to.

    Args:
        device: where they are; the CPU by default.
        dtype: of the floating ones.

    Raises:
        TypeError: dtype is not a floating one.

    Source:
        Jumper et al., Nature 596 (2021), supplement, tables 2 and 3; ``residues.json`` cites the rest.

    Example:
        >>> from paperops import residues
        >>> tables = residues.tables()
        >>> glycine = residues.LETTERS.index("G")
        >>> int(tables.atom14_exists[glycine].sum())
        4
    """
    check_dtype(dtype)
    return _tables(device_of(device), dtype)


@constant
def _tables(device: torch.device, dtype: torch.dtype) -> Tables:
    return Tables(*(value.to(device, dtype if value.is_floating_point() else None) for value in _build()))


def _build() -> Tables:
    """The tables in float64, on the CPU."""

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(21, *shape, dtype=dtype, device="cpu")

    found = Tables(
        atom14_exists=empty(14, dtype=torch.bool),
        atom37_exists=empty(37, dtype=torch.bool),
        atom14_of_atom37=empty(37, dtype=torch.int64),
        atom37_of_atom14=empty(14, dtype=torch.int64),
        atom14_group=empty(14, dtype=torch.int64),
        atom14_positions=empty(14, 3, dtype=torch.float64),
        frame_rotations=torch.eye(3, dtype=torch.float64, device="cpu").repeat(21, 8, 1, 1),
        frame_translations=empty(8, 3, dtype=torch.float64),
        chi_atoms=empty(4, 4, dtype=torch.int64),
        chi_exists=empty(4, dtype=torch.bool),
        chi_pi_periodic=empty(4, dtype=torch.bool),
        swapped_atom14=torch.arange(14, device="cpu").repeat(21, 1),
        atom14_ambiguous=empty(14, dtype=torch.bool),
        radii=empty(14, dtype=torch.float64),
    )
    for number, residue in enumerate(RESIDUES.values()):
        places = {name: place for place, name in enumerate(residue["atoms"])}
        for name, (group, *position) in residue["atoms"].items():
            place, index = places[name], ATOM37.index(name)
            found.atom14_exists[number, place] = True
            found.atom37_exists[number, index] = True
            found.atom14_of_atom37[number, index] = place
            found.atom37_of_atom14[number, place] = index
            found.atom14_group[number, place] = group
            found.atom14_positions[number, place] = torch.tensor(position, dtype=torch.float64, device="cpu")
            found.radii[number, place] = DATA["radii"][name[0]]
        for chi, names in enumerate(residue["chi"]):
            found.chi_exists[number, chi] = True
            found.chi_pi_periodic[number, chi] = chi + 1 in residue["pi_periodic"]
            found.chi_atoms[number, chi] = torch.tensor([ATOM37.index(name) for name in names], device="cpu")
        for one, other in residue["symmetric"]:
            for here, there in ((one, other), (other, one)):
                found.swapped_atom14[number, places[here]] = places[there]
                found.atom14_ambiguous[number, places[here]] = True
        positions = {name: found.atom14_positions[number, place] for name, place in places.items()}
        for group, (rotation, translation) in _group_frames(positions, residue["chi"]).items():
            found.frame_rotations[number, group] = rotation
            found.frame_translations[number, group] = translation
    return found


def _group_frames(positions: dict[str, Tensor], chi: list[list[str]]) -> dict[int, tuple[Tensor, Tensor]]:
    """Each rotating group's frame in its parent's at torsion 0, from the ideal positions (supplement, 1.8.4)."""
    along_x = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64, device="cpu")
    frames = {
        2: _frame(positions["N"] - positions["CA"], along_x, positions["N"]),
        3: _frame(positions["C"] - positions["CA"], positions["CA"] - positions["N"], positions["C"]),
    }
    for number, (first, start, end, _) in enumerate(chi):
        if number == 0:
            axis, towards = positions[end] - positions[start], positions[first] - positions[start]
        else:  # the axis starts at the parent's origin, and the atom before it lies on the parent's x axis, below 0
            axis, towards = positions[end], -along_x
        frames[4 + number] = _frame(axis, towards, positions[end])
    return frames


def _frame(axis: Tensor, towards: Tensor, origin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation and translation of the frame with this x axis, and ``towards`` in its xy plane at positive y."""
    x = axis / axis.norm()
    y = towards - (towards @ x) * x
    y = y / y.norm()
    return torch.stack([x, y, torch.linalg.cross(x, y)], -1), origin

"""A helix, a turn and a helix of ideal geometry, built from torsion angles: the structure where no file is given."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from paperops import residues
from paperops.geometry import Frames, atom14_to_atom37, frames_to_atom14, torsions_to_frames
from paperops.structures import Chain

# Phi and psi in degrees. The turn's were found by trying combinations of common ones, for helices side by side.
HELIX, TURN = (-63.0, -42.0), ((85.0, 10.0), (-140.0, 160.0), (-120.0, 130.0), (-120.0, 130.0))
FIRST, BETWEEN, SECOND = "SPEELLAKAWELIKRALE", "GNTD", "TEEDVRRAFEYLQRMVEEAKK"
# The side chains' torsions in degrees: those most common in helices; the rest at 180.
CHI_1 = {"P": 28.0, "V": 175.0, "I": -65.0, "T": -60.0}
CHI_2 = {"P": -20.0, "F": 90.0, "Y": 90.0, "W": 100.0, "N": -20.0, "D": -15.0}


def helix_turn_helix() -> Chain:
    """The built-in structure of 43 residues, all atoms of it."""
    letters = FIRST + BETWEEN + SECOND
    angles = torch.tensor([HELIX] * len(FIRST) + list(TURN) + [HELIX] * len(SECOND), dtype=torch.float64)
    phi, psi = torch.deg2rad(angles).unbind(-1)
    chi = [[CHI_1.get(letter, -68.0), CHI_2.get(letter, 180.0), 180.0, 180.0] for letter in letters]
    omega = torch.full_like(phi, math.pi)
    torsions = torch.cat([torch.stack([omega, phi, psi], -1), torch.deg2rad(torch.tensor(chi, dtype=phi.dtype))], -1)
    aatype = torch.tensor([residues.LETTERS.index(letter) for letter in letters])
    groups = torsions_to_frames(aatype, *backbone(phi, psi, letters), torch.stack([torsions.sin(), torsions.cos()], -1))
    there = residues.tables().atom14_exists[aatype]
    atoms = atom14_to_atom37(aatype, frames_to_atom14(aatype, *groups), there)
    numbers = torch.arange(1, len(letters) + 1)
    note = "built from torsion angles: a helix, a turn and a helix of ideal geometry"
    return Chain("A", letters, aatype, numbers, atoms.positions, atoms.mask, (note,))


def backbone(phi: Tensor, psi: Tensor, letters: str) -> Frames:
    """Backbone frames ``[N]`` of residues joined by flat trans peptide bonds, from phi and psi ``[N]`` in radians."""
    tables = residues.tables()
    frame = Frames.identity(dtype=torch.float64)
    found: list[tuple[Frames, Tensor]] = []
    for number, letter in enumerate(letters):
        kind = residues.LETTERS.index(letter)
        if number:
            bond = residues.C_N_LENGTH[letter == "P"]
            ideal = tables.atom14_positions[kind]
            n, ca, c = found[-1][1]
            next_n = extended(n, ca, c, bond, math.acos(residues.COS_CA_C_N[0]), float(psi[number - 1]))
            to_ca, to_c = float(ideal[0].norm()), float(ideal[2].norm())
            next_ca = extended(ca, c, next_n, to_ca, math.acos(residues.COS_C_N_CA[0]), math.pi)
            angle = math.acos(float(ideal[0] @ ideal[2]) / (to_ca * to_c))
            next_c = extended(c, next_n, next_ca, to_c, angle, float(phi[number]))
            frame = Frames.from_three_points(next_c, next_ca, next_n)
        found.append((frame, frame.apply(tables.atom14_positions[kind, :3])))
    frames = [frame for frame, _ in found]
    return Frames(
        torch.stack([frame.rotations for frame in frames]), torch.stack([frame.translations for frame in frames])
    )


def extended(a: Tensor, b: Tensor, c: Tensor, length: float, angle: float, torsion: float) -> Tensor:
    """The point at this distance from c, at this angle with c to b, and this torsion about b to c."""
    at = Frames.from_three_points(2 * c - b, c, a)  # x from b to c, a at positive y
    across = math.sin(angle)
    local = [-math.cos(angle), across * math.cos(torsion), across * math.sin(torsion)]
    return at.apply(length * torch.tensor(local, dtype=c.dtype))

"""Geometry of molecules: rigid frames, torsion angles, atoms."""

from paperops.geometry.atom_orders import Atoms, atom14_to_atom37, atom37_to_atom14, swap_symmetric_atoms
from paperops.geometry.atoms_to_frames import RigidGroups, atom37_to_frames
from paperops.geometry.atoms_to_torsions import Torsions, atom37_to_torsions
from paperops.geometry.frames import Frames
from paperops.geometry.torsions_to_atoms import frames_to_atom14, torsions_to_frames

__all__ = [
    "Atoms",
    "Frames",
    "RigidGroups",
    "Torsions",
    "atom14_to_atom37",
    "atom37_to_atom14",
    "atom37_to_frames",
    "atom37_to_torsions",
    "frames_to_atom14",
    "swap_symmetric_atoms",
    "torsions_to_frames",
]

"""Constants of the 20 standard amino acids: atoms, rigid groups, torsions, bond geometry, as tensors by residue type.

All numbers stand in ``residues.json`` beside this file, which cites where each comes from. Lengths are in Angstrom.
Residue type 20 is unknown ("X"): it has no atoms, and its frames are identities.
"""

from paperops.residues.bounds import (
    C_N_LENGTH,
    C_N_LENGTH_DEVIATION,
    COS_C_N_CA,
    COS_CA_C_N,
    distance_bounds,
)
from paperops.residues.constants import ATOM14, ATOM37, LETTERS, NAMES, Tables, tables

__all__ = [
    "ATOM14",
    "ATOM37",
    "COS_CA_C_N",
    "COS_C_N_CA",
    "C_N_LENGTH",
    "C_N_LENGTH_DEVIATION",
    "LETTERS",
    "NAMES",
    "Tables",
    "distance_bounds",
    "tables",
]

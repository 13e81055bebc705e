"""Protein structures in files: mmCIF and PDB read, mmCIF written, with gemmi (from the extra ``paperops[demo]``)."""

from paperops.structures.reading import Chain, read_chain
from paperops.structures.writing import write_mmcif

__all__ = ["Chain", "read_chain", "write_mmcif"]

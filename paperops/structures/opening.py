"""A structure from a file's bytes, as gemmi takes them, and what it would take wrongly."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from pathlib import Path
from typing import Any

from paperops.structures.library import gemmi

_GZIP, _BYTE_ORDER_MARK = b"\x1f\x8b", b"\xef\xbb\xbf"
_NO_PDB = re.compile(rb"(?:\s|#[^\n]*\n)*(?:data_|\{)", re.IGNORECASE)  # how mmCIF and mmJSON begin, after comments


def open_structure(path: Path, notes: list[str]) -> Any:
    """gemmi's structure, with its entities. Raises OSError, and ValueError where there is none."""
    content = path.read_bytes()
    library = gemmi()
    try:
        if content.startswith(_GZIP):
            content = gzip.decompress(content)
        content = content.removeprefix(_BYTE_ORDER_MARK)  # before which gemmi would not see mmCIF
        if not content.strip():
            raise ValueError(f"{path} is no structure: it is empty")
        form = library.CoorFormat.Detect
        if not _NO_PDB.match(content):
            form = library.CoorFormat.Pdb
            content = _with_positions(content, notes)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no mmCIF or PDB file: {error}") from None
    try:
        structure = library.read_structure_string(content, merge_chain_parts=True, format=form)
        structure.setup_entities()
    except (RuntimeError, ValueError, OSError, IndexError) as error:
        raise ValueError(f"{path} is no mmCIF or PDB file: {str(error).splitlines()[0]}") from None
    if not any(len(residue) for model in structure for chain in model for residue in chain):
        raise ValueError(f"{path} is no structure: no atoms were found in it")
    return structure


def _with_positions(content: bytes, notes: list[str]) -> bytes:
    """A PDB file without the atoms whose coordinates are no numbers: gemmi would read them as 0."""
    kept, without = [], 0
    for line in content.splitlines(keepends=True):
        atom = line[:6].upper() in (b"ATOM  ", b"HETATM") and len(line) >= 54  # of shorter ones gemmi complains
        if not atom or all(_is_number(line[start : start + 8]) for start in (30, 38, 46)):
            kept.append(line)
        else:
            without += 1
    if without:
        notes.append(f"{without} atoms left out, whose coordinates are no numbers")
    return b"".join(kept)


def _is_number(field: bytes) -> bool:
    try:
        return math.isfinite(float(field))
    except ValueError:
        return False

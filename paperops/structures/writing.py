"""Writing a protein chain to a file."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import torch
from torch import Tensor

from paperops.ops import _checks
from paperops.residues import ATOM37, NAMES
from paperops.structures.library import gemmi

LONGEST = 100_000  # residues of a sequence


def write_mmcif(
    path: str | os.PathLike[str],
    aatype: Tensor,
    positions: Tensor,
    mask: Tensor,
    *,
    residue_index: Tensor | None = None,
    plddt: Tensor | None = None,
    chain: str = "A",
    name: str = "model",
) -> None:
    """Write a protein chain as mmCIF, compressed by gzip if the file's name ends in ``.gz``.

    The file's sequence has all N residues, those without atoms too, at the places that their numbers say, and unknown
    residues where numbers are passed over. Where a number is below 1, or above 100000, it has the N residues alone.

    Args:
        path: the file; one that is there is replaced.
        aatype: ``[N]``, the residues' types, 0 to 20, integer.
        positions: ``[N, 37, 3]``, in the order of :data:`paperops.residues.ATOM37`, in Angstrom.
        mask: ``[N, 37]``, bool or floating, 1 = there. What is not there may be anything.
        residue_index: ``[N]``, the residues' numbers, integer, ascending; 1 to N by default.
        plddt: ``[N]``, the confidence, 0 to 100, to stand in the place of the B factors; 0 by default.
        chain: the chain's name.
        name: of the data block.

    Raises:
        TypeError, ValueError: wrong dtypes or shapes; a residue type outside 0 to 20; numbers that do not ascend;
            positions that are not finite; no atom at all; names that are empty or have blanks.
        OSError: the file cannot be written.
        ImportError: gemmi is not installed.

    Example:
        See :func:`paperops.structures.read_chain`.
    """
    _checks.vectors("positions", positions, 3, "one point an atom")
    if positions.dim() != 3 or positions.shape[1] != len(ATOM37):
        raise ValueError(f"positions must have shape [N, {len(ATOM37)}, 3]; got {list(positions.shape)}")
    count = positions.shape[0]
    aatype = _checks.residue_types("aatype", aatype, (count,), positions, "positions").cpu()
    if mask is None:
        raise TypeError("mask must be a torch.Tensor; got NoneType")
    _checks.mask_of("mask", mask, (count, len(ATOM37)), "atom", positions, "positions")
    present = (mask != 0).detach().cpu()
    places = positions.detach().cpu().double()
    if not places[present].isfinite().all():
        raise ValueError("positions must be finite where the mask is 1; got NaN or inf")
    if not present.any():
        raise ValueError("mask must keep at least one atom; got none")
    numbers = _numbers(residue_index, count)
    confidence = _confidence(plddt, count)
    for argument, value in (("chain", chain), ("name", name)):
        if not isinstance(value, str) or not value or not value.isprintable() or any(map(str.isspace, value)):
            raise ValueError(f"{argument} must be a word; got {value!r}")

    library = gemmi()
    labelled, sequence = _sequence(aatype, numbers)
    written = library.Chain(chain)
    for row in present.any(1).nonzero()[:, 0].tolist():
        residue = library.Residue()
        residue.name = NAMES[int(aatype[row])]
        residue.seqid = library.SeqId(numbers[row], " ")
        residue.label_seq = numbers[row] if labelled else None
        residue.entity_type = library.EntityType.Polymer
        residue.subchain = chain
        residue.entity_id = "1"
        for column in present[row].nonzero()[:, 0].tolist():
            atom = library.Atom()
            atom.name = ATOM37[column]
            atom.element = library.Element(ATOM37[column][0])
            atom.pos = library.Position(*places[row, column].tolist())
            atom.occ, atom.b_iso = 1.0, confidence[row]
            residue.add_atom(atom)
        written.add_residue(residue)
    model = library.Model(1)
    model.add_chain(written)
    structure = library.Structure()
    structure.name = name
    structure.add_model(model)
    entity = library.Entity("1")
    entity.entity_type, entity.polymer_type = library.EntityType.Polymer, library.PolymerType.PeptideL
    entity.subchains, entity.full_sequence = [chain], sequence
    structure.entities.append(entity)
    groups = library.MmcifOutputGroups(True)
    groups.cell = groups.symmetry = False  # of no crystal
    text = structure.make_mmcif_document(groups).as_string()
    target = Path(path)
    if target.suffix == ".gz":
        target.write_bytes(gzip.compress(text.encode(), mtime=0))
    else:
        target.write_text(text, encoding="utf-8")


def _sequence(aatype: Tensor, numbers: list[int]) -> tuple[bool, list[str]]:
    """Whether the residues' numbers are their places in the file's sequence, and that sequence's names.

    Numbers that are passed over are unknown residues. Numbers below 1 or very large are no such places.
    """
    names = [NAMES[kind] for kind in aatype.tolist()]
    if not numbers or numbers[0] < 1 or numbers[-1] > LONGEST:
        return False, names
    sequence = [NAMES[-1]] * numbers[-1]
    for number, name in zip(numbers, names, strict=True):
        sequence[number - 1] = name
    return True, sequence


def _numbers(residue_index: Tensor | None, count: int) -> list[int]:
    if residue_index is None:
        return list(range(1, count + 1))
    _checks.tensor("residue_index", residue_index)
    if residue_index.is_floating_point() or residue_index.is_complex() or residue_index.dtype == torch.bool:
        raise TypeError(f"residue_index must have an integer dtype; got {residue_index.dtype}")
    if tuple(residue_index.shape) != (count,):
        raise ValueError(f"residue_index must have shape {[count]}; got {list(residue_index.shape)}")
    numbers: list[int] = residue_index.tolist()
    if any(after <= before for before, after in zip(numbers, numbers[1:])):
        raise ValueError("residue_index must ascend; it does not")
    return numbers


def _confidence(plddt: Tensor | None, count: int) -> list[float]:
    if plddt is None:
        return [0.0] * count
    _checks.tensor("plddt", plddt)
    if not plddt.is_floating_point():
        raise TypeError(f"plddt must have a floating dtype; got {plddt.dtype}")
    if tuple(plddt.shape) != (count,):
        raise ValueError(f"plddt must have shape {[count]}, one value a residue; got {list(plddt.shape)}")
    found: list[float] = plddt.detach().double().tolist()
    if not all(0 <= value <= 100 for value in found):
        raise ValueError("plddt must be from 0 to 100; it is not, or is NaN")
    return found

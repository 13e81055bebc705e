"""Reading a protein chain from a file."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from paperops.residues import ATOM14, ATOM37, LETTERS, NAMES, tables
from paperops.structures.library import gemmi
from paperops.structures.opening import open_structure

UNKNOWN = len(LETTERS)
BACKBONE = ("N", "CA", "C", "O", "CB")  # what is kept of a residue of unknown type
HYDROGENS = ("H", "D")
COLUMN = {name: column for column, name in enumerate(ATOM37)}
EXPECTED = {name: frozenset({*ATOM14[kind], "OXT"}) for kind, name in enumerate(NAMES[:UNKNOWN])}


class Chain(NamedTuple):
    """A protein chain: its N residues as far as the file has their atoms, in order."""

    name: str
    """The chain's name, the author's."""
    sequence: str
    """N letters, "X" for residues of unknown type."""
    aatype: Tensor
    """``[N]`` int64: the residues' types in the order of :data:`paperops.residues.LETTERS`, 20 for unknown."""
    residue_index: Tensor
    """``[N]`` int64: the residues' numbers, ascending; they go up by one where nothing is missing."""
    positions: Tensor
    """``[N, 37, 3]`` float64, in Angstrom, in the order of :data:`paperops.residues.ATOM37`; 0 where the mask is."""
    mask: Tensor
    """``[N, 37]`` bool: which atoms the file has."""
    notes: tuple[str, ...]
    """What was chosen, renamed, left out or is missing, a sentence each."""


def read_chain(path: str | os.PathLike[str], chain: str | None = None, model: int | None = None) -> Chain:
    """A protein chain of an mmCIF or PDB file, which may be compressed by gzip.

    Waters, ligands and hydrogens are left out. Selenomethionine is read as methionine; other residues that are not
    among the 20 standard ones are of unknown type, with their backbone and CB. Of alternate locations a residue keeps
    the one with the highest occupancy in all, the first by name among equals; likewise of alternate residues at one
    place. Arginine's NH1 and NH2 are exchanged where NH2 is nearer to CD. Atoms whose coordinates are no numbers are
    left out. What of this happened is told in ``notes``.

    Residues' numbers are their places in the sequence where the file gives them (mmCIF); otherwise the author's, with
    one number for each insertion code, so that all after it move up.

    Args:
        path: the file.
        chain: the chain's name, the author's; by default the first one that is a protein.
        model: the model's number in the file; by default the first one.

    Returns:
        :class:`Chain`

    Raises:
        OSError: the file cannot be read.
        TypeError: ``model`` is no int.
        ValueError: it is no structure; it has no such model or chain, or no protein; the chain is none; residues have
            no number, or several that are no alternates share one.
        ImportError: gemmi is not installed.

    Example:
        >>> import tempfile, torch
        >>> from paperops.structures import read_chain, write_mmcif
        >>> mask = torch.zeros(2, 37, dtype=torch.bool)
        >>> mask[:, :3] = True  # N, CA, C
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = f"{folder}/two.cif"
        ...     write_mmcif(path, torch.tensor([0, 7]), torch.rand(2, 37, 3), mask)
        ...     chain = read_chain(path)
        >>> chain.sequence, int(chain.mask.sum())
        ('AG', 6)
    """
    if model is not None and type(model) is not int:  # True and 1.0 would be taken for 1
        raise TypeError(f"model must be an int; got {type(model).__name__}")
    notes: list[str] = []
    structure = open_structure(Path(path), notes)
    chosen = _chain(_model(structure, model, path, notes), chain, path, notes)
    polymer = list(chosen.get_polymer())
    _note_left_out(chosen, polymer, notes)

    chosen_residues, atoms = [], []
    unexpected: Counter[str] = Counter()
    repeated: Counter[str] = Counter()
    alternates: list[str] = []
    for alternatives in _places(polymer):
        _refuse_unclear(alternatives, chosen, path)
        residue = _likeliest_residue(alternatives, alternates)
        atoms.append(_atoms_of(residue, unexpected, repeated, alternates))
        chosen_residues.append(residue)
    places = f"{len(alternates)} alternate locations or residues, of which the likeliest was taken: "
    _note(notes, places, Counter(alternates))
    _note(notes, f"{sum(unexpected.values())} atoms of unexpected names left out: ", unexpected)
    _note(notes, f"{sum(repeated.values())} atoms come again, and the likeliest or first was taken: ", repeated)

    names = [residue.name for residue in chosen_residues]
    types = [NAMES.index("MET" if name == "MSE" else name) if name in {*NAMES, "MSE"} else UNKNOWN for name in names]
    if "MSE" in names:
        notes.append(f"{names.count('MSE')} selenomethionines (MSE) read as methionines")
    unknown = Counter(name for name, number in zip(names, types) if number == UNKNOWN)
    _note(notes, f"{sum(unknown.values())} residues of unknown type, of which the backbone was read: ", unknown)

    rows = [row for row, found in enumerate(atoms) for _ in found]
    columns = [COLUMN[name] for found in atoms for name in found]
    places_found = [place for found in atoms for place in found.values()]
    positions = torch.zeros(len(types), len(ATOM37), 3, dtype=torch.float64)
    mask = torch.zeros(len(types), len(ATOM37), dtype=torch.bool)
    positions[rows, columns] = torch.tensor(places_found, dtype=torch.float64).reshape(-1, 3)
    mask[rows, columns] = True
    aatype = torch.tensor(types, dtype=torch.int64)
    _right_arginines(aatype, positions, mask, notes)
    residue_index = torch.tensor(_numbers(chosen_residues, notes), dtype=torch.int64)
    _note_missing(aatype, residue_index, mask, _full_length(structure, chosen), notes)
    sequence = "".join((LETTERS + "X")[number] for number in types)
    return Chain(chosen.name, sequence, aatype, residue_index, positions, mask, tuple(notes))


def _model(structure: Any, number: int | None, path: object, notes: list[str]) -> Any:
    numbers = [model.num for model in structure]
    if number is not None and number not in numbers:
        raise ValueError(f"{path} has no model {number}; there are {', '.join(map(str, numbers))}")
    if number is None and len(numbers) > 1:
        notes.append(f"{len(numbers)} models, of which the first was read")
    return structure[0 if number is None else numbers.index(number)]


def _chain(model: Any, name: str | None, path: object, notes: list[str]) -> Any:
    kinds = {chain.name: _kind(chain) for chain in model}
    there = ", ".join(f"{one} ({kind})" for one, kind in kinds.items())
    if name is not None and name not in kinds:
        raise ValueError(f"{path} has no chain {name!r}; there are {there}")
    proteins = [one for one, kind in kinds.items() if kind == "protein"]
    if not proteins:
        raise ValueError(f"{path} has no protein; its chains are {there}")
    if name is not None and name not in proteins:
        raise ValueError(f"chain {name!r} of {path} is {kinds[name]}, no protein; proteins are {', '.join(proteins)}")
    if name is None and len(kinds) > 1:
        notes.append(f"chains {there}, of which {proteins[0]} was read")
    return next(chain for chain in model if chain.name == (proteins[0] if name is None else name))


def _kind(chain: Any) -> str:
    library = gemmi()
    polymer = chain.get_polymer()
    kinds = library.PolymerType
    kind = polymer.check_polymer_type() if len(polymer) else None
    if kind in (kinds.PeptideL, kinds.PeptideD):
        return "protein"
    if kind in (kinds.Dna, kinds.Rna, kinds.DnaRnaHybrid):
        return "nucleic acid"
    return "no polymer" if kind is None else "another polymer"


def _places(polymer: list[Any]) -> Iterator[list[Any]]:
    """The residues, those at one place of the chain (a point mutation among alternates) together."""
    group: list[Any] = []
    for residue in polymer:
        if group and (residue.seqid != group[-1].seqid or residue.label_seq != group[-1].label_seq):
            yield group
            group = []
        group.append(residue)
    if group:
        yield group


def _refuse_unclear(alternatives: list[Any], chain: Any, path: object) -> None:
    """ValueError where a residue has no number, or is several that share one: they cannot be told apart."""
    first = alternatives[0]
    if first.seqid.num is None:
        raise ValueError(f"{path}: residue {first.name} of chain {chain.name} has no number")
    clear = len(alternatives) == 1 or sum(not any(a.has_altloc() for a in one) for one in alternatives) < 2
    for residue in alternatives:
        alpha = [atom.altloc for atom in residue if atom.name == "CA"]
        clear = clear and len(alpha) == len(set(alpha))
    if not clear:
        names = ", ".join(dict.fromkeys(residue.name for residue in alternatives))
        raise ValueError(f"{path}: several residues of chain {chain.name} have the number {first.seqid} ({names})")


def _likeliest_residue(alternatives: list[Any], alternates: list[str]) -> Any:
    def rank(residue: Any) -> tuple[float, str, str]:
        occupancy = sum(atom.occ for atom in residue) / max(len(residue), 1)
        return -round(occupancy, 4), min((atom.altloc for atom in residue), default=""), residue.name

    best = min(alternatives, key=rank)
    if len(alternatives) > 1:
        alternates.append(f"{best.name}{best.seqid}")
    return best


def _atoms_of(
    residue: Any, unexpected: Counter[str], repeated: Counter[str], alternates: list[str]
) -> dict[str, tuple[float, float, float]]:
    """The positions of the residue's atoms by name, in one of its conformations."""
    weights: Counter[str] = Counter()
    for atom in residue:
        if atom.has_altloc():
            weights[atom.altloc] += round(atom.occ, 4)
    if len(weights) > 1:
        alternates.append(f"{residue.name}{residue.seqid}")
    order = {name: rank for rank, (name, _) in enumerate(sorted(weights.items(), key=lambda item: (-item[1], item[0])))}

    standard = "MET" if residue.name == "MSE" else residue.name
    allowed = EXPECTED.get(standard, BACKBONE)
    seen: set[tuple[str, str]] = set()
    found: dict[str, tuple[tuple[float, float], tuple[float, float, float]]] = {}
    for atom in residue:
        name = "SD" if residue.name == "MSE" and atom.name == "SE" else atom.name
        if name not in allowed:
            if standard in EXPECTED and atom.element.name not in HYDROGENS:
                unexpected[f"{residue.name} {atom.name}"] += 1
            continue
        place = (atom.pos.x, atom.pos.y, atom.pos.z)
        if not all(map(math.isfinite, place)):
            unexpected[f"{residue.name} {atom.name} without a position"] += 1
            continue
        if (name, atom.altloc) in seen:
            repeated[f"{residue.name} {atom.name}"] += 1
        seen.add((name, atom.altloc))
        rank = (order.get(atom.altloc, -1), -atom.occ)
        if name not in found or rank < found[name][0]:
            found[name] = rank, place
    return {name: place for name, (_, place) in found.items()}


def _numbers(chosen: list[Any], notes: list[str]) -> list[int]:
    """The residues' numbers: ascending, by one where nothing is missing."""
    labels = [residue.label_seq for residue in chosen]
    if all(label is not None for label in labels) and all(a < b for a, b in zip(labels, labels[1:])):
        return labels
    found: list[int] = []
    shift = inserted = backwards = 0
    for residue in chosen:
        if residue.seqid.icode.strip():
            shift, inserted = shift + 1, inserted + 1
        number = residue.seqid.num + shift
        if found and number <= found[-1]:
            backwards += not residue.seqid.icode.strip()
            shift += found[-1] + 1 - number
            number = found[-1] + 1
        found.append(number)
    if inserted:
        notes.append(f"{inserted} residues have insertion codes; the numbers of those that follow move up")
    if backwards:
        notes.append(f"residues' numbers do not ascend at {backwards} places; those that follow move up")
    return found


def _right_arginines(aatype: Tensor, positions: Tensor, mask: Tensor, notes: list[str]) -> None:
    """NH1 is the one nearer to CD: exchange the names where it is not."""
    cd, nh1, nh2 = (ATOM37.index(name) for name in ("CD", "NH1", "NH2"))
    arginine = (aatype == NAMES.index("ARG")) & mask[:, cd] & mask[:, nh1] & mask[:, nh2]
    far = (positions[:, nh1] - positions[:, cd]).norm(dim=-1) > (positions[:, nh2] - positions[:, cd]).norm(dim=-1)
    wrong = (arginine & far).nonzero()[:, 0]
    positions[wrong[:, None], torch.tensor([nh1, nh2])] = positions[wrong[:, None], torch.tensor([nh2, nh1])]
    if len(wrong):
        notes.append(f"NH1 and NH2 exchanged in {len(wrong)} arginines")


def _note_left_out(chain: Any, polymer: list[Any], notes: list[str]) -> None:
    kept = {(residue.seqid.num, residue.seqid.icode, residue.name) for residue in polymer}
    others = [residue for residue in chain if (residue.seqid.num, residue.seqid.icode, residue.name) not in kept]
    waters = sum(residue.is_water() for residue in others)
    if waters:
        notes.append(f"{waters} waters left out")
    rest = Counter(residue.name for residue in others if not residue.is_water())
    _note(notes, f"{sum(rest.values())} other molecules left out: ", rest)


def _full_length(structure: Any, chain: Any) -> int:
    """How many residues the sequence has that the file gives for the chain; 0 if it gives none."""
    entity = structure.get_entity_of(chain.get_polymer())
    return 0 if entity is None else len(entity.full_sequence)


def _note_missing(aatype: Tensor, residue_index: Tensor, mask: Tensor, length: int, notes: list[str]) -> None:
    if length > len(aatype):
        notes.append(f"{len(aatype)} of the sequence's {length} residues have atoms")
    steps = residue_index[1:] - residue_index[:-1]
    if (steps > 1).any():
        gaps = int((steps > 1).sum())
        notes.append(f"{int((steps - 1).clamp(min=0).sum())} residues within the chain are missing, in {gaps} gaps")
    short = (tables().atom37_exists[aatype] & ~mask).any(1)
    lacking = Counter(NAMES[number] for number in aatype[short].tolist())
    _note(notes, f"{sum(lacking.values())} residues lack atoms: ", lacking)


def _note(notes: list[str], words: str, counted: Counter[str]) -> None:
    """The words and what was counted, the first few of it."""
    if not counted:
        return
    shown = [name if count == 1 else f"{name} ({count})" for name, count in counted.most_common(6)]
    notes.append(words + ", ".join(shown) + (" and more" if len(counted) > 6 else ""))

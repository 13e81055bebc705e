"""What the geometry of residues refuses, and in which words."""

import pytest
import torch

from paperops.geometry import (
    Frames,
    atom37_to_atom14,
    atom37_to_frames,
    atom37_to_torsions,
    frames_to_atom14,
    swap_symmetric_atoms,
    torsions_to_frames,
)


def refusals():
    aatype, frames, torsions = torch.zeros(2, 3, dtype=torch.int64), Frames.identity(2, 3), torch.ones(2, 3, 7, 2)
    positions, mask = torch.rand(2, 3, 37, 3), torch.ones(2, 3, 37)

    def torsion_case(name, words, error=ValueError, **changed):
        given = {"aatype": aatype, "rotations": frames.rotations, "translations": frames.translations}
        yield name, torsions_to_frames, given | {"torsions": torsions} | changed, error, words

    def atom_case(name, words, error=ValueError, function=atom37_to_torsions, **changed):
        yield name, function, {"aatype": aatype, "positions": positions, "mask": mask} | changed, error, words

    for value, came in ((21, "21"), (-1, "-1")):
        wrong = torch.full_like(aatype, value)
        words = rf"aatype must be types of residues, from 0 to 20; got {came}"
        yield from torsion_case(f"type {value}", words, aatype=wrong)
        yield from atom_case(f"type {value}, atoms", words, aatype=wrong)
        yield from atom_case(f"type {value}, frames of atoms", words, function=atom37_to_frames, aatype=wrong)
    yield from torsion_case(
        "floating types", "aatype must have an integer dtype; got torch.float32", TypeError, aatype=aatype.float()
    )
    yield from torsion_case("too few types", r"aatype must have shape \[2, 3\].*got \[2, 2\]", aatype=aatype[:, :2])
    yield from torsion_case(
        "six torsions", r"torsions must have shape \[2, 3, 7, 2\]; got \[2, 3, 6, 2\]", torsions=torsions[..., :6, :]
    )
    yield from torsion_case(
        "angles", r"torsions must have shape \[\*, 2\].*got \[2, 3, 7, 1\]", torsions=torsions[..., :1]
    )
    yield from torsion_case(
        "integer torsions", "torsions must be float16.*got torch.int64", TypeError, torsions=torsions.long()
    )
    yield from torsion_case(
        "rotations", r"rotations must have shape \[\*, 3, 3\]", rotations=frames.rotations[..., :2, :]
    )
    yield from torsion_case(
        "dtypes", "translations must have the dtype of rotations", TypeError, translations=frames.translations.double()
    )
    yield from torsion_case(
        "device", "torsions must be on the device of rotations, cpu; got meta", torsions=torsions.to("meta")
    )
    yield (
        "groups",
        frames_to_atom14,
        {"aatype": aatype, "rotations": frames.rotations, "translations": frames.translations},
        ValueError,
        r"rotations must have shape \[\*, 8, 3, 3\]",
    )
    yield from atom_case(
        "14 atoms", r"positions must have shape \[\*, 37, 3\]; got \[2, 3, 14, 3\]", positions=positions[..., :14, :]
    )
    yield from atom_case(
        "37 atoms", r"positions must have shape \[\*, 14, 3\]; got \[2, 3, 37, 3\]", function=swap_symmetric_atoms
    )
    yield from atom_case(
        "no residues' dimension",
        r"positions must have shape \[\*, N, 37, 3\]; got \[37, 3\]",
        positions=positions[0, 0],
    )
    yield from atom_case("mask's shape", r"mask must have shape \[2, 3, 37\].*got \[2, 3\]", mask=mask[..., 0])
    yield from atom_case(
        "integer mask", "mask must be bool or floating, 1 = keep; got torch.int64", TypeError, mask=mask.long()
    )
    yield from atom_case(
        "no mask", "mask must be a torch.Tensor; got NoneType", TypeError, function=atom37_to_atom14, mask=None
    )
    yield from atom_case(
        "list", "positions must be a torch.Tensor; got list", TypeError, function=atom37_to_frames, positions=[1.0]
    )
    yield from atom_case(
        "numbers' shape", r"residue_index must have shape \[2, 3\].*got \[3\]", residue_index=torch.arange(3)
    )
    yield from atom_case(
        "floating numbers",
        "residue_index must have an integer dtype; got torch.float32",
        TypeError,
        residue_index=positions[..., 0, 0],
    )


@pytest.mark.parametrize(
    "function, arguments, error, words", [pytest.param(*case, id=name) for name, *case in refusals()]
)
def test_refused(function, arguments, error, words):
    with pytest.raises(error, match=words):
        function(**arguments)

"""Bond lengths and angles, and from them how far apart the atoms of a residue may be."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from paperops.residues.cached import check_dtype, constant, device_of
from paperops.residues.constants import ATOM14, DATA, RESIDUES

C_N_LENGTH: tuple[float, float] = tuple(DATA["peptide"]["C-N"][kind][0] for kind in ("other", "PRO"))
"""Mean length of the peptide bond, where the second residue is not proline, and where it is."""
C_N_LENGTH_DEVIATION: tuple[float, float] = tuple(DATA["peptide"]["C-N"][kind][1] for kind in ("other", "PRO"))
"""Its standard deviations."""
COS_CA_C_N: tuple[float, float] = tuple(DATA["peptide"]["cos CA-C-N"])
"""Mean and standard deviation of the cosine of the angle CA-C-N."""
COS_C_N_CA: tuple[float, float] = tuple(DATA["peptide"]["cos C-N-CA"])
"""Mean and standard deviation of the cosine of the angle C-N-CA."""

NO_BOUND = 1e10


def distance_bounds(
    overlap_tolerance: float,
    bond_length_tolerance_factor: float,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    r"""The smallest and the largest distance that the violation loss allows within a residue of each type.

    Bonded atoms: :math:`l \pm f \sigma_l`, with f the factor. Atoms with an angle between them: the same for the third
    side of the triangle, its deviation propagated from those of both bonds and of the angle. All others: at least the
    sum of their radii less the tolerance, and at most anything.

    Args:
        overlap_tolerance: how much the radii may overlap, in Angstrom (AlphaFold2: 1.5).
        bond_length_tolerance_factor: how many standard deviations a length may differ from its mean (AlphaFold2: 12).
        device: where the result is; the CPU by default.
        dtype: of the result.

    Returns:
        ``lower`` and ``upper``, ``[21, 14, 14]``; 0 where there is no atom and from an atom to itself, and 1e10 (in
        float16, the largest number) above atoms that are bound to nothing.

    Raises:
        TypeError: dtype is not a floating one.
        ValueError: a tolerance is negative or not finite.

    Source:
        Jumper et al., Nature 596 (2021), supplement, 1.9.11.

    Example:
        >>> from paperops import residues
        >>> lower, upper = residues.distance_bounds(1.5, 12.0)
        >>> f"{lower[0, 0, 1]:.3f} to {upper[0, 0, 1]:.3f}"  # alanine: N to CA
        '1.219 to 1.699'
    """
    check_dtype(dtype)
    for name, value in (
        ("overlap_tolerance", overlap_tolerance),
        ("bond_length_tolerance_factor", bond_length_tolerance_factor),
    ):
        if not 0 <= value < math.inf:  # not math.isfinite, which torch.compile cannot trace
            raise ValueError(f"{name} must be finite and not negative; got {value}")
    mean, deviation, apart = _distances(device_of(device))
    spread = bond_length_tolerance_factor * deviation
    lower = torch.where(apart, mean - overlap_tolerance, mean - spread)
    upper = (mean + spread).masked_fill(apart, NO_BOUND)
    return lower.to(dtype), upper.clamp(max=torch.finfo(dtype).max).to(dtype)


@constant
def _distances(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """[21, 14, 14] of each pair of atoms, 0 where there is none: the mean distance of those joined by bonds and angles,
    or the sum of the radii; the deviation; and whether they are apart, joined by neither."""
    mean = torch.zeros(21, 14, 14, dtype=torch.float64, device="cpu")
    deviation, apart = torch.zeros_like(mean), torch.zeros_like(mean, dtype=torch.bool)

    def put(table: Tensor, number: int, one: int, other: int, value: float) -> None:
        table[number, one, other] = table[number, other, one] = value

    for number, (name, residue) in enumerate(RESIDUES.items()):
        atoms = [atom for atom in ATOM14[number] if atom]
        for one, atom in enumerate(atoms):
            for other in range(one):
                put(mean, number, one, other, DATA["radii"][atom[0]] + DATA["radii"][atoms[other][0]])
                put(apart, number, one, other, True)
        joined = {(one, other): (length, spread) for one, other, length, spread in residue["bonds"]}
        for (one, other), (length, spread) in {**joined, **_across_angles(name)}.items():
            places = number, atoms.index(one), atoms.index(other)
            put(mean, *places, length)
            put(deviation, *places, spread)
            put(apart, *places, False)
    return mean.to(device), deviation.to(device), apart.to(device)


def _across_angles(name: str) -> dict[tuple[str, str], tuple[float, float]]:
    """The distance between the outer atoms of each angle, and its deviation if the errors are independent."""
    bonds = {frozenset((one, other)): (mean, deviation) for one, other, mean, deviation in RESIDUES[name]["bonds"]}
    found = {}
    for one, middle, other, degrees, degrees_deviation in RESIDUES[name]["angles"]:
        (a, a_deviation), (b, b_deviation) = bonds[frozenset((one, middle))], bonds[frozenset((middle, other))]
        angle, angle_deviation = math.radians(degrees), math.radians(degrees_deviation)
        length = math.sqrt(a * a + b * b - 2 * a * b * math.cos(angle))
        found[one, other] = (
            length,
            math.hypot(
                a * b * math.sin(angle) * angle_deviation,
                (a - b * math.cos(angle)) * a_deviation,
                (b - a * math.cos(angle)) * b_deviation,
            )
            / length,
        )
    return found

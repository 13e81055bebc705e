"""Definition of structural violations and their loss (AlphaFold2 supplement, 1.9.11)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from paperops import residues
from paperops.reference.nearest import result_dtype
from paperops.residues.cached import constant

N, CA, C = 0, 1, 2
"""Where the backbone's atoms stand among the 14."""
SG = residues.ATOM14[residues.LETTERS.index("C")].index("SG")
CYSTEINE, PROLINE = residues.LETTERS.index("C"), residues.LETTERS.index("P")

BOND_EPS = 1e-6
"""Added within the roots of bond lengths, and of the errors of lengths and cosines."""
DISTANCE_EPS = 1e-10
"""Added within the root of any other distance."""


class Violations(NamedTuple):
    """What is wrong with a structure; an unordered pair of atoms counts for both of them."""

    c_n_loss_mean: Tensor
    """``[B]``: mean excess error of the C-N bonds' lengths, in Angstrom."""
    ca_c_n_loss_mean: Tensor
    """``[B]``: that of the cosines of the angles CA-C-N."""
    c_n_ca_loss_mean: Tensor
    """``[B]``: that of the cosines of the angles C-N-CA."""
    clash_mean_loss: Tensor
    """``[B]``: mean overlap of all pairs of atoms of different residues, in Angstrom."""
    per_residue_violation_mask: Tensor
    """``[B, N]`` bool: whether a residue is in any of the violations below."""
    per_residue_bond_loss_sum: Tensor
    """``[B, N]``: half of the losses of the two connections of a residue."""
    per_residue_connection_violation_mask: Tensor
    """``[B, N]`` bool: whether one of these two is violated."""
    per_atom_clash_loss_sum: Tensor
    """``[B, N, 14]``: sum of an atom's overlaps with atoms of other residues."""
    per_atom_num_clashes: Tensor
    """``[B, N, 14]`` int64: their number."""
    per_atom_clash_mask: Tensor
    """``[B, N, 14]`` bool: whether there is any."""
    per_atom_within_loss_sum: Tensor
    """``[B, N, 14]``: twice the sum of what an atom's distances in its residue lie outside their bounds."""
    per_atom_within_violation_mask: Tensor
    """``[B, N, 14]`` bool: whether one does."""
    num_atoms: Tensor
    """``[B]`` int64: the atoms that were judged."""

    @property
    def loss(self) -> Tensor:
        """``[B]``: AlphaFold2's violation loss, the means of the bonds and the mean of clash and within over atoms."""
        atoms = (self.per_atom_clash_loss_sum + self.per_atom_within_loss_sum).sum((1, 2))
        bonds = self.c_n_loss_mean + self.ca_c_n_loss_mean + self.c_n_ca_loss_mean
        return bonds + atoms / self.num_atoms.clamp(min=1)


@constant
def connection_values(device: torch.device, dtype: torch.dtype) -> Tensor:
    """[21, 6] by the type of the residue after the bond: C-N, cos CA-C-N, -cos C-N-CA, and their deviations."""
    (cosine, spread), (turned, turned_spread) = residues.COS_CA_C_N, residues.COS_C_N_CA
    other, proline = (
        (length, cosine, -turned, deviation, spread, turned_spread)
        for length, deviation in zip(residues.C_N_LENGTH, residues.C_N_LENGTH_DEVIATION, strict=True)
    )
    rows = [proline if number == PROLINE else other for number in range(len(residues.ATOM14))]
    return torch.tensor(rows, dtype=dtype, device=device)


class Bonds(NamedTuple):
    """The connections between residues that follow each other."""

    means: Tensor  # [B, 3]: C-N, CA-C-N, C-N-CA
    residue_loss: Tensor  # [B, N]
    residue_violated: Tensor  # [B, N] bool


def bonds(
    positions: Tensor, atoms: Tensor, aatype: Tensor, residue_index: Tensor, asym_id: Tensor | None, factor: float
) -> Bonds:
    """Equations 44 and 45: how far lengths and cosines lie beyond ``factor`` deviations from their literature values.

    positions [B, N, 14, 3] hold something finite where atoms [B, N, 14] is False.
    """
    n = positions.shape[1]
    ca, c = positions[:, :-1, CA], positions[:, :-1, C]
    following, following_ca = positions[:, 1:, N], positions[:, 1:, CA]
    vectors = torch.stack([ca - c, following - c, following_ca - following], 2)  # [B, N - 1, 3, 3]
    lengths = torch.sqrt(vectors.square().sum(-1) + BOND_EPS)  # [B, N - 1, 3]
    units = vectors / lengths[..., None]
    # The cosine at C, and that at N with its sign turned: both vectors point along the chain.
    cosines = (units[:, :, :2] * units[:, :, 1:]).sum(-1)  # [B, N - 1, 2]
    found = torch.cat([lengths[..., 1:2], cosines], -1)  # [B, N - 1, 3]

    values = connection_values(positions.device, positions.dtype)[aatype[:, 1:]]  # [B, N - 1, 6]
    excess = torch.sqrt((found - values[..., :3]).square() + BOND_EPS) - factor * values[..., 3:]

    connected = residue_index[:, 1:] - residue_index[:, :-1] == 1
    if asym_id is not None:
        connected = connected & (asym_id[:, 1:] == asym_id[:, :-1])
    bond = connected & atoms[:, :-1, C] & atoms[:, 1:, N]
    there = torch.stack([bond, bond & atoms[:, :-1, CA], bond & atoms[:, 1:, CA]], -1)  # [B, N - 1, 3]
    loss = torch.relu(excess).masked_fill(~there, 0)
    means = loss.sum(1) / there.sum(1).clamp(min=1)
    halves, violated = loss.sum(-1) / 2, (there & (excess > 0)).any(-1)  # [B, N - 1]
    residue_loss = pad(halves, (0, 1))[:, :n] + pad(halves, (1, 0))[:, :n]
    residue_violated = pad(violated, (0, 1))[:, :n] | pad(violated, (1, 0))[:, :n]
    return Bonds(means, residue_loss, residue_violated)


def pairs_between(
    atoms: Tensor, aatype: Tensor, residue_index: Tensor, asym_id: Tensor | None
) -> Tensor:  # [B, N, N, 14, 14] bool
    """The pairs of atoms of different residues that can clash: neither a C-N bond nor a disulfide bridge."""
    pairs = atoms[:, :, None, :, None] & atoms[:, None, :, None, :]
    pairs &= ~torch.eye(atoms.shape[1], dtype=torch.bool, device=atoms.device)[:, :, None, None]
    follows = residue_index[:, None, :] - residue_index[:, :, None] == 1  # [B, N, N]: j after i
    if asym_id is not None:
        follows = follows & (asym_id[:, None, :] == asym_id[:, :, None])
    pairs[..., C, N] &= ~follows
    pairs[..., N, C] &= ~follows.transpose(1, 2)
    cysteine = aatype == CYSTEINE  # [B, N]
    pairs[..., SG, SG] &= ~(cysteine[:, :, None] & cysteine[:, None, :])
    return pairs


def distances_between(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Differences [B, N, N, 14, 14, 3] and distances [B, N, N, 14, 14] of all atoms of all residues."""
    differences = positions[:, :, None, :, None] - positions[:, None, :, None, :]
    return differences, torch.sqrt(differences.square().sum(-1) + DISTANCE_EPS)


def distances_within(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Differences [B, N, 14, 14, 3] and distances [B, N, 14, 14] of the atoms of each residue."""
    differences = positions[:, :, :, None] - positions[:, :, None, :]
    return differences, torch.sqrt(differences.square().sum(-1) + DISTANCE_EPS)


def pairs_within(atoms: Tensor) -> Tensor:
    """[B, N, 14, 14] bool: the pairs of different atoms of a residue."""
    different = ~torch.eye(atoms.shape[2], dtype=torch.bool, device=atoms.device)
    return atoms[:, :, :, None] & atoms[:, :, None, :] & different


def clashes(
    positions: Tensor, atoms: Tensor, aatype: Tensor, residue_index: Tensor, asym_id: Tensor | None, radii: Tensor,
    tolerance: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Equation 46, atoms of different residues: each atom's overlaps summed and counted, each residue's pairs counted.

    radii [21, 14] by residue type. Returns [B, N, 14], [B, N, 14] and [B, N]; every pair is seen from both sides.
    """
    pairs = pairs_between(atoms, aatype, residue_index, asym_id)
    radius = radii[aatype]  # [B, N, 14]
    touching = radius[:, :, None, :, None] + radius[:, None, :, None, :] - tolerance
    overlap = touching - distances_between(positions)[1]  # [B, N, N, 14, 14]
    loss = torch.relu(overlap).masked_fill(~pairs, 0)
    return loss.sum((2, 4)), (pairs & (overlap > 0)).sum((2, 4)), pairs.sum((2, 3, 4))


def within(positions: Tensor, atoms: Tensor, aatype: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Equation 46, atoms of one residue: each atom's errors, twice their sum and their number, [B, N, 14] both.

    lower and upper [21, 14, 14] bound the distances by residue type.
    """
    pairs = pairs_within(atoms)
    distances = distances_within(positions)[1]
    below, above = lower[aatype] - distances, distances - upper[aatype]
    loss = (torch.relu(below) + torch.relu(above)).masked_fill(~pairs, 0)
    return 2 * loss.sum(-1), (pairs & ((below > 0) | (above > 0))).sum(-1)


def gather(connections: Bonds, atoms: Tensor, per_atom: tuple[Tensor, ...]) -> Violations:
    """The result from its parts: clash loss, clashes, pairs, within loss and within violations."""
    clash_loss, count, pairs, within_loss, within_count = per_atom
    clash_mask, within_mask = count > 0, within_count > 0
    c_n, ca_c_n, c_n_ca = connections.means.unbind(-1)
    return Violations(
        c_n,
        ca_c_n,
        c_n_ca,
        clash_loss.sum((1, 2)) / pairs.sum(1).clamp(min=1),  # both count each pair twice
        connections.residue_violated | (clash_mask | within_mask).any(-1),
        connections.residue_loss,
        connections.residue_violated,
        clash_loss,
        count,
        clash_mask,
        within_loss,
        within_mask,
        atoms.sum((1, 2)),
    )


def structural_violations(
    positions: Tensor,
    mask: Tensor,
    aatype: Tensor,
    residue_index: Tensor,
    asym_id: Tensor | None = None,
    violation_tolerance_factor: float = 12.0,
    clash_overlap_tolerance: float = 1.5,
) -> Violations:
    """See :func:`paperops.structural_violations`. Materialises all pairs of atoms."""
    wide = result_dtype(positions.dtype)
    table = residues.tables(positions.device, wide)
    lower, upper = residues.distance_bounds(clash_overlap_tolerance, violation_tolerance_factor, positions.device, wide)
    aatype, residue_index = aatype.long(), residue_index.long()
    atoms = (mask != 0) & table.atom14_exists[aatype]  # [B, N, 14]
    positions = positions.to(wide).masked_fill(~atoms[..., None], 0)  # what is not there may hold anything
    connections = bonds(positions, atoms, aatype, residue_index, asym_id, violation_tolerance_factor)
    between = clashes(positions, atoms, aatype, residue_index, asym_id, table.radii, clash_overlap_tolerance)
    return gather(connections, atoms, (*between, *within(positions, atoms, aatype, lower, upper)))

"""Structural violations, with every pair of atoms looked at where it is, and none kept.

The dispatcher's op sums and counts, for each atom, its clashes with other residues and what is wrong within its own.
The bonds between residues, of which there are few, are plain torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from paperops import residues
from paperops.ops import _checks
from paperops.ops._define import define, fold_or_loop, native, plain, triton
from paperops.reference.nearest import result_dtype
from paperops.reference.structural_violations import (
    Violations,
    bonds,
    clashes,
    distances_between,
    distances_within,
    gather,
    pairs_between,
    pairs_within,
    within,
)

_INPUTS = (
    "Tensor positions, Tensor atoms, Tensor aatype, Tensor residue_index, Tensor? asym_id, Tensor radii, "
    "Tensor lower, Tensor upper, float tolerance"
)
_BATCHED = (0, 1, 2, 3, 4)  # of these, those with a leading batch dimension

ATOMS, UNKNOWN = 14, len(residues.LETTERS)


def _reference(*inputs: Any) -> tuple[Tensor, ...]:
    positions, atoms, aatype, residue_index, asym_id, radii, lower, upper, tolerance = inputs
    between = clashes(positions, atoms, aatype, residue_index, asym_id, radii, tolerance)
    return *between, *within(positions, atoms, aatype, lower, upper)


def _fake(positions: Tensor, atoms: Tensor, aatype: Tensor, *_: Any) -> tuple[Tensor, ...]:
    (b, n), shape = aatype.shape, atoms.shape
    count = aatype.new_empty
    return positions.new_empty(shape), count(shape), count((b, n)), positions.new_empty(shape), count(shape)


# --- backward ------------------------------------------------------------------------------------------------------


def gradients(
    grad_clash: Tensor, grad_within: Tensor, positions: Tensor, atoms: Tensor, aatype: Tensor, residue_index: Tensor,
    asym_id: Tensor | None, radii: Tensor, lower: Tensor, upper: Tensor, tolerance: float,
) -> Tensor:  # fmt: skip
    """The gradient of positions, written out: what the kernels compute, differentiable itself.

    A pair's error is in the sums of both of its atoms, so the gradients of both of these sums come with it.
    """
    pairs = pairs_between(atoms, aatype, residue_index, asym_id)
    differences, distances = distances_between(positions)
    radius = radii[aatype]  # [B, N, 14]
    touching = radius[:, :, None, :, None] + radius[:, None, :, None, :] - tolerance
    both = grad_clash[:, :, None, :, None] + grad_clash[:, None, :, None, :]
    pull = torch.where(pairs & ~(touching <= distances), both / distances, 0)  # [B, N, N, 14, 14]
    found = -(pull[..., None] * differences).sum((2, 4))

    pairs = pairs_within(atoms)
    differences, distances = distances_within(positions)
    sign = (distances > upper[aatype]).to(distances.dtype) - (distances < lower[aatype]).to(distances.dtype)
    both = 2 * (grad_within[:, :, :, None] + grad_within[:, :, None, :])
    push = torch.where(pairs, sign * both / distances, 0)  # [B, N, 14, 14]
    return found + (push[..., None] * differences).sum(3)


def _backward_reference(*inputs: Any) -> Tensor:
    return gradients(*inputs).contiguous()


def _backward_fake(grad_clash: Tensor, grad_within: Tensor, positions: Tensor, *_: Any) -> Tensor:
    return positions.new_empty(positions.shape)


def _backward_save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.tolerance = inputs
    ctx.save_for_backward(*tensors)


def _second_derivative(ctx: Any, tangent: Tensor) -> tuple[Any, ...]:
    """torch's derivative of the gradient as written out above."""
    *free, atoms, aatype, residue_index, asym_id, radii, lower, upper = ctx.saved_tensors
    rest = (atoms, aatype, residue_index, asym_id, radii, lower, upper, ctx.tolerance)

    def function(grad_clash: Tensor, grad_within: Tensor, positions: Tensor) -> Tensor:
        return gradients(grad_clash, grad_within, positions, *rest)

    pull: Any = torch.func.vjp(function, *free)[1]
    return *pull(tangent), *(None,) * len(rest)


backward_op: Any = define(
    "structural_violations_backward",
    f"(Tensor grad_clash, Tensor grad_within, {_INPUTS}) -> Tensor",
    {
        "reference": plain(_backward_reference),
        "native": native("structural_violations_backward"),
        "triton": triton("structural_violations", "structural_violations_backward"),
    },
    fake=_backward_fake,
    save=_backward_save,
    backward=_second_derivative,
    batched=lambda *arguments: fold_or_loop(backward_op, tuple(range(7)))(*arguments),
)


# --- forward -------------------------------------------------------------------------------------------------------


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.tolerance = inputs
    ctx.save_for_backward(*tensors)
    ctx.mark_non_differentiable(output[1], output[2], output[4])


def _derivative(ctx: Any, grad_clash: Tensor, _: Any, __: Any, grad_within: Tensor, ___: Any) -> tuple[Any, ...]:
    found = backward_op(grad_clash, grad_within, *ctx.saved_tensors, ctx.tolerance)
    return found, *(None,) * 8


violations_op: Any = define(
    "structural_violations",
    f"({_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    {
        "reference": plain(_reference),
        "native": native("structural_violations"),
        "triton": triton("structural_violations", "structural_violations"),
    },
    fake=_fake,
    save=_save,
    backward=_derivative,
    batched=lambda *arguments: fold_or_loop(violations_op, _BATCHED)(*arguments),
)


# --- the public function -------------------------------------------------------------------------------------------


def structural_violations(
    positions: Tensor,
    mask: Tensor,
    aatype: Tensor,
    residue_index: Tensor,
    asym_id: Tensor | None = None,
    violation_tolerance_factor: float = 12.0,
    clash_overlap_tolerance: float = 1.5,
) -> Violations:
    r"""What is wrong with a protein's geometry: bonds between residues, clashes, and distances within residues.

    .. math::
        \text{bonds} &= \max(\sqrt{(x - x_\mathrm{lit})^2 + 10^{-6}} - f \sigma_\mathrm{lit}, 0) \\
        \text{clashes} &= \max(r_a + r_b - t - d_{ab}, 0) \\
        \text{within} &= \max(l_{ab} - d_{ab}, 0) + \max(d_{ab} - u_{ab}, 0)

    with x the length of the C-N bond between residues i and i + 1 and the cosines of the angles CA-C-N and C-N-CA, d
    the distance of two atoms, r their van der Waals radii, f and t the two tolerances, and l and u those of
    :func:`paperops.residues.distance_bounds` for the same tolerances.

    - Two residues that follow each other in the sequence are bound where residue_index rises by 1 within a chain.
    - Any two atoms of different residues can clash, but for the C and N of two residues of one chain whose
      residue_index differs by 1, and the SG of two cysteines.

    Args:
        positions: ``[B, N, 14, 3]``, in Angstrom; float16, bfloat16, float32 or float64.
        mask: ``[B, N, 14]``, bool or floating; an atom of mask 0, or that its residue type does not have, does not
            exist, and what its position holds does not matter.
        aatype: ``[B, N]``, residue types in the order of :data:`paperops.residues.LETTERS`; 20 is unknown and has no
            atoms. Of any integer dtype, like the next two. Types out of range are refused on a CPU, elsewhere unknown.
        residue_index: ``[B, N]``, the residues' numbers in their chain.
        asym_id: ``[B, N]``, the chains' numbers; None for one chain.
        violation_tolerance_factor: f, how many standard deviations bonds and angles may differ from their mean.
        clash_overlap_tolerance: t, how much the radii of two atoms may overlap, in Angstrom.

    Returns:
        :class:`Violations`, losses in float32, or float64 for float64 positions. Means are over what is there, and 0
        where nothing is. Its ``loss`` is AlphaFold2's violation loss. A violation is an error above 0.

    Differentiable in positions; twice too, the second time through plain torch, which takes the memory of the
    definition, as it does of coincident atoms. Gradients are summed in a fixed order.

    Raises:
        TypeError: not tensors, or of the wrong dtype; tolerances that are not numbers.
        ValueError: a shape or device that does not fit, naming the argument; a residue type out of range; a tolerance
            that is negative or not finite; a mask that requires a gradient.

    Source:
        Jumper et al., Nature 596 (2021), supplement, 1.9.11, equations 44 to 47. AlphaFold2's code differs from this
        in a few places: it leaves out the pairs of residues of equal residue_index in different chains, takes any two
        atoms at the place of SG for a disulfide bridge, gives the cosine of CA-C-N the deviation of the bond's length
        (0.014 instead of 0.0353), leaves the residues' bond losses without a mask, and adds 1e-6 to the numbers that
        means are divided by. As there, an atom's sum within its residue has each pair twice.

    Cost:
        One distance for each pair of residues, and for each pair of atoms of residues that are near each other. Memory
        and what is kept for the backward pass grow as B N.

    Example:
        >>> import torch, paperops
        >>> alanine = torch.tensor([[[0.0, 0, 0], [1.5, 0, 0], [2, 1.4, 0], [1.3, 2.4, 0], [2, -0.8, 1.2]]])
        >>> positions = torch.zeros(1, 2, 14, 3)
        >>> positions[0, :, :5] = torch.stack([alanine[0], alanine[0] + torch.tensor([3.3, 1.4, 0])])
        >>> number = torch.arange(2)[None]
        >>> found = paperops.structural_violations(positions, torch.ones(1, 2, 14), 0 * number, number)
        >>> found.c_n_loss_mean, found.per_atom_num_clashes.sum()
        (tensor([0.]), tensor(0))
    """
    aatype, residue_index, asym_id = _check(positions, mask, aatype, residue_index, asym_id)
    factor = _checks.tolerance("violation_tolerance_factor", violation_tolerance_factor)
    tolerance = _checks.tolerance("clash_overlap_tolerance", clash_overlap_tolerance)
    wide = result_dtype(positions.dtype)
    table = residues.tables(positions.device, wide)
    lower, upper = residues.distance_bounds(tolerance, factor, positions.device, wide)
    atoms = (mask != 0) & table.atom14_exists[aatype]  # [B, N, 14]
    positions = positions.to(wide).masked_fill(~atoms[..., None], 0)  # what is not there may hold anything
    connections = bonds(positions, atoms, aatype, residue_index, asym_id, factor)
    per_atom = violations_op(positions, atoms, aatype, residue_index, asym_id, table.radii, lower, upper, tolerance)
    return gather(connections, atoms, per_atom)


def _check(
    positions: Tensor, mask: Tensor, aatype: Tensor, residue_index: Tensor, asym_id: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Shapes, dtypes and devices. Returns the integers as int64."""
    _checks.vectors("positions", positions, 3, "points")
    if positions.dim() != 4 or positions.shape[2] != ATOMS:
        raise ValueError(f"positions must have shape [B, N, {ATOMS}, 3]; got {list(positions.shape)}")
    _checks.tensor("mask", mask)
    _checks.mask_of("mask", mask, positions.shape[:3], "atom", positions, "positions")
    beside: Any = (positions.shape[:2], positions, "positions")
    aatype = _checks.residue_types("aatype", aatype, *beside)
    if not _checks.values_are_free(aatype):  # nothing may be read with such an index
        aatype = torch.where((aatype >= 0) & (aatype <= UNKNOWN), aatype, UNKNOWN)
    residue_index = _checks.residue_numbers("residue_index", residue_index, *beside)
    if asym_id is not None:
        asym_id = _checks.residue_numbers("asym_id", asym_id, *beside)
    return aatype, residue_index, asym_id

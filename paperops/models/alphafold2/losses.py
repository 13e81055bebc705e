"""AlphaFold2's losses of torsion angles and of violations, and how the structure's losses are weighed."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from paperops.nn.angle_resnet import unit_angles
from paperops.nn.precision import wide
from paperops.ops import _checks
from paperops.ops.structural_violations import structural_violations


class LossWeights(NamedTuple):
    """How AlphaFold2 weighs the structure's losses in their sum, as :data:`WEIGHTS` has them."""

    backbone: float = 0.5
    """Of :func:`backbone_fape`."""
    sidechain: float = 0.5
    """Of :func:`sidechain_fape`."""
    torsion: float = 0.5
    """Of :func:`torsion_angle_loss`."""
    plddt: float = 0.01
    """Of :func:`plddt_loss`."""
    aligned_error: float = 0.1
    """Of :func:`aligned_error_loss`, in the models that have the head."""
    violation: float = 0.0
    """Of :func:`violation_loss`."""


WEIGHTS = LossWeights()
"""Jumper et al., Nature 596 (2021), supplement, equation 7 and 1.9.7 (backbone and torsions are its L_aux)."""

FINE_TUNING_WEIGHTS = LossWeights(violation=1.0)
"""As :data:`WEIGHTS`, with violations."""


def torsion_angle_loss(
    unnormalized_angles: Tensor,
    target: Tensor,
    alternative_target: Tensor,
    mask: Tensor,
    residue_mask: Tensor | None = None,
    *,
    norm_weight: float = 0.02,
    eps: float = 1e-6,
) -> Tensor:
    r"""How far torsion angles are from the true ones, or their alternatives, and how far their lengths from 1.

    .. math::

        \mathrm{mean}\, \min(|\hat\alpha - \alpha^{true}|^2, |\hat\alpha - \alpha^{alt}|^2)
        + w\, \mathrm{mean}\, \big| |\alpha| - 1 \big|, \qquad \hat\alpha = \alpha / |\alpha|

    Args:
        unnormalized_angles: ``[blocks, *, N, 7, 2]``, the predicted (sin, cos), of any length: of a
            :class:`Structure`.
        target, alternative_target: ``[*, N, 7, 2]``, of :func:`paperops.geometry.atom37_to_torsions`.
        mask: ``[*, N, 7]``, bool or floating, which angles have a true value. What the others' are does not matter.
            (AlphaFold2's code has only the four chi here: the first three are 0 then.)
        residue_mask: ``[*, N]``, the residues whose angles' lengths count; None: all. Of the others nothing counts.
        norm_weight: w.
        eps: added to the squared length under the root in the second term; the least squared length in the first.

    Returns:
        ``[*]``, float32 at least: means over blocks and over what is not masked, 0 where all is. AlphaFold2 gives it a
        weight of 0.5 (:data:`WEIGHTS`).

    Raises:
        TypeError, ValueError: for arguments that do not fit, each named.

    Source:
        Jumper et al., Nature 596 (2021), supplement, Algorithm 27.

    Example:
        >>> import torch
        >>> from paperops.models.alphafold2 import torsion_angle_loss
        >>> angles = torch.tensor([0.0, 1.0]).expand(1, 4, 7, 2)
        >>> torsion_angle_loss(angles, -angles[0], angles[0], torch.ones(4, 7), eps=1e-12)
        tensor(0.)
    """
    _checks.vectors("unnormalized_angles", unnormalized_angles, 2, "(sin, cos) each")
    if unnormalized_angles.dim() < 4 or unnormalized_angles.shape[-2] != 7 or unnormalized_angles.shape[0] == 0:
        raise ValueError(
            f"unnormalized_angles must have shape [blocks, *, N, 7, 2]; got {list(unnormalized_angles.shape)}"
        )
    shape = tuple(unnormalized_angles.shape[1:])
    of = "unnormalized_angles"
    for name, value in (("target", target), ("alternative_target", alternative_target)):
        _checks.parameter(
            name, value, shape, "one for each angle of a block", unnormalized_angles, of=of, required=True
        )
    _checks.mask_of("mask", _checks.tensor("mask", mask), shape[:-1], "angle", unnormalized_angles, of)
    _checks.mask_of("residue_mask", residue_mask, shape[:-2], "residue", unnormalized_angles, of)
    norm_weight = _checks.tolerance("norm_weight", norm_weight)
    eps = _checks.positive_number("eps", eps)
    raw = wide(unnormalized_angles)
    counted = mask != 0
    of_norm = torch.ones_like(counted)
    if residue_mask is not None:
        of_norm = of_norm & (residue_mask != 0)[..., None]
        counted = counted & of_norm
        raw = raw.masked_fill(~of_norm[..., None], 0)
    angles = unit_angles(raw, eps)
    errors = [
        (angles - wide(value).masked_fill(~counted[..., None], 0)).square().sum(-1)
        for value in (target, alternative_target)
    ]
    of_length = (torch.sqrt(raw.square().sum(-1) + eps) - 1).abs()
    loss = counted_mean(torch.minimum(*errors), counted, 2) + norm_weight * counted_mean(of_length, of_norm, 2)
    return loss.mean(0)


def violation_loss(
    positions: Tensor,
    mask: Tensor,
    aatype: Tensor,
    residue_index: Tensor,
    asym_id: Tensor | None = None,
    violation_tolerance_factor: float = 12.0,
    clash_overlap_tolerance: float = 1.5,
) -> Tensor:
    """AlphaFold2's violation loss: ``paperops.structural_violations(...).loss``, of any leading dimensions.

    Args:
        positions: ``[*, N, 14, 3]``, the predicted atoms, in Angstrom: of a :class:`Structure`, ``positions[-1]``.
        mask, aatype, residue_index, asym_id, violation_tolerance_factor, clash_overlap_tolerance: as of
            :func:`paperops.structural_violations`, with those leading dimensions.

    Returns:
        ``[*]``; AlphaFold2 gives it a weight of 1 in fine-tuning and of 0 before (:data:`FINE_TUNING_WEIGHTS`).

    Raises:
        TypeError, ValueError: for arguments that do not fit, each named.

    Source:
        Jumper et al., Nature 596 (2021), supplement, 1.9.11, equations 44 to 47.

    Example:
        >>> import torch
        >>> from paperops.models.alphafold2 import violation_loss
        >>> number = torch.arange(3)
        >>> violation_loss(20 * torch.rand(3, 14, 3), torch.ones(3, 14), 0 * number, number).shape
        torch.Size([])
    """
    _checks.vectors("positions", positions, 3, "one point an atom")
    if positions.dim() < 3 or positions.shape[-2] != 14:
        raise ValueError(f"positions must have shape [*, N, 14, 3]; got {list(positions.shape)}")
    leading = tuple(positions.shape[:-3])
    batch = math.prod(leading)

    def flat(name: str, value: Tensor) -> Tensor:
        shape = tuple(_checks.tensor(name, value).shape)
        if shape[: len(leading)] != leading:
            raise ValueError(
                f"{name} must have the leading dimensions of positions, {list(leading)}; got {list(shape)}"
            )
        return value.reshape(batch, *shape[len(leading) :])

    found = structural_violations(
        flat("positions", positions), flat("mask", mask), flat("aatype", aatype), flat("residue_index", residue_index),
        None if asym_id is None else flat("asym_id", asym_id), violation_tolerance_factor, clash_overlap_tolerance,
    )  # fmt: skip
    return found.loss.reshape(leading)


def counted_mean(values: Tensor, counted: Tensor, dims: int) -> Tensor:
    """The mean of what counts over the last dimensions, 0 where nothing does."""
    over = tuple(range(-dims, 0))
    total = values.masked_fill(~counted, 0).sum(over)
    return total / counted.sum(over).clamp(min=1).to(total.dtype)

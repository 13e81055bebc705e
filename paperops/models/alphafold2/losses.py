"""AlphaFold2's losses of torsion angles, of violations, and of what the heads say of a prediction's errors."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from paperops.geometry import Frames
from paperops.models.alphafold2.heads import error_bin_width
from paperops.nn.angle_resnet import unit_angles
from paperops.nn.precision import wide
from paperops.ops import _checks
from paperops.ops.lddt import lddt
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
    loss = _mean(torch.minimum(*errors), counted, 2) + norm_weight * _mean(of_length, of_norm, 2)
    return loss.mean(0)


def plddt_loss(
    logits: Tensor,
    pred_positions: Tensor,
    target_positions: Tensor,
    mask: Tensor,
    *,
    cutoff: float = 15.0,
    resolution: Tensor | None = None,
    min_resolution: float = 0.1,
    max_resolution: float = 3.0,
) -> Tensor:
    """Cross-entropy of predicted lDDT-CA, in bins of one width from 0 to 1, with what :func:`paperops.lddt` finds.

    Args:
        logits: ``[*, N, bins]``, of :class:`PerResidueLDDTCaPredictor`.
        pred_positions, target_positions: ``[*, N, 3]``, the predicted and the true CA, in Angstrom: of a
            :class:`Structure` ``positions[-1, ..., 1, :]``. No gradient flows to them.
        mask: ``[*, N]``, bool or floating, which CA have a true place. What the others hold does not matter.
        cutoff: the largest true distance that counts, in Angstrom.
        resolution: ``[*]``, of each sample's experiment, in Angstrom; None: all samples count.
        min_resolution, max_resolution: a sample of another resolution gives 0.

    Returns:
        ``[*]``, float32 at least: means over the mask, 0 where it is. AlphaFold2 gives it a weight of 0.01
        (:data:`WEIGHTS`). Differentiable in the logits.

    Raises:
        TypeError, ValueError: for arguments that do not fit, each named.

    Source:
        Jumper et al., Nature 596 (2021), supplement, 1.9.6.

    Example:
        >>> import torch
        >>> from paperops.models.alphafold2 import plddt_loss
        >>> ca = 10 * torch.randn(1, 20, 3)
        >>> plddt_loss(torch.zeros(1, 20, 50), ca, ca, torch.ones(1, 20))  # log(50)
        tensor([3.9120])
    """
    _logits(logits, 2, "[*, N, bins]")
    shape = tuple(logits.shape[:-1])
    for name, value in (("pred_positions", pred_positions), ("target_positions", target_positions)):
        _checks.vectors(name, value, 3, "one CA a residue", like=("pred_positions", pred_positions))
        if tuple(value.shape[:-1]) != shape:
            raise ValueError(
                f"{name} must have shape {[*shape, 3]} for logits of {list(logits.shape)}; got {list(value.shape)}"
            )
    _checks.mask_of("mask", _checks.tensor("mask", mask), shape, "residue", logits, "logits")
    batch, n, bins = math.prod(shape[:-1]), shape[-1], logits.shape[-1]
    counted = mask != 0
    scores = lddt(
        pred_positions.detach().reshape(batch, n, 3), target_positions.detach().reshape(batch, n, 3),
        counted.reshape(batch, n), cutoff, True,
    ).reshape(shape)  # fmt: skip
    label = (scores * bins).floor().clamp(max=bins - 1).to(torch.int64)
    loss = _mean(_cross_entropy(logits, label, counted), counted, 1)
    return loss * _resolved(resolution, min_resolution, max_resolution, logits, shape[:-1])


def aligned_error_loss(
    logits: Tensor,
    rotations: Tensor,
    translations: Tensor,
    target_rotations: Tensor,
    target_translations: Tensor,
    mask: Tensor,
    *,
    max_bin: float = 31.0,
    resolution: Tensor | None = None,
    min_resolution: float = 0.1,
    max_resolution: float = 3.0,
) -> Tensor:
    r"""Cross-entropy of predicted aligned errors with what they are.

    .. math:: e_{ij} = \| T_i^{-1} \circ t_j - T_i^{true\,-1} \circ t^{true}_j \|

    falls into bin :math:`\lceil e_{ij} / w \rceil` of width w = ``max_bin / (bins - 2)``, the last bin at most: bin 0
    is for errors of 0. (So AlphaFold2's code has it and so its weights were trained; the supplement rounds down.)

    Args:
        logits: ``[*, N, N, bins]``, of :class:`TMScoreHead`, 3 bins at least.
        rotations, translations: ``[*, N, 3, 3]`` and ``[*, N, 3]``, the predicted backbone frames, in Angstrom: of a
            :class:`Structure`, ``rotations[-1]`` and ``translations[-1]``. No gradient flows to them.
        target_rotations, target_translations: the true ones, of the same shapes.
        mask: ``[*, N]``, bool or floating, which residues have a true frame. What the others hold, in ``logits`` too,
            does not matter.
        max_bin: what is above goes into the last bin, in Angstrom.
        resolution: ``[*]``, of each sample's experiment, in Angstrom; None: all samples count.
        min_resolution, max_resolution: a sample of another resolution gives 0.

    Returns:
        ``[*]``, float32 at least: means over pairs of the mask, 0 where there is none. AlphaFold2 gives it a weight of
        0.1 (:data:`WEIGHTS`). Differentiable in the logits.

    Raises:
        TypeError, ValueError: for arguments that do not fit, each named.

    Source:
        Jumper et al., Nature 596 (2021), supplement, 1.9.7.

    Example:
        >>> import torch, paperops
        >>> from paperops.models.alphafold2 import aligned_error_loss
        >>> frames = paperops.geometry.Frames.from_three_points(*torch.randn(3, 1, 5, 3))
        >>> aligned_error_loss(torch.zeros(1, 5, 5, 64), *frames, *frames, torch.ones(1, 5))  # log(64)
        tensor([4.1589])
    """
    _logits(logits, 3, "[*, N, N, bins]")
    if logits.shape[-3] != logits.shape[-2]:
        raise ValueError(f"logits must be square in its pair dimensions, [*, N, N, bins]; got {list(logits.shape)}")
    shape, bins = tuple(logits.shape[:-2]), logits.shape[-1]
    width = error_bin_width(max_bin, bins)
    _checks.frames("rotations", rotations, "translations", translations)
    _checks.frames("target_rotations", target_rotations, "target_translations", target_translations)
    for name, value in (("translations", translations), ("target_translations", target_translations)):
        if tuple(value.shape[:-1]) != shape:
            raise ValueError(
                f"{name} must have shape {[*shape, 3]} for logits of {list(logits.shape)}; got {list(value.shape)}"
            )
    _checks.mask_of("mask", _checks.tensor("mask", mask), shape, "residue", logits, "logits")
    counted = mask != 0
    with torch.no_grad():
        pred, true = (
            _in_each_frame(*frames, ~counted)
            for frames in ((rotations, translations), (target_rotations, target_translations))
        )
        error = torch.linalg.vector_norm(pred - true, dim=-1)  # [*, N, N]
        label = (error / width).ceil().clamp(max=bins - 1).to(torch.int64)
    pairs = counted[..., :, None] & counted[..., None, :]
    loss = _mean(_cross_entropy(logits, label, pairs), pairs, 2)
    return loss * _resolved(resolution, min_resolution, max_resolution, logits, shape[:-1])


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


# --- what several losses are made of --------------------------------------------------------------------------------


def _mean(values: Tensor, counted: Tensor, dims: int) -> Tensor:
    """The mean of what counts over the last dimensions, 0 where nothing does."""
    over = tuple(range(-dims, 0))
    total = values.masked_fill(~counted, 0).sum(over)
    return total / counted.sum(over).clamp(min=1).to(total.dtype)


def _cross_entropy(logits: Tensor, label: Tensor, counted: Tensor) -> Tensor:
    """-log softmax(logits) [*, bins] at label [*], float32 at least; what does not count may hold anything."""
    logits = wide(logits).masked_fill(~counted[..., None], 0)
    return -torch.log_softmax(logits, -1).gather(-1, label[..., None])[..., 0]


def _in_each_frame(rotations: Tensor, translations: Tensor, gone: Tensor) -> Tensor:
    """[*, N, N, 3]: the origin of frame j seen in frame i; 0 where either is gone."""
    rotations = wide(rotations).masked_fill(gone[..., None, None], 0)
    translations = wide(translations).masked_fill(gone[..., None], 0)
    return Frames(rotations, translations).invert_apply(
        translations[..., None, :, :].expand(*translations.shape[:-1], *translations.shape[-2:])
    )


def _logits(logits: Tensor, dims: int, shape: str) -> None:
    _checks.tensor("logits", logits)
    if not logits.is_floating_point():
        raise TypeError(f"logits must have a floating dtype; got {logits.dtype}")
    if logits.dim() < dims or logits.shape[-1] == 0:
        raise ValueError(f"logits must have shape {shape}; got {list(logits.shape)}")


def _resolved(
    resolution: Tensor | None, low: float, high: float, logits: Tensor, leading: tuple[int, ...]
) -> Tensor | float:
    """1 where a sample's resolution is between the bounds, else 0."""
    low, high = _checks.positive_number("min_resolution", low), _checks.positive_number("max_resolution", high)
    if resolution is None:
        return 1.0
    _checks.tensor("resolution", resolution)
    if tuple(resolution.shape) != leading or not resolution.is_floating_point():
        raise ValueError(
            f"resolution must be floating, of shape {list(leading)}, one a sample; "
            f"got {resolution.dtype} {list(resolution.shape)}"
        )
    return ((resolution >= low) & (resolution <= high)).to(wide(logits).dtype)

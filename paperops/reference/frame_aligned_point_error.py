"""Definition of the frame aligned point error, FAPE (AlphaFold2 supplement, Algorithm 28)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from paperops.reference.nearest import result_dtype


class FAPE(NamedTuple):
    """The terms of a frame aligned point error; all but the loss are detached."""

    loss: Tensor
    """``[*]``: the weighted sum of the terms."""
    clamped: Tensor
    """``[*]``: the mean clamped error of points in frames of their own chain."""
    unclamped: Tensor
    """``[*]``: the same without a clamp."""
    between_clamped: Tensor
    """``[*]``: the mean clamped error of points in frames of other chains; 0 without chains."""
    between_unclamped: Tensor
    """``[*]``: the same without a clamp."""


def point_errors(
    pred_rotations: Tensor,
    pred_translations: Tensor,
    target_rotations: Tensor,
    target_translations: Tensor,
    frames_mask: Tensor,
    pred_positions: Tensor,
    target_positions: Tensor,
    positions_mask: Tensor,
    eps: float,
) -> Tensor:
    """How far every point lies from its target, each seen from the same frame: [*, F, P], of what is there."""
    wide = result_dtype(pred_rotations.dtype)

    def local(rotations: Tensor, translations: Tensor, positions: Tensor) -> Tensor:  # R^T (x - t), [*, F, P, 3]
        # What is not there may hold anything.
        rotations = rotations.to(wide).masked_fill((frames_mask == 0)[..., None, None], 0)
        translations = translations.to(wide).masked_fill((frames_mask == 0)[..., None], 0)
        positions = positions.to(wide).masked_fill((positions_mask == 0)[..., None], 0)
        difference = positions[..., None, :, :] - translations[..., None, :]
        return torch.einsum("...fji,...fpj->...fpi", rotations, difference)

    pred = local(pred_rotations, pred_translations, pred_positions)
    target = local(target_rotations, target_translations, target_positions)
    return torch.sqrt((pred - target).square().sum(-1) + eps)


def frame_aligned_point_error(
    pred_rotations: Tensor,
    pred_translations: Tensor,
    target_rotations: Tensor,
    target_translations: Tensor,
    frames_mask: Tensor,
    pred_positions: Tensor,
    target_positions: Tensor,
    positions_mask: Tensor,
    length_scale: float = 10.0,
    pair_mask: Tensor | None = None,
    l1_clamp_distance: float | None = None,
    eps: float = 1e-8,
) -> Tensor:
    """See :func:`paperops.frame_aligned_point_error`."""
    error = point_errors(
        pred_rotations, pred_translations, target_rotations, target_translations, frames_mask, pred_positions,
        target_positions, positions_mask, eps,
    )  # fmt: skip
    if l1_clamp_distance is not None:
        error = error.clamp(max=l1_clamp_distance)
    frames, positions = frames_mask.to(error.dtype), positions_mask.to(error.dtype)
    weights = frames[..., None] * positions[..., None, :]  # [*, F, P]
    if pair_mask is not None:
        weights = weights * pair_mask.to(error.dtype)
    total = (weights * error).sum((-1, -2)) / length_scale  # [*]
    if pair_mask is not None:
        return total / (eps + weights.sum((-1, -2)))
    return total / (eps + frames.sum(-1)) / (eps + positions.sum(-1))


def frame_aligned_point_error_terms(
    pred_rotations: Tensor,
    pred_translations: Tensor,
    target_rotations: Tensor,
    target_translations: Tensor,
    frames_mask: Tensor,
    pred_positions: Tensor,
    target_positions: Tensor,
    positions_mask: Tensor,
    frame_chains: Tensor | None = None,
    position_chains: Tensor | None = None,
    *,
    length_scale: float = 10.0,
    l1_clamp_distance: float | None = 10.0,
    between_length_scale: float = 20.0,
    between_l1_clamp_distance: float | None = 30.0,
    clamped_weight: float | Tensor = 1.0,
    unclamped_weight: float | Tensor = 0.0,
    between_clamped_weight: float | Tensor = 1.0,
    between_unclamped_weight: float | Tensor = 0.0,
    eps: float = 1e-8,
) -> FAPE:
    """See :func:`paperops.frame_aligned_point_error_terms`."""
    error = point_errors(
        pred_rotations, pred_translations, target_rotations, target_translations, frames_mask, pred_positions,
        target_positions, positions_mask, eps,
    )  # fmt: skip
    frames, positions = frames_mask.to(error.dtype), positions_mask.to(error.dtype)
    weights = frames[..., None] * positions[..., None, :]  # [*, F, P]
    if frame_chains is None or position_chains is None:
        norm = (eps + frames.sum(-1)) * (eps + positions.sum(-1))
        kinds = [(weights, norm, length_scale, l1_clamp_distance)]
    else:
        same = frame_chains[..., None] == position_chains[..., None, :]
        within, between = weights * same, weights * ~same
        kinds = [
            (within, eps + within.sum((-1, -2)), length_scale, l1_clamp_distance),
            (between, eps + between.sum((-1, -2)), between_length_scale, between_l1_clamp_distance),
        ]
    terms = [
        (weights * error.clamp(max=limit)).sum((-1, -2)) / scale / norm
        for weights, norm, scale, clamp in kinds
        for limit in (math.inf if clamp is None else clamp, math.inf)
    ]
    terms += [torch.zeros_like(terms[0])] * (4 - len(terms))
    term_weights = (clamped_weight, unclamped_weight, between_clamped_weight, between_unclamped_weight)
    loss = torch.stack([weight * term for weight, term in zip(term_weights, terms, strict=True)]).sum(0)
    return FAPE(loss, *(term.detach() for term in terms))

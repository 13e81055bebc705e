"""The frame aligned point error clamped and unclamped, within and between chains, as training needs it: in one pass."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from paperops.ops import _checks
from paperops.ops._frames_and_points import FramesAndPoints, clamp_distance
from paperops.ops.frame_aligned_point_error import loss_op
from paperops.reference.frame_aligned_point_error import FAPE


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
    r"""Clamped and unclamped FAPE, within and between chains, weighted for each sample, all from one pass.

    .. math:: L = \sum_{k \in \{within, between\}} \frac{1}{Z_k M_k} \sum_{fp \in k} m_f m_p
              (a_k \min(d_{fp}, c_k) + b_k d_{fp})

    with d as in :func:`frame_aligned_point_error`; a pair is within a chain if frame and point have the same number.
    :math:`M_k = \epsilon + \sum_{fp \in k} m_f m_p`; without chains all pairs are within one, and M is
    :math:`(\epsilon + \sum_f m_f)(\epsilon + \sum_p m_p)`.

    AlphaFold2's backbone loss, clamped in nine samples of ten, has ``clamped_weight=use_clamped`` and
    ``unclamped_weight=1 - use_clamped`` with ``use_clamped`` of shape ``[*]``; AlphaFold-Multimer's has the defaults'
    clamps and scales, with weights of 0.5 each.

    Args:
        pred_rotations, pred_translations, target_rotations, target_translations, frames_mask: as for
            :func:`frame_aligned_point_error`, and so are
        pred_positions, target_positions, positions_mask, eps: the points, their mask and the root's guard.
        frame_chains, position_chains: the number of each frame's and point's chain, ``[*, F]`` and ``[*, P]``, of an
            integer dtype; both or neither.
        length_scale, l1_clamp_distance: Z and c within chains; a clamp of None is none.
        between_length_scale, between_l1_clamp_distance: those between chains.
        clamped_weight, unclamped_weight: a and b within chains, numbers or a weight for each sample ``[*]``.
        between_clamped_weight, between_unclamped_weight: those between chains.

    Leading dimensions broadcast.

    Returns:
        :class:`FAPE` of the loss and its four terms before they are weighted (clamped, unclamped, between_clamped,
        between_unclamped), ``[*]`` each, float64 for float64 coordinates and float32 otherwise. A term without a pair
        is 0. Gradients flow through the loss; the other terms are for the record.

    Differentiable in the prediction and the target, twice too, in the same memory and order as
    :func:`frame_aligned_point_error`.

    Raises:
        TypeError: not tensors, or of the wrong dtype.
        ValueError: a shape or device that does not fit, naming the argument; a scale or eps that is not positive, a
            negative clamp, one of the chains without the other, a mask or weight that requires a gradient.

    Source:
        Jumper et al., Nature 596 (2021), supplement 1.9.2 and Algorithm 28; Evans et al., "Protein complex prediction
        with AlphaFold-Multimer" (2021), section 2.4.

    Cost:
        That of one :func:`frame_aligned_point_error`.

    Example:
        >>> import torch, paperops
        >>> frames = paperops.geometry.Frames.from_three_points(*torch.randn(3, 1, 6, 3))
        >>> x, mask, chains = torch.randn(1, 6, 3), torch.ones(1, 6), torch.tensor([[1, 1, 1, 2, 2, 2]])
        >>> moved = x + torch.tensor([30.0, 40.0, 0.0])
        >>> fape = paperops.frame_aligned_point_error_terms(*frames, *frames, mask, x, moved, mask, chains, chains)
        >>> [round(float(term), 3) for term in fape]
        [2.5, 1.0, 5.0, 1.5, 2.5]
    """
    p = FramesAndPoints(
        (pred_rotations, pred_translations, target_rotations, target_translations, pred_positions, target_positions),
        frames_mask, positions_mask, eps,
    )  # fmt: skip
    scales = (
        _checks.positive_number("length_scale", length_scale),
        _checks.positive_number("between_length_scale", between_length_scale),
    )
    clamps = (
        clamp_distance("l1_clamp_distance", l1_clamp_distance),
        clamp_distance("between_l1_clamp_distance", between_l1_clamp_distance),
    )
    given = {
        "clamped_weight": clamped_weight,
        "unclamped_weight": unclamped_weight,
        "between_clamped_weight": between_clamped_weight,
        "between_unclamped_weight": between_unclamped_weight,
    }
    term_weights = [p.term_weight(name, value) for name, value in given.items()]
    if (frame_chains is None) != (position_chains is None):
        missing = "frame_chains" if frame_chains is None else "position_chains"
        raise ValueError(f"frame_chains and position_chains go together; got {missing}=None")
    if frame_chains is not None:
        p.chains("frame_chains", frame_chains, p.frames)
        p.chains("position_chains", position_chains, p.points)
    p.prepare()
    chains: tuple[Tensor | None, Tensor | None] = (None, None)
    batch = p.frame_weights.shape[0]
    frames_total, points_total = p.frame_weights.sum(1), p.position_weights.sum(1)  # [B]
    if frame_chains is None or position_chains is None:
        norms = torch.stack([(p.eps + frames_total) * (p.eps + points_total), torch.ones_like(frames_total)], 1)
    else:
        of_frames, of_points = p.flat(frame_chains, p.frames), p.flat(position_chains, p.points)
        chains = of_frames.to(torch.int64).contiguous(), of_points.to(torch.int64).contiguous()
        norms = p.eps + _weights_by_kind(p.frame_weights, p.position_weights, *chains)  # [B, 2]
    weights = [
        p.flat(value).to(p.wide) if isinstance(value, Tensor) else p.frame_weights.new_full((batch,), value)
        for value in term_weights
    ]
    scaled = torch.stack([norms[:, kind] * scale for kind, scale in enumerate(scales)], 1)
    unit = (1 / scaled).clamp(max=torch.finfo(p.wide).max)  # [B, kind]; finite where nothing is left and eps is tiny
    unit = unit.masked_fill(scaled == math.inf, math.nan)  # weights that are too large count for what they are
    coefficients = torch.stack(weights, 1).reshape(batch, 2, 2) * unit[:, :, None]  # [B, kind, term]
    loss, sums, *_ = loss_op(*p.arguments(coefficients, None, chains, clamps))
    terms = (sums[:, :, :2] * unit[:, :, None]).reshape(*p.leading, 4)
    return FAPE(loss.reshape(p.leading), *terms.unbind(-1))


def _weights_by_kind(
    frame_weights: Tensor, position_weights: Tensor, frame_chains: Tensor, position_chains: Tensor
) -> Tensor:
    """The sums of w_f w_p over pairs within and between chains, [B, 2]: by bisection in the sorted chains of points.

    Running sums of the points' weights in integers, as large as fit: exact differences, and in no order that may vary.
    """
    order = position_chains.argsort(dim=1, stable=True)
    ordered = position_chains.gather(1, order)
    weights = torch.nn.functional.pad(position_weights.double().gather(1, order), (1, 0))  # [B, 1 + P]
    largest = weights.abs().amax(1, keepdim=True).clamp(min=1e-200) * weights.shape[1]
    unit = torch.exp2(torch.ceil(torch.log2(largest)) - 61)  # [B, 1], a power of two
    spoilt = 0 * weights.sum(1)  # [B]: NaN where weights are not finite, of which integers know nothing
    totals = (weights / unit).nan_to_num(0, 0, 0).round().to(torch.int64).cumsum(1)
    frame_chains = frame_chains.contiguous()  # or a warning, within vmap
    first = torch.searchsorted(ordered, frame_chains)
    last = torch.searchsorted(ordered, frame_chains, right=True)
    own = totals.gather(1, last) - totals.gather(1, first)  # [B, F]
    both = torch.stack([own, totals[:, -1:] - own], 2) * unit[:, :, None]  # [B, F, 2]
    return ((frame_weights.double()[:, :, None] * both).sum(1) + spoilt[:, None]).to(frame_weights.dtype)

"""The frame aligned point error (FAPE), streamed over pairs of a frame and a point.

The dispatcher's op gives each sample's loss as a sum over pairs with coefficients that are known beforehand, so that
the pass which computes the loss computes its gradients too; the backward pass only scales them. What lies between that
and the public functions' means over masks is plain torch, of the size of the inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from paperops.backends import Implementation
from paperops.ops import _checks
from paperops.ops._define import define, native, plain, triton
from paperops.ops._frames_and_points import NAMES, PRED, TARGET, FramesAndPoints, clamp_distance

_INPUTS = (
    "Tensor pred_rotations, Tensor pred_translations, Tensor target_rotations, Tensor target_translations, "
    "Tensor pred_positions, Tensor target_positions, Tensor frame_weights, Tensor position_weights, "
    "Tensor coefficients, Tensor? pair_weights, Tensor? frame_chains, Tensor? position_chains, "
    "float clamp, float between_clamp, float eps"
)
_GEOMETRY = len(NAMES)  # the first of these, which take gradients
_COEFFICIENTS = 8


def _present(inputs: Any) -> Any:
    """The arguments with zeros for the frames and points of weight 0, which may hold anything."""
    frames_gone, points_gone = inputs[_GEOMETRY] == 0, inputs[_GEOMETRY + 1] == 0
    masks = (frames_gone[..., None, None], frames_gone[..., None]) * 2 + (points_gone[..., None],) * 2
    return *(value.masked_fill(mask, 0) for value, mask in zip(inputs, masks, strict=False)), *inputs[_GEOMETRY:]


def with_zeros(implementation: Implementation) -> Implementation:
    """An implementation that does not look at weights before it computes: it is given zeros for what has weight 0."""

    def load() -> Callable[..., Any]:
        function = implementation.load()
        return lambda *arguments: function(*_present(arguments))

    return Implementation(load, implementation.declines)


def _pairs(
    pred_rotations: Tensor, pred_translations: Tensor, target_rotations: Tensor, target_translations: Tensor,
    pred_positions: Tensor, target_positions: Tensor, frame_weights: Tensor, position_weights: Tensor,
    pair_weights: Tensor | None, frame_chains: Tensor | None, position_chains: Tensor | None, eps: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """For each pair: x_p - t_f, the error in the frame and its length, the weight, and whether chains differ."""
    pred = pred_positions[:, None] - pred_translations[:, :, None]  # [B, F, P, 3]
    target = target_positions[:, None] - target_translations[:, :, None]
    error = pred @ pred_rotations - target @ target_rotations  # R^T v is v^T R; [B, F, P, 3]
    distance = torch.sqrt(error.square().sum(-1) + eps)  # [B, F, P]
    weights = frame_weights[:, :, None] * position_weights[:, None]
    if pair_weights is not None:
        weights = weights * pair_weights
    if frame_chains is None or position_chains is None:
        between = torch.zeros_like(weights, dtype=torch.bool)
    else:
        between = frame_chains[:, :, None] != position_chains[:, None]
    return pred, error, distance, weights, between


def gradients(
    grad_loss: Tensor, pred_rotations: Tensor, pred_translations: Tensor, target_rotations: Tensor,
    target_translations: Tensor, pred_positions: Tensor, target_positions: Tensor, frame_weights: Tensor,
    position_weights: Tensor, coefficients: Tensor, pair_weights: Tensor | None, frame_chains: Tensor | None,
    position_chains: Tensor | None, clamp: float, between_clamp: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of the prediction's rotations, translations and positions, written out; differentiable itself.

    Frames and points of weight 0 must be 0 (:func:`_present`).
    """
    pred, error, distance, weights, between = _pairs(
        pred_rotations, pred_translations, target_rotations, target_translations, pred_positions, target_positions,
        frame_weights, position_weights, pair_weights, frame_chains, position_chains, eps,
    )  # fmt: skip
    a = coefficients[:, :, :, None, None]  # [B, kind, term, 1, 1]
    within_slope = a[:, 0, 0] * (distance <= clamp) + a[:, 0, 1]  # [B, F, P]
    between_slope = a[:, 1, 0] * (distance <= between_clamp) + a[:, 1, 1]
    slope = grad_loss[:, None, None] * weights * torch.where(between, between_slope, within_slope)
    local = (slope / distance)[..., None] * error  # the gradient of the error, in the frame: [B, F, P, 3]
    turned = local @ pred_rotations.mT  # and outside of it
    return pred.mT @ local, -turned.sum(2), turned.sum(1)


def _reference(*arguments: Any) -> tuple[Tensor, ...]:
    inputs: Any = arguments[:-1]
    tensors: Any = list(inputs[:-3])
    clamp, between_clamp, eps = inputs[-3:]
    coefficients = tensors.pop(_COEFFICIENTS)
    _, _, distance, weights, between = _pairs(*[*tensors, eps])
    sums = []
    for kind, limit in ((~between, clamp), (between, between_clamp)):
        of_kind = weights * kind
        values = (of_kind * distance.clamp(max=limit), of_kind * distance, of_kind)
        sums.append(torch.stack([value.sum((1, 2)) for value in values], -1))
    found = torch.stack(sums, 1)  # [B, 2, 3]
    counted = torch.where(coefficients == 0, 0, coefficients * found[:, :, :2])  # what does not count may be infinite
    loss = counted.sum((1, 2))  # [B]
    if arguments[-1]:
        slopes = gradients(torch.ones_like(loss), *inputs)
        return loss, found, *(value.contiguous() for value in slopes)
    return loss, found, *(loss.new_empty(0) for _ in range(3))


def _fake(*arguments: Any) -> tuple[Tensor, ...]:
    pred_rotations, pred_translations, _, _, pred_positions, *_, wanted = arguments
    batch = pred_rotations.shape[0]
    geometry = (pred_rotations, pred_translations, pred_positions)
    found = (value.new_empty(value.shape if wanted else 0) for value in geometry)
    return pred_rotations.new_empty(batch), pred_rotations.new_empty(batch, 2, 3), *found


_implementations = {
    "reference": with_zeros(plain(_reference)),
    "native": native("frame_aligned_point_error"),
    "triton": triton("frame_aligned_point_error", "frame_aligned_point_error"),
}


# --- backward ------------------------------------------------------------------------------------------------------


def _one_more_pass(implementation: Implementation) -> Implementation:
    """The backward op of a backend: its forward op, with each sample's coefficients times the cotangent."""

    def load() -> Callable[..., Any]:
        forward = implementation.load()

        def backward(grad_loss: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
            scaled = list(inputs)
            scaled[_COEFFICIENTS] = inputs[_COEFFICIENTS] * grad_loss[:, None, None]
            return tuple(forward(*scaled, True)[2:])

        return backward

    return Implementation(load, implementation.declines)


def _backward_fake(grad_loss: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(value.new_empty(value.shape) for value in (inputs[0], inputs[1], inputs[4]))


def _backward_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.clamp, ctx.between_clamp, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _second_derivative(ctx: Any, *tangents: Tensor) -> tuple[Any, ...]:
    """torch's derivative of the gradients as written out above."""
    tensors: Any = ctx.saved_tensors
    free = 1 + _GEOMETRY

    def function(*given: Any) -> tuple[Tensor, ...]:
        inputs: Any = (*given[1:], *tensors[free:], ctx.clamp, ctx.between_clamp, ctx.eps)
        present: Any = _present(inputs)
        return gradients(given[0], *present)

    pull: Any = torch.func.vjp(function, *tensors[:free])[1]
    return *pull(tangents), *(None for _ in tensors[free:]), None, None, None


backward_op: Any = define(
    "frame_aligned_point_error_backward",
    f"(Tensor grad_loss, {_INPUTS}) -> (Tensor, Tensor, Tensor)",
    {backend: _one_more_pass(implementation) for backend, implementation in _implementations.items()},
    fake=_backward_fake,
    save=_backward_save,
    backward=_second_derivative,
)


# --- forward -------------------------------------------------------------------------------------------------------


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.clamp, ctx.between_clamp, ctx.eps, ctx.wanted = inputs
    ctx.save_for_backward(*output[2:], *tensors)
    ctx.mark_non_differentiable(*output[1:])


def _derivative(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Any, ...]:
    *saved, pred_rotations, pred_translations, target_rotations, target_translations, pred, target = ctx.saved_tensors[
        :9
    ]
    rest = (*ctx.saved_tensors[9:], ctx.clamp, ctx.between_clamp, ctx.eps)
    found: list[Tensor | None] = [None] * _GEOMETRY
    if any(ctx.needs_input_grad[number] for number in PRED):
        if ctx.wanted and not torch.is_grad_enabled():
            scaled = (value * grad_loss.reshape(-1, *(1,) * (value.dim() - 1)) for value in saved)
        else:  # the forward pass did not know that they would be needed, or a second derivative may follow
            scaled = backward_op(
                grad_loss, pred_rotations, pred_translations, target_rotations, target_translations, pred, target, *rest
            )
        found[0], found[1], found[4] = scaled
    if any(ctx.needs_input_grad[number] for number in TARGET):  # errors are alike with the roles swapped
        found[2], found[3], found[5] = backward_op(
            grad_loss, target_rotations, target_translations, pred_rotations, pred_translations, target, pred, *rest
        )
    return *found, *(None for _ in rest), None


loss_op: Any = define(
    "frame_aligned_point_error",
    f"({_INPUTS}, bool gradients) -> (Tensor loss, Tensor sums, Tensor dR, Tensor dt, Tensor dx)",
    _implementations,
    fake=_fake,
    save=_save,
    backward=_derivative,
)


# --- the public function ------------------------------------------------------------------------------------------


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
    r"""AlphaFold2's frame aligned point error (FAPE), streamed: every point's error in every frame, in linear memory.

    .. math::
        d_{fp} = \sqrt{|T_f^{-1} \circ x_p - \hat T_f^{-1} \circ \hat x_p|^2 + \epsilon}, \qquad
        L = \frac{1}{Z} \sum_f \sum_p \frac{w_{fp}}{(\epsilon + \sum_f m_f)(\epsilon + \sum_p m_p)} \min(d_{fp}, c)

    with T = (pred_rotations, pred_translations), x = pred_positions, the target's with a hat, Z = length_scale, c =
    l1_clamp_distance and :math:`w_{fp} = m_f m_p`. With a pair mask, :math:`w_{fp} = m_f m_p m_{fp}`, and the
    denominator is :math:`\epsilon + \sum_f \sum_p w_{fp}`.

    Args:
        pred_rotations, pred_translations: ``[*, F, 3, 3]`` and ``[*, F, 3]``, the predicted frames: float16, bfloat16,
            float32 or float64. The unit of length is the caller's (here A). Matrices need not be rotations.
        target_rotations, target_translations: the true frames, likewise.
        frames_mask: ``[*, F]``, bool or floating. Masks are weights: they multiply. A frame of mask 0 may hold
            anything, NaN too.
        pred_positions, target_positions: ``[*, P, 3]``.
        positions_mask: ``[*, P]``, as frames_mask.
        length_scale: Z, positive.
        pair_mask: ``[*, F, P]``, bool or floating, or None. A point or frame that it alone masks must be finite.
        l1_clamp_distance: c, not negative; None for no clamp. The gradient of what is clamped is 0.
        eps: positive: inside the root, and in the denominators.

    Leading dimensions broadcast. Coordinates may be of different dtypes, but for float64, which goes alone. Everything
    is computed in float32 at least, from differences of coordinates.

    Returns:
        ``[*]``, float64 for float64 coordinates and float32 otherwise; 0 where nothing is left by the masks.

    Differentiable in the prediction and the target, twice too. The pass that computes the loss also computes its
    gradients to the prediction where one is required (those to the target take another pass, in backward), in linear
    memory; the second derivative goes through plain torch, which takes the memory of the definition. Gradients are
    summed in a fixed order.

    Raises:
        TypeError: not tensors, or of the wrong dtype.
        ValueError: a shape or device that does not fit, naming the argument; a length_scale or eps that is not
            positive, a negative clamp, a mask that requires a gradient.

    Source:
        Jumper et al., Nature 596 (2021), supplement, Algorithm 28; the masks as in OpenFold's ``compute_fape``.

    Cost:
        About 50 operations a pair of frame and point, 95 with gradients; memory of the size of the inputs, of which the
        gradients of the prediction are kept for backward.

    Example:
        >>> import torch, paperops
        >>> frames = paperops.geometry.Frames.from_three_points(*torch.randn(3, 1, 6, 3))
        >>> x, mask = torch.randn(1, 40, 3), torch.ones(1, 40)
        >>> shift = torch.tensor([3.0, 4.0, 0.0])
        >>> paperops.frame_aligned_point_error(*frames, *frames, mask[:, :6], x, x + shift, mask).round(decimals=3)
        tensor([0.5000])
    """
    p = FramesAndPoints(
        (pred_rotations, pred_translations, target_rotations, target_translations, pred_positions, target_positions),
        frames_mask, positions_mask, eps,
    )  # fmt: skip
    scale = _checks.positive_number("length_scale", length_scale)
    clamp = clamp_distance("l1_clamp_distance", l1_clamp_distance)
    if pair_mask is not None:
        p.mask("pair_mask", pair_mask, p.frames, p.points)
    p.prepare()
    pair = None if pair_mask is None else p.flat(pair_mask, p.frames, p.points).to(p.wide)
    # [B, kind, term], filled on the device: a copy from the host would wait for it.
    coefficients = p.frame_weights.new_zeros(p.frame_weights.shape[0], 2, 2)
    coefficients[:, 0, 0] = 1 / scale
    loss, sums, *_ = loss_op(*p.arguments(coefficients, pair, (None, None), (clamp, clamp)))
    if pair is None:
        loss = loss / (p.eps + p.frame_weights.sum(1)) / (p.eps + p.position_weights.sum(1))
    else:
        loss = loss / (p.eps + sums[:, 0, 2])
    return loss.reshape(p.leading)

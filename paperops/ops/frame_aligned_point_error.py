"""The frame aligned point error (FAPE), streamed over pairs of a frame and a point.

The dispatcher's op gives each sample's loss as a sum over pairs with coefficients that are known beforehand, so that
the pass which computes the loss computes its gradients too; the backward pass only scales them. What lies between that
and the public functions' means over masks is plain torch, of the size of the inputs.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from paperops.backends import Implementation
from paperops.ops import _checks
from paperops.ops._define import define, native, plain, triton
from paperops.reference.frame_aligned_point_error import FAPE
from paperops.reference.nearest import result_dtype

_INPUTS = (
    "Tensor pred_rotations, Tensor pred_translations, Tensor target_rotations, Tensor target_translations, "
    "Tensor pred_positions, Tensor target_positions, Tensor frame_weights, Tensor position_weights, "
    "Tensor coefficients, Tensor? pair_weights, Tensor? frame_chains, Tensor? position_chains, "
    "float clamp, float between_clamp, float eps"
)
_NAMES = (
    "pred_rotations", "pred_translations", "target_rotations", "target_translations", "pred_positions",
    "target_positions",
)  # fmt: skip
_PRED, _TARGET = (0, 1, 4), (2, 3, 5)  # of the first arguments, which take gradients
_GEOMETRY = len(_NAMES)
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
    if any(ctx.needs_input_grad[number] for number in _PRED):
        if ctx.wanted and not torch.is_grad_enabled():
            scaled = (value * grad_loss.reshape(-1, *(1,) * (value.dim() - 1)) for value in saved)
        else:  # the forward pass did not know that they would be needed, or a second derivative may follow
            scaled = backward_op(
                grad_loss, pred_rotations, pred_translations, target_rotations, target_translations, pred, target, *rest
            )
        found[0], found[1], found[4] = scaled
    if any(ctx.needs_input_grad[number] for number in _TARGET):  # errors are alike with the roles swapped
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


# --- what both public functions do ---------------------------------------------------------------------------------


class _Problem:
    """Checked arguments, broadcast, with one batch dimension, in the dtype of sums."""

    def __init__(self, geometry: tuple[Any, ...], frames_mask: Any, positions_mask: Any, eps: Any) -> None:
        """``geometry``: both frames' rotations and translations, then both positions; the prediction's come first."""
        pred_rotations, _, _, _, pred_positions, _ = geometry
        for name, value, rank in (("pred_rotations", pred_rotations, 3), ("pred_positions", pred_positions, 2)):
            _checks.vectors(name, value, 3, "3 x 3 matrices" if rank == 3 else "points")
            if value.dim() < rank:
                shape = "[*, F, 3, 3]" if rank == 3 else "[*, P, 3]"
                raise ValueError(f"{name} must have shape {shape}; got {list(value.shape)}")
        self.like, self.wide = pred_rotations, result_dtype(pred_rotations.dtype)
        self.leading: tuple[int, ...] = tuple(pred_rotations.shape[:-3])
        self.frames, self.points = pred_rotations.shape[-3], pred_positions.shape[-2]
        rotations, translations, positions = (self.frames, 3, 3), (self.frames, 3), (self.points, 3)
        own_shapes = (rotations, translations, rotations, translations, positions, positions)
        for name, value, own in zip(_NAMES, geometry, own_shapes, strict=True):
            if value is not pred_rotations and value is not pred_positions:
                _checks.vectors(name, value, 3, "coordinates")
            self._beside(name, value)
            self.fit(name, value, own)
        self._masks = (
            self.mask("frames_mask", frames_mask, self.frames),
            self.mask("positions_mask", positions_mask, self.points),
        )
        self._geometry, self._own_shapes = geometry, own_shapes
        self.eps = _eps(eps, self.wide)

    def fit(self, name: str, value: Tensor, own: tuple[int, ...]) -> None:
        """The value's last dimensions are these, and its leading ones go with those of the others."""
        shape = value.shape
        if shape == (*self.leading, *own):
            return
        split = len(shape) - len(own)
        if split < 0 or shape[split:] != own:
            expected = ", ".join(["*", *map(str, own)])
            raise ValueError(f"{name} must have shape [{expected}]; got {list(shape)}")
        leading = list(shape[:split])
        both = zip(reversed(leading), reversed(self.leading), strict=False)
        if not all(one == other or one == 1 or other == 1 for one, other in both):
            raise ValueError(
                f"{name} must have leading dimensions that broadcast with {list(self.leading)}; got {leading}"
            )
        self.leading = tuple(torch.broadcast_shapes(self.leading, leading))

    def _beside(self, name: str, value: Tensor) -> None:
        """On the device of the prediction, and not of float64 beside something narrower, nor the reverse."""
        like = self.like
        if value.dtype == like.dtype and value.device == like.device:
            return
        if value.device != like.device:
            raise ValueError(f"{name} must be on the device of pred_rotations, {like.device}; got {value.device}")
        if result_dtype(value.dtype) != self.wide:
            allowed = "torch.float64" if self.wide == torch.float64 else "float16, bfloat16 or float32"
            raise TypeError(
                f"{name} must have dtype {allowed} beside pred_rotations of {like.dtype}; got {value.dtype}"
            )

    def mask(self, name: str, value: Tensor, *own: int) -> Tensor:
        """A mask [*, own], which does not require a gradient."""
        _checks.mask_of(name, _checks.tensor(name, value), tuple(value.shape), "", self.like, "pred_rotations")
        self.fit(name, value, own)
        return value

    def chains(self, name: str, value: Any, own: int) -> Tensor:
        """Numbers of chains [*, own]."""
        value = _checks.tensor(name, value)
        if value.dtype not in _checks.INTEGER_DTYPES:
            raise TypeError(f"{name} must have an integer dtype; got {value.dtype}")
        if value.device != self.like.device:
            raise ValueError(f"{name} must be on the device of pred_rotations, {self.like.device}; got {value.device}")
        self.fit(name, value, (own,))
        return value

    def term_weight(self, name: str, value: Any) -> float | Tensor:
        """A number, or a weight for each sample [*]."""
        if not isinstance(value, Tensor):
            if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
                raise TypeError(f"{name} must be a finite number or a tensor; got {value!r}")
            return float(value)
        self.mask(name, value)
        return value

    def flat(self, value: Tensor, *own: int) -> Tensor:
        """[*, own] -> [B, own], once all leading dimensions are known."""
        if len(self.leading) != 1:
            return value.expand(*self.leading, *own).reshape(math.prod(self.leading), *own)
        return (
            value if value.dim() > len(own) and value.shape[0] == self.leading[0] else value.expand(*self.leading, *own)
        )

    def prepare(self) -> None:
        """After the last call of fit."""
        # Contiguous, for torch's sums depend on strides.
        self.frame_weights = self.flat(self._masks[0], self.frames).to(self.wide).contiguous()  # [B, F]
        self.position_weights = self.flat(self._masks[1], self.points).to(self.wide).contiguous()  # [B, P]
        own_shapes = zip(self._geometry, self._own_shapes, strict=True)
        self.geometry = [self.flat(value, *own).to(self.wide) for value, own in own_shapes]
        self._wanted = torch.is_grad_enabled() and any(self.geometry[number].requires_grad for number in _PRED)

    def call(
        self, coefficients: Tensor, pair: Tensor | None, chains: tuple[Tensor | None, Tensor | None],
        clamps: tuple[float, float],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The losses [B] and sums [B, 2, 3] of the dispatcher's op."""
        loss, sums, *_ = loss_op(
            *self.geometry, self.frame_weights, self.position_weights, coefficients, pair, *chains, *clamps, self.eps,
            self._wanted,
        )  # fmt: skip
        return loss, sums


def _clamp(name: str, value: float | None) -> float:
    """A finite number that is not negative; inf for None."""
    if value is None:
        return math.inf
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number or None; got {type(value).__name__}")
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and not negative; got {value}")
    return float(value)


def _eps(value: float, wide: torch.dtype) -> float:
    """A positive number that the dtype of sums holds."""
    number = _checks.positive_number("eps", value)
    least = torch.finfo(wide).tiny
    if number < least:
        raise ValueError(f"eps must be at least {least:.4g}, the smallest normal {wide}; got {number}")
    return number


# --- the public functions ------------------------------------------------------------------------------------------


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
        About 30 operations a pair of frame and point, 60 with gradients; memory of the size of the inputs, of which the
        gradients of the prediction are kept for backward.

    Example:
        >>> import torch, paperops
        >>> frames = paperops.geometry.Frames.from_three_points(*torch.randn(3, 1, 6, 3))
        >>> x, mask = torch.randn(1, 40, 3), torch.ones(1, 40)
        >>> shift = torch.tensor([3.0, 4.0, 0.0])
        >>> paperops.frame_aligned_point_error(*frames, *frames, mask[:, :6], x, x + shift, mask).round(decimals=3)
        tensor([0.5000])
    """
    p = _Problem(
        (pred_rotations, pred_translations, target_rotations, target_translations, pred_positions, target_positions),
        frames_mask, positions_mask, eps,
    )  # fmt: skip
    scale = _checks.positive_number("length_scale", length_scale)
    clamp = _clamp("l1_clamp_distance", l1_clamp_distance)
    if pair_mask is not None:
        p.mask("pair_mask", pair_mask, p.frames, p.points)
    p.prepare()
    pair = None if pair_mask is None else p.flat(pair_mask, p.frames, p.points).to(p.wide)
    one_term = p.frame_weights.new_tensor([[[1 / scale, 0.0], [0.0, 0.0]]])
    coefficients = one_term.expand(p.frame_weights.shape[0], 2, 2)  # [B, kind, term]
    loss, sums = p.call(coefficients, pair, (None, None), (clamp, clamp))
    if pair is None:
        loss = loss / (p.eps + p.frame_weights.sum(1)) / (p.eps + p.position_weights.sum(1))
    else:
        loss = loss / (p.eps + sums[:, 0, 2])
    return loss.reshape(p.leading)


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
        pred_rotations, pred_translations, target_rotations, target_translations, frames_mask, pred_positions,
            target_positions, positions_mask, eps: as for :func:`frame_aligned_point_error`.
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
    p = _Problem(
        (pred_rotations, pred_translations, target_rotations, target_translations, pred_positions, target_positions),
        frames_mask, positions_mask, eps,
    )  # fmt: skip
    scales = (
        _checks.positive_number("length_scale", length_scale),
        _checks.positive_number("between_length_scale", between_length_scale),
    )
    clamps = (
        _clamp("l1_clamp_distance", l1_clamp_distance),
        _clamp("between_l1_clamp_distance", between_l1_clamp_distance),
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
    # [B, kind]; finite where nothing is left and eps is tiny.
    unit = (1 / (norms * norms.new_tensor(scales))).clamp(max=torch.finfo(p.wide).max)
    coefficients = torch.stack(weights, 1).reshape(batch, 2, 2) * unit[:, :, None]  # [B, kind, term]
    loss, sums = p.call(coefficients, None, chains, clamps)
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
    totals = (weights / unit).round().to(torch.int64).cumsum(1)
    first = torch.searchsorted(ordered, frame_chains)
    last = torch.searchsorted(ordered, frame_chains, right=True)
    own = totals.gather(1, last) - totals.gather(1, first)  # [B, F]
    both = torch.stack([own, totals[:, -1:] - own], 2) * unit[:, :, None]  # [B, F, 2]
    return (frame_weights.double()[:, :, None] * both).sum(1).to(frame_weights.dtype)

"""Frames and points, predicted and true, as the ops on the errors of points in frames take them."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor

from paperops.ops import _checks
from paperops.reference.nearest import result_dtype

NAMES = (
    "pred_rotations", "pred_translations", "target_rotations", "target_translations", "pred_positions",
    "target_positions",
)  # fmt: skip
PRED, TARGET = (0, 1, 4), (2, 3, 5)  # of the first arguments, which take gradients


class FramesAndPoints:
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
        for name, value, own in zip(NAMES, geometry, own_shapes, strict=True):
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
            if (
                isinstance(value, bool)
                or not isinstance(value, numbers.Real)
                or not -math.inf < float(value) < math.inf
            ):
                raise TypeError(f"{name} must be a finite number or a tensor; got {value!r}")
            return float(value)
        self.mask(name, value)
        return value

    def flat(self, value: Tensor, *own: int) -> Tensor:
        """[*, own] -> [B, own], once all leading dimensions are known."""
        if len(self.leading) != 1:
            return value.expand((*self.leading, *own)).reshape(math.prod(self.leading), *own)
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
        self._wanted = torch.is_grad_enabled() and any(self.geometry[number].requires_grad for number in PRED)

    def arguments(
        self, coefficients: Tensor, pair: Tensor | None, chains: tuple[Tensor | None, Tensor | None],
        clamps: tuple[float, float],
    ) -> tuple[Any, ...]:  # fmt: skip
        """Those of the dispatcher's op."""
        weights = self.frame_weights, self.position_weights
        return *self.geometry, *weights, coefficients, pair, *chains, *clamps, self.eps, self._wanted


def clamp_distance(name: str, value: float | None) -> float:
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

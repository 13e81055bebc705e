"""The rule for a tolerance: at most twice the error that plain torch makes in the same dtype, plus one rounding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FLOAT64_ROUNDINGS = 32


class CheckFailure(AssertionError):
    """A generic check does not hold; the message says for what and by how much."""


@dataclass(frozen=True)
class Error:
    """Largest absolute errors against float64: the op's, plain torch's in the same dtype, and what is allowed.

    ``scale`` is the largest exact value, in units of which errors are shown.
    """

    ours: float
    plain: float
    allowed: float
    scale: float = 1.0

    @property
    def ratio(self) -> float:
        """Ours in units of what is allowed: at most 1 passes."""
        return self.ours / self.allowed if self.allowed > 0 else float(self.ours > 0)


def compare(
    what: str,
    ours: Tensor,
    plain: Tensor | None,
    exact: Tensor,
    rounding: torch.dtype,
    tolerance: float | None = None,
    roundings: int | None = None,
    unit: float = 0.0,
) -> Error:
    """Hold one result to the rule.

    Args:
        what: named in the failure.
        ours: the op's result.
        plain: the definition's result in the inputs' dtype, or None if it has none.
        exact: the definition's result in float64.
        rounding: the dtype whose unit roundoff, at the largest exact value, is allowed in addition.
        tolerance: replaces the rule.
        roundings: how many roundings are allowed in addition, instead of one (of 32 in float64).
        unit: the size of the terms that the result is a sum of, where they may cancel: 32 roundings of it, in float32
            at least, are allowed too.

    Raises:
        CheckFailure: shapes differ, integers differ, NaN or infinities stand elsewhere, or the error is too large.
    """
    if ours.shape != exact.shape:
        raise CheckFailure(f"{what}: shape {list(ours.shape)} instead of {list(exact.shape)}")
    if not ours.is_floating_point():
        if not torch.equal(ours, exact):
            wrong = int((ours != exact).sum())
            raise CheckFailure(f"{what}: {wrong} of {exact.numel()} integers differ from the definition's")
        return Error(0.0, 0.0, 0.0)
    ours, exact = ours.detach().double(), exact.detach().double()
    for kind, test in (("NaN", torch.isnan), ("infinite", torch.isinf)):
        if not torch.equal(test(ours), test(exact)):
            wrong = int((test(ours) != test(exact)).sum())
            raise CheckFailure(f"{what}: {wrong} of {exact.numel()} values are {kind} in one of op and definition only")
    finite = exact.isfinite()
    if not torch.equal(ours[exact.isinf()], exact[exact.isinf()]):
        raise CheckFailure(f"{what}: an infinity has the wrong sign")
    exact_values = exact[finite]
    if exact_values.numel() == 0:
        return Error(0.0, 0.0, 0.0)
    scale = float(exact_values.abs().max())
    error = float((ours[finite] - exact_values).abs().max())
    plain_error = 0.0
    if plain is not None:
        difference = (plain.detach().double()[finite] - exact_values).abs()
        plain_error = _largest(difference)
    allowed = tolerance
    if allowed is None:
        # In float64 the definition is its own exact value: nothing but a few roundings is left to allow.
        roundings = roundings or (FLOAT64_ROUNDINGS if rounding == torch.float64 else 1)
        allowed = 2 * plain_error + roundings * torch.finfo(rounding).eps * scale
        allowed += 32 * torch.finfo(torch.promote_types(rounding, torch.float32)).eps * unit
    if error > allowed:
        raise CheckFailure(
            f"{what}: error {error:.3g} against float64; plain torch {plain_error:.3g}, allowed {allowed:.3g}"
        )
    return Error(error, plain_error, allowed, scale)


def _largest(values: Tensor) -> float:
    finite = values[values.isfinite()]
    return float(finite.max()) if finite.numel() else 0.0


def same_bits(what: str, first: list[Tensor], second: list[Tensor]) -> None:
    """Hold two lists of tensors to be equal bit for bit (NaN equals NaN)."""
    if len(first) != len(second):
        raise CheckFailure(f"{what}: {len(second)} results instead of {len(first)}")
    for number, (a, b) in enumerate(zip(first, second, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise CheckFailure(f"{what}: result {number} is {b.dtype} {list(b.shape)}, not {a.dtype} {list(a.shape)}")
        differs = (a != b) & ~(a.isnan() & b.isnan())
        if differs.any():
            raise CheckFailure(f"{what}: result {number} differs in {int(differs.sum())} of {a.numel()} values")

"""Calls of an op as the generic checks make them: on which samples, with which cotangents, and how they compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from paperops.testing.compare import CheckFailure
from paperops.testing.registry import Entry, Sample, flatten, with_gradients
from paperops.testing.targets import INTERPRETED

ONLY_SMALL = INTERPRETED
"""Leave out the samples marked large, and the checks that say nothing of kernels: for Triton's interpreter."""


def samples_due(entry: Entry, device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    """The op's samples, without the large ones where every operation is slow."""
    for sample in entry.samples(device, dtype):
        if not (ONLY_SMALL and sample.large):
            yield sample


def cotangents(results: list[Tensor]) -> list[Tensor]:
    """Random cotangents of order one for the differentiable results."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(result.shape, generator=generator, dtype=torch.float64).to(result)
        for result in results
        if result.requires_grad
    ]


def call(function: Callable[..., Any], entry: Entry, arguments: dict[str, Any]) -> list[Tensor]:
    """One call: every tensor of the result, then the gradient of every differentiable argument."""
    results, gradients = call_apart(function, entry, arguments)
    return results + gradients


def call_apart(
    function: Callable[..., Any], entry: Entry, arguments: dict[str, Any]
) -> tuple[list[Tensor], list[Tensor]]:
    """One call: the tensors of the result, and the gradients of random cotangents to the differentiable arguments."""
    fresh, leaves = with_gradients(entry, arguments)
    results = flatten(function(**fresh))
    tracked = [result for result in results if result.requires_grad]
    gradients: tuple[Tensor | None, ...] = ()
    if tracked and leaves:
        gradients = torch.autograd.grad(tracked, leaves, cotangents(results), allow_unused=True)
    return [result.detach() for result in results], [gradient for gradient in gradients if gradient is not None]


def failure(sample: Sample | str, message: object) -> CheckFailure:
    """The failure of a check on this sample."""
    return CheckFailure(f"sample {sample}: {message}")


def all_close(what: str, got: list[Tensor], expected: list[Tensor]) -> None:
    """Hold two lists of tensors to be equal up to rounding, by torch.testing's default tolerances."""
    if len(got) != len(expected):
        raise CheckFailure(f"{what}: {len(got)} tensors instead of {len(expected)}")
    for number, (a, b) in enumerate(zip(got, expected, strict=True)):
        try:
            torch.testing.assert_close(a, b, equal_nan=True)
        except AssertionError as error:
            raise CheckFailure(f"{what}: tensor {number}: {error}") from error

"""Checks of what is computed: values, gradients, and gradients against numerical ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

from paperops.testing.calls import ONLY_SMALL, call_apart, failure, samples_due
from paperops.testing.compare import CheckFailure, Error, compare
from paperops.testing.registry import Entry, as_double, flatten, with_gradients


def values(entry: Entry, device: torch.device, dtype: torch.dtype) -> list[Error]:
    """Results against the float64 definition, on every sample."""
    errors = []
    for sample in samples_due(entry, device, dtype):
        with torch.no_grad():
            ours = flatten(entry.function(**sample.arguments))
            plain = flatten(entry.reference(**sample.arguments))
            exact = flatten(entry.reference(**as_double(sample.arguments)))
        errors += compare_all(entry, f"sample {sample}, result", ours, plain, exact, dtype)
    return errors


def gradients(entry: Entry, device: torch.device, dtype: torch.dtype) -> list[Error]:
    """Gradients of every differentiable argument against torch's derivative of the float64 definition."""
    errors = []
    for sample in samples_due(entry, device, dtype):
        ours = call_apart(entry.function, entry, sample.arguments)[1]
        plain = call_apart(entry.reference, entry, sample.arguments)[1]
        exact = call_apart(entry.reference, entry, as_double(sample.arguments))[1]
        errors += compare_all(entry, f"sample {sample}, gradient", ours, plain, exact, dtype)
        if not all(gradient.isfinite().all() for gradient in ours) and all(g.isfinite().all() for g in exact):
            raise failure(sample, "a gradient is not finite")
    return errors


def compare_all(
    entry: Entry, what: str, ours: list[Tensor], plain: list[Tensor], exact: list[Tensor], dtype: torch.dtype
) -> list[Error]:
    """Each number against the same of plain torch and of the float64 definition, by the entry's tolerances."""
    if not len(ours) == len(plain) == len(exact):
        raise CheckFailure(f"{what}s: {len(ours)} instead of the definition's {len(exact)}")
    return [
        compare(
            f"{what} {number}",
            a,
            b,
            c,
            a.dtype if a.is_floating_point() else dtype,
            entry.tolerance.get(dtype),
            entry.roundings.get(a.dtype),
            entry.unit,
        )
        for number, (a, b, c) in enumerate(zip(ours, plain, exact, strict=True))
    ]


def gradcheck(entry: Entry, device: torch.device, dtype: torch.dtype) -> list[Error]:
    """Numerical derivatives in float64, first and, where promised, second."""
    for sample in samples_due(entry, device, torch.float64):
        if not sample.gradcheck:
            continue
        arguments, leaves = with_gradients(entry, sample.arguments)
        names = [name for name in entry.differentiable if isinstance(arguments.get(name), Tensor)]

        def function(*inputs: Tensor, arguments: Any = arguments, names: Any = names) -> tuple[Tensor, ...]:
            changed = {**arguments, **dict(zip(names, inputs, strict=True))}
            return tuple(result for result in flatten(entry.function(**changed)) if result.requires_grad)

        try:
            torch.autograd.gradcheck(function, leaves, fast_mode=ONLY_SMALL)
            if entry.twice:
                torch.autograd.gradgradcheck(function, leaves, fast_mode=ONLY_SMALL)
        except GradcheckError as error:
            raise failure(sample, error) from error
    return []

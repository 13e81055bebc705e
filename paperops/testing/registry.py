"""The registry: an op is declared once, and every check, benchmark and evidence file follows from the declaration."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One call of an op, by argument name.

    ``gradcheck`` marks the samples that are small enough, and far enough from kinks, for numerical derivatives;
    ``large`` those that are left out where every operation is slow (Triton's interpreter, compute-sanitizer).
    """

    name: str
    arguments: dict[str, Any]
    gradcheck: bool = False
    large: bool = False

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Refused:
    """A call that must raise ``error`` with a message that matches ``message``, before any kernel runs."""

    name: str
    arguments: dict[str, Any]
    error: type[Exception]
    message: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Cost:
    """What a call takes at the least: floating-point operations, and bytes read and written.

    ``matrix`` says that the operations are matrix products, which a device does at another rate.
    """

    operations: float
    bytes: float
    matrix: bool = False

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.operations + other.operations, self.bytes + other.bytes, self.matrix or other.matrix)


@dataclass(frozen=True)
class BenchCase:
    """A size at which the op is timed: ``make(device, dtype)`` gives the call.

    ``backward`` times forward and backward instead of forward alone; ``devices`` names the device types on which the
    size makes sense; ``differentiable`` the arguments whose gradients are taken, where these are not all that can be,
    and ``backward_cost`` what that costs, where it is less than the entry's.
    """

    name: str
    make: Callable[[torch.device, torch.dtype], Sample]
    backward: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")
    differentiable: tuple[str, ...] | None = None
    backward_cost: Callable[[Sample], Cost] | None = None


@dataclass(frozen=True)
class Entry:
    """All that the generic checks and the benchmarks need to know of an op.

    Attributes:
        name: ``paperops.<name>`` and ``paperops.reference.<name>``.
        family: the op's name on the other floors: ``ops/``, ``csrc/``, ``kernels/``, ``benchmarks/results/``.
        function, reference: the public op and its definition, of one signature.
        samples: ``(device, dtype) -> Iterator[Sample]``, the same values at every call.
        refused: ``device -> Iterator[Refused]``.
        differentiable: the arguments that take gradients.
        batched: the arguments with a leading batch dimension; the others keep their value when the batch changes.
        cost: the floor of a forward call.
        backward_cost: what a backward call adds to it, where that is known.
        bench: the sizes to time.
        sources: the files, relative to the checkout, whose change makes a device's measurements stale.
        dtypes: what the op takes.
        twice: whether second derivatives are promised.
        widens: whether kernels are given 16-bit inputs as float32, so that their gradients in 16 bits are nothing new.
        tolerance: absolute tolerance by dtype, only where the general rule cannot be applied.
        roundings: by dtype, how many roundings of the largest value are allowed beside twice plain torch's error, where
            one (32 in float64) is too few.
        unit: the size of the terms of sums that may cancel, so that rounding errors are of this size, not the result's.
        tolerance_reason: why, where one of these three is given.
        autocast_arguments: the arguments that autocast takes in its own dtype, as it does those of matrix products;
            where there are none, it takes all floating ones as float32.
        exceptions: generic check to the reason why it does not hold for this op.
    """

    name: str
    family: str
    function: Callable[..., Any]
    reference: Callable[..., Any]
    samples: Callable[[torch.device, torch.dtype], Iterator[Sample]]
    refused: Callable[[torch.device], Iterator[Refused]]
    differentiable: tuple[str, ...]
    batched: tuple[str, ...]
    cost: Callable[[Sample], Cost]
    bench: tuple[BenchCase, ...]
    sources: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    twice: bool = False
    widens: bool = False
    tolerance: dict[torch.dtype, float] = field(default_factory=dict)
    roundings: dict[torch.dtype, int] = field(default_factory=dict)
    unit: float = 0.0
    tolerance_reason: str = ""
    backward_cost: Callable[[Sample], Cost] | None = None
    autocast_arguments: tuple[str, ...] = ()
    exceptions: dict[str, str] = field(default_factory=dict)

    def floor(self, case: BenchCase, sample: Sample) -> Cost:
        """The floor of what a bench case times."""
        forward, backward = self.cost(sample), case.backward_cost or self.backward_cost
        return forward + backward(sample) if case.backward and backward is not None else forward

    def __str__(self) -> str:
        return self.name


FAMILIES = (
    "nearest",
    "triangle_multiplication",
    "invariant_point_attention",
    "frame_aligned_point_error",
    "structural_violations",
    "lddt",
    "predicted_tm_score",
    "dynopool",
    "local_attention",
    "shift_conv",
)
"""The modules of ``paperops.testing`` that declare ops, in the order in which they are listed."""


LAYERS = ("acmix",)
"""The modules of ``paperops.testing`` that declare layers of several ops, which are timed as a whole: ``ENTRIES``, too.

The generic checks are those of ops; what a layer computes is tested where its module is.
"""


def entries(*, layers: bool = False) -> tuple[Entry, ...]:
    """Every registered op, and behind them the layers that are timed if these are asked for."""
    found: list[Entry] = []
    for family in FAMILIES + LAYERS * layers:
        found += importlib.import_module(f"paperops.testing.{family}").ENTRIES
    return tuple(found)


def select(names: list[str] | tuple[str, ...], *, layers: bool = False) -> tuple[Entry, ...]:
    """The entries of these ops or families; all of them for no name. Raises KeyError naming what there is."""
    everything = entries(layers=layers)
    if not names:
        return everything
    for name in names:
        if not any(name in (entry.name, entry.family) for entry in everything):
            known = sorted({entry.family for entry in everything} | {entry.name for entry in everything})
            raise KeyError(f"no op or family is called {name!r}; there are {', '.join(known)}")
    return tuple(entry for entry in everything if entry.name in names or entry.family in names)


# --- samples: what the checks do to them ---------------------------------------------------------------------------


def map_tensors(arguments: dict[str, Any], change: Callable[[str, Tensor], Tensor]) -> dict[str, Any]:
    """The arguments with every tensor changed."""
    return {name: change(name, value) if isinstance(value, Tensor) else value for name, value in arguments.items()}


def as_double(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same values in float64."""
    return map_tensors(arguments, lambda _, value: value.double() if value.is_floating_point() else value)


def with_gradients(entry: Entry, arguments: dict[str, Any]) -> tuple[dict[str, Any], list[Tensor]]:
    """Fresh leaves that require gradients for the differentiable arguments, and the list of these leaves."""
    fresh = map_tensors(
        arguments,
        lambda name, value: value.detach().clone().requires_grad_() if name in entry.differentiable else value,
    )
    return fresh, [fresh[name] for name in entry.differentiable if isinstance(fresh.get(name), Tensor)]


def slice_batch(entry: Entry, arguments: dict[str, Any], batch: slice) -> dict[str, Any]:
    """The arguments of some of the batch."""
    return map_tensors(arguments, lambda name, value: value[batch] if name in entry.batched else value)


def repeat_batch(entry: Entry, arguments: dict[str, Any], times: int) -> dict[str, Any]:
    """The arguments with the batch repeated."""
    return map_tensors(arguments, lambda name, value: torch.cat([value] * times) if name in entry.batched else value)


def flatten(result: Any) -> list[Tensor]:
    """The tensors of a result, in order: a tensor, or (nested) tuples of tensors and None."""
    if isinstance(result, Tensor):
        return [result]
    if result is None:
        return []
    return [tensor for part in result for tensor in flatten(part)]

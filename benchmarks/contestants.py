"""One call by each contestant: prepared for timing, and judged against float64."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paperops import backends
from paperops.backends import BackendError, use_backend
from paperops.testing.registry import Entry, Sample, as_double, flatten, map_tensors, with_gradients

from . import memory
from .peers import Peer, names, select

REFERENCE_OPERATIONS = {"cpu": 6e7, "cuda": 2e9}
"""Above so many operations the definition is not run: it is there to be read, and would take minutes and gigabytes."""

Call = Callable[[], list[Tensor]]

AGREEMENT = 32
"""Roundings of the working dtype, at the largest value, up to which a contestant counts as right."""
ANOTHER_QUESTION = 0.05
"""Relative error from which on a contestant answers another question, and is not timed."""


@dataclass(frozen=True)
class Contestant:
    """A way to compute an op: ours on one backend, or a peer's."""

    name: str
    function: Callable[..., Any]
    backend: str | None = None
    peer: Peer | None = None

    def context(self) -> AbstractContextManager[Any]:
        """To be entered around its calls."""
        return nullcontext() if self.backend is None else use_backend(self.backend)


def ours(entry: Entry, device: torch.device) -> tuple[list[Contestant], dict[str, str]]:
    """Our implementations that can run on the device, the one that would be chosen first; and why others cannot."""
    order = dict.fromkeys((*backends.PREFERENCE.get(device.type, ("reference",)), *backends.BACKENDS))
    found, absent = [], {}
    for backend in order:
        reason = backends.missing(backend, device.type)
        if reason is None and backend == "triton" and device.type == "cpu":
            reason = "Triton's interpreter is for tests, not for timing"
        if reason is None:
            found.append(Contestant(f"paperops {backend}", entry.function, backend=backend))
        elif backend in backends.PREFERENCE.get(device.type, ()):
            absent[f"paperops {backend}"] = reason
    return found, absent


def theirs(entry: Entry, peers: tuple[Peer, ...], device: torch.device) -> tuple[list[Contestant], dict[str, str]]:
    """The peers that have the op and can run on the device; and why others that were or might be named do not."""
    found, absent = [], {}
    for peer in peers:
        reason, function = peer.available(device), peer.function(entry.name)
        if function is None:
            if not peer.unasked(device):
                absent[peer.name] = f"it has no {entry.name}"
        elif reason is not None:
            absent[peer.name] = reason
        else:
            found.append(Contestant(peer.name, function, peer=peer))
    for peer in select(names(), device):
        if peer not in peers and peer.function(entry.name) is not None and peer.available(device) is None:
            absent[peer.name] = f"it was not asked to (--against {peer.key})"
    return found, absent


# --- a call ----------------------------------------------------------------------------------------------------------


def prepare(entry: Entry, function: Callable[..., Any], sample: Sample, backward: bool) -> Callable[[], list[Tensor]]:
    """A call on copies of the sample's tensors: results, then gradients for cotangents of ones if ``backward``."""
    if not backward:
        arguments = map_tensors(sample.arguments, lambda _, value: value.detach().clone())
        return functools.partial(_forward, function, arguments)
    fresh, leaves = with_gradients(entry, sample.arguments)
    tracked = [result for result in flatten(function(**fresh)) if result.requires_grad]
    cotangents = [torch.ones_like(result) for result in tracked]
    del tracked

    def forward_and_backward() -> list[Tensor]:
        results = flatten(function(**fresh))
        tracked = [result for result in results if result.requires_grad]
        return [*results, *torch.autograd.grad(tracked, leaves, cotangents)]

    return forward_and_backward


def _forward(function: Callable[..., Any], arguments: dict[str, Any]) -> list[Tensor]:
    return flatten(function(**arguments))


def input_bytes(sample: Sample) -> int:
    """Bytes of the tensors of a sample."""
    tensors = (value for value in sample.arguments.values() if isinstance(value, Tensor))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def saved_bytes(entry: Entry, contestant: Contestant, sample: Sample) -> int:
    """Bytes that a forward call keeps for its backward pass, beyond its inputs."""
    fresh, _ = with_gradients(entry, sample.arguments)
    inputs = [value for value in fresh.values() if isinstance(value, Tensor)]
    with contestant.context():
        return memory.saved_for_backward(lambda: contestant.function(**fresh), inputs)


# --- what it must not do ---------------------------------------------------------------------------------------------


def too_much(
    entry: Entry, contestant: Contestant, sample: Sample, backward: bool, operations: float, device: torch.device
) -> str | None:
    """Why a contestant should not be run at this size, or None."""
    if contestant.backend == "reference" and operations > REFERENCE_OPERATIONS.get(device.type, 2e9):
        return "the definition is timed on small cases only"
    if contestant.peer is None:
        return None
    if backward and not contestant.peer.gradients:
        return "it has no backward pass"
    arguments = with_gradients(entry, sample.arguments)[0] if backward else sample.arguments
    needs, limit = contestant.peer.memory(entry.name, arguments), available_memory(device) // 2
    if needs > limit:
        return f"it would need {needs / 1e9:.0f} GB, more than half of the {2 * limit / 1e9:.0f} GB that are free"
    return None


def available_memory(device: torch.device) -> int:
    """Free bytes of the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 8 << 30


# --- is it right -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """A case's results in float64, and whose they are."""

    values: list[Tensor]
    source: str


def truth(entry: Entry, sample: Sample, backward: bool, operations: float, device: torch.device) -> Truth | None:
    """The definition's results in float64; on large cases our op's, which the checks hold to the definition."""
    double = Sample(sample.name, as_double(sample.arguments))
    if operations <= REFERENCE_OPERATIONS.get(device.type, 2e9):
        return Truth(prepare(entry, entry.reference, double, backward)(), "the definition in float64")
    for best in ours(entry, device)[0]:
        if best.backend == "reference":
            break
        try:
            with best.context():
                return Truth(prepare(entry, entry.function, double, backward)(), f"{best.name} in float64")
        except BackendError:  # it does not take these arguments
            continue
    return None


@dataclass(frozen=True)
class Verdict:
    """How far a contestant's results are off.

    ``error`` is the largest difference from float64 in units of the largest exact value, over all results and
    gradients; ``note`` says what is wrong, if anything; ``refused`` whether it is too wrong to be timed.
    """

    error: float | None
    note: str = ""
    refused: bool = False


def judge(values: list[Tensor], exact: list[Tensor], dtype: torch.dtype) -> Verdict:
    """Compare results with the exact ones. A contestant may return the first of them only."""
    if not values or len(values) > len(exact):
        return Verdict(None, f"it returns {len(values)} tensors instead of {len(exact)}", refused=True)
    error, notes = 0.0, []
    for number, (value, right) in enumerate(zip(values, exact, strict=False)):
        if value.shape != right.shape:
            return Verdict(
                None, f"result {number} has shape {list(value.shape)}, not {list(right.shape)}", refused=True
            )
        if not right.numel():
            continue
        if not right.is_floating_point():
            differs = int((value != right).sum())
            if differs:
                notes.append(f"{differs} of {right.numel()} indices differ")
            continue
        value, right = value.detach().double(), right.detach().double()
        if not torch.equal(value.isfinite(), right.isfinite()):
            return Verdict(None, f"result {number} is not finite where it should be, or the reverse", refused=True)
        value, right = value[right.isfinite()], right[right.isfinite()]
        if right.numel():
            error = max(error, float((value - right).abs().max() / right.abs().max().clamp(min=1e-300)))
    if error > ANOTHER_QUESTION:
        return Verdict(error, f"its values are off by {error:.1%} of the largest: not the same question", refused=True)
    if error > AGREEMENT * torch.finfo(dtype).eps:
        notes.insert(0, f"its values are off by {error:.1g} of the largest: low precision")
    return Verdict(error, "; ".join(notes))

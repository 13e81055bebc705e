"""The generic checks: each holds one promise of design, for any registered op, on the backend that is in force.

A check is a function ``(entry, device, dtype) -> list[Error]`` that raises :class:`CheckFailure`. :data:`CHECKS` lists
them all; :func:`applies` tells which say something for an op, and :func:`run` runs one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from paperops.backends import PREFERENCE, MissingImplementation, missing, use_backend
from paperops.testing.calls import ONLY_SMALL, call
from paperops.testing.checks.composing import (
    checkpointed,
    compiles,
    dispatched,
    opcheck,
    traces,
    transforms,
    vmap,
)
from paperops.testing.checks.inputs import autocast, empty_batch, expanded, layouts, refused
from paperops.testing.checks.numbers import gradcheck, gradients, values
from paperops.testing.checks.runs import deterministic, fresh_memory_filled, overwritten, synchronises
from paperops.testing.compare import CheckFailure, Error
from paperops.testing.registry import Entry

__all__ = ["CHECKS", "CheckFailure", "applies", "dispatched", "first_choice", "fresh_memory_filled", "lacks", "run"]

Check = Callable[[Entry, torch.device, torch.dtype], list[Error]]

CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        values,
        gradients,
        gradcheck,
        opcheck,
        traces,
        compiles,
        layouts,
        expanded,
        empty_batch,
        autocast,
        vmap,
        transforms,
        checkpointed,
        refused,
        overwritten,
        deterministic,
        synchronises,
    )
}
"""Every generic check by name."""

FLOAT64_ONLY = ("gradcheck",)
DTYPE_FREE = ("refused", "opcheck", "traces", "compiles", "vmap", "transforms", "checkpointed", "expanded")
"""Checks that say nothing new for another dtype: run for float32 alone."""

OF_TRACING = ("traces", "compiles")
"""Checks of what torch sees of an op without running it (that this is what an implementation gives, `opcheck` says):
run on the backend alone that the device takes by itself."""

OF_KERNELS = ("values", "gradients", "gradcheck", "empty_batch", "overwritten")
"""Checks of what a kernel computes: the ones that are worth their time where every operation is slow."""


def applies(
    check: str, entry: Entry, device: torch.device | str, dtype: torch.dtype, backend: str | None = None
) -> bool:
    """Whether the check says something for this op, device, dtype and, if one is to be forced, backend."""
    if check in entry.exceptions or check in FLOAT64_ONLY and dtype != torch.float64:
        return False
    if ONLY_SMALL and check not in OF_KERNELS:
        return False
    if check == "synchronises" and torch.device(device).type != "cuda":
        return False
    if check == "autocast" and dtype not in (torch.float16, torch.bfloat16):
        return False
    if check in DTYPE_FREE and dtype != torch.float32:
        return False
    return check not in OF_TRACING or backend is None or backend == first_choice(entry, torch.device(device))


def first_choice(entry: Entry, device: torch.device) -> str | None:
    """The backend that runs the op, and all its parts, where none is forced; None if there is no such."""
    there = (name for name in PREFERENCE.get(device.type, ("reference",)) if missing(name, device.type) is None)
    return next((name for name in there if lacks(entry, device, name) is None), None)


def lacks(entry: Entry, device: torch.device, backend: str) -> str | None:
    """Which of the op's parts this backend does not implement, or None: such a backend is not held to the checks."""
    sample = next(entry.samples(device, entry.dtypes[0]))
    try:
        with use_backend(backend):
            call(entry.function, entry, sample.arguments)
    except MissingImplementation as missing:
        return str(missing)
    return None


def run(check: str, entry: Entry, device: torch.device, dtype: torch.dtype) -> list[Error]:
    """Run one check that applies. Returns the errors it measured; raises CheckFailure if it does not hold."""
    return CHECKS[check](entry, device, dtype)

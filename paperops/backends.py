"""Which implementation of an op is there, which one runs, and why not the others.

An op has up to four implementations, one meaning:

- ``reference``  plain torch, any device;
- ``native``     C++ on the CPU, vectorised and threaded (``paperops/_native*.so``);
- ``cuda``       CUDA C++ (``paperops/_cuda*.so``);
- ``triton``     Triton kernels on a GPU, or on CPU tensors in Triton's interpreter (``TRITON_INTERPRET=1``).

The device of the inputs picks one, in the order of :data:`PREFERENCE`; an implementation may decline arguments
it was not built for, and the next one is taken. :func:`use_backend`, or the environment variable
``PAPEROPS_BACKEND``, forces one instead, and then an op that cannot run on it raises :class:`BackendError`.
Libraries are loaded by the first call that needs them, never by ``import paperops``.
"""

from __future__ import annotations

import functools
import importlib
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

BACKENDS = ("reference", "native", "cuda", "triton")

PREFERENCE = {"cpu": ("native", "reference"), "cuda": ("cuda", "triton", "reference")}
"""Device type to the backends tried there, best first. Any other device runs the reference."""


class BackendError(RuntimeError):
    """A backend was asked for that cannot run here; the message says why."""


class MissingImplementation(BackendError):
    """The forced backend does not implement the op at all."""


@dataclass(frozen=True)
class Implementation:
    """One backend's implementation of one dispatcher op.

    ``load`` returns the callable and is called once, at the first use. ``declines``, given the op's arguments,
    returns why this implementation does not take them, or None.
    """

    load: Callable[[], Callable[..., Any]]
    declines: Callable[..., str | None] | None = None


_implementations: dict[str, dict[str, Implementation]] = {}
_plans: dict[tuple[str, str, str | None], list[tuple[str, Callable[..., Any], Callable[..., str | None] | None]]] = {}


def _check_name(backend: str, source: str) -> str:
    if backend not in BACKENDS:
        raise ValueError(f"{source} must be one of {', '.join(BACKENDS)}; got {backend!r}")
    return backend


_environment = os.environ.get("PAPEROPS_BACKEND") or None
_forced: str | None = _environment and _check_name(_environment, "the environment variable PAPEROPS_BACKEND")
_blocks: list[tuple[object, str]] = []  # the open `use_backend` blocks, of all threads; the last one counts
_lock = threading.Lock()


def _settle() -> None:
    global _forced
    _forced = _blocks[-1][1] if _blocks else _environment


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Force one backend for every op called inside the ``with`` block.

    The setting holds for the whole process (backward passes run in other threads and must see it), also inside
    compiled graphs. Blocks may be nested; of blocks open in several threads the one entered last counts for all.

    Args:
        backend: ``"reference"``, ``"native"``, ``"cuda"`` or ``"triton"``.

    Raises:
        ValueError: for any other name.
        BackendError: by an op called inside that cannot run on this backend; the message says why.

    Example:
        >>> import torch, paperops
        >>> x, y = torch.rand(1, 8, 3), torch.rand(1, 9, 3)
        >>> with paperops.use_backend("reference"):
        ...     loss, _ = paperops.chamfer_distance(x, y)
        >>> torch.allclose(loss, paperops.chamfer_distance(x, y)[0])
        True
    """
    block = (object(), _check_name(backend, "backend"))
    with _lock:
        _blocks.append(block)
        _settle()
    try:
        yield
    finally:
        with _lock:
            _blocks.remove(block)
            _settle()


def forced() -> str | None:
    """The backend that is forced at present, or None."""
    return _forced


def register(op: str, implementations: dict[str, Implementation]) -> None:
    """Tell which backends implement the dispatcher op ``paperops::<op>``."""
    _implementations[op] = implementations


def ops() -> tuple[str, ...]:
    """The names of all dispatcher ops."""
    return tuple(_implementations)


def implemented(op: str) -> tuple[str, ...]:
    """The backends that implement the dispatcher op ``paperops::<op>``, whether or not they can run here."""
    return tuple(backend for backend in BACKENDS if backend in _implementations[op])


# --- what is there -----------------------------------------------------------------------------------------------


def library_file(backend: str) -> Path | None:
    """The built library of ``native`` or ``cuda``, or None where it was not built."""
    return next(iter(sorted(Path(__file__).parent.glob(f"_{backend}*.so"))), None)


@functools.cache
def _load_library(backend: str) -> str | None:
    """Load the library of ``native`` or ``cuda`` once; return why it could not be, or None."""
    if backend == "cuda" and torch.version.cuda is None:
        return "this torch was built without CUDA"
    file = library_file(backend)
    allowed = ("", "portable", "avx2", "avx512")
    if backend == "native" and os.environ.get("PAPEROPS_CPU_ISA", "") not in allowed:
        raise ValueError(
            "the environment variable PAPEROPS_CPU_ISA must be portable, avx2 or avx512; "
            f"got {os.environ['PAPEROPS_CPU_ISA']!r}"
        )
    if file is None:
        how = "no C++ compiler was found" if backend == "native" else "no nvcc was found"
        return f"paperops/_{backend}*.so is not there (when paperops was installed {how}, or building it was disabled)"
    try:
        torch.ops.load_library(str(file))
    except OSError as error:
        return f"{file.name} does not load: {error}"
    return None


@functools.cache
def _import_triton() -> str | None:
    try:
        importlib.import_module("triton")
    except ImportError as error:
        return f"Triton cannot be imported ({error}); pip install 'triton>=3.6'"
    return None


def missing(backend: str, device_type: str) -> str | None:
    """Why ``backend`` cannot run on tensors of this device type here, or None where it can."""
    if device_type == "cuda" and torch.version.cuda is None and torch.version.hip is None:
        return "this torch was built without CUDA or ROCm"
    if backend == "native":
        return _load_library("native") if device_type == "cpu" else "it runs on the CPU only"
    if backend == "cuda":
        return _load_library("cuda") if device_type == "cuda" else "it runs on CUDA devices only"
    if backend == "triton":
        if device_type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            return "on CPU tensors Triton runs in its interpreter only: set TRITON_INTERPRET=1 before the first call"
        if device_type not in ("cpu", "cuda"):
            return "it runs on CUDA and ROCm devices only"
        return _import_triton()
    return None


def why_not(op: str, backend: str, device_type: str) -> str | None:
    """Why ``paperops::<op>`` cannot run on ``backend`` for such tensors here, or None where it can."""
    if backend not in _implementations[op]:
        return f"paperops::{op} has no {backend} implementation"
    return missing(backend, device_type)


def candidates(op: str, device_type: str) -> list[str]:
    """The backends that ``paperops::<op>`` runs on for tensors of this device type, the first that takes the arguments.

    Raises:
        BackendError: if there is none, or the forced one cannot run; the message says why.
    """
    forced = _forced
    if forced is not None and forced not in _implementations[op]:
        raise MissingImplementation(f"paperops::{op} has no {forced} implementation")
    names = (forced,) if forced is not None else PREFERENCE.get(device_type, ("reference",))
    reasons = {name: why_not(op, name, device_type) for name in names}
    there = [name for name, reason in reasons.items() if reason is None]
    if not there:
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise BackendError(f"nothing can run paperops::{op} on {device_type} tensors: {why}")
    return there


# --- which one runs ----------------------------------------------------------------------------------------------


def _plan(op: str, device_type: str) -> list[tuple[str, Callable[..., Any], Callable[..., str | None] | None]]:
    key = (op, device_type, _forced)
    plan = _plans.get(key)
    if plan is None:
        table = _implementations[op]
        names = candidates(op, device_type)
        if names[0] == "reference" and _forced is None and len(table) > 1:
            _warn_slow(device_type)
        plan = [(name, table[name].load(), table[name].declines) for name in names]
        if key[2] == _forced:  # no other thread forced another one meanwhile
            _plans[key] = plan
    return plan


@functools.cache
def _warn_slow(device_type: str) -> None:
    """Say once that only the definitions are there."""
    names = [name for name in PREFERENCE.get(device_type, ()) if name != "reference"]
    why = "; ".join(f"{name}: {missing(name, device_type)}" for name in names) or "no kernels exist for it"
    warnings.warn(
        f"paperops runs its definitions on {device_type} tensors, hundreds of times slower than its kernels: {why}. "
        'use_backend("reference") asks for that and is silent.',
        RuntimeWarning,
        stacklevel=2,
    )


def route(op: str) -> Callable[..., Any]:
    """The kernel registered with the dispatcher for ``paperops::<op>``: runs the implementation that is due."""

    def kernel(*arguments: Any) -> Any:
        for _, function, declines in _plan(op, arguments[0].device.type):
            if declines is None or declines(*arguments) is None:
                return function(*arguments)
        reasons = "; ".join(f"{name}: {d(*arguments)}" for name, _, d in _plan(op, arguments[0].device.type) if d)
        raise BackendError(f"no implementation of paperops::{op} takes these arguments ({reasons})")

    kernel.__name__ = op
    return kernel

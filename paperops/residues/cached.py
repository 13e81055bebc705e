"""Tensors of constants, made once for each device and dtype."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import _disable_current_modes

_Arguments = ParamSpec("_Arguments")
_Value = TypeVar("_Value")


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    """What is kept must be plain tensors, wherever it is first asked for.

    In inference mode, in a transform of torch.func or while torch.compile traces, new tensors are of another kind.
    """
    with _disable_current_modes(), torch.inference_mode(False), temporarily_clear_interpreter_stack():
        yield


def constant(function: Callable[_Arguments, _Value]) -> Callable[_Arguments, _Value]:
    """Keep what the function of hashable arguments gives; torch.compile takes it as a constant."""

    @functools.cache
    def build(*arguments: _Arguments.args, **options: _Arguments.kwargs) -> _Value:
        with _plainly():
            return function(*arguments, **options)

    def kept(*arguments: _Arguments.args, **options: _Arguments.kwargs) -> _Value:
        return build(*arguments, **options)  # type: ignore[arg-type]  # hashable, as the caller promises

    kept._dynamo_marked_constant = True  # type: ignore[attr-defined]  # what torch.compiler.assume_constant_result sets
    return kept


def device_of(device: torch.device | str | None) -> torch.device:
    """The device, the CPU for None; "cuda" as the current one of them."""
    found = torch.device("cpu" if device is None else device)
    if found.type == "cuda" and found.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return found


def check_dtype(dtype: torch.dtype) -> None:
    """Refuse what is no floating dtype."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating dtype; got {dtype}")

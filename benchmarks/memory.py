"""Memory of a call: the peak beyond its inputs, and what it keeps for backward.

On CUDA the peak is the caching allocator's. On a CPU two counts are taken, for each sees what the other does not:

- ``allocator_peak``: every allocation through torch's CPU allocator, by Python or C++ alike, from the profiler's memory
  events: exact to the byte, blind to an op's own ``malloc`` and to libraries such as NumPy;
- ``resident_growth``: how far the process's resident set grew (Linux: the peak is reset through
  ``/proc/self/clear_refs``, after the C library has returned what it holds free): sees all memory that was touched, to
  about a megabyte.

:func:`peak` returns the first, unless the second is larger by more than ``RESIDENT_NOISE``: memory outside torch.
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

RESIDENT_NOISE = 1 << 20


def peak(call: Callable[[], Any], device: torch.device) -> int:
    """Bytes that a call holds at its peak beyond what was there before it, results included. Runs it several times."""
    if device.type == "cuda":
        call()
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    counted, grown = allocator_peak(call), resident_growth(call)
    return grown if grown is not None and grown > counted + RESIDENT_NOISE else counted


def allocator_peak(call: Callable[[], Any]) -> int:
    """Peak bytes through torch's CPU allocator during a call."""
    gc.collect()
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
    with _silent_stderr():
        profiler.start()
    result = call()
    with _silent_stderr():
        profiler.stop()
    del result
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events: list[Any] = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = highest = 0
    for _, nbytes in changes:
        held += nbytes  # negative for what is freed
        highest = max(highest, held)
    return highest


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Some builds of torch announce each start and stop of the profiler on the C level's stderr."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def resident_growth(call: Callable[[], Any], repeats: int = 3) -> int | None:
    """Least growth of the resident set over some runs of a call, in bytes; None where the system does not tell."""
    growth = []
    gc.collect()
    for _ in range(repeats):
        _return_free_memory()
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # sets VmHWM, the peak, to the present resident set
            before = _status("VmHWM")
            result = call()
            growth.append(_status("VmHWM") - before)
        except OSError:
            return None
        del result
    return max(0, min(growth))


def _return_free_memory() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)


def _status(name: str) -> int:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def saved_for_backward(call: Callable[[], Any], inputs: Iterable[Tensor]) -> int:
    """Bytes that autograd keeps between forward and backward, beyond the inputs.

    Every storage that a tensor saved during the call lies in is counted once and whole (a saved view keeps all of its
    storage alive), results of the call included if they are saved; storages of ``inputs`` are not counted.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    saved: dict[int, Tensor] = {}  # holds the tensors, so that no address is used again

    def note(tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in known and tensor.numel():
            saved.setdefault(address, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = call()
    del result
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())

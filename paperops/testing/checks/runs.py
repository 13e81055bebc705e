"""Checks of how an op runs: it writes all that it returns, gives the same bits each time, and does not wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from paperops import backends
from paperops.testing.calls import call, failure, samples_due
from paperops.testing.compare import Error, same_bits
from paperops.testing.registry import Entry, flatten, with_gradients


@contextmanager
def fresh_memory_filled() -> Iterator[None]:
    """Within, fresh memory is full of NaN (integers: the largest)."""
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]


def overwritten(entry: Entry, device: torch.device, dtype: torch.dtype) -> list[Error]:
    """Fresh memory full of NaN (integers: the largest) does not show in any result: every element is written."""
    for sample in samples_due(entry, device, dtype):
        expected = call(entry.function, entry, sample.arguments)
        with fresh_memory_filled():
            filled = call(entry.function, entry, sample.arguments)
        same_bits(f"sample {sample}, memory filled with NaN before the call", expected, filled)
    return []


def deterministic(entry: Entry, device: torch.device, dtype: torch.dtype) -> list[Error]:
    """Runs agree bit for bit, gradients included; our kernels' also whatever the number of CPU threads.

    (The definitions are made of torch's matrix products, which are summed differently by another number of threads.)
    """
    threads = torch.get_num_threads()
    vary = device.type == "cpu" and backends.forced() != "reference"
    for sample in samples_due(entry, device, dtype):
        expected = call(entry.function, entry, sample.arguments)
        try:
            for count in (threads, 1, threads + 1):
                if vary:
                    torch.set_num_threads(count)
                again = call(entry.function, entry, sample.arguments)
                same_bits(f"sample {sample}, run again with {count} threads", expected, again)
        finally:
            torch.set_num_threads(threads)
    return []


def synchronises(entry: Entry, device: torch.device, dtype: torch.dtype) -> list[Error]:
    """On a GPU the host never waits for the device."""
    for sample in samples_due(entry, device, dtype):
        call(entry.function, entry, sample.arguments)  # compiles and fills caches
        fresh, leaves = with_gradients(entry, sample.arguments)
        torch.cuda.set_sync_debug_mode("error")
        try:
            results = [result for result in flatten(entry.function(**fresh)) if result.requires_grad]
            if results and leaves:
                torch.autograd.grad([result.sum() for result in results], leaves, allow_unused=True)
        except RuntimeError as error:
            raise failure(sample, error) from error
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return []

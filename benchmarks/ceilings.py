"""What this machine can do at most, measured: memory bandwidth and multiply-add rate; and the floor of a call.

- ``copy``, ``triad``: bytes read and written per second by ``b = a`` and ``c = a + s b`` on arrays several times the
  last-level cache (CPU) or L2 (CUDA), each array counted once per pass; a store's hidden read of its line is not
  counted. ``bandwidth`` is the better of the two.
- ``vector``: operations per second (a multiply-add is two) of a large ``torch.mm`` at full precision in the dtype that
  elementwise arithmetic is done in: float64 for float64, else float32. On a CPU, and in float32 on a GPU, it runs on
  the same units as elementwise arithmetic and keeps them busy from registers, so it is the practical ceiling for a
  fused op of any kind. (GPUs with float64 matrix units exceed in it what elementwise float64 can reach.)
- ``matrix``: the same in the inputs' own dtype, with matrix units where there are some, tf32 if the user allowed it:
  the ceiling of ops that are matrix products.
- ``elementwise``: ``torch.addcmul`` on cache-resident arrays: what a multiply-add costs when it is an operation of its
  own. No floor; for comparison.

Rates are the best of several runs, on ``torch.get_num_threads()`` threads, once a process.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from paperops.testing.registry import Cost

LONG_ENOUGH = 0.25
"""Seconds over which a rate is looked for, so that a moment in which others run does not hide it."""


@dataclass(frozen=True)
class Ceilings:
    """Rates per second; see the module's head."""

    copy: float
    triad: float
    vector: float
    matrix: float
    elementwise: float
    threads: int

    @property
    def bandwidth(self) -> float:
        return max(self.copy, self.triad)

    def floor(self, cost: Cost) -> float:
        """Seconds that a call of this cost takes at the least; matrix products if the cost's ``matrix`` is set."""
        rate = self.matrix if cost.matrix else self.vector
        return max(cost.operations / rate, cost.bytes / self.bandwidth)


def measure(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """The ceilings of this device, measured at the first call."""
    vector = torch.float64 if dtype == torch.float64 else torch.float32
    copy, triad = _bandwidth(str(device), torch.get_num_threads())
    return Ceilings(
        copy=copy,
        triad=triad,
        vector=_products(str(device), vector, True, torch.get_num_threads()),
        matrix=_products(str(device), dtype, False, torch.get_num_threads()),
        elementwise=_elementwise(str(device), vector, torch.get_num_threads()),
        threads=torch.get_num_threads(),
    )


def _best(call: Callable[[], Any], device: torch.device, repeats: int = 7) -> float:
    """Least seconds of a call, over ``repeats`` and over ``LONG_ENOUGH`` seconds at least."""

    def synchronise() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    call()
    best, begun = float("inf"), time.perf_counter()
    while repeats > 0 or time.perf_counter() - begun < LONG_ENOUGH:
        repeats -= 1
        synchronise()
        start = time.perf_counter()
        call()
        synchronise()
        best = min(best, time.perf_counter() - start)
    return best


def last_level_cache() -> int:
    """Bytes of the CPU's last-level cache; 64 MiB where the system does not tell."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        if text.endswith(("K", "M")):
            sizes.append(int(text[:-1]) << (10 if text[-1] == "K" else 20))
    return max(sizes, default=64 << 20)


@functools.cache
def _bandwidth(device: str, threads: int) -> tuple[float, float]:
    on = torch.device(device)
    nbytes = max(64 << 20, 4 * last_level_cache()) if on.type == "cpu" else 1 << 30
    a, b, c = (torch.ones(nbytes // 4, device=on) for _ in range(3))
    copy = 2 * nbytes / _best(lambda: b.copy_(a), on)
    return copy, 3 * nbytes / _best(lambda: torch.add(a, b, alpha=0.5, out=c), on)


@contextmanager
def _full_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@functools.cache
def _products(device: str, dtype: torch.dtype, full_precision: bool, threads: int) -> float:
    on = torch.device(device)
    if full_precision:
        with _full_precision():
            return _largest_product(on, dtype)
    return _largest_product(on, dtype)


def _largest_product(device: torch.device, dtype: torch.dtype) -> float:
    """Grows the matrices until a product lasts long enough to be timed well: 30 ms on a CPU, 2 ms on a GPU."""
    long_enough, largest = (0.03, 4096) if device.type == "cpu" else (0.002, 16384)
    size, best = 1024, 0.0
    while True:
        a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
        c = torch.empty_like(a)
        seconds = _best(functools.partial(torch.mm, a, b, out=c), device)
        best = max(best, 2 * size**3 / seconds)
        if seconds > long_enough or size >= largest:
            return best
        size *= 2


def others_share() -> float | None:
    """The share of the CPU's time that other processes use at this moment; None if the system does not tell."""

    def times() -> tuple[int, int, float]:
        with open("/proc/stat") as file:
            fields = [int(field) for field in file.readline().split()[1:9]]
        return sum(fields), fields[3] + fields[4], time.process_time()  # all; idle or waiting for input; ours

    try:
        before = times()
        time.sleep(0.3)
        after = times()
    except OSError:
        return None
    whole, idle, own = (late - early for early, late in zip(before, after, strict=True))
    return max(0.0, 1 - (idle + own * os.sysconf("SC_CLK_TCK")) / max(whole, 1))


@functools.cache
def _elementwise(device: str, dtype: torch.dtype, threads: int) -> float:
    on = torch.device(device)
    # torch gives each thread at least 32768 elements; four such arrays of float32 fit a core's L2 cache
    count = 32768 * threads if on.type == "cpu" else 1 << 20
    a, b, c = (torch.ones(count, dtype=dtype, device=on) for _ in range(3))
    out = torch.empty_like(a)
    calls = 50  # in a row: one would be a launch, or the waking of a thread

    def several() -> None:
        for _ in range(calls):
            torch.addcmul(a, b, c, out=out)

    return 2 * count * calls / _best(several, on)

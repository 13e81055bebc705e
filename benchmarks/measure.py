"""Time of a call: several contestants in turn, so that a drift of the machine hits all alike.

A round times one block of every contestant; a block is as many calls as take about ``BLOCK`` seconds, and gives one
figure, seconds per call. The figures of all rounds give the median and the 10 and 90 per cent quantiles; a ratio of two
contestants is the median of the rounds' ratios. Before a block of short calls is timed the contestant runs once
untimed: that wakes the threads of its pool, and fills what a switch of backend emptied.

On a CPU a block is timed by the wall clock. On CUDA it is a graph, captured once over enough copies of the inputs that
they exceed the L2 cache, and replayed: no host time is in it, no input is warm. What cannot be captured is timed by
events around single calls, with the cache overwritten before each.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

Call = Callable[[], Any]
Context = Callable[[], AbstractContextManager[Any]]

BLOCK = 0.005
"""Seconds that a timed block should last: long against the clock's resolution and a thread's waking up."""
LONG = 0.05
"""Seconds from which on a call needs no untimed one before it."""
MOST_COPIES = 64


@dataclass(frozen=True)
class Timing:
    """Seconds per call: one figure a round, and how they were taken."""

    samples: tuple[float, ...]
    calls: int
    method: str

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def q10(self) -> float:
        return quantile(self.samples, 0.1)

    @property
    def q90(self) -> float:
        return quantile(self.samples, 0.9)

    def ratio(self, other: Timing) -> float:
        """How many times as long as ``other`` this takes, from the same rounds."""
        return statistics.median(a / b for a, b in zip(self.samples, other.samples, strict=True))


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share of the values lies, interpolated."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


# --- one contestant --------------------------------------------------------------------------------------------------


@dataclass
class Runner:
    """Times blocks of calls by the wall clock. ``context`` is entered around each block, outside the timing."""

    call: Call
    context: Context = nullcontext
    method: str = field(default="wall clock", init=False)

    def warm(self) -> None:
        """Run once, untimed."""
        self.call()

    def seconds(self, calls: int) -> float:
        """Seconds per call over so many calls."""
        call = self.call
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) / calls


class GraphRunner(Runner):
    """Replays one CUDA graph that holds a call on each of several copies of the inputs. Raises if not capturable."""

    def __init__(self, calls: Sequence[Call], context: Context) -> None:
        super().__init__(calls[0], context)
        self.copies = len(calls)
        self.method = f"CUDA graph over {self.copies} input sets"
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with context(), torch.cuda.stream(side):  # libraries set themselves up outside the capture
            for call in (calls[0], *calls):
                call()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with context(), torch.cuda.graph(self.graph):
            for call in calls:
                call()
        self.graph.replay()
        torch.cuda.synchronize()

    def warm(self) -> None:
        self.graph.replay()

    def seconds(self, calls: int) -> float:
        replays = math.ceil(calls / self.copies)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(replays):
            self.graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / (replays * self.copies)


class EventRunner(Runner):
    """CUDA events around single calls, the L2 cache overwritten before each."""

    def __init__(self, call: Call, context: Context, device: torch.device, why: str) -> None:
        super().__init__(call, context)
        self.method = f"CUDA events, L2 flushed ({why})"
        self.flush = torch.empty(2 * l2_bytes(device), dtype=torch.int8, device=device)

    def seconds(self, calls: int) -> float:
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(calls)]
        for start, end in pairs:
            self.flush.zero_()
            start.record()
            self.call()
            end.record()
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(end) for start, end in pairs) / 1e3


def l2_bytes(device: torch.device) -> int:
    """The size of a CUDA device's L2 cache."""
    return int(torch.cuda.get_device_properties(device).L2_cache_size)


def copies_beyond_l2(nbytes: int, l2: int) -> int:
    """How many sets of inputs of ``nbytes`` bytes exceed twice the L2 cache; at least 2, and no absurd number."""
    return max(2, min(MOST_COPIES, math.ceil(2 * l2 / max(nbytes, 1))))


def runner(make: Callable[[], Call], nbytes: int, device: torch.device, context: Context = nullcontext) -> Runner:
    """The way to time a call on this device. ``make`` gives it, on fresh copies of its inputs of ``nbytes`` bytes."""
    if device.type != "cuda":
        return Runner(make(), context)
    calls = [make() for _ in range(copies_beyond_l2(nbytes, l2_bytes(device)))]
    try:
        return GraphRunner(calls, context)
    except RuntimeError as error:
        torch.cuda.synchronize()
        return EventRunner(calls[0], context, device, f"not capturable: {str(error).splitlines()[0][:80]}")


# --- contestants in turn ---------------------------------------------------------------------------------------------


def time_together(
    runners: Mapping[str, Runner], *, seconds: float = 3.0, least: int = 3, most: int = 60
) -> dict[str, Timing]:
    """Time every contestant in turn, round after round.

    Args:
        runners: the contestants, by name; each has been called before (compiled, loaded).
        seconds: about how long all of it may take; between ``least`` and ``most`` rounds are made whatever it says.
    """
    calls: dict[str, int] = {}
    short: dict[str, bool] = {}
    round_seconds = 0.0
    for name, contestant in runners.items():
        with contestant.context():
            contestant.warm()
            once = contestant.seconds(1)
            if once < LONG:
                once = min(once, contestant.seconds(1))
            short[name] = once < LONG
            calls[name] = max(1, math.ceil(BLOCK / max(once, 1e-7)))
            round_seconds += once * (calls[name] + short[name])
    rounds = max(least, min(most, int(seconds / max(round_seconds, 1e-6))))

    samples: dict[str, list[float]] = {name: [] for name in runners}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, contestant in runners.items():
                with contestant.context():
                    if short[name]:
                        contestant.warm()
                    samples[name].append(contestant.seconds(calls[name]))
    finally:
        if collecting:
            gc.enable()
    return {name: Timing(tuple(samples[name]), calls[name], one.method) for name, one in runners.items()}


def host_time(call: Call, *, calls: int = 50, rounds: int = 7) -> float:
    """Seconds of host time per call: on a GPU how long it takes to enqueue, on a CPU all of it. Give it tiny inputs."""
    best = []
    call()
    for _ in range(rounds):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best.append(Runner(call).seconds(calls))
    return statistics.median(best)

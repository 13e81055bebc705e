"""What the Chamfer distance costs here, against the same loss written with torch.cdist."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import paperops


class Cost(NamedTuple):
    """Medians in milliseconds of one loss, forward and backward, of clouds `[batch, points, 3]`."""

    batch: int
    points: int
    ours: float
    eager: float
    difference: float  # of the two losses, relative


def measure(batch: int, points: int, seconds: float = 1.5) -> Cost:
    """Time both, in turn, for about `seconds` each (at least three times)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(batch, points, 3, generator=generator).requires_grad_()
    y = torch.rand(batch, points, 3, generator=generator)
    losses, times = zip(*(_time(loss, x, y, seconds) for loss in (_ours, _eager)), strict=True)
    difference = abs(losses[0] - losses[1]) / losses[1]
    return Cost(batch, points, times[0] * 1e3, times[1] * 1e3, difference)


def _ours(x: Tensor, y: Tensor) -> Tensor:
    return paperops.chamfer_distance(x, y, squared=False)[0]


def _eager(x: Tensor, y: Tensor) -> Tensor:
    distances = torch.cdist(x, y)  # [B, N, M]
    return distances.min(dim=2).values.mean() + distances.min(dim=1).values.mean()


def _time(loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, seconds: float) -> tuple[float, float]:
    value = 0.0
    times: list[float] = []
    for run in range(201):
        x.grad = None
        start = time.perf_counter()
        result = loss(x, y)
        result.backward()
        stop = time.perf_counter()
        if run > 0:  # the first call loads libraries and warms the allocator
            times.append(stop - start)
        value = result.item()
        if len(times) >= 3 and sum(times) > seconds:
            break
    return value, statistics.median(times)

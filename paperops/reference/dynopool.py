"""Definition of resampling with a gradient to the scale, and of DynOPool's pooling (arXiv 2205.15254)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from paperops.reference.nearest import result_dtype

FOUR, CENTRE, CORNER = (0.25, 0.75), (0.5,), (0.0,)
"""Where in a cell its samples lie, per axis; ``CORNER`` counts from the centre of the first cell instead."""


class Axis(NamedTuple):
    """The samples of one axis, in their order, k for each cell."""

    first: Tensor  # [k * cells] int64: the pixel at or before each sample
    second: Tensor  # the one after it
    fraction: Tensor  # [k * cells] float64, how far the sample lies towards the second; differentiable in the scale
    slope: Tensor  # [k * cells] float64: the fraction's derivative by the ratio, 0 where it is clamped
    zeros: bool  # whether the pixels -1 and `pixels` are there, and 0


def axis(pixels: int, cells: int, ratio: Tensor, places: tuple[float, ...], zeros: bool) -> Axis:
    """Sample s of cell i lies (i + places[s]) / ratio from the map's edge; pixel p has its centre at p + 1/2.

    In float64 whatever the dtypes, so that all implementations touch the same pixels. Clamped to the map, or with
    ``zeros`` to the pixels around it, -1 and ``pixels``.
    """
    cell = torch.arange(cells, dtype=torch.float64, device=ratio.device)
    steps = (cell[:, None] + torch.tensor(places, dtype=torch.float64, device=ratio.device)).flatten()
    unclamped = steps / ratio.double() - (0.0 if places == CORNER else 0.5)  # in pixels' centres
    last = pixels if zeros else pixels - 1
    positions = unclamped.clamp(-1 if zeros else 0, last)
    first = positions.detach().nan_to_num().floor()
    slope = torch.where(positions == unclamped, -steps / ratio.double().square(), 0)
    return Axis(first.long(), first.long().add(1).clamp(max=last), positions - first, slope, zeros)


def axes(
    size: Sequence[int], cells: Sequence[int], scale: Tensor, places: tuple[float, ...], zeros: bool
) -> tuple[Axis, Axis]:
    """Those of height and width."""
    rows, columns = (
        axis(pixels, count, scale[number], places, zeros)
        for number, (pixels, count) in enumerate(zip(size, cells, strict=True))
    )
    return rows, columns


def ends(x: Tensor, dim: int, along: Axis) -> tuple[Tensor, Tensor, Tensor]:
    """At each sample of one axis: the first pixel, what the second has more, and the fraction."""
    if along.zeros:
        around = (1, 1) if dim == 3 else (0, 0, 1, 1)
        x, along = pad(x, around), along._replace(first=along.first + 1, second=along.second + 1)
    first, second = x.index_select(dim, along.first), x.index_select(dim, along.second)
    fraction = along.fraction.to(x.dtype).reshape(-1, 1) if dim == 2 else along.fraction.to(x.dtype)
    difference = second - first
    # At fraction 0 the second pixel does not count, not even if it is infinite; the derivative is that of the right.
    return first, torch.where((fraction == 0) & ~difference.isfinite(), 0, difference), fraction


def between(x: Tensor, dim: int, along: Axis) -> Tensor:
    """x interpolated at the samples of one axis. Exactly x where neighbours are equal, so that ties are exact."""
    first, difference, fraction = ends(x, dim, along)
    return first + fraction * difference


def by_cell(samples: Tensor, k: int) -> Tensor:
    """[B, C, k * Ho, k * Wo] -> [B, C, Ho, Wo, k * k]: the samples of a cell, by rows."""
    b, c, rows, columns = samples.shape
    return samples.reshape(b, c, rows // k, k, columns // k, k).permute(0, 1, 2, 4, 3, 5).flatten(4)


def output_size_of(size: Sequence[int], scale: Tensor) -> tuple[int, int]:
    """max(1, round(size * r)) per axis, half to even. Reads the scale, for which the host waits on a GPU."""
    height, width = (max(1, round(pixels * ratio)) for pixels, ratio in zip(size, scale.tolist(), strict=True))
    return height, width


def dynopool_2d(x: Tensor, scale: Tensor, output_size: Sequence[int] | None = None, mode: str = "max") -> Tensor:
    """See :func:`paperops.dynopool_2d`."""
    cells = output_size_of(x.shape[2:], scale.detach()) if output_size is None else output_size
    rows, columns = axes(x.shape[2:], cells, scale, FOUR, zeros=False)
    samples = by_cell(between(between(x.to(result_dtype(x.dtype)), 2, rows), 3, columns), 2)  # [B, C, Ho, Wo, 4]
    return (samples.max(-1).values if mode == "max" else samples.mean(-1)).to(x.dtype)  # of equal ones the first


def resample_2d(
    x: Tensor,
    scale: Tensor,
    output_size: Sequence[int] | None = None,
    *,
    align_corners: bool = False,
    padding_mode: str = "border",
) -> Tensor:
    """See :func:`paperops.resample_2d`."""
    cells = output_size_of(x.shape[2:], scale.detach()) if output_size is None else output_size
    rows, columns = axes(x.shape[2:], cells, scale, CORNER if align_corners else CENTRE, padding_mode == "zeros")
    return between(between(x.to(result_dtype(x.dtype)), 2, rows), 3, columns).to(x.dtype)

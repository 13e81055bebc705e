"""The entries of DynOPool's pooling and of resampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import paperops
from paperops import reference
from paperops.testing.registry import BenchCase, Cost, Entry, Refused, Sample

# Ratios without small denominators: no two samples are equal by chance, nor on a pixel's centre.
DOWN, UP, MIXED = (0.7123, 0.5531), (1.6871, 2.3319), (0.4117, 1.3173)


def _map(seed: int, *shape: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def map_arguments(
    shape: tuple[int, int, int, int],
    scale: tuple[float, float],
    device: torch.device,
    dtype: torch.dtype,
    size: tuple[int, int] | None = None,
    channels_last: bool = False,
) -> dict[str, Any]:
    """x and scale, and output_size if it is given. The scale has at least float32's digits."""
    x = _map(sum(shape), *shape, device=device, dtype=dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    wide = torch.promote_types(dtype, torch.float32)
    # As float32 has them: the same pixels are touched in every dtype.
    ratios = torch.tensor(scale, dtype=torch.float32).to(device, wide)
    return {"x": x, "scale": ratios} | ({} if size is None else {"output_size": size})


def _shared_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    def sample(name: str, shape: Any, scale: Any, size: Any = None, last: bool = False, **options: Any) -> Sample:
        return Sample(name, map_arguments(shape, scale, device, dtype, size, last), **options)

    yield sample("down", (2, 3, 5, 6), DOWN, (4, 3), gradcheck=True)
    yield sample("up", (2, 2, 3, 2), UP, (5, 4), gradcheck=True)
    yield sample("down and up", (1, 5, 9, 4), MIXED)
    yield sample("scale 1", (2, 4, 6, 7), (1.0, 1.0))
    yield sample("scale 1/2", (2, 6, 8, 10), (0.5, 0.5))
    yield sample("scale 1/2 of odd sizes", (1, 3, 9, 7), (0.5, 0.5))
    yield sample("one pixel", (2, 3, 1, 1), UP)
    yield sample("one row to many", (1, 3, 1, 9), (4.3, 0.6))
    yield sample("one cell", (2, 3, 9, 8), (0.01, 0.02))
    yield sample("cells beyond the map", (1, 2, 5, 4), DOWN, (7, 9))
    yield sample("cells short of the map", (1, 2, 9, 9), MIXED, (2, 5))
    yield sample("no channels", (2, 0, 4, 5), DOWN)
    yield sample("five channels", (2, 5, 19, 37), DOWN)
    yield sample("channels last", (2, 5, 11, 13), DOWN, last=True)
    yield sample("channels last, up", (1, 19, 4, 5), UP, last=True)
    yield sample("channels last, scale 1/2", (2, 33, 8, 6), (0.5, 0.5), last=True)
    yield sample("wide", (1, 2, 5, 150), (0.9, 0.8413))
    yield sample("wide, to a third", (1, 2, 7, 150), (0.4, 0.2931))
    yield sample("wide, to a tenth", (1, 5, 7, 200), (0.4, 0.1131))
    yield sample("wide, up", (1, 1, 3, 40), (1.3, 5.771))
    yield sample("several blocks of rows", (1, 2, 90, 17), (0.8131, 1.1), large=True)
    yield sample("several blocks, channels last", (1, 70, 67, 6), (0.8131, 0.9), last=True, large=True)
    if dtype in (torch.float16, torch.bfloat16):
        narrow = sample("scale of the dtype of x", (1, 3, 7, 8), DOWN, (5, 5))
        yield Sample(narrow.name, narrow.arguments | {"scale": narrow.arguments["scale"].to(dtype)})


def _pool_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for number, sample in enumerate(_shared_samples(device, dtype)):
        yield sample
        if number % 2 == 0 or sample.gradcheck:
            yield Sample(f"{sample}, mean", sample.arguments | {"mode": "mean"}, sample.gradcheck, sample.large)
    equal = map_arguments((2, 3, 6, 7), DOWN, device, dtype)
    yield Sample("equal pixels", equal | {"x": torch.ones_like(equal["x"])})
    yield Sample("mostly zeros", equal | {"x": (equal["x"] - 1).relu()})
    damaged = equal["x"].clone()
    damaged[0, 1, 2, 3] = torch.nan
    yield Sample("NaN", equal | {"x": damaged})


def _resample_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    options: tuple[tuple[str, dict[str, Any]], ...] = (
        ("zeros", {"padding_mode": "zeros"}),
        ("corners", {"align_corners": True}),
        ("corners and zeros", {"align_corners": True, "padding_mode": "zeros"}),
    )
    for number, sample in enumerate(_shared_samples(device, dtype)):
        yield sample
        name, changed = options[0 if sample.gradcheck else number % 3]
        # A first corner is on a pixel's centre, a kink, unless it is clamped: no numerical derivative.
        yield Sample(f"{sample}, {name}", sample.arguments | changed, sample.gradcheck, sample.large)
    for name, scale in (("columns", (0.9, 0.1)), ("rows", (0.1, 0.9))):
        beyond = map_arguments((1, 2, 4, 4), scale, device, dtype, (4, 4))
        yield Sample(f"all {name} beyond the map, zeros", beyond | {"padding_mode": "zeros"})


def _refused(device: torch.device) -> Iterator[Refused]:
    good = map_arguments((2, 3, 4, 5), DOWN, device, torch.float32)
    x, scale = good["x"], good["scale"]

    def call(**changed: Any) -> dict[str, Any]:
        return good | changed

    yield Refused("not a tensor", call(x=[0.0]), TypeError, "x must be a torch.Tensor; got list")
    yield Refused("3-D x", call(x=x[0]), ValueError, r"x must have 4 dimensions; got \[3, 4, 5\]")
    yield Refused("integer x", call(x=x.long()), TypeError, "x must be float16.*got torch.int64")
    yield Refused("no pixels", call(x=x[:, :, :0]), ValueError, r"x must have at least one pixel; got \[2, 3, 0, 5\]")
    yield Refused("scale a tuple", call(scale=(0.5, 0.5)), TypeError, "scale must be a torch.Tensor; got tuple")
    yield Refused("one scale", call(scale=scale[:1]), ValueError, r"scale must have shape \[2\].*got \[1\]")
    yield Refused("scale of rank 2", call(scale=scale[None]), ValueError, r"scale must have shape \[2\].*got \[1, 2\]")
    yield Refused(
        "scale of halves", call(scale=scale.half()), TypeError, "scale must have dtype torch.float32.*float16"
    )
    yield Refused("integer scale", call(scale=scale.long()), TypeError, "scale must have dtype torch.float32.*int64")
    yield Refused("scale elsewhere", call(scale=scale.to("meta")), ValueError, "scale must be on the device of x.*meta")
    for value in (0.0, -0.5, float("nan"), float("inf")):
        changed = torch.tensor([0.5, value], device=device)
        yield Refused(
            f"scale {value}", call(scale=changed), ValueError, f"scale must be positive and finite; got {value}"
        )
        if device.type == "cpu":
            yield Refused(
                f"scale {value} with a size",
                call(scale=changed, output_size=(2, 2)),
                ValueError,
                "scale must be positive and finite; got",
            )
    size: Any
    for size in ((0, 2), (2, -1)):
        yield Refused(f"size {size}", call(output_size=size), ValueError, "output_size must be at least 1; got")
    yield Refused("floating size", call(output_size=(2.0, 2)), TypeError, "output_size must be an int; got float")
    for size in (3, (3,), (1, 2, 3), torch.tensor([2, 2])):
        yield Refused(f"size {size}", call(output_size=size), ValueError, "output_size must be None or two integers")
    huge = call(scale=torch.tensor([1e30, 1.0], device=device))
    yield Refused("absurd scale", huge, ValueError, r"output_size must be less than 2\*\*31")


def _pool_refused(device: torch.device) -> Iterator[Refused]:
    yield from _refused(device)
    good = map_arguments((2, 3, 4, 5), DOWN, device, torch.float32)
    for mode in ("min", None, 0):
        yield Refused(f"mode {mode}", good | {"mode": mode}, ValueError, "mode must be one of 'max', 'mean'; got")


def _resample_refused(device: torch.device) -> Iterator[Refused]:
    yield from _refused(device)
    good = map_arguments((2, 3, 4, 5), DOWN, device, torch.float32)
    for mode in ("reflection", None):
        yield Refused(
            f"padding {mode}",
            good | {"padding_mode": mode},
            ValueError,
            "padding_mode must be one of 'border', 'zeros'",
        )
    yield Refused("corners 1", good | {"align_corners": 1}, TypeError, "align_corners must be True or False; got 1")


def _cells(sample: Sample) -> tuple[int, int, int]:
    """Of x, of the result, and of x interpolated at the rows of the result."""
    x, given = sample.arguments["x"], sample.arguments.get("output_size")
    size = x.shape[2:]
    height, width = given or (
        max(1, round(n * r)) for n, r in zip(size, sample.arguments["scale"].tolist(), strict=True)
    )
    maps = x.shape[0] * x.shape[1]
    return x.numel(), maps * height * width, maps * height * x.shape[3]


def _pool_cost(sample: Sample) -> Cost:
    pixels, cells, rows = _cells(sample)
    # Two rows of samples a row of cells, four samples a cell, and their maximum.
    return Cost(6.0 * rows + 15.0 * cells, float((pixels + cells) * sample.arguments["x"].element_size()))


def _resample_cost(sample: Sample) -> Cost:
    pixels, cells, rows = _cells(sample)
    return Cost(3.0 * rows + 3.0 * cells, float((pixels + cells) * sample.arguments["x"].element_size()))


def _backward_cost(sample: Sample, forward: Callable[[Sample], Cost] = _pool_cost) -> Cost:
    """Twice the operations; the result's gradient and x read, the gradient of x written."""
    pixels, cells, _ = _cells(sample)
    return Cost(2 * forward(sample).operations, float((2 * pixels + cells) * sample.arguments["x"].element_size()))


def _backward_cost_of_x(sample: Sample) -> Cost:
    """Four products and sums a cell; the result's gradient read, the gradient of x written."""
    pixels, cells, _ = _cells(sample)
    return Cost(8.0 * cells, float((pixels + cells) * sample.arguments["x"].element_size()))


def _bench(
    shape: tuple[int, int, int, int], scale: tuple[float, float], last: bool, options: dict[str, Any]
) -> Callable[[torch.device, torch.dtype], Sample]:
    def make(device: torch.device, dtype: torch.dtype) -> Sample:
        arguments = map_arguments(shape, scale, device, dtype, None, last)
        # A slope with some noise: a grid of rounded positions takes the same of four samples, and their gradient.
        rows, columns = (torch.arange(pixels, dtype=dtype, device=device) for pixels in shape[2:])
        sloping = 0.1 * arguments["x"] + 0.6 * rows[:, None] + 0.8 * columns
        return Sample("", arguments | {"x": sloping} | options)

    return make


def _bench_cases(**options: Any) -> Iterator[BenchCase]:
    for devices, shape in ((("cpu",), (8, 64, 56, 56)), (("cuda",), (64, 256, 56, 56))):
        for scale in ((0.7, 0.55), (0.5, 0.5)):
            for last in (False, True):
                name = f"{list(shape)}, scale {scale[0]}, {scale[1]}{', channels last' if last else ''}"
                make = _bench(shape, scale, last, options)
                yield BenchCase(name, make, devices=devices)
                yield BenchCase(f"{name}, with backward", make, backward=True, devices=devices)
                if scale == (0.5, 0.5):  # all that max_pool2d(2) does
                    to_x = f"{name}, with backward to x alone"
                    given: Any = {"devices": devices, "differentiable": ("x",), "backward_cost": _backward_cost_of_x}
                    yield BenchCase(to_x, make, backward=True, **given)


ROUNDINGS = {torch.float32: 8}
ROUNDINGS_REASON = (
    "the scale's gradient is a sum over all elements that nearly cancels, of terms of order one that are rounded"
)

SOURCES = (
    "csrc/common",
    "csrc/dynopool",
    "kernels/arithmetic.py",
    "kernels/launch.py",
    "kernels/dynopool*.py",
    "paperops/ops/dynopool.py",
    "paperops/reference/dynopool.py",
)

ENTRIES = (
    Entry(
        name="dynopool_2d",
        family="dynopool",
        function=paperops.dynopool_2d,
        reference=reference.dynopool_2d,
        samples=_pool_samples,
        refused=_pool_refused,
        differentiable=("x", "scale"),
        batched=("x",),
        cost=_pool_cost,
        backward_cost=_backward_cost,
        bench=tuple(_bench_cases()),
        sources=SOURCES,
        twice=True,
        roundings=ROUNDINGS,
        tolerance_reason=ROUNDINGS_REASON,
        autocast_arguments=("x",),
    ),
    Entry(
        name="resample_2d",
        family="dynopool",
        function=paperops.resample_2d,
        reference=reference.resample_2d,
        samples=_resample_samples,
        refused=_resample_refused,
        differentiable=("x", "scale"),
        batched=("x",),
        cost=_resample_cost,
        backward_cost=partial(_backward_cost, forward=_resample_cost),
        bench=tuple(_bench_cases()),
        sources=SOURCES,
        twice=True,
        roundings=ROUNDINGS,
        tolerance_reason=ROUNDINGS_REASON,
        autocast_arguments=("x",),
    ),
)

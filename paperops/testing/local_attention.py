"""The entry of local attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

import paperops
from paperops import reference
from paperops.testing.registry import BenchCase, Cost, Entry, Refused, Sample


def attention_arguments(
    shape: tuple[int, int, int, int, int],
    kernel_size: int,
    device: torch.device,
    dtype: torch.dtype,
    channels_last: bool = False,
    biased: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """q, k and v [B, H, D, h, w], views of one map as a convolution gives it; and a bias."""
    b, heads, d, h, w = shape
    generator = torch.Generator().manual_seed(sum(shape) + kernel_size)
    maps = torch.randn(b, 3 * heads * d, h, w, generator=generator, dtype=torch.float64).to(device, dtype)
    if channels_last:
        maps = maps.contiguous(memory_format=torch.channels_last)
    q, k, v = (part.unflatten(1, (heads, d)) for part in maps.chunk(3, 1))
    arguments = {"q": q, "k": k, "v": v, "kernel_size": kernel_size, "scale": d**-0.5, **options}
    if biased:
        bias = torch.randn(heads, kernel_size, kernel_size, generator=generator, dtype=torch.float64)
        arguments["bias"] = bias.to(device, dtype)
    return arguments


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    def sample(name: str, shape: Any, kernel_size: int, marks: Any = None, **options: Any) -> Sample:
        return Sample(name, attention_arguments(shape, kernel_size, device, dtype, **options), **(marks or {}))

    gradcheck, large = {"gradcheck": True}, {"large": True}
    yield sample("mask", (2, 1, 1, 3, 4), 3, gradcheck, padding_mode="mask")
    yield sample("reflect, stride 2", (1, 1, 2, 4, 3), 3, gradcheck, stride=2, biased=False)
    yield sample("reflect", (1, 1, 16, 9, 18), 7)
    yield sample("reflect, channels last", (2, 2, 8, 7, 6), 5, channels_last=True)
    yield sample("zeros, stride 2, dilation 2", (1, 2, 3, 9, 10), 5, padding_mode="zeros", stride=2, dilation=2)
    yield sample("shift, dilation 2", (1, 1, 5, 7, 8), 3, padding_mode="shift", dilation=2)
    yield sample(
        "shift, stride 3, channels last", (1, 2, 4, 8, 7), 5, padding_mode="shift", stride=3, channels_last=True
    )
    yield sample("windows apart", (1, 1, 3, 14, 11), 3, stride=5, padding_mode="mask")
    yield sample("window larger than the map", (1, 1, 20, 3, 5), 7, padding_mode="mask")
    yield sample("one pixel", (2, 1, 1, 1, 1), 3, padding_mode="zeros")
    yield sample("mask, stride 3, dilation 2", (1, 1, 3, 6, 19), 3, dilation=2, stride=3, padding_mode="mask")
    yield sample("wide", (1, 1, 17, 6, 70), 3, large, dilation=3, stride=2, padding_mode="mask", biased=False)
    yield sample("ACmix", (1, 2, 16, 28, 23), 7, large)
    yield sample("ACmix, channels last", (1, 2, 16, 28, 23), 7, large, channels_last=True)
    yield sample("128 channels", (1, 1, 128, 9, 8), 3, large)
    # A head of which no slot is left, and one of which some are.
    arguments = attention_arguments((1, 2, 4, 5, 6), 3, device, dtype, padding_mode="mask")
    bias = arguments["bias"].clone()
    bias[0], bias[1, :2, 1] = -math.inf, -math.inf
    yield Sample("slots taken away", arguments | {"bias": bias})
    damaged = arguments["k"].clone()
    damaged[0, 1, 2, 3, 4] = math.nan
    yield Sample("NaN", arguments | {"k": damaged})


def _refused(device: torch.device) -> Iterator[Refused]:
    good = attention_arguments((2, 3, 4, 6, 5), 3, device, torch.float32)
    q, bias = good["q"], good["bias"]

    def refused(name: str, error: type[Exception], message: str, **changed: Any) -> Refused:
        return Refused(name, good | changed, error, message)

    yield refused("not a tensor", TypeError, "q must be a torch.Tensor; got list", q=[0.0])
    yield refused("4-D q", ValueError, r"q must have 5 dimensions; got \[3, 4, 6, 5\]", q=q[0])
    yield refused("4-D v", ValueError, r"v must have 5 dimensions; got \[3, 4, 6, 5\]", v=q[0])
    yield refused("integer k", TypeError, "k must be float16.*got torch.int64", k=q.long())
    for name, dim in (("heads", 1), ("channels", 2), ("rows", 3), ("columns", 4)):
        none = q.narrow(dim, 0, 0)
        yield refused(f"no {name}", ValueError, r"q must have shape \[batch, heads, .*got \[2", q=none, k=none, v=none)
    yield refused("k of another size", ValueError, r"k must have the shape of q, \[2, 3, 4, 6, 5\]; got", k=q[..., :4])
    yield refused("v of other channels", ValueError, "v must have the shape of q", v=q[:, :, :3])
    yield refused("v of another batch", ValueError, "v must have the shape of q", v=q[:1])
    yield refused("k of another dtype", TypeError, "k must have the dtype of q, torch.float32; got", k=q.double())
    yield refused("v elsewhere", ValueError, "v must be on the device of q.*meta", v=q.to("meta"))
    yield refused("even kernel", ValueError, "kernel_size must be odd; got 4", kernel_size=4)
    yield refused("huge kernel", ValueError, r"kernel_size must be less than 2\*\*15", kernel_size=2**15 + 1)
    for name in ("kernel_size", "stride", "dilation"):
        yield refused(f"{name} 0", ValueError, f"{name} must be at least 1; got 0", **{name: 0})
        yield refused(f"{name} 1.0", TypeError, f"{name} must be an int; got float", **{name: 1.0})
        yield refused(f"{name} of two", TypeError, f"{name} must be an int; got tuple", **{name: (3, 3)})
    for mode in ("circular", None, 0):
        yield refused(
            f"padding {mode}", ValueError, "padding_mode must be one of 'reflect', 'zeros'", padding_mode=mode
        )
    wide: Any = {"kernel_size": 11, "bias": None}
    yield refused("reflection wider than the map", ValueError, "needs a width above dilation .* = 5; got 5", **wide)
    wide = {"kernel_size": 5, "bias": None, "dilation": 3}
    yield refused("reflection of dilation 3", ValueError, "needs a height above dilation .* = 6; got 6", **wide)
    wide = {"dilation": 2, "padding_mode": "shift"}
    yield refused("shift beyond the map", ValueError, "needs a width of at least .* = 6; got 5", **wide)
    yield refused("bias of another window", ValueError, r"bias must have shape \[3, 3, 3\]", bias=bias[:, :2])
    yield refused("bias of other heads", ValueError, r"bias must have shape \[3, 3, 3\]", bias=bias[:1])
    yield refused("bias of a batch", ValueError, r"bias must have shape \[3, 3, 3\]", bias=bias[None])
    yield refused("bias of halves", TypeError, "bias must have dtype torch.float32", bias=bias.half())
    yield refused("bias elsewhere", ValueError, "bias must be on the device of q.*meta", bias=bias.to("meta"))
    yield refused("scale NaN", ValueError, "scale must be finite; got nan", scale=math.nan)
    yield refused("scale None", TypeError, "scale must be a number; got NoneType", scale=None)


def _queries(sample: Sample) -> int:
    b, heads, _, h, w = sample.arguments["q"].shape
    stride = sample.arguments.get("stride", 1)
    return int(b * heads * math.ceil(h / stride) * math.ceil(w / stride))


def _cost(sample: Sample) -> Cost:
    """q at the queries, k and v read, the result written; two products and a sum of D a query and slot."""
    q, queries = sample.arguments["q"], _queries(sample)
    d, slots = q.shape[2], sample.arguments["kernel_size"] ** 2
    return Cost(4.0 * queries * slots * d, float((2 * queries * d + 2 * q.numel()) * q.element_size()), matrix=True)


def _backward_cost(sample: Sample) -> Cost:
    """q, k, v, the result and its gradient read, three gradients written."""
    q, queries = sample.arguments["q"], _queries(sample)
    d, slots = q.shape[2], sample.arguments["kernel_size"] ** 2
    return Cost(10.0 * queries * slots * d, float((3 * queries * d + 5 * q.numel()) * q.element_size()), matrix=True)


def _bench(shape: tuple[int, int, int, int, int], channels_last: bool) -> Callable[[torch.device, torch.dtype], Sample]:
    def make(device: torch.device, dtype: torch.dtype) -> Sample:
        return Sample("", attention_arguments(shape, 7, device, dtype, channels_last, biased=False))

    return make


def _bench_cases() -> Iterator[BenchCase]:
    for devices, batch in ((("cpu",), 4), (("cuda",), 128)):
        for d, side in ((16, 56), (64, 14)):
            for last in (False, True):
                make = _bench((batch, 4, d, side, side), last)
                name = f"B={batch}, H=4, D={d}, {side} x {side}, 7 x 7{', channels last' if last else ''}"
                yield BenchCase(name, make, devices=devices)
                yield BenchCase(f"{name}, with backward", make, backward=True, devices=devices)


ENTRIES = (
    Entry(
        name="local_attention_2d",
        family="local_attention",
        function=paperops.local_attention_2d,
        reference=reference.local_attention_2d,
        samples=_samples,
        refused=_refused,
        differentiable=("q", "k", "v", "bias"),
        batched=("q", "k", "v"),
        cost=_cost,
        backward_cost=_backward_cost,
        bench=tuple(_bench_cases()),
        sources=(
            "csrc/common",
            "csrc/local_attention",
            "kernels/arithmetic.py",
            "kernels/launch.py",
            "kernels/local_attention*.py",
            "paperops/ops/local_attention.py",
            "paperops/reference/local_attention.py",
        ),
        twice=True,
        roundings={torch.float32: 2},
        tolerance_reason="weights are found again from the logsumexp, whose own rounding is some units of theirs",
        autocast_arguments=("q", "k", "v"),
    ),
)

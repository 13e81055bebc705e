"""The entry of ACmix's convolution path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

import paperops
from paperops import reference
from paperops.testing.registry import BenchCase, Cost, Entry, Refused, Sample


def shift_conv_arguments(
    shape: tuple[int, int, int, int, int],
    channels: int,
    kernel: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    stride: int = 1,
    bias: bool = False,
    channels_last: bool = False,
) -> dict[str, Any]:
    """x [B, T, D, h, w], weights such that the result is of order one, and options."""
    generator = torch.Generator().manual_seed(sum(shape) + channels)
    taps = kernel * kernel

    def values(*size: int, scale: float = 1.0) -> torch.Tensor:
        return (scale * torch.randn(size, generator=generator, dtype=torch.float64)).to(device, dtype)

    x = values(*shape)
    if channels_last:
        x = x.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)
    arguments = {
        "x": x,
        "fc_weight": values(taps, shape[1], scale=shape[1] ** -0.5),
        "conv_weight": values(channels, taps, kernel, kernel, scale=1 / taps),
        "stride": stride,
    }
    return arguments | ({"fc_bias": values(taps)} if bias else {})


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    def sample(
        name: str,
        shape: Any,
        channels: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        bias: bool = False,
        last: bool = False,
        gradcheck: bool = False,
        large: bool = False,
    ) -> Sample:
        options: dict[str, Any] = {"stride": stride, "bias": bias, "channels_last": last}
        return Sample(name, shift_conv_arguments(shape, channels, kernel, device, dtype, **options), gradcheck, large)

    # The first one's derivatives are traced too, in plain torch once for each tap: it has a single one.
    yield sample("tiny, kernel 1, stride 2", (2, 2, 2, 3, 3), 4, 1, stride=2, bias=True, gradcheck=True)
    yield sample("tiny", (2, 2, 1, 3, 2), 1, bias=True, gradcheck=True)  # 81 weights a channel: enough for differences
    yield sample("staged, stride 2", (2, 13, 1, 3, 4), 6, stride=2, large=True)  # Triton always merges
    yield sample("stride 2, odd sizes, bias", (2, 3, 2, 7, 9), 4, stride=2, bias=True)
    yield sample("stride 3, kernel 5", (1, 2, 1, 8, 7), 2, 5, stride=3, bias=True)
    yield sample("stride beyond the kernel", (1, 4, 2, 7, 8), 2, 1, stride=3, bias=True)
    yield sample("staged, bias", (1, 26, 3, 6, 5), 27, bias=True, large=True)
    yield sample("staged, channels last, stride 2", (1, 24, 4, 5, 6), 32, stride=2, last=True, large=True)
    yield sample("channels last", (2, 5, 3, 6, 7), 6, last=True)
    yield sample("one pixel", (2, 3, 2, 1, 1), 4, bias=True)
    yield sample("one row", (1, 3, 1, 1, 37), 5)
    yield sample("one map, one channel", (1, 1, 1, 5, 3), 1)
    yield sample("four heads", (1, 12, 3, 11, 19), 12, large=True)
    yield sample("several blocks", (1, 12, 9, 21, 23), 36, large=True)
    yield sample("several bands, channels last", (1, 12, 2, 60, 110), 8, last=True, large=True)


def _refused(device: torch.device) -> Iterator[Refused]:
    good = shift_conv_arguments((2, 3, 2, 4, 5), 4, 3, device, torch.float32, bias=True)
    x, fc, conv, bias = (good[name] for name in ("x", "fc_weight", "conv_weight", "fc_bias"))

    def call(**changed: Any) -> dict[str, Any]:
        return good | changed

    yield Refused("not a tensor", call(x=[0.0]), TypeError, "x must be a torch.Tensor; got list")
    yield Refused("4-D x", call(x=x[0]), ValueError, r"x must have 5 dimensions; got \[3, 2, 4, 5\]")
    yield Refused("integer x", call(x=x.long()), TypeError, "x must be float16.*got torch.int64")
    empty = r"x must have at least one map, channel and pixel.*got \[2, 3, 2, 0, 5\]"
    yield Refused("no pixels", call(x=x[:, :, :, :0]), ValueError, empty)
    shape = r"conv_weight must have shape \[C, k \* k, k, k\]; got "
    yield Refused("kernel not square", call(conv_weight=conv[..., :1]), ValueError, shape + r"\[4, 9, 3, 1\]")
    yield Refused("maps and taps differ", call(conv_weight=conv[:, :8]), ValueError, shape + r"\[4, 8, 3, 3\]")
    yield Refused("kernel of rank 3", call(conv_weight=conv[0]), ValueError, shape + r"\[9, 3, 3\]")
    even = torch.zeros(4, 4, 2, 2, device=device)
    yield Refused("even kernel", call(conv_weight=even), ValueError, r"conv_weight must have an odd kernel.*got")
    multiple = r"conv_weight must have a multiple of D = 2 output channels; got \[3, 9, 3, 3\]"
    yield Refused("channels not divisible", call(conv_weight=conv[:3]), ValueError, multiple)
    yield Refused("no channels", call(conv_weight=conv[:0]), ValueError, "conv_weight must have a multiple of D = 2")
    yield Refused("kernel of halves", call(conv_weight=conv.half()), TypeError, "conv_weight must have dtype.*float32")
    yield Refused(
        "fc transposed", call(fc_weight=fc.T), ValueError, r"fc_weight must have shape \[9, 3\].*got \[3, 9\]"
    )
    yield Refused("fc None", call(fc_weight=None), TypeError, "fc_weight must be a torch.Tensor; got NoneType")
    yield Refused("fc double", call(fc_weight=fc.double()), TypeError, "fc_weight must have dtype torch.float32")
    yield Refused("fc elsewhere", call(fc_weight=fc.to("meta")), ValueError, "fc_weight must be on the device of x")
    yield Refused("short bias", call(fc_bias=bias[:3]), ValueError, r"fc_bias must have shape \[9\].*got \[3\]")
    yield Refused("integer bias", call(fc_bias=bias.long()), TypeError, "fc_bias must have dtype torch.float32")
    for stride in (0, -1):
        yield Refused(f"stride {stride}", call(stride=stride), ValueError, "stride must be at least 1; got")
    yield Refused("floating stride", call(stride=1.0), TypeError, "stride must be an int; got float")
    yield Refused("two strides", call(stride=(1, 1)), TypeError, "stride must be an int; got tuple")


def _counts(sample: Sample) -> tuple[float, int, int]:
    """Multiply-adds of a forward call, and elements of x and of the result."""
    x, conv = sample.arguments["x"], sample.arguments["conv_weight"]
    batch, maps, depth, height, width = x.shape
    channels, taps = conv.shape[:2]
    stride = sample.arguments["stride"]
    cells = batch * ((height + stride - 1) // stride) * ((width + stride - 1) // stride)
    merged = channels * maps * taps * cells
    staged = depth * maps * taps * batch * height * width + channels * taps * taps * cells
    return float(min(merged, staged)), x.numel(), channels * cells


def _cost(sample: Sample) -> Cost:
    products, read, written = _counts(sample)
    return Cost(2 * products, float((read + written) * sample.arguments["x"].element_size()))


def _backward_cost(sample: Sample) -> Cost:
    """As many products for x as for the weights; grad and x read, the gradient of x written."""
    products, read, written = _counts(sample)
    return Cost(4 * products, float((2 * read + written) * sample.arguments["x"].element_size()))


def _bench(
    shape: tuple[int, int, int, int, int], channels: int, last: bool
) -> Callable[[torch.device, torch.dtype], Sample]:
    def make(device: torch.device, dtype: torch.dtype) -> Sample:
        return Sample("", shift_conv_arguments(shape, channels, 3, device, dtype, channels_last=last))

    return make


def _bench_cases() -> Iterator[BenchCase]:
    sizes = (
        ("4 heads, C=64, 56x56", (12, 16, 56, 56), 64),
        ("4 heads, C=256, 14x14", (12, 64, 14, 14), 256),
        ("8 heads, C=128, 28x28", (24, 16, 28, 28), 128),  # merged weights would double the products
    )
    for devices, batch in ((("cpu",), 4), (("cuda",), 128)):
        for label, shape, channels in sizes:
            for last in (False, True):
                name = f"B={batch}, {label}{', channels last' if last else ''}"
                make = _bench((batch, *shape), channels, last)
                yield BenchCase(name, make, devices=devices)
                yield BenchCase(f"{name}, with backward", make, backward=True, devices=devices)


ROUNDINGS = {torch.float32: 4, torch.float64: 64}
"""float32: measured 2.5 roundings beyond twice plain torch's error (native with AVX-512, a bias; 1.8 with Triton, 0.2
with portable code, none with AVX2 and with the reference). float64: measured 23 (fc_weight, 13200 pixels), all but 2.4
of them the definition's own: torch's derivative of it is one product over all pixels, in order.
"""
ROUNDINGS_REASON = (
    "gradients of the weights and of the bias are sums over all pixels that nearly cancel, of terms that are rounded"
)

ENTRIES = (
    Entry(
        name="shift_conv_2d",
        family="shift_conv",
        function=paperops.shift_conv_2d,
        reference=reference.shift_conv_2d,
        samples=_samples,
        refused=_refused,
        differentiable=("x", "fc_weight", "conv_weight", "fc_bias"),
        batched=("x",),
        cost=_cost,
        backward_cost=_backward_cost,
        bench=tuple(_bench_cases()),
        sources=(
            "csrc/common",
            "csrc/shift_conv",
            "kernels/arithmetic.py",
            "kernels/launch.py",
            "kernels/shift_conv*.py",
            "paperops/ops/shift_conv.py",
            "paperops/reference/shift_conv.py",
        ),
        twice=True,
        roundings=ROUNDINGS,
        tolerance_reason=ROUNDINGS_REASON,
        autocast_arguments=("x",),
    ),
)

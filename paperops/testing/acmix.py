"""The whole ACmix layer, to be timed: its two ops, its projections and what lies between them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import paperops
from paperops.nn import ACmix
from paperops.testing import local_attention, shift_conv
from paperops.testing.registry import BenchCase, Cost, Entry, Refused, Sample


@functools.cache
def _module(*sizes: int) -> ACmix:
    return ACmix(*sizes, device="meta")


def layer(x: Tensor, *, head: int, kernel_att: int, stride: int, dilation: int, **parameters: Tensor) -> Tensor:
    """:class:`paperops.nn.ACmix` as a function of its parameters; their names have ``_`` for the module's dots."""
    taps = parameters["dep_conv_weight"].shape[-1]
    module = _module(x.shape[1], len(parameters["conv1_weight"]), kernel_att, head, taps, stride, dilation)
    named = {_dotted(name): value for name, value in parameters.items()}
    result: Tensor = torch.func.functional_call(module, named, (x,))
    return result


def _dotted(name: str) -> str:
    for end in ("_weight", "_bias"):
        if name.endswith(end):
            return f"{name.removesuffix(end)}.{end[1:]}"
    return name


def _defined(**arguments: Any) -> Tensor:
    """The layer on the definitions of its ops."""
    with paperops.use_backend("reference"):
        return layer(**arguments)


def layer_arguments(
    shape: tuple[int, int, int, int], channels: int, device: torch.device, dtype: torch.dtype, *, head: int = 4,
    stride: int = 1, dilation: int = 1, channels_last: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """x ``[B, C, h, w]``, the layer's parameters, and its sizes."""
    generator = torch.Generator().manual_seed(sum(shape) + channels)

    def normal(*size: int, deviation: float = 1.0) -> Tensor:
        return deviation * torch.randn(size, generator=generator, dtype=torch.float64)

    planes, depth = shape[1], channels // head
    values = {"x": normal(*shape), "rate1": torch.tensor([0.6]), "rate2": torch.tensor([0.4])}
    for name in ("conv1", "conv2", "conv3"):
        values[f"{name}_weight"] = normal(channels, planes, 1, 1, deviation=planes**-0.5)
        values[f"{name}_bias"] = normal(channels)
    values |= {"conv_p_weight": normal(depth, 2, 1, 1), "conv_p_bias": normal(depth)}
    values["fc_weight"] = normal(9, 3 * head, 1, 1, deviation=(3 * head) ** -0.5)
    values["dep_conv_weight"] = paperops.nn.shift_kernel(channels, 3) + normal(channels, 9, 3, 3, deviation=0.1)
    tensors = {name: value.to(device, dtype) for name, value in values.items()}
    if channels_last:
        tensors["x"] = tensors["x"].contiguous(memory_format=torch.channels_last)
    return {**tensors, "head": head, "kernel_att": 7, "stride": stride, "dilation": dilation}


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    yield Sample("small", layer_arguments((2, 6, 8, 9), 8, device, dtype, head=2))
    dilated = layer_arguments((1, 5, 9, 11), 12, device, dtype, stride=2, dilation=2, channels_last=True)
    yield Sample("strided and dilated", dilated | {"kernel_att": 5})


def _refused(device: torch.device) -> Iterator[Refused]:
    return iter(())


def _products(sample: Sample) -> tuple[float, float]:
    """Multiply-adds of projections and shift convolution, and of attention."""
    given = sample.arguments
    batch, planes, height, width = given["x"].shape
    channels, head, stride = len(given["conv1_weight"]), given["head"], given["stride"]
    pixels, cells = batch * height * width, batch * -(-height // stride) * -(-width // stride)
    merged, staged = 3 * head * 9 * channels * cells, 27 * channels * pixels + 81 * channels * cells
    attention = 2 * given["kernel_att"] ** 2 * channels * cells
    return float(3 * planes * channels * pixels + min(merged, staged)), float(attention)


def _bytes(sample: Sample) -> float:
    """x read, q, k and v written and read, the result written."""
    given = sample.arguments
    x, channels, stride = given["x"], len(given["conv1_weight"]), given["stride"]
    pixels = x.numel() / x.shape[1]
    return float((x.shape[1] + 6 * channels + channels / stride**2) * pixels * x.element_size())


def _cost(sample: Sample) -> Cost:
    linear, attention = _products(sample)
    return Cost(2 * (linear + attention), _bytes(sample), matrix=True)


def _backward_cost(sample: Sample) -> Cost:
    """Twice the products, and for attention the logits once more."""
    linear, attention = _products(sample)
    return Cost(4 * linear + 5 * attention, 2 * _bytes(sample), matrix=True)


def _bench_cases() -> Iterator[BenchCase]:
    def make(shape: tuple[int, int, int, int], channels_last: bool) -> Callable[[torch.device, torch.dtype], Sample]:
        return lambda device, dtype: Sample(
            "", layer_arguments(shape, shape[1], device, dtype, channels_last=channels_last)
        )

    for devices, batch in ((("cpu",), 4), (("cuda",), 128)):
        for channels, side, last in ((64, 56, False), (64, 56, True), (256, 14, False)):
            case = make((batch, channels, side, side), last)
            name = f"B={batch}, C={channels}, {side} x {side}{', channels last' if last else ''}"
            yield BenchCase(name, case, devices=devices)
            yield BenchCase(f"{name}, with backward", case, backward=True, devices=devices)


# Without the gradient of conv_p.bias, which is 0, so that its error has no measure.
_PARAMETERS = tuple(name.replace(".", "_") for name, _ in ACmix(4, 4).named_parameters() if name != "conv_p.bias")

ENTRIES = (
    Entry(
        name="acmix",
        family="acmix",
        function=layer,
        reference=_defined,
        samples=_samples,
        refused=_refused,
        differentiable=("x", *_PARAMETERS),
        batched=("x",),
        cost=_cost,
        backward_cost=_backward_cost,
        bench=tuple(_bench_cases()),
        sources=tuple(
            dict.fromkeys(
                (
                    "paperops/nn/acmix.py",
                    *(source for entry in (*local_attention.ENTRIES, *shift_conv.ENTRIES) for source in entry.sources),
                )
            )
        ),
    ),
)

"""The entry of invariant point attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import paperops
from paperops import reference
from paperops.geometry import Frames
from paperops.testing.registry import BenchCase, Cost, Entry, Refused, Sample

DIFFERENTIABLE = (
    "q", "k", "v", "q_points", "k_points", "v_points", "z", "rotations", "translations", "head_weights", "bias",
    "bias_weight", "bias_bias",
)  # fmt: skip
BATCHED = ("q", "k", "v", "q_points", "k_points", "v_points", "z", "rotations", "translations", "bias", "mask")
POINTS = ("q_points", "k_points", "v_points", "rotations", "translations", "head_weights")


def attention_arguments(
    sizes: tuple[int, ...], device: torch.device, dtype: torch.dtype, bias: str = "bias_weight"
) -> dict[str, Any]:
    """Random arguments, frames some units apart; with ``bias``, or with ``bias_weight`` and ``bias_bias``.

    ``sizes``: batch, residues, heads, channels, query points, value points, channels of z. What has coordinates is
    float32 beside 16-bit values.
    """
    batch, n, heads, channels, query_points, value_points, pair_channels = sizes
    generator = torch.Generator().manual_seed(1000 * n + heads)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    frames = Frames.from_quaternion(random(batch, n, 4), 2 * random(batch, n, 3))
    arguments: dict[str, Any] = {name: random(batch, n, heads, channels) for name in ("q", "k", "v")}
    arguments |= {name: random(batch, n, heads, query_points, 3) for name in ("q_points", "k_points")}
    arguments |= {"v_points": random(batch, n, heads, value_points, 3), "z": random(batch, n, n, pair_channels)}
    arguments |= {"rotations": frames.rotations, "translations": frames.translations}
    arguments["head_weights"] = random(heads) - 1
    if bias == "bias":
        arguments["bias"] = random(batch, n, n, heads)
    else:
        arguments["bias_weight"] = random(heads, pair_channels) / math.sqrt(pair_channels)
        arguments["bias_bias"] = random(heads)
    wide = torch.promote_types(dtype, torch.float32)
    return {name: value.to(device, wide if name in POINTS else dtype) for name, value in arguments.items()}


def _mask(batch: int, n: int, device: torch.device) -> Tensor:
    """About one residue in four is masked."""
    generator = torch.Generator().manual_seed(n)
    return (torch.rand(batch, n, generator=generator) >= 0.25).to(device)


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    def make(*sizes: int, bias: str = "bias_weight") -> dict[str, Any]:
        return attention_arguments(sizes, device, dtype, bias)

    small = make(1, 3, 2, 2, 1, 1, 2)  # second derivatives by differences take inputs times results
    masked = torch.tensor([[1, 0, 1]], device=device)
    yield Sample("bias_weight", small | {"mask": masked.bool()}, gradcheck=True)
    given = make(2, 2, 1, 2, 1, 2, 2, bias="bias")
    yield Sample("bias", given, gradcheck=True)
    small = make(1, 3, 1, 2, 1, 1, 2)
    yield Sample("finite mask", small | {"mask": masked.to(dtype), "finite_mask": True, "inf": 10.0}, gradcheck=True)
    unbiased = {name: value for name, value in make(1, 5, 3, 4, 3, 2, 6).items() if name != "bias_bias"}
    yield Sample("no bias_bias", unbiased)
    one = make(2, 1, 2, 4, 1, 1, 5)
    yield Sample("one residue", one)
    yield Sample("one masked residue", one | {"mask": torch.tensor([[True], [False]], device=device)})
    none = {name: value[:, :0] if name in BATCHED else value for name, value in one.items()}
    yield Sample("no residues", none | {"z": none["z"][:, :, :0]})
    odd = make(2, 19, 3, 5, 4, 3, 7)
    mask = _mask(2, 19, device)
    mask[1] = False  # a whole item without anything
    yield Sample("masked", odd | {"mask": mask})
    odd = make(2, 19, 3, 5, 4, 3, 7, bias="bias")
    yield Sample("masked, bias", odd | {"mask": mask.float()})
    far = make(1, 9, 2, 4, 4, 4, 8)
    yield Sample("300 units from the origin", far | {"translations": far["translations"] + 300})
    alike = make(1, 7, 4, 8, 4, 8, 16)
    yield Sample("sharp", alike | {"q": 8 * alike["q"], "head_weights": alike["head_weights"] + 4})
    tiles = make(1, 37, 12, 16, 4, 8, 32)
    yield Sample("several tiles", tiles | {"mask": _mask(1, 37, device)})
    long = make(1, 83, 12, 16, 4, 8, 128)
    yield Sample("83 residues", long | {"mask": _mask(1, 83, device)}, large=True)
    yield Sample("83 residues, bias", make(2, 83, 8, 24, 5, 7, 40, bias="bias"), large=True)


def _refused(device: torch.device) -> Iterator[Refused]:
    good = attention_arguments((2, 4, 3, 5, 2, 6, 7), device, torch.float32)

    def call(**changed: Any) -> dict[str, Any]:
        return good | changed

    q, z = good["q"], good["z"]
    bias = torch.zeros(2, 4, 4, 3, device=device)
    yield Refused("not a tensor", call(q=[0.0]), TypeError, "q must be a torch.Tensor; got list")
    yield Refused(
        "q of rank 3", call(q=q[0]), ValueError, r"q must have shape \[B, N, heads, channels\].*got \[4, 3, 5\]"
    )
    yield Refused("integer q", call(q=q.long()), TypeError, "q must be float16.*got torch.int64")
    yield Refused("no heads", call(q=q[:, :, :0]), ValueError, r"q must .* 1 each at least; got \[2, 4, 0, 5\]")
    for name in ("k", "v"):
        yield Refused(
            f"{name} of other heads", call(**{name: q[:, :, :2]}), ValueError, rf"{name} .*\[2, 4, 3, 5\], the sh"
        )
        yield Refused(f"{name} double", call(**{name: q.double()}), TypeError, f"{name} must have dtype torch.float32")
    for name in ("q_points", "k_points", "v_points"):
        points = good[name]
        yield Refused(
            f"{name} of 2 coordinates", call(**{name: points[..., :2]}), ValueError, f"{name} must have shape"
        )
        yield Refused(
            f"{name} of rank 4", call(**{name: points[:, :, 0]}), ValueError, f"{name} must have shape.*points"
        )
        yield Refused(f"{name} of other heads", call(**{name: points[:, :, 1:]}), ValueError, f"{name} must have shape")
        yield Refused(
            f"{name} of none", call(**{name: points[:, :, :, :0]}), ValueError, f"{name} must .*1 point at least"
        )
    fewer = call(k_points=good["k_points"][:, :, :, :1])
    yield Refused(
        "fewer k_points", fewer, ValueError, r"k_points must have shape \[2, 4, 3, 2, 3\], as many .*q_points"
    )
    yield Refused("z not square", call(z=z[:, :3]), ValueError, r"z must be square .*got \[2, 3, 4, 7\]")
    yield Refused(
        "z of other residues", call(z=z[:, :3, :3]), ValueError, r"z must have shape \[2, 4, 4, 7\], a row for ea"
    )
    yield Refused("z half", call(z=z.half()), TypeError, "z must have dtype torch.float32 for q .*got torch.float16")
    yield Refused("z without channels", call(z=z[..., :0]), ValueError, "z must have at least 1 channel; got 0")
    rotations = good["rotations"]
    yield Refused(
        "rotations 2 x 3", call(rotations=rotations[..., :2, :]), ValueError, r"rotations .*\[2, 4, 3, 3\], one f"
    )
    yield Refused(
        "rotations of none", call(rotations=rotations[:, 0]), ValueError, r"rotations must have shape .*\[2, 3, 3\]"
    )
    yield Refused("translations", call(translations=rotations), ValueError, r"translations must have shape \[2, 4, 3\]")
    yield Refused(
        "head_weights", call(head_weights=q.new_zeros(4)), ValueError, r"head_weights must have shape \[3\].*\[4\]"
    )
    yield Refused(
        "both biases", call(bias=bias), ValueError, "exactly one of bias and bias_weight must be given; got both"
    )
    neither = {name: value for name, value in good.items() if not name.startswith("bias")}
    yield Refused("no bias", neither, ValueError, "exactly one of bias and bias_weight must be given; got neither")
    both = neither | {"bias": bias, "bias_bias": good["bias_bias"]}
    yield Refused("bias_bias beside bias", both, ValueError, "bias_bias goes with bias_weight")
    yield Refused("bias", neither | {"bias": bias[..., :2]}, ValueError, r"bias must have shape \[2, 4, 4, 3\]")
    yield Refused(
        "bias_weight", call(bias_weight=q.new_zeros(3, 5)), ValueError, r"bias_weight must have shape \[3, 7\]"
    )
    yield Refused("bias_bias", call(bias_bias=q.new_zeros(7)), ValueError, r"bias_bias must have shape \[3\]")
    mask = torch.ones(2, 4, device=device)
    yield Refused(
        "mask of pairs", call(mask=mask[..., None]), ValueError, r"mask must have shape \[2, 4\], .*\[2, 4, 1\]"
    )
    yield Refused("integer mask", call(mask=mask.long()), TypeError, "mask must be bool or floating.*torch.int64")
    yield Refused("mask with gradient", call(mask=mask.requires_grad_()), ValueError, "mask takes no gradient")
    yield Refused("elsewhere", call(z=z.to("meta")), ValueError, "z must be on the device of q")
    yield Refused("inf", call(inf=float("inf")), ValueError, "inf must be positive and finite; got inf")
    yield Refused("eps 0", call(eps=0), ValueError, "eps must be positive and finite; got 0")
    yield Refused("finite_mask 1", call(finite_mask=1), TypeError, "finite_mask must be True or False; got 1")


def _sizes(sample: Sample) -> tuple[int, int, int, int, int]:
    """Pairs of residues, heads, operations of a pair and head in the forward pass, bytes of z, and of the rest."""
    arguments = sample.arguments
    (b, n, h, c), cz = arguments["q"].shape, arguments["z"].shape[3]
    pq, pv = arguments["q_points"].shape[3], arguments["v_points"].shape[3]
    # Content, distances (3 for each coordinate), bias from z, values, value points, pair values.
    operations = 2 * c + 9 * pq + 2 * cz * ("bias_weight" in arguments) + 2 * c + 6 * pv + 2 * cz
    size = arguments["z"].element_size()
    small = b * n * h * ((3 * c + c + cz) * size + (2 * pq + 2 * pv) * 3 * 4)
    return b * n * n, h, operations, b * n * n * (cz + h * ("bias" in arguments)) * size, small


def _cost(sample: Sample) -> Cost:
    """z, and bias where it is given, read once; the inputs and outputs of residues once."""
    pairs, heads, operations, pair_bytes, small = _sizes(sample)
    return Cost(float(pairs * heads * operations), float(pair_bytes + small), matrix=True)


def _backward_cost(sample: Sample) -> Cost:
    """The forward's operations again and two for each of them; z read twice, dz (and the bias's gradient) written."""
    pairs, heads, operations, pair_bytes, small = _sizes(sample)
    return Cost(3.0 * pairs * heads * operations, float(3 * pair_bytes + 3 * small), matrix=True)


def _bench(n: int) -> Callable[[torch.device, torch.dtype], Sample]:
    """AlphaFold2's sizes; without bias_bias, whose gradient is 0, in units of which no error can be told."""

    def make(device: torch.device, dtype: torch.dtype) -> Sample:
        arguments = attention_arguments((1, n, 12, 16, 4, 8, 128), device, dtype)
        del arguments["bias_bias"]
        return Sample(f"N={n}", arguments)

    return make


def _bench_cases() -> Iterator[BenchCase]:
    for n in (128, 256, 512):
        yield BenchCase(f"N={n}", _bench(n), devices=("cpu",))
        yield BenchCase(f"N={n}, with backward", _bench(n), backward=True, devices=("cpu",))
    for n in (256, 512, 1024, 2048):
        yield BenchCase(f"N={n}", _bench(n), devices=("cuda",))
        yield BenchCase(f"N={n}, with backward", _bench(n), backward=True, devices=("cuda",))


ENTRIES = (
    Entry(
        name="invariant_point_attention",
        family="invariant_point_attention",
        function=paperops.invariant_point_attention,
        reference=reference.invariant_point_attention,
        samples=_samples,
        refused=_refused,
        differentiable=DIFFERENTIABLE,
        batched=BATCHED,
        cost=_cost,
        backward_cost=_backward_cost,
        bench=tuple(_bench_cases()),
        sources=(
            "csrc/common",
            "csrc/invariant_point_attention",
            "kernels/arithmetic.py",
            "kernels/launch.py",
            "kernels/invariant_point_attention*.py",
            "paperops/ops/invariant_point_attention.py",
        ),
        twice=True,
        unit=8.0,
        roundings={torch.float32: 4, torch.float64: 512},
        tolerance_reason="inputs and cotangents are of order one; gradients are sums over pairs of terms of both signs "
        "(that of bias_bias is 0, whatever the terms), and far from the origin points are differences",
        autocast_arguments=("q", "k", "v", "z", "bias"),
    ),
)

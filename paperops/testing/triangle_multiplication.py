"""The entries of the triangle multiplicative update and of the product inside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import paperops
from paperops import reference
from paperops.ops.triangle_multiplication import PARAMETERS
from paperops.testing.registry import BenchCase, Cost, Entry, Refused, Sample

BATCHED = ("x", "mask")


def parameter_shapes(channels: int, hidden: int, gate_first: bool = False) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters, by name."""
    gate = hidden if gate_first else channels
    shapes: tuple[tuple[int, ...], ...] = (
        (channels,), (channels,), (2 * hidden, channels), (2 * hidden,), (2 * hidden, channels), (2 * hidden,),
        (hidden,), (hidden,), (channels, hidden), (channels,), (gate, channels), (gate,),
    )  # fmt: skip
    return dict(zip(PARAMETERS, shapes, strict=True))


def update_arguments(
    leading: tuple[int, ...],
    n: int,
    channels: int,
    hidden: int,
    device: torch.device,
    dtype: torch.dtype,
    gate_first: bool = False,
) -> dict[str, Any]:
    """Random x, and parameters none of which is 0 or 1: products keep the order of magnitude of their input."""
    generator = torch.Generator().manual_seed(1000 * n + channels)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    arguments: dict[str, Any] = {"x": random(*leading, n, n, channels)}
    for name, shape in parameter_shapes(channels, hidden, gate_first).items():
        if len(shape) == 2:
            arguments[name] = random(*shape) / shape[1] ** 0.5
        else:
            arguments[name] = 0.3 * random(*shape) + (1 if name.startswith("norm") and "weight" in name else 0)
    return {name: value.to(device, dtype) for name, value in arguments.items()}


def _mask(x: Tensor, fractional: bool = False) -> Tensor:
    """One value a pair, about one in four of them 0."""
    generator = torch.Generator().manual_seed(x.shape[-2])
    values = torch.rand(x.shape[:-1], generator=generator, dtype=torch.float64)
    mask = torch.where(values < 0.25, 0, values if fractional else 1)
    return mask.to(x.device, x.dtype)


# --- triangle_multiplicative_update --------------------------------------------------------------------------------


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    def make(leading: tuple[int, ...], n: int, channels: int, hidden: int, gate_first: bool = False) -> dict[str, Any]:
        found = update_arguments(leading, n, channels, hidden, device, dtype, gate_first)
        return found | ({"gate_position": "before_projection"} if gate_first else {})

    small = make((2,), 3, 5, 4) | {"eps": 0.1}  # normalising few values is badly conditioned
    fractional = {"mask": _mask(small["x"], fractional=True)}
    yield Sample("outgoing", small | fractional, gradcheck=True)
    yield Sample("incoming", small | {"direction": "incoming"}, gradcheck=True)
    before = make((2,), 3, 5, 4, gate_first=True) | {"eps": 0.1}
    yield Sample("gate before the projection", before | fractional, gradcheck=True)
    weights = {name: value for name, value in make((2,), 5, 8, 4).items() if "bias" not in name}
    yield Sample("no biases", weights)
    bare = {name: value for name, value in weights.items() if "norm" not in name}
    yield Sample("no norms, incoming", bare | {"direction": "incoming", "mask": _mask(bare["x"])})
    one = make((1,), 1, 4, 4)
    yield Sample("one residue", one)
    yield Sample("no residues", one | {"x": one["x"][:, :0, :0]})
    hidden = make((1,), 6, 5, 33)
    yield Sample("hidden wider than the channels", hidden | {"mask": _mask(hidden["x"])})
    odd = make((2,), 19, 20, 12)
    mask = _mask(odd["x"])
    mask[:, 4], mask[:, :, 7], mask[1] = 0, 0, 0  # rows, columns and a whole item without anything
    yield Sample("masked rows", odd | {"mask": mask})
    yield Sample("masked rows, incoming", odd | {"mask": mask, "direction": "incoming"})
    far = make((1,), 7, 16, 16)
    yield Sample("far from zero", far | {"x": far["x"] / 2 + 10})
    several = make((2, 3), 4, 6, 8)
    yield Sample("two batch dimensions, bool mask", several | {"mask": _mask(several["x"]).bool()})
    wide = make((1,), 9, 130, 40, gate_first=True)
    yield Sample("wide, gate before, incoming", wide | {"direction": "incoming"})
    tiles = make((1,), 37, 32, 16)
    yield Sample("several tiles", tiles | {"mask": _mask(tiles["x"])})
    long = make((1,), 97, 64, 64)
    yield Sample("97 residues", long | {"mask": _mask(long["x"])}, large=True)
    yield Sample("97 residues, incoming", long | {"direction": "incoming"}, large=True)
    yield Sample("many short chains", make((70,), 7, 16, 8), large=True)


def _refused(device: torch.device) -> Iterator[Refused]:
    good = update_arguments((2,), 4, 6, 3, device, torch.float32)
    x = good["x"]

    def call(**changed: Any) -> dict[str, Any]:
        return good | changed

    yield Refused("not a tensor", call(x=[0.0]), TypeError, "x must be a torch.Tensor; got list")
    yield Refused("rank 2", call(x=x[0, 0]), ValueError, r"x must have shape \[\*, N, N, channels\]; got \[4, 6\]")
    yield Refused("not square", call(x=x[:, :3]), ValueError, r"x must be square in its pair dim.*got \[2, 3, 4, 6\]")
    yield Refused("no channels", call(x=x[..., :0]), ValueError, "x must have at least 1 channel; got 0")
    yield Refused("integer x", call(x=x.long()), TypeError, "x must be float16.*got torch.int64")
    yield Refused("complex x", call(x=x.to(torch.complex64)), TypeError, "x must be float16.*got torch.complex64")
    for name, shape in parameter_shapes(6, 3).items():
        value = good[name]
        expected = (
            rf"{name} must have shape \[.*\], .*; got {str(list(value[:-1].shape)).replace('[', '.').replace(']', '.')}"
        )
        yield Refused(f"{name} short", call(**{name: value[:-1]}), ValueError, expected)
        yield Refused(
            f"{name} of rank {len(shape) + 1}", call(**{name: value[None]}), ValueError, f"{name} must have sha"
        )
        yield Refused(
            f"{name} double", call(**{name: value.double()}), TypeError, f"{name} must have dtype torch.float32"
        )
        yield Refused(f"{name} a list", call(**{name: [1.0]}), TypeError, f"{name} must be a torch.Tensor; got list")
        yield Refused(
            f"{name} elsewhere", call(**{name: value.to("meta")}), ValueError, f"{name} must be on the device"
        )
    for name in ("p_in_weight", "g_in_weight", "p_out_weight", "g_out_weight"):
        yield Refused(f"no {name}", call(**{name: None}), ValueError, f"{name} is required; got None")
    channels = call(x=torch.zeros(2, 4, 4, 5, device=device))
    yield Refused(
        "other channels", channels, ValueError, r"norm_in_weight must have shape \[5\], the channels of x; got \[6\]"
    )
    yield Refused("no hidden width", call(p_out_weight=x.new_zeros(6, 0)), ValueError, r"p_out_weight .*; got \[6, 0\]")
    yield Refused(
        "gate of the other position",
        call(gate_position="before_projection"),
        ValueError,
        r"g_out_weight must have shape \[3, 6\], the hidden width by the channels of x; got \[6, 6\]",
    )
    half = {name: value.half() for name, value in good.items()}
    half["p_in_weight"] = half["p_in_weight"].bfloat16()
    yield Refused(
        "other half", half, TypeError, "p_in_weight must have dtype torch.float16 or torch.float32 .*bfloat16"
    )
    for direction in ("sideways", "Outgoing", None, 1):
        message = "direction must be one of 'outgoing', 'incoming'; got"
        yield Refused(f"direction {direction}", call(direction=direction), ValueError, message)
    yield Refused(
        "gate position", call(gate_position="after"), ValueError, "gate_position must be one of .*got 'after'"
    )
    mask = torch.ones(2, 4, 4, device=device)
    yield Refused(
        "mask with channels", call(mask=mask[..., None]), ValueError, r"mask must have shape \[2, 4, 4\], .*1\]"
    )
    yield Refused("mask of another batch", call(mask=mask[:1]), ValueError, r"mask must have shape \[2, 4, 4\]")
    yield Refused("mask of rows", call(mask=mask[0, 0]), ValueError, r"mask must have shape \[2, 4, 4\].*got \[4\]")
    yield Refused("integer mask", call(mask=mask.long()), TypeError, "mask must be bool or floating.*got torch.int64")
    yield Refused("mask a list", call(mask=[1]), TypeError, "mask must be a torch.Tensor; got list")
    yield Refused("mask elsewhere", call(mask=mask.to("meta")), ValueError, "mask must be on the device of the pair")
    yield Refused("mask with gradient", call(mask=mask.requires_grad_()), ValueError, "mask takes no gradient")
    for precision in ("tf16", "default", 3, "highest"):
        yield Refused(
            f"precision {precision}", call(precision=precision), ValueError, "precision must be None or one of"
        )
    if device.type == "cpu":
        for precision in ("tf32", "tf32x3"):
            yield Refused(precision, call(precision=precision), ValueError, f"'{precision}' is not there on a CPU")
    double = {name: value.double() for name, value in good.items()}
    yield Refused("tf32 of doubles", double | {"precision": "tf32"}, ValueError, "less than float64 has")
    yield Refused("eps 0", call(eps=0.0), ValueError, "eps must be positive and finite; got 0.0")
    yield Refused("eps NaN", call(eps=float("nan")), ValueError, "eps must be positive and finite; got nan")
    yield Refused("eps a string", call(eps="small"), TypeError, "eps must be a number; got str")
    yield Refused("low_memory 1", call(low_memory=1), TypeError, "low_memory must be True or False; got 1")
    recorded = call(x=x.clone().requires_grad_(), low_memory=True)
    yield Refused("low memory with gradients", recorded, ValueError, "low_memory keeps nothing for a backward pass")


def _sizes(sample: Sample) -> tuple[int, int, int, int, int]:
    """Pairs, residues, channels, hidden width, and width of the gate."""
    arguments = sample.arguments
    x = arguments["x"]
    pairs = x.numel() // x.shape[-1]
    return pairs, x.shape[-2], x.shape[-1], arguments["p_out_weight"].shape[1], arguments["g_out_weight"].shape[0]


def _cost(sample: Sample) -> Cost:
    """Three passes over memory, since a, b and t do not fit on a chip: x to a, b; a, b to t; t, x to the result."""
    pairs, n, channels, hidden, gate = _sizes(sample)
    operations = 2.0 * pairs * (n * hidden + 4 * channels * hidden + channels * hidden + channels * gate)
    moved = 3 * channels + 6 * hidden  # x twice, the result; a, b, t written and read
    return Cost(operations, float(pairs * moved * sample.arguments["x"].element_size()), matrix=True)


def _backward_cost(sample: Sample) -> Cost:
    """What a backward pass adds, given x and t: two products for each of the forward's, and a, b and gates again.

    Memory: x three times, the result's gradient, dx; t, dt written and read twice, a, b, da and db written and read.
    """
    pairs, n, channels, hidden, gate = _sizes(sample)
    forward = n * hidden + 4 * channels * hidden + channels * hidden + channels * gate
    again = 4 * channels * hidden + channels * hidden + channels * gate
    moved = 5 * channels + 12 * hidden
    size = sample.arguments["x"].element_size()
    return Cost(2.0 * pairs * (2 * forward + again), float(pairs * moved * size), matrix=True)


def _bench(
    n: int, batch: int = 1, channels: int = 128, gate_first: bool = False, masked: bool = False, **options: Any
) -> Callable[[torch.device, torch.dtype], Sample]:
    def make(device: torch.device, dtype: torch.dtype) -> Sample:
        arguments = update_arguments((batch,), n, channels, 128, device, dtype, gate_first) | options
        if masked:
            arguments["mask"] = _mask(arguments["x"])
        if gate_first:  # the GPU MODE problem has no biases but those of the norms
            arguments |= {"gate_position": "before_projection"}
            arguments = {k: v for k, v in arguments.items() if not (k.endswith("bias") and k.startswith(("p_", "g_")))}
        return Sample(f"N={n}", arguments)

    return make


GPU_MODE_TRIMUL = (
    (256, 2, 128, False), (768, 1, 128, False), (256, 2, 384, False), (256, 2, 384, True), (512, 1, 128, False),
    (1024, 1, 128, False), (768, 1, 384, False), (768, 1, 384, True), (1024, 1, 384, False),
)  # fmt: skip
"""The benchmark list of the GPU MODE problem "trimul": residues, batch, channels, masked; outgoing, hidden width 128.

On an H200 the geometric mean over it is to be under 900 us."""


def gpu_mode_cases() -> tuple[BenchCase, ...]:
    """That list as bench cases. Its tolerance is that of tf32, so it is timed apart: benchmarks/gpu_mode_trimul.py."""
    return tuple(
        BenchCase(
            f"N={n}, B={batch}, C={channels}" + (", masked" if masked else ""),
            _bench(n, batch, channels, gate_first=True, masked=masked),
        )
        for n, batch, channels, masked in GPU_MODE_TRIMUL
    )


def _bench_cases() -> Iterator[BenchCase]:
    for n in (128, 256, 512):
        yield BenchCase(f"N={n}", _bench(n, masked=True), devices=("cpu",))
    for n in (128, 256):
        yield BenchCase(f"N={n}, with backward", _bench(n, masked=True), backward=True, devices=("cpu",))
    incoming = _bench(256, masked=True, direction="incoming")
    yield BenchCase("incoming, N=256, with backward", incoming, backward=True, devices=("cpu",))
    for n in (256, 300, 512, 900, 1024, 1500, 2048):
        yield BenchCase(f"N={n}", _bench(n, masked=True), devices=("cuda",))
        yield BenchCase(f"N={n}, with backward", _bench(n, masked=True), backward=True, devices=("cuda",))


# --- triangle_contract ---------------------------------------------------------------------------------------------


def _factors(leading: tuple[int, ...], n: int, width: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(n)
    shape = (*leading, n, n, width)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype) for name in ("a", "b")}


def _contract_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    small = _factors((2,), 3, 2, device, dtype)
    yield Sample("outgoing", small | {"mask": _mask(small["a"], fractional=True)}, gradcheck=True)
    yield Sample("incoming", small | {"direction": "incoming"}, gradcheck=True)
    yield Sample("one residue", _factors((1,), 1, 1, device, dtype))
    yield Sample("no residues", _factors((2,), 0, 3, device, dtype))
    yield Sample("no channels", _factors((2,), 3, 0, device, dtype))
    odd = _factors((2,), 21, 11, device, dtype)
    mask = _mask(odd["a"])
    mask[:, 3] = 0
    yield Sample("masked rows", odd | {"mask": mask})
    yield Sample("masked rows, incoming", odd | {"mask": mask.bool(), "direction": "incoming"})
    yield Sample("two batch dimensions", _factors((2, 2), 5, 3, device, dtype))
    yield Sample("97 residues", _factors((1,), 97, 40, device, dtype), large=True)


def _contract_refused(device: torch.device) -> Iterator[Refused]:
    a, b = (torch.zeros(2, 4, 4, 3, device=device) for _ in range(2))
    mask = torch.ones(2, 4, 4, device=device)

    def call(**changed: Any) -> dict[str, Any]:
        return {"a": a, "b": b} | changed

    yield Refused("not a tensor", call(a=1.0), TypeError, "a must be a torch.Tensor; got float")
    yield Refused("rank 2", call(b=b[0, 0]), ValueError, r"b must have shape \[\*, N, N, channels\]; got \[4, 3\]")
    yield Refused("not square", call(a=a[:, 1:]), ValueError, r"a must be square .*got \[2, 3, 4, 3\]")
    yield Refused("other width", call(b=b[..., :2]), ValueError, r"b must have the shape of a, .*got \[2, 4, 4, 2\]")
    yield Refused("other batch", call(b=b[:1]), ValueError, "b must have the shape of a")
    yield Refused(
        "other dtype", call(b=b.double()), TypeError, "b must have the dtype of a, torch.float32; got torch.fl"
    )
    yield Refused("integers", call(a=a.long(), b=b.long()), TypeError, "a must be float16.*got torch.int64")
    yield Refused("elsewhere", call(b=b.to("meta")), ValueError, "b must be on the device of a")
    yield Refused(
        "direction", call(direction="in"), ValueError, "direction must be one of 'outgoing', 'incoming'; got 'in'"
    )
    yield Refused("mask", call(mask=mask[:, :2]), ValueError, r"mask must have shape \[2, 4, 4\]")
    yield Refused("mask with gradient", call(mask=mask.requires_grad_()), ValueError, "mask takes no gradient")


def _contract_cost(sample: Sample) -> Cost:
    a = sample.arguments["a"]
    return Cost(2.0 * a.numel() * a.shape[-2], 3.0 * a.numel() * a.element_size(), matrix=True)


def _contract_backward_cost(sample: Sample) -> Cost:
    """Two products: three tensors read, two written."""
    forward = _contract_cost(sample)
    return Cost(2 * forward.operations, 5 / 3 * forward.bytes, matrix=True)


def _bench_factors(n: int) -> Callable[[torch.device, torch.dtype], Sample]:
    return lambda device, dtype: Sample(f"N={n}", _factors((1,), n, 128, device, dtype))


SOURCES = (
    "csrc/common",
    "csrc/triangle_multiplication",
    "kernels/arithmetic.py",
    "kernels/launch.py",
    "kernels/triangle_multiplication*.py",
    "paperops/ops/triangle_*.py",
)

ENTRIES = (
    Entry(
        name="triangle_multiplicative_update",
        family="triangle_multiplication",
        function=paperops.triangle_multiplicative_update,
        reference=reference.triangle_multiplicative_update,
        samples=_samples,
        refused=_refused,
        differentiable=("x", *PARAMETERS),
        batched=BATCHED,
        cost=_cost,
        backward_cost=_backward_cost,
        bench=tuple(_bench_cases()),
        sources=SOURCES,
        twice=True,
        roundings={torch.float32: 4, torch.float64: 128},
        tolerance_reason="gradients of parameters are sums over all pairs of terms larger than the sum, behind two "
        "normalisations: on small samples plain torch's own error varies by chance, and another good order of "
        "summation makes 4 times it",
        autocast_arguments=("x",),
    ),
    Entry(
        name="triangle_contract",
        family="triangle_multiplication",
        function=paperops.triangle_contract,
        reference=reference.triangle_contract,
        samples=_contract_samples,
        refused=_contract_refused,
        differentiable=("a", "b"),
        batched=("a", "b", "mask"),
        cost=_contract_cost,
        backward_cost=_contract_backward_cost,
        bench=(
            BenchCase("N=256", _bench_factors(256)),
            BenchCase("N=256, with backward", _bench_factors(256), backward=True),
            BenchCase("N=1024", _bench_factors(1024), devices=("cuda",)),
        ),
        sources=SOURCES,
        twice=True,
        autocast_arguments=("a", "b"),
    ),
)

"""The entries of the frame aligned point error, of one term and of four."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import paperops
from paperops import reference
from paperops.geometry import Frames
from paperops.testing.registry import BenchCase, Cost, Entry, Refused, Sample

DIFFERENTIABLE = (
    "pred_rotations", "pred_translations", "target_rotations", "target_translations", "pred_positions",
    "target_positions",
)  # fmt: skip
PREDICTED = ("pred_rotations", "pred_translations", "pred_positions")
FRAMES = ("pred_rotations", "pred_translations", "target_rotations", "target_translations", "frames_mask")
POSITIONS = ("pred_positions", "target_positions", "positions_mask")
WEIGHTS = ("clamped_weight", "unclamped_weight", "between_clamped_weight", "between_unclamped_weight")
CHAINS = ("frame_chains", "position_chains")


def error_arguments(
    batch: int, frames: int, points: int, device: torch.device, dtype: torch.dtype, spread: float = 4.0
) -> dict[str, Any]:
    """Frames and points some units apart, and targets a unit away or two and turned a little; masks full."""
    generator = torch.Generator().manual_seed(1000 * frames + points)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    quaternions, centres = random(batch, frames, 4), spread * random(batch, frames, 3)
    positions = spread * random(batch, points, 3)
    target = Frames.from_quaternion(quaternions + 0.3 * random(batch, frames, 4), centres + random(batch, frames, 3))
    pred = Frames.from_quaternion(quaternions, centres)
    arguments = {
        "pred_rotations": pred.rotations,
        "pred_translations": pred.translations,
        "target_rotations": target.rotations,
        "target_translations": target.translations,
        "frames_mask": torch.ones(batch, frames),
        "pred_positions": positions,
        "target_positions": positions + random(batch, points, 3),
        "positions_mask": torch.ones(batch, points),
    }
    return {name: value.to(device, dtype) for name, value in arguments.items()}


def _masks(arguments: dict[str, Any]) -> dict[str, Any]:
    """Weights that are not 0 or 1 alone, and nothing to be read where they are 0."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for name, names in (("frames_mask", FRAMES[:4]), ("positions_mask", POSITIONS[:2])):
        mask = arguments[name]
        weights = (1.5 * torch.rand(mask.shape, generator=generator, dtype=torch.float64) - 0.4).clamp(min=0)
        found[name] = weights.to(mask)
        for other in names:
            value = arguments[other]
            gone = (found[name] == 0).reshape(*mask.shape, *(1,) * (value.dim() - 2))
            found[other] = value.masked_fill(gone, float("nan"))
    return found


def _pair_mask(arguments: dict[str, Any], device: torch.device) -> Tensor:
    """About one pair in three is masked."""
    (batch, frames), points = arguments["frames_mask"].shape, arguments["positions_mask"].shape[1]
    generator = torch.Generator().manual_seed(2)
    return (torch.rand(batch, frames, points, generator=generator) > 0.3).to(device)


def _shared_samples(device: torch.device, dtype: torch.dtype, clamp: str) -> Iterator[Sample]:
    """Samples of both ops; ``clamp`` is the name of the clamp's argument."""

    def make(batch: int, frames: int, points: int) -> dict[str, Any]:
        return error_arguments(batch, frames, points, device, dtype)

    odd = make(2, 13, 37)
    yield Sample("weights, NaN where they are 0", odd | _masks(odd))
    yield Sample("weights, NaN where they are 0, clamped", odd | _masks(odd) | {clamp: 2.5})
    # Of samples that are alike to a kernel, one is enough for the interpreter: the others count as large.
    # A clamp below every distance: a constant loss.
    yield Sample("all clamped", odd | {clamp: 1e-3}, large=True)
    yield Sample("clamp 0", make(1, 3, 5) | {clamp: 0.0})
    boolean = {name: odd[name] > 0 for name in ("frames_mask", "positions_mask")}
    boolean["frames_mask"][0, ::2] = False
    boolean["positions_mask"][1] = False
    yield Sample("bool masks", odd | boolean | {clamp: None, "eps": 1e-4, "length_scale": 3.0}, large=True)
    yield Sample("one frame", make(2, 1, 19), large=True)
    yield Sample("one point", make(2, 19, 1), large=True)
    yield Sample("many frames", make(1, 70, 3))
    yield Sample("one of each", make(1, 1, 1))
    yield Sample("no frames", make(2, 0, 5))
    yield Sample("no points", make(2, 5, 0))
    none = {name: torch.zeros_like(odd[name]) for name in ("frames_mask", "positions_mask")}
    yield Sample("all masked", odd | none, large=True)
    # 10 from the origin rotations of 16 bits leave the errors of coincident frames exact.
    same = make(2, 5, 9)
    same |= {name: same[name.replace("target", "pred")].clone() for name in same if name.startswith("target")}
    yield Sample("coincident", same)
    far = make(1, 9, 41)
    moved = {name: far[name] + 300 for name in ("pred_translations", "pred_positions")}
    yield Sample("300 units from the origin", far | moved | {clamp: 10.0})
    yield Sample("several blocks", make(1, 150, 70) | {clamp: 5.0}, large=True)
    large = make(2, 70, 1100)
    yield Sample("many points", large | _masks(large) | {clamp: 5.0}, large=True)


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    def make(batch: int, frames: int, points: int) -> dict[str, Any]:
        return error_arguments(batch, frames, points, device, dtype)

    small = make(2, 2, 3)
    yield Sample("small", small, gradcheck=True)
    pair = _pair_mask(small, device).to(dtype)
    yield Sample("small, pair mask and clamp", small | {"pair_mask": pair, "l1_clamp_distance": 3.0}, gradcheck=True)
    yield from _shared_samples(device, dtype, "l1_clamp_distance")
    odd = make(2, 13, 37)
    yield Sample("pair mask", odd | {"pair_mask": _pair_mask(odd, device), "l1_clamp_distance": 3.0}, large=True)
    weights = 0.7 * _pair_mask(odd, device).to(dtype)
    yield Sample("pair weights", odd | _masks(odd) | {"pair_mask": weights})
    yield Sample("all pairs masked", odd | {"pair_mask": torch.zeros_like(weights)})


def _chains(arguments: dict[str, Any], count: int, device: torch.device) -> dict[str, Any]:
    """Chains in no order, of numbers that are not small."""
    generator = torch.Generator().manual_seed(3)
    numbers = torch.tensor([7, -(2**40), 3, 2**33, 12])[:count]
    shapes = arguments["frames_mask"].shape, arguments["positions_mask"].shape
    return {
        name: numbers[torch.randint(count, shape, generator=generator)].to(device)
        for name, shape in zip(CHAINS, shapes, strict=True)
    }


def _term_weights(batch: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    values = torch.linspace(0, 1, batch, dtype=torch.float64)
    return {
        "clamped_weight": values.to(device, dtype),
        "unclamped_weight": (1 - values).to(device, dtype),
        "between_clamped_weight": 0.5,
        "between_unclamped_weight": (0.25 * values).to(device, dtype),
    }


def _terms_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    def make(batch: int, frames: int, points: int) -> dict[str, Any]:
        return error_arguments(batch, frames, points, device, dtype)

    small = make(2, 3, 4)
    chains = _chains(small, 2, device)
    yield Sample("small", small | chains | _term_weights(2, device, dtype) | {"l1_clamp_distance": 2.0}, gradcheck=True)
    yield from _shared_samples(device, dtype, "l1_clamp_distance")
    odd = make(3, 13, 37)
    chains = _chains(odd, 5, device) | {"l1_clamp_distance": 1.5, "between_l1_clamp_distance": 2.5}
    chains |= _term_weights(3, device, dtype)
    yield Sample("five chains", odd | chains, large=True)
    yield Sample("five chains, weights", odd | chains | _masks(odd))
    narrow = {name: (chains[name] % 5).to(torch.int32) for name in CHAINS}
    yield Sample(
        "int32 chains, no clamp between", odd | chains | narrow | {"between_l1_clamp_distance": None}, large=True
    )
    one = {name: torch.ones_like(chains[name]) for name in CHAINS}
    yield Sample("one chain", odd | chains | one, large=True)
    apart = {"frame_chains": one["frame_chains"], "position_chains": one["position_chains"] + 1}
    yield Sample("nothing within a chain", odd | chains | apart, large=True)
    empty = make(2, 5, 0)
    yield Sample("chains without points", empty | _chains(empty, 2, device))
    large = make(1, 90, 600)
    yield Sample("several blocks of chains", large | _masks(large) | _chains(large, 3, device), large=True)


# --- what is refused -------------------------------------------------------------------------------------------------


def _shared_refused(device: torch.device) -> Iterator[Refused]:
    good = error_arguments(2, 4, 6, device, torch.float32)

    def call(**changed: Any) -> dict[str, Any]:
        return good | changed

    rotations, positions = good["pred_rotations"], good["pred_positions"]
    yield Refused("not a tensor", call(pred_rotations=[0.0]), TypeError, "pred_rotations must be a torch.Tensor; got l")
    yield Refused(
        "rotations of rank 2", call(pred_rotations=rotations[0, 0]), ValueError, r"pred_rotations .*\[\*, F, 3, 3\]"
    )
    yield Refused(
        "positions of rank 1", call(pred_positions=positions[0, 0]), ValueError, r"pred_positions .*\[\*, P, 3\].*\[3\]"
    )
    yield Refused("integer", call(pred_rotations=rotations.long()), TypeError, "pred_rotations must be float16.*int64")
    for name in DIFFERENTIABLE:
        value = good[name]
        yield Refused(f"{name} of 2", call(**{name: value[..., :2]}), ValueError, rf"{name} must have shape \[\*, 3\]")
        yield Refused(f"{name}, a batch of 3", call(**{name: torch.cat([value, value[:1]])}), ValueError, "leading dim")
        if name not in ("pred_rotations", "pred_positions"):
            own = r"\[\*, 6, 3\]" if "positions" in name else r"\[\*, 4, 3"
            yield Refused(
                f"{name}, one less", call(**{name: value[:, 1:]}), ValueError, rf"{name} must have shape {own}"
            )
            yield Refused(
                f"{name} elsewhere", call(**{name: value.to("meta")}), ValueError, f"{name} must be on the dev"
            )
        if name != "pred_rotations":
            yield Refused(
                f"{name} double", call(**{name: value.double()}), TypeError, f"{name} must have dtype float16"
            )
    yield Refused("rotations 2 x 3", call(pred_rotations=rotations[..., :2, :]), ValueError, "pred_rotations must have")
    for name, count in (("frames_mask", 4), ("positions_mask", 6)):
        mask = good[name]
        yield Refused(
            f"{name} of 3", call(**{name: mask[:, :3]}), ValueError, rf"{name} .*\[\*, {count}\]; got \[2, 3\]"
        )
        yield Refused(f"{name} integer", call(**{name: mask.long()}), TypeError, f"{name} must be bool or floating")
        yield Refused(
            f"{name} with gradient", call(**{name: mask.clone().requires_grad_()}), ValueError, f"{name} takes no grad"
        )
        yield Refused(f"{name} elsewhere", call(**{name: mask.to("meta")}), ValueError, f"{name} must be on the device")
        yield Refused(f"{name} None", call(**{name: None}), TypeError, f"{name} must be a torch.Tensor; got NoneType")
    yield Refused("length_scale 0", call(length_scale=0), ValueError, "length_scale must be positive and finite; got 0")
    yield Refused("length_scale -1", call(length_scale=-1.0), ValueError, "length_scale must be positive.*got -1")
    yield Refused("length_scale text", call(length_scale="a"), TypeError, "length_scale must be a number; got str")
    yield Refused(
        "clamp -1",
        call(l1_clamp_distance=-1.0),
        ValueError,
        "l1_clamp_distance must be finite and not negative; got -1",
    )
    yield Refused("clamp NaN", call(l1_clamp_distance=float("nan")), ValueError, "l1_clamp_distance must .*got nan")
    yield Refused("clamp True", call(l1_clamp_distance=True), TypeError, "l1_clamp_distance must be a number or None")
    yield Refused("eps 0", call(eps=0.0), ValueError, "eps must be positive and finite; got 0")
    yield Refused("eps below float32", call(eps=1e-40), ValueError, "eps must be at least 1.175e-38, the smallest norm")


def _refused(device: torch.device) -> Iterator[Refused]:
    yield from _shared_refused(device)
    good = error_arguments(2, 4, 6, device, torch.float32)
    pair = torch.ones(2, 4, 6, device=device)
    yield Refused(
        "pair_mask transposed", good | {"pair_mask": pair.mT}, ValueError, r"pair_mask .*\[\*, 4, 6\]; got \[2, 6, 4\]"
    )
    yield Refused("pair_mask integer", good | {"pair_mask": pair.long()}, TypeError, "pair_mask must be bool or float")
    yield Refused(
        "pair_mask with gradient", good | {"pair_mask": pair.clone().requires_grad_()}, ValueError, "pair_mask takes no"
    )


def _terms_refused(device: torch.device) -> Iterator[Refused]:
    yield from _shared_refused(device)
    good = error_arguments(2, 4, 6, device, torch.float32)
    frames, points = torch.zeros(2, 4, device=device).long(), torch.zeros(2, 6, device=device).long()

    def call(**changed: Any) -> dict[str, Any]:
        return good | {"frame_chains": frames, "position_chains": points} | changed

    together = "frame_chains and position_chains go together; got"
    yield Refused("no frame_chains", call(frame_chains=None), ValueError, f"{together} frame_chains=None")
    yield Refused("no position_chains", call(position_chains=None), ValueError, f"{together} position_chains=None")
    for name, value in (("frame_chains", frames), ("position_chains", points)):
        yield Refused(
            f"{name} floating", call(**{name: value.float()}), TypeError, f"{name} must have an integer dtype"
        )
        yield Refused(f"{name} of 3", call(**{name: value[:, :3]}), ValueError, rf"{name} must have .*got \[2, 3\]")
        yield Refused(
            f"{name} elsewhere", call(**{name: value.to("meta")}), ValueError, f"{name} must be on the device"
        )
    for name in WEIGHTS:
        weight = torch.ones(2, device=device)
        yield Refused(
            f"{name} of 3", call(**{name: torch.ones(3, device=device)}), ValueError, f"{name} must have lead"
        )
        yield Refused(
            f"{name} text", call(**{name: "a"}), TypeError, f"{name} must be a finite number or a tensor; got"
        )
        yield Refused(f"{name} inf", call(**{name: float("inf")}), TypeError, f"{name} must be a finite number")
        yield Refused(f"{name} with gradient", call(**{name: weight.requires_grad_()}), ValueError, f"{name} takes no")
    yield Refused(
        "scale between", call(between_length_scale=-2), ValueError, "between_length_scale must be positive.*got -2"
    )
    yield Refused(
        "clamp between", call(between_l1_clamp_distance=-2), ValueError, "between_l1_clamp_distance must be finite and"
    )


# --- cost and sizes --------------------------------------------------------------------------------------------------


def _sizes(sample: Sample) -> tuple[float, float, float]:
    """Pairs, bytes of the prediction, and of all inputs."""
    arguments = sample.arguments
    pred = [arguments[name] for name in ("pred_rotations", "pred_translations", "pred_positions")]
    moved = sum(value.numel() * value.element_size() for value in pred)
    masks = ("frames_mask", "positions_mask", "pair_mask", *CHAINS)
    rest = [arguments[name] for name in masks if isinstance(arguments.get(name), Tensor)]
    inputs = 2 * moved + sum(value.numel() * value.element_size() for value in rest)
    return float(arguments["frames_mask"].numel() * pred[2].shape[-2]), float(moved), float(inputs)


def _cost(sample: Sample) -> Cost:
    """Of a pair: differences (6), two products with a matrix, subtracted (33), the length (7), the clamped sum (3)."""
    pairs, _, inputs = _sizes(sample)
    return Cost(49 * pairs, inputs)


def _backward_cost(sample: Sample) -> Cost:
    """Of a pair: slope (4), local gradient (3), its turn and sum over frames (18), sum and product over points (21)."""
    pairs, moved, _ = _sizes(sample)
    return Cost(46 * pairs, moved)


def _bench(frames: int, points: int, chains: int = 0) -> Callable[[torch.device, torch.dtype], Sample]:
    """Everything there: with AlphaFold2's masks, of which half are 0, there is less to do."""

    def make(device: torch.device, dtype: torch.dtype) -> Sample:
        arguments = error_arguments(1, frames, points, device, dtype, spread=12.0)
        if chains:
            for name, size in zip(CHAINS, (frames, points), strict=True):
                arguments[name] = torch.arange(size, device=device)[None] * chains // max(size, 1)
            arguments |= {"unclamped_weight": 0.1, "between_unclamped_weight": 0.1}
        else:
            # Beyond all errors: at a clamp the gradient jumps, so that a rounding would count as an error.
            arguments["l1_clamp_distance"] = 200.0
        return Sample(f"F={frames}, P={points}", arguments)

    return make


def _bench_cases() -> Iterator[BenchCase]:
    """Forward, and with the gradients that training takes: those of the prediction."""
    sizes: list[Any] = [(f"side chains N={n}", 8 * n, 14 * n, ("cpu",)) for n in (64, 128)]
    sizes += [("backbone N=256", 256, 256, ("cpu",))]
    for n in (256, 1024, 4096):
        sizes += [(f"side chains N={n}", 8 * n, 14 * n, ("cuda",)), (f"backbone N={n}", n, n, ("cuda",))]
    for name, frames, points, devices in sizes:
        make = _bench(frames, points)
        yield BenchCase(name, make, devices=devices)
        yield BenchCase(f"{name}, with backward", make, backward=True, devices=devices, differentiable=PREDICTED)


SOURCES = (
    "csrc/common",
    "csrc/frame_aligned_point_error",
    "kernels/arithmetic.py",
    "kernels/launch.py",
    "kernels/frame_aligned_point_error*.py",
    "paperops/ops/_frames_and_points.py",
    "paperops/ops/frame_aligned_point_error*.py",
)

ROUNDINGS = {torch.float32: 4}
ROUNDINGS_REASON = (
    "gradients of frames and points are sums over pairs, of both signs, whose largest one rounding more or less moves"
)

ENTRIES = (
    Entry(
        name="frame_aligned_point_error",
        family="frame_aligned_point_error",
        function=paperops.frame_aligned_point_error,
        reference=reference.frame_aligned_point_error,
        samples=_samples,
        refused=_refused,
        differentiable=DIFFERENTIABLE,
        batched=(*FRAMES, *POSITIONS, "pair_mask"),
        cost=_cost,
        backward_cost=_backward_cost,
        bench=tuple(_bench_cases()),
        sources=SOURCES,
        widens=True,
        twice=True,
        roundings=ROUNDINGS,
        tolerance_reason=ROUNDINGS_REASON,
    ),
    Entry(
        name="frame_aligned_point_error_terms",
        family="frame_aligned_point_error",
        function=paperops.frame_aligned_point_error_terms,
        reference=reference.frame_aligned_point_error_terms,
        samples=_terms_samples,
        refused=_terms_refused,
        differentiable=DIFFERENTIABLE,
        batched=(*FRAMES, *POSITIONS, *CHAINS, *WEIGHTS),
        cost=_cost,
        backward_cost=_backward_cost,
        bench=tuple(
            BenchCase(
                f"{name}, 3 chains, with backward",
                _bench(frames, points, 3),
                backward=True,
                devices=devices,
                differentiable=PREDICTED,
            )
            for name, frames, points, devices in (
                ("backbone N=256", 256, 256, ("cpu",)),
                ("backbone N=1024", 1024, 1024, ("cuda",)),
            )
        ),
        sources=SOURCES,
        widens=True,
        twice=True,
        roundings=ROUNDINGS,
        tolerance_reason=ROUNDINGS_REASON,
    ),
)

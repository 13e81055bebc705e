"""The entry of lddt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import paperops
from paperops import reference
from paperops.reference.lddt import THRESHOLDS
from paperops.testing.registry import BenchCase, Cost, Entry, Refused, Sample


def _chains(batch: int, n: int, seed: int, origin: float) -> tuple[Tensor, Tensor]:
    """True positions, a random walk of 3.8 A steps drawn towards where it began, and predictions 1 to 2 A from them."""
    generator = torch.Generator().manual_seed(seed)

    def random() -> Tensor:
        return torch.randn(batch, n, 3, generator=generator, dtype=torch.float64)

    steps, true = 2.2 * random(), torch.zeros(batch, n, 3, dtype=torch.float64)
    for i in range(1, n):
        true[:, i] = 0.97 * true[:, i - 1] + steps[:, i]
    return true + 0.9 * random() + origin, true + origin


def margin(pred: Tensor, target: Tensor, cutoff: float) -> float:
    """How far the closest decision is from its bound, in Angstrom: rounding must not reach so far."""
    true, found = torch.cdist(target, target), torch.cdist(pred, pred)
    apart = [(true - cutoff).abs(), *(((true - found).abs() - threshold).abs() for threshold in THRESHOLDS)]
    return min((float(value.min()) for value in apart if value.numel()), default=1.0)


def lddt_arguments(
    batch: int, n: int, device: torch.device, dtype: torch.dtype, origin: float = 0.0, cutoff: float = 15.0
) -> dict[str, Any]:
    """Predicted and true positions in ``dtype``, no pair of which lies on a bound; about a sixth masked."""
    wanted = 1e-4 if n < 100 else 0.0  # among very many pairs some lie as close as that
    for seed in range(100):
        pred, true = (value.to(dtype) for value in _chains(batch, n, 1000 * n + seed, origin))
        if margin(pred.double(), true.double(), cutoff) >= wanted:
            break
    else:
        raise AssertionError(f"no positions of {n} residues in {dtype} without a tie")
    mask = torch.rand(batch, n, generator=torch.Generator().manual_seed(n)) > 1 / 6
    return {"pred_positions": pred.to(device), "target_positions": true.to(device), "mask": mask.to(device)}


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    def make(batch: int, n: int, **options: float) -> dict[str, Any]:
        return lddt_arguments(batch, n, device, dtype, **options)

    small = make(2, 5)
    yield Sample("small", small, gradcheck=True)
    yield Sample("small, per residue", small | {"per_residue": True}, gradcheck=True)
    odd = make(3, 37)
    odd["mask"][1] = False
    for per_residue in (False, True):
        yield Sample(f"masked, per residue {per_residue}", odd | {"per_residue": per_residue})
    holds_anything = {
        name: value.masked_fill(~odd["mask"][..., None], float("nan" if name == "pred_positions" else "inf"))
        for name, value in odd.items()
        if name != "mask"
    }
    weights = {"mask": 0.5 * odd["mask"].to(dtype), "per_residue": True}
    yield Sample("masked, of NaN and infinities", holds_anything | weights)
    yield Sample("cutoff 6", make(2, 21, cutoff=6.0) | {"cutoff": 6.0, "per_residue": True})
    far = make(1, 7, origin=300.0) if dtype in (torch.float16, torch.bfloat16) else make(1, 40, origin=300.0)
    yield Sample("300 units from the origin", far | {"per_residue": True})
    coincident = {name: torch.zeros_like(value) for name, value in small.items() if name != "mask"}
    yield Sample("coincident points", coincident | {"mask": small["mask"], "per_residue": True})
    for n in (0, 1):
        few = {name: value[:, :n] for name, value in small.items()}
        yield Sample(f"{n} residues", few)
        yield Sample(f"{n} residues, per residue", few | {"per_residue": True})
    yield Sample("several tiles", make(1, 83) | {"per_residue": True})


def _refused(device: torch.device) -> Iterator[Refused]:
    good = lddt_arguments(2, 5, device, torch.float32)
    pred, mask = good["pred_positions"], good["mask"]

    def call(**changed: Any) -> dict[str, Any]:
        return good | changed

    yield Refused("not a tensor", call(pred_positions=[0.0]), TypeError, "pred_positions must be a torch.Tensor")
    yield Refused("rank 2", call(pred_positions=pred[0]), ValueError, r"pred_positions must have shape .*got \[5, 3\]")
    pair = {"pred_positions": pred[..., :2], "target_positions": pred[..., :2]}
    yield Refused("2 coordinates", call(**pair), ValueError, r"pred_positions must have shape \[B, N, 3\].*\[2, 5, 2\]")
    yield Refused("integers", call(pred_positions=pred.long()), TypeError, "pred_positions must be float16.*int64")
    fewer = call(target_positions=pred[:, :4])
    yield Refused("fewer targets", fewer, ValueError, r"target_positions must have the shape of pred_positions.*\[2, 4")
    yield Refused("dtype", call(target_positions=pred.double()), TypeError, "target_positions must have the dtype of")
    elsewhere = call(target_positions=pred.to("meta"))
    yield Refused("elsewhere", elsewhere, ValueError, "target_positions must be on the device of pred_positions")
    yield Refused("no mask", call(mask=None), TypeError, "mask must be a torch.Tensor; got NoneType")
    yield Refused(
        "mask of pairs", call(mask=mask[..., None]), ValueError, r"mask must have shape \[2, 5\].*\[2, 5, 1\]"
    )
    yield Refused("integer mask", call(mask=mask.long()), TypeError, "mask must be bool or floating.*torch.int64")
    yield Refused("mask with gradient", call(mask=mask.float().requires_grad_()), ValueError, "mask takes no gradient")
    yield Refused("cutoff 0", call(cutoff=0), ValueError, "cutoff must be positive and finite; got 0")
    yield Refused("negative cutoff", call(cutoff=-15.0), ValueError, "cutoff must be positive and finite; got -15.0")
    yield Refused("cutoff of text", call(cutoff="15"), TypeError, "cutoff must be a number; got str")
    yield Refused("per_residue 1", call(per_residue=1), TypeError, "per_residue must be True or False; got 1")


def _cost(sample: Sample) -> Cost:
    """The true distances of unordered pairs (those within the cutoff cost more); positions read once."""
    positions = sample.arguments["pred_positions"]
    batch, n, _ = positions.shape
    return Cost(9.0 * batch * n * (n - 1) / 2, 2.0 * positions.numel() * positions.element_size() + batch * n)


def _bench(n: int, per_residue: bool) -> Callable[[torch.device, torch.dtype], Sample]:
    def make(device: torch.device, dtype: torch.dtype) -> Sample:
        return Sample(f"N={n}", lddt_arguments(1, n, device, dtype) | {"per_residue": per_residue})

    return make


ENTRIES = (
    Entry(
        name="lddt",
        family="lddt",
        function=paperops.lddt,
        reference=reference.lddt,
        samples=_samples,
        refused=_refused,
        differentiable=(),
        batched=("pred_positions", "target_positions", "mask"),
        cost=_cost,
        bench=tuple(BenchCase(f"N={n}, per residue", _bench(n, True)) for n in (256, 1024)),
        sources=(
            "csrc/common",
            "csrc/lddt",
            "kernels/arithmetic.py",
            "kernels/launch.py",
            "kernels/lddt.py",
            "paperops/ops/lddt.py",
        ),
        exceptions={"gradients": "a count has no gradient", "gradcheck": "a count has no gradient"},
    ),
)

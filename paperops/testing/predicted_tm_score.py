"""The entry of predicted_tm_score."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

import paperops
from paperops import reference
from paperops.testing.registry import BenchCase, Cost, Entry, Refused, Sample


def score_arguments(
    batch: int, n: int, bins: int, device: torch.device, dtype: torch.dtype, chains: int = 0
) -> dict[str, Any]:
    """Random logits; with ``chains`` an interface between so many, of about the same length."""
    generator = torch.Generator().manual_seed(1000 * n + bins)
    logits = 2 * torch.randn(batch, n, n, bins, generator=generator, dtype=torch.float64)
    arguments: dict[str, Any] = {"logits": logits.to(device, dtype), "bins": bins}
    if chains:
        asym_id = (torch.arange(n, device=device) * chains // max(n, 1)).expand(batch, n).contiguous()
        arguments |= {"asym_id": asym_id, "interface": True}
    return arguments


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    def make(*given: Any) -> dict[str, Any]:
        batch, n, bins, *chains = given
        return score_arguments(batch, n, bins, device, dtype, *chains)

    def weights(batch: int, n: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(n)
        kept = torch.rand(batch, n, generator=generator) > 0.2
        return (kept * (0.5 + torch.rand(batch, n, generator=generator, dtype=torch.float64))).to(device, dtype)

    small = make(2, 4, 5)
    yield Sample("small", small | {"max_bin": 3.5}, gradcheck=True)
    yield Sample("weights", small | {"residue_weights": weights(2, 4)}, gradcheck=True)
    interface = make(2, 4, 4, 2)
    kept = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]], device=device).bool()
    yield Sample("interface", interface | {"residue_weights": kept}, gradcheck=True)
    yield Sample("one chain", make(1, 3, 6, 1))
    yield Sample("everything weighs 0", small | {"residue_weights": torch.zeros(2, 4, device=device)})
    one = make(3, 1, 64)
    yield Sample("one residue", one)
    yield Sample("no residues", one | {"logits": one["logits"][:, :0, :0]})
    odd = make(2, 21, 64, 3)
    yield Sample("three chains", odd | {"residue_weights": weights(2, 21)})
    nothing = odd["logits"].masked_fill((weights(2, 21) == 0)[:, None, :, None], float("nan"))
    nothing = nothing.masked_fill((weights(2, 21) == 0)[:, :, None, None], float("inf"))
    yield Sample("what weighs 0 is NaN", odd | {"logits": nothing, "residue_weights": weights(2, 21)})
    sharp = make(1, 23, 37)
    yield Sample("sharp", sharp | {"logits": 20 * sharp["logits"], "max_bin": 20.0})
    impossible = sharp["logits"].clone()
    impossible[..., 3::5] = -float("inf")
    yield Sample("bins that cannot be", sharp | {"logits": impossible})
    yield Sample("3 bins", make(1, 9, 3))
    yield Sample("67 residues", make(1, 67, 64, 2) | {"residue_weights": weights(1, 67)})
    yield Sample("130 bins", make(1, 25, 130), large=True)


def _refused(device: torch.device) -> Iterator[Refused]:
    good = score_arguments(2, 4, 6, device, torch.float32, 2)
    logits, asym_id = good["logits"], good["asym_id"]
    weights = torch.ones(2, 4, device=device)

    def call(**changed: Any) -> dict[str, Any]:
        return good | changed

    yield Refused("not a tensor", call(logits=[0.0]), TypeError, "logits must be a torch.Tensor; got list")
    yield Refused(
        "rank 3", call(logits=logits[0]), ValueError, r"logits must have shape \[B, N, N, bins\].*\[4, 4, 6\]"
    )
    yield Refused("not square", call(logits=logits[:, :3]), ValueError, r"logits must be square .*got \[2, 3, 4, 6\]")
    yield Refused("integers", call(logits=logits.long()), TypeError, "logits must be float16.*torch.int64")
    yield Refused("other bins", call(bins=64), ValueError, r"logits must have bins = 64 .*got \[2, 4, 4, 6\]")
    two = call(logits=logits[..., :2], bins=2)
    yield Refused("2 bins", two, ValueError, "bins must be at least 3; got 2")
    yield Refused("bins of text", call(bins="6"), TypeError, "bins must be an int; got str")
    yield Refused("max_bin 0", call(max_bin=0), ValueError, "max_bin must be positive and finite; got 0")
    yield Refused("negative max_bin", call(max_bin=-1.0), ValueError, "max_bin must be positive and finite; got -1.0")
    yield Refused("interface 1", call(interface=1), TypeError, "interface must be True or False; got 1")
    yield Refused("no chains", call(asym_id=None), ValueError, "interface=True needs asym_id")
    yield Refused("chains of pairs", call(asym_id=asym_id[0]), ValueError, r"asym_id must have shape \[2, 4\].*\[4\]")
    yield Refused("floating chains", call(asym_id=weights), TypeError, "asym_id must have an integer dtype.*float32")
    yield Refused("elsewhere", call(asym_id=asym_id.to("meta")), ValueError, "asym_id must be on the device of logits")
    for name, value, error, message in (
        ("of one item", weights[0], ValueError, r"must have shape \[2, 4\].*\[4\]"),
        ("integer", weights.long(), TypeError, "must be bool or floating.*int64"),
        ("with gradient", weights.clone().requires_grad_(), ValueError, "takes no gradient"),
        ("elsewhere", weights.to("meta"), ValueError, "must be on the device of logits"),
    ):
        yield Refused(f"weights {name}", call(residue_weights=value), error, f"residue_weights {message}")
    if device.type == "cpu":
        for found, value in (("-1.0", -weights), ("NaN", weights * float("nan"))):
            message = f"residue_weights must be finite and not negative; got {found}"
            yield Refused(f"weights {found}", call(residue_weights=value), ValueError, message)


def _cost(sample: Sample) -> Cost:
    """Largest, difference, exponential, two sums and a product for each logit, read once."""
    logits = sample.arguments["logits"]
    return Cost(6.0 * logits.numel(), float(logits.numel() * logits.element_size()))


def _backward_cost(sample: Sample) -> Cost:
    """One row again; the gradient written."""
    logits = sample.arguments["logits"]
    return Cost(10.0 * logits[:, 0].numel(), float(logits.numel() * logits.element_size()))


def _bench(n: int) -> Callable[[torch.device, torch.dtype], Sample]:
    def make(device: torch.device, dtype: torch.dtype) -> Sample:
        return Sample(f"N={n}", score_arguments(1, n, 64, device, dtype))

    return make


def _bench_cases() -> Iterator[BenchCase]:
    for n, devices in ((128, ("cpu",)), (384, ("cpu", "cuda")), (1024, ("cuda",)), (2048, ("cuda",))):
        yield BenchCase(f"N={n}", _bench(n), devices=devices)
        yield BenchCase(f"N={n}, with backward", _bench(n), backward=True, devices=devices)


ENTRIES = (
    Entry(
        name="predicted_tm_score",
        family="predicted_tm_score",
        function=paperops.predicted_tm_score,
        reference=reference.predicted_tm_score,
        samples=_samples,
        refused=_refused,
        differentiable=("logits",),
        batched=("logits", "residue_weights", "asym_id"),
        cost=_cost,
        backward_cost=_backward_cost,
        bench=tuple(_bench_cases()),
        sources=(
            "csrc/common",
            "csrc/predicted_tm_score",
            "kernels/arithmetic.py",
            "kernels/launch.py",
            "kernels/predicted_tm_score.py",
            "paperops/ops/predicted_tm_score.py",
        ),
        twice=True,
    ),
)

"""The nearest family's entries: knn, chamfer_distance, f_score, hausdorff_distance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

import paperops
from paperops import reference
from paperops.testing.registry import BenchCase, Cost, Entry, Refused, Sample

# --- clouds --------------------------------------------------------------------------------------------------------


def _cloud(
    seed: int, batch: int, points: int, dimensions: int = 3, *, device: torch.device, dtype: torch.dtype
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, points, dimensions, generator=generator, dtype=torch.float64).to(device, dtype)


def _pairs(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Pairs of clouds that any op of the family takes: name, x, y and lengths, fit for numerical derivatives."""

    def random(batch: int, n: int, m: int, dimensions: int = 3) -> dict[str, Any]:
        cloud = partial(_cloud, device=device, dtype=dtype)
        return {"x": cloud(n, batch, n, dimensions), "y": cloud(m + 1, batch, m, dimensions)}

    def lengths(*values: int) -> Tensor:
        return torch.tensor(values, device=device)

    yield "small", random(2, 5, 7), True
    yield "one point each", random(1, 1, 1), True
    yield "one dimension", random(2, 17, 16, 1), False
    yield "two dimensions", random(1, 33, 65, 2), False
    yield "four dimensions", random(1, 6, 18, 4), False
    yield "nine dimensions", random(1, 9, 20, 9), False
    yield "33 dimensions", random(1, 7, 19, 33), False
    yield "several tiles", random(1, 67, 300), False
    ragged = {"x_lengths": lengths(5, 0, 3, 0), "y_lengths": lengths(7, 2, 0, 0)}
    yield "ragged", random(4, 5, 7) | ragged, False
    yield "ragged, one side", random(2, 6, 4) | {"y_lengths": lengths(4, 1)}, True
    lattice = {name: (2 * value).round() / 2 for name, value in random(1, 40, 50).items()}
    yield "lattice", lattice, False
    yield "one cloud twice", dict.fromkeys(("x", "y"), lattice["x"]), False
    yield "far away", {name: 1000 + value / 1000 for name, value in random(1, 30, 40).items()}, False
    yield "tiny", {name: value * 1e-20 for name, value in random(1, 20, 30).items()}, False


def _without_points(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, dict[str, Any], bool]]:
    cloud, none = (_cloud(0, 2, points, device=device, dtype=dtype) for points in (4, 0))
    yield "x empty", {"x": none, "y": cloud}, False
    yield "y empty", {"x": cloud, "y": none}, False
    yield "both empty", {"x": none, "y": none}, False


def _refused_pairs(device: torch.device) -> Iterator[Refused]:
    """What every op of the family refuses."""
    x = torch.zeros(2, 4, 3, device=device)
    y = torch.zeros(2, 5, 3, device=device)

    def lengths(*values: int) -> Tensor:
        return torch.tensor(values, device=device)

    def pair(**changed: Any) -> dict[str, Any]:
        return {"x": x, "y": y} | changed

    yield Refused("not a tensor", pair(x=[[0.0]]), TypeError, r"x must be a torch.Tensor; got list")
    yield Refused("rank 2", pair(x=x[0]), ValueError, r"x must have shape .*got \[4, 3\]")
    yield Refused("rank 4", pair(y=y[None]), ValueError, r"y must have shape .*got \[1, 2, 5, 3\]")
    yield Refused("integer points", pair(x=x.long()), TypeError, r"x must be float16.*got torch.int64")
    yield Refused("complex points", pair(y=y.to(torch.complex64)), TypeError, r"y must be float16.*got torch.complex64")
    yield Refused("dimensions differ", pair(y=y[..., :2]), ValueError, r"y must have points of the dimension of x, 3")
    yield Refused("no dimension", pair(x=x[..., :0], y=y[..., :0]), ValueError, r"x and y .*at least 1 dimension")
    yield Refused("batches differ", pair(y=y[:1]), ValueError, r"y must have the batch size of x, 2; got 1")
    yield Refused("dtypes differ", pair(y=y.double()), TypeError, r"y must have the dtype of x, torch.float32")
    yield Refused("devices differ", pair(y=y.to("meta")), ValueError, r"y must be on the device of x.*got meta")
    for name, points in (("x_lengths", 4), ("y_lengths", 5)):
        yield Refused(
            f"{name} floating", pair(**{name: torch.ones(2, device=device)}), TypeError, f"{name} must have an int"
        )
        yield Refused(f"{name} a list", pair(**{name: [1, 2]}), TypeError, f"{name} must be a torch.Tensor; got list")
        yield Refused(f"{name} of another batch", pair(**{name: lengths(1, 1, 1)}), ValueError, rf"{name} .*\[2\]")
        yield Refused(
            f"{name} elsewhere", pair(**{name: lengths(1, 1).to("meta")}), ValueError, f"{name} must be on the d"
        )
        if device.type == "cpu":  # values on a GPU are not read back
            yield Refused(f"{name} negative", pair(**{name: lengths(1, -1)}), ValueError, f"{name} .*negative; got -1")
            yield Refused(
                f"{name} too large", pair(**{name: lengths(9, 1)}), ValueError, f"{name} .*at most .*{points}"
            )


def _moved(*tensors: Tensor) -> float:
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def _points_backward_cost(sample: Sample) -> Cost:
    """For each pair of neighbours a difference, four products and sums, by dimension; gradients of points written."""
    x, y, k = sample.arguments["x"], sample.arguments["y"], sample.arguments.get("k", 1)
    pairs = x.shape[0] * x.shape[1] * k + (0 if "k" in sample.arguments else y.shape[0] * y.shape[1])
    return Cost(5.0 * pairs * x.shape[2], 2 * _moved(x, y) + 8.0 * pairs)


def _pair_operations(arguments: dict[str, Any]) -> float:
    """Per pair and dimension a difference, a product and a sum."""
    batch, n, dimensions = arguments["x"].shape
    return 3.0 * batch * n * arguments["y"].shape[1] * dimensions


def _bench_pair(batch: int, n: int, **options: Any) -> Callable[[torch.device, torch.dtype], Sample]:
    def make(device: torch.device, dtype: torch.dtype) -> Sample:
        cloud = partial(_cloud, device=device, dtype=dtype)
        return Sample(f"B={batch}, N=M={n}", {"x": cloud(1, batch, n), "y": cloud(2, batch, n)} | options)

    return make


SOURCES = (
    "csrc/common",
    "csrc/nearest",
    "kernels/launch.py",
    "kernels/nearest*.py",
    "paperops/ops/nearest.py",
    "paperops/ops/chamfer.py",
    "paperops/ops/metrics.py",
)
BATCHED = ("x", "y", "x_lengths", "y_lengths")

# --- knn -----------------------------------------------------------------------------------------------------------


def _knn_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name, arguments, smooth in _pairs(device, dtype):
        yield Sample(name, arguments, gradcheck=smooth)
    small = {name: _cloud(seed, 2, 6, device=device, dtype=dtype) for seed, name in enumerate(("x", "y"))}
    yield Sample("k=3", small | {"k": 3}, gradcheck=True)
    yield Sample("norm 1", small | {"k": 2, "norm": 1}, gradcheck=True)
    yield Sample("neighbors", small | {"k": 2, "return_neighbors": True}, gradcheck=True)
    yield Sample("k is M", small | {"k": 6})
    yield Sample("k beyond M", small | {"k": 9, "y_lengths": torch.tensor([0, 5], device=device)})
    lattice = {"x": small["x"].round(), "y": small["y"].repeat(1, 5, 1).round()}
    yield Sample("ties, k=8", lattice | {"k": 8})
    yield Sample("ties, norm 1, k=5", lattice | {"k": 5, "norm": 1})
    yield Sample("nine dimensions, k=20", {**_wide(device, dtype), "k": 20})
    yield Sample("k=40 of 130", {**_tall(device, dtype), "k": 40}, large=True)
    damaged = {name: value.clone() for name, value in small.items()}
    damaged["x"][0, 1, 2] = torch.nan
    damaged["y"][:, 2, 0] = torch.nan
    damaged["y"][0, 4, 1] = torch.nan
    yield Sample("NaN", damaged | {"k": 6})
    none = {"x": small["x"][:, :0], "y": small["y"]}
    yield Sample("no queries", none | {"k": 2})


def _wide(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    return {name: _cloud(seed, 1, 30, 9, device=device, dtype=dtype) for seed, name in enumerate(("x", "y"))}


def _tall(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    cloud = partial(_cloud, device=device, dtype=dtype)
    return {"x": cloud(1, 1, 5), "y": cloud(2, 1, 130)}


def _knn_refused(device: torch.device) -> Iterator[Refused]:
    yield from _refused_pairs(device)
    x, y = torch.zeros(2, 4, 3, device=device), torch.zeros(2, 5, 3, device=device)
    yield Refused("k=0", {"x": x, "y": y, "k": 0}, ValueError, "k must be at least 1; got 0")
    yield Refused("k=-1", {"x": x, "y": y, "k": -1}, ValueError, "k must be at least 1; got -1")
    yield Refused("k floating", {"x": x, "y": y, "k": 2.0}, TypeError, "k must be an int; got float")
    yield Refused("k on an empty cloud", {"x": x, "y": y[:, :0]}, ValueError, "y must have at least one point for k=1")
    for norm in (0, 3, "2", float("inf")):
        yield Refused(f"norm {norm}", {"x": x, "y": y, "norm": norm}, ValueError, "norm must be 1 or 2; got")


def _knn_cost(sample: Sample) -> Cost:
    x, y, k = sample.arguments["x"], sample.arguments["y"], sample.arguments.get("k", 1)
    return Cost(_pair_operations(sample.arguments), _moved(x, y) + 12.0 * x.shape[0] * x.shape[1] * k)


KNN = Entry(
    name="knn",
    family="nearest",
    function=paperops.knn,
    reference=reference.knn,
    samples=_knn_samples,
    refused=_knn_refused,
    differentiable=("x", "y"),
    batched=BATCHED,
    cost=_knn_cost,
    backward_cost=_points_backward_cost,
    bench=(
        BenchCase("k=16, B=4, N=M=1024", _bench_pair(4, 1024, k=16)),
        BenchCase("k=16, B=4, N=M=4096", _bench_pair(4, 4096, k=16)),
        BenchCase("k=16, B=4, N=M=4096, with backward", _bench_pair(4, 4096, k=16), backward=True),
        BenchCase("k=1, B=1, N=M=100000", _bench_pair(1, 100_000), devices=("cuda",)),
    ),
    sources=SOURCES,
    twice=True,
)

# --- chamfer_distance ----------------------------------------------------------------------------------------------


def _chamfer_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name, arguments, smooth in _pairs(device, dtype):
        yield Sample(name, arguments, gradcheck=smooth)
    for name, arguments, smooth in _without_points(device, dtype):
        yield Sample(name, arguments, gradcheck=smooth)
    cloud = partial(_cloud, device=device, dtype=dtype)
    pair = {"x": cloud(1, 3, 5), "y": cloud(2, 3, 4)}
    lengths = {
        "x_lengths": torch.tensor([5, 0, 3], device=device),
        "y_lengths": torch.tensor([1, 4, 3], device=device),
    }
    weights = torch.tensor([0.5, 0.0, 2.0], device=device, dtype=dtype)
    points = {
        "x_weights": cloud(3, 3, 5, 1)[..., 0].abs(),
        "y_weights": cloud(4, 3, 4, 1)[..., 0].abs(),
    }
    normals = {"x_normals": cloud(5, 3, 5), "y_normals": cloud(6, 3, 4)}
    for point_reduction in ("mean", "sum", "max"):
        for batch_reduction in ("mean", "sum", None):
            reductions = {"point_reduction": point_reduction, "batch_reduction": batch_reduction}
            name = f"{point_reduction} over points, {batch_reduction} over batch"
            yield Sample(name, pair | reductions, gradcheck=True)
            yield Sample(
                f"{name}, all options", pair | lengths | points | reductions | {"weights": weights, "squared": False}
            )
    unreduced = {"point_reduction": None, "batch_reduction": None}
    yield Sample("not reduced", pair | unreduced | lengths | points | {"weights": weights})
    yield Sample("not reduced, normals", pair | unreduced | normals, gradcheck=True)
    yield Sample(
        "not reduced, one direction", pair | unreduced | normals | {"single_directional": True}, gradcheck=True
    )
    yield Sample("norm 1", pair | {"norm": 1}, gradcheck=True)
    yield Sample("not squared", pair | {"squared": False}, gradcheck=True)
    same = {"x": pair["x"], "y": pair["x"].clone()}
    yield Sample("not squared, distance 0", same | {"squared": False})
    yield Sample("one direction", pair | {"single_directional": True}, gradcheck=True)
    yield Sample("one direction, max", pair | lengths | {"single_directional": True, "point_reduction": "max"})
    yield Sample(
        "one direction, not squared, weights", pair | points | {"single_directional": True, "squared": False}, True
    )
    yield Sample("normals", pair | normals, gradcheck=True)
    yield Sample(
        "normals, ragged, weights", pair | normals | lengths | points | {"weights": weights, "abs_cosine": False}
    )
    yield Sample("point weights", pair | points, gradcheck=True)
    yield Sample("point weights, not squared", pair | points | {"squared": False}, gradcheck=True)
    nothing = {name: torch.zeros_like(value) for name, value in points.items()}
    yield Sample("all point weights 0", pair | nothing)
    yield Sample("all weights 0", pair | {"weights": torch.zeros_like(weights)})


def _chamfer_refused(device: torch.device) -> Iterator[Refused]:
    yield from _refused_pairs(device)
    pair = {"x": torch.zeros(2, 4, 3, device=device), "y": torch.zeros(2, 5, 3, device=device)}

    def bad(name: str, message: str, error: type[Exception] = ValueError, /, **changed: Any) -> Refused:
        return Refused(name, pair | changed, error, message)

    ones = torch.ones(2, device=device)
    yield bad("norm 3", "norm must be 1 or 2; got 3", norm=3)
    yield bad("unknown batch reduction", "batch_reduction must be one of .*got 'median'", batch_reduction="median")
    yield bad("max over the batch", "batch_reduction must be one of .*got 'max'", batch_reduction="max")
    yield bad("unknown point reduction", "point_reduction must be one of .*got 'min'", point_reduction="min")
    yield bad("mean of unreduced", "batch_reduction must be None if point_reduction is None", point_reduction=None)
    yield bad("root of norm 1", "squared=False .*needs norm=2; got norm=1", squared=False, norm=1)
    yield bad(
        "weights of another batch", r"weights must have shape \[2\]; got \[3\]", weights=torch.ones(3, device=device)
    )
    yield bad("integer weights", "weights must have a floating dtype", TypeError, weights=ones.long())
    yield bad("weights a list", "weights must be a torch.Tensor; got list", TypeError, weights=[1.0, 1.0])
    yield bad("point weights of another shape", r"x_weights must have shape \[2, 4\]; got \[2\]", x_weights=ones)
    yield bad("one cloud's normals", "x_normals and y_normals must be given together", x_normals=pair["x"])
    normals: dict[str, Any] = {"x_normals": pair["x"], "y_normals": pair["y"]}
    yield bad("largest angle", "point_reduction must not be 'max' with normals", point_reduction="max", **normals)
    wrong = normals | {"y_normals": pair["x"]}
    yield bad("normals of another shape", r"y_normals must have the shape of the points, \[2, 5, 3\]", **wrong)
    wrong = normals | {"x_normals": pair["x"].double()}
    yield bad("normals of another dtype", "x_normals must have the dtype of the points", TypeError, **wrong)
    if device.type == "cpu":
        for value, said in ((float("nan"), "NaN"), (-1.0, "-1.0"), (float("inf"), "inf")):
            weights = torch.tensor([1.0, value])
            yield bad(f"weights {said}", f"weights must be finite and not negative; got {said}", weights=weights)
            points = torch.full((2, 4), value)
            yield bad(f"point weights {said}", f"x_weights must be finite .*got {said}", x_weights=points)
            points = torch.full((2, 5), value)
            yield bad(f"y's point weights {said}", f"y_weights must be finite .*got {said}", y_weights=points)


def _chamfer_cost(sample: Sample) -> Cost:
    x, y = sample.arguments["x"], sample.arguments["y"]
    return Cost(_pair_operations(sample.arguments), _moved(x, y) + 12.0 * x.shape[0] * (x.shape[1] + y.shape[1]))


CHAMFER = Entry(
    name="chamfer_distance",
    family="nearest",
    function=paperops.chamfer_distance,
    reference=reference.chamfer_distance,
    samples=_chamfer_samples,
    refused=_chamfer_refused,
    differentiable=("x", "y", "x_normals", "y_normals", "x_weights", "y_weights"),
    batched=(*BATCHED, "x_normals", "y_normals", "weights", "x_weights", "y_weights"),
    cost=_chamfer_cost,
    backward_cost=_points_backward_cost,
    bench=(
        BenchCase("B=1, N=M=4", _bench_pair(1, 4)),
        BenchCase("B=1, N=M=4, with backward", _bench_pair(1, 4), backward=True),
        BenchCase("B=8, N=M=512", _bench_pair(8, 512)),
        BenchCase("B=8, N=M=512, with backward", _bench_pair(8, 512), backward=True),
        BenchCase("B=8, N=M=2048", _bench_pair(8, 2048)),
        BenchCase("B=8, N=M=2048, with backward", _bench_pair(8, 2048), backward=True),
        BenchCase("B=32, N=M=2048", _bench_pair(32, 2048), devices=("cuda",)),
        BenchCase("B=32, N=M=2048, with backward", _bench_pair(32, 2048), backward=True, devices=("cuda",)),
        BenchCase("B=1, N=M=1000", _bench_pair(1, 1000)),
        BenchCase("B=1, N=M=10000", _bench_pair(1, 10_000)),
        BenchCase("B=1, N=M=100000", _bench_pair(1, 100_000)),
    ),
    sources=SOURCES,
    twice=True,
)

# --- f_score and hausdorff_distance --------------------------------------------------------------------------------


def _f_score_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name, arguments, smooth in (*_pairs(device, dtype), *_without_points(device, dtype)):
        yield Sample(name, arguments | {"radius": 0.7 if name != "far away" else 0.0013}, gradcheck=smooth)


def _f_score_refused(device: torch.device) -> Iterator[Refused]:
    for case in _refused_pairs(device):
        yield Refused(case.name, case.arguments | {"radius": 1.0}, case.error, case.message)
    pair = {"x": torch.zeros(2, 4, 3, device=device), "y": torch.zeros(2, 5, 3, device=device)}
    yield Refused(
        "negative radius", pair | {"radius": -0.1}, ValueError, "radius must be finite and not negative; got -0.1"
    )
    yield Refused("NaN radius", pair | {"radius": float("nan")}, ValueError, "radius must be finite .*got nan")
    yield Refused("radius of text", pair | {"radius": "1"}, TypeError, "radius must be a number; got str")


F_SCORE = Entry(
    name="f_score",
    family="nearest",
    function=paperops.f_score,
    reference=reference.f_score,
    samples=_f_score_samples,
    refused=_f_score_refused,
    differentiable=(),
    batched=BATCHED,
    cost=_chamfer_cost,
    bench=tuple(BenchCase(f"B=8, N=M={n}", _bench_pair(8, n, radius=0.1)) for n in (512, 2048)),
    sources=SOURCES,
    exceptions={"gradients": "a count has no gradient", "gradcheck": "a count has no gradient"},
)


def _hausdorff_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for name, arguments, smooth in (*_pairs(device, dtype), *_without_points(device, dtype)):
        yield Sample(name, arguments, gradcheck=smooth)
        if name in ("small", "ragged"):
            yield Sample(f"{name}, one direction", arguments | {"single_directional": True}, gradcheck=smooth)


HAUSDORFF = Entry(
    name="hausdorff_distance",
    family="nearest",
    function=paperops.hausdorff_distance,
    reference=reference.hausdorff_distance,
    samples=_hausdorff_samples,
    refused=_refused_pairs,
    differentiable=("x", "y"),
    batched=BATCHED,
    cost=_chamfer_cost,
    bench=tuple(BenchCase(f"B=8, N=M={n}", _bench_pair(8, n)) for n in (512, 2048)),
    sources=SOURCES,
    twice=True,
)

ENTRIES = (KNN, CHAMFER, F_SCORE, HAUSDORFF)

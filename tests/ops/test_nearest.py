"""What is particular to the nearest family, beyond the generic checks."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

import paperops
from paperops import backends
from paperops.testing.targets import fast_targets, targets

backend = pytest.mark.parametrize("target", targets(), ids="-".join)
# Where the clouds are so large that the reference, or the interpreter, would run out of memory or time.
fast_backend = pytest.mark.parametrize("target", fast_targets(), ids="-".join)


def run(target, function, *arguments, **options):
    """One call on a device and a backend, its results brought back to the CPU."""

    def moved(value, device):
        if isinstance(value, torch.Tensor):
            return value.to(device)
        if isinstance(value, tuple):
            parts = [moved(part, device) for part in value]
            return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
        return value

    device, name = target
    options = {key: moved(value, device) for key, value in options.items()}
    return moved(function(*moved(arguments, device), **options), "cpu")


def brute_force(x, y, norm=2):
    """Float64 distances of every pair, a dimension at a time, and the index of the least with ties to the lowest."""
    total = torch.zeros(x.shape[0], x.shape[1], y.shape[1], dtype=torch.float64)
    for dimension in range(x.shape[2]):
        difference = x[:, :, None, dimension].double() - y[:, None, :, dimension].double()
        total += difference**2 if norm == 2 else difference.abs()
    return total, total.argmin(2)


@backend
@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("spread", [1e-3, 1e-2, 1.0])
def test_indices_are_those_of_float64_far_from_the_origin(target, spread, norm):
    generator = torch.Generator().manual_seed(1)
    x = 1000 + spread * torch.randn(2, 90, 3, generator=generator)
    y = 1000 + spread * torch.randn(2, 400, 3, generator=generator)
    found = run(target, paperops.knn, x, y, norm=norm)
    distances, indices = brute_force(x, y, norm)
    assert torch.equal(found.indices[..., 0], indices)
    torch.testing.assert_close(found.distances[..., 0].double(), distances.amin(2), rtol=1e-6, atol=0)


@backend
@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e19, 1e30])
def test_indices_survive_underflow_and_overflow_of_float32(target, scale, norm):
    generator = torch.Generator().manual_seed(2)
    x, y = scale * torch.randn(1, 20, 3, generator=generator), scale * torch.randn(1, 60, 3, generator=generator)
    found = run(target, paperops.knn, x, y, k=3, norm=norm)
    one = run(target, paperops.knn, x, y, norm=norm)
    distances, indices = brute_force(x, y, norm)
    assert torch.equal(found.indices, distances.argsort(dim=2, stable=True)[..., :3])
    assert torch.equal(one.indices[..., 0], indices)
    assert torch.equal(one.distances, found.distances[..., :1])
    expected = distances.sort(2).values[..., :3]
    if expected.max() > torch.finfo(torch.float32).max:
        assert found.distances[expected > torch.finfo(torch.float32).max].isinf().all()
    else:
        torch.testing.assert_close(found.distances.double(), expected, rtol=1e-6, atol=1e-44)


@backend
@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("dimensions", [2, 3, 5])
def test_distances_that_differ_by_less_than_float32_resolves(target, dimensions, norm):
    generator = torch.Generator().manual_seed(6)
    y = torch.randn(1, 300, dimensions, generator=generator, dtype=torch.float64)
    y = (y / y.norm(p=norm, dim=2, keepdim=True)).float()  # all at distance 1 from the origin, up to rounding
    x = 1e-9 * torch.randn(1, 20, dimensions, generator=generator)
    distances, indices = brute_force(x, y, norm)
    assert torch.equal(run(target, paperops.knn, x, y, norm=norm).indices[..., 0], indices)
    found = run(target, paperops.knn, x, y, k=7, norm=norm)
    assert torch.equal(found.indices, distances.argsort(dim=2, stable=True)[..., :7])


@backend
def test_infinite_coordinates(target):
    x = torch.tensor([[[0.0, 0.0], [torch.inf, 0.0]]])
    y = torch.tensor([[[torch.inf, 1.0], [1.0, 0.0], [-torch.inf, 0.0]]])
    found = run(target, paperops.knn, x, y, k=3)
    assert found.indices.tolist() == [[[1, 0, 2], [1, 2, 0]]]  # inf - inf is NaN and comes last
    assert found.distances[0, 0].tolist() == [1.0, torch.inf, torch.inf]
    assert found.distances[0, 1, :2].tolist() == [torch.inf, torch.inf]
    assert found.distances[0, 1, 2].isnan()


@backend
def test_nan_sorts_last_and_nan_queries_find_nothing(target):
    x = torch.tensor([[[0.0, 0.0], [torch.nan, 0.0]]])
    y = torch.tensor([[[torch.nan, 1.0], [2.0, 0.0], [0.0, torch.nan], [1.0, 0.0]]])
    found = run(target, paperops.knn, x, y, k=5)
    loss = run(target, paperops.chamfer_distance, x, y)[0]
    assert found.indices.tolist() == [[[3, 1, 0, 2, -1], [-1] * 5]]
    assert found.distances[0, 0, :2].tolist() == [1.0, 4.0]
    assert found.distances[0, :, 2:4].isnan().all()
    assert found.distances[0, :, 4].isinf().all()
    assert loss.isnan()


@backend
def test_all_targets_nan(target):
    x, y = torch.zeros(1, 2, 3), torch.full((1, 3, 3), torch.nan)
    found = run(target, paperops.knn, x, y, k=2)
    assert found.distances.isnan().all()
    assert found.indices.tolist() == [[[0, 1], [0, 1]]]


@backend
def test_ties_go_to_the_lowest_index(target):
    y = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]]]).repeat(1, 20, 1)
    assert run(target, paperops.knn, torch.zeros(1, 3, 2), y, k=6).indices.tolist() == [[[0, 1, 2, 3, 4, 5]] * 3]
    assert run(target, paperops.knn, torch.zeros(1, 3, 2), y, k=1).indices.tolist() == [[[0]] * 3]
    assert run(target, paperops.knn, torch.tensor([[[0.5, 0.5]]]), y, k=3).indices.tolist() == [[[0, 1, 4]]]


@backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gradient_of_a_target_that_all_queries_chose(target, dtype):
    x = torch.linspace(0, 1, 500, dtype=torch.float64).reshape(1, 500, 1).to(dtype).requires_grad_()
    y = torch.zeros(1, 1, 1, dtype=dtype, requires_grad=True)
    found = run(target, paperops.knn, x, y)
    with paperops.use_backend(target[1]):
        found.distances.sum().backward()
    assert torch.equal(x.grad, 2 * x.detach())
    exact = float(-2 * x.detach().double().sum())
    assert abs(float(y.grad) - exact) <= 8 * torch.finfo(dtype).eps * abs(exact)


@backend
def test_lengths_of_any_integer_dtype(target):
    x, y = torch.rand(2, 4, 3), torch.rand(2, 5, 3)
    results = [
        run(
            target,
            paperops.chamfer_distance,
            x,
            y,
            torch.tensor([4, 2], dtype=dtype),
            torch.tensor([1, 5], dtype=dtype),
        )[0]
        for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    ]
    assert all(torch.equal(results[0], result) for result in results)


@backend
def test_values_past_the_lengths_do_not_matter(target):
    x, y = torch.rand(2, 6, 3), torch.rand(2, 7, 3)
    lengths = torch.tensor([3, 5]), torch.tensor([7, 2])
    spoiled = x.clone(), y.clone()
    for cloud, sizes in zip(spoiled, lengths, strict=True):
        for item, size in enumerate(sizes):
            cloud[item, size:] = torch.nan
    clean, dirty = (
        [
            run(target, paperops.knn, a, b, 2, x_lengths=lengths[0], y_lengths=lengths[1]),
            run(target, paperops.chamfer_distance, a, b, *lengths)[0],
        ]
        for a, b in ((x, y), spoiled)
    )
    assert torch.equal(clean[0].indices, dirty[0].indices)
    assert torch.equal(clean[0].distances, dirty[0].distances)
    assert torch.equal(clean[1], dirty[1])


@backend
def test_neighbors_are_differentiable(target):
    x = torch.rand(1, 4, 3, dtype=torch.float64)
    y = torch.rand(1, 5, 3, dtype=torch.float64, requires_grad=True)
    with paperops.use_backend(target[1]):
        assert torch.autograd.gradcheck(
            lambda y: run(target, paperops.knn, x, y, 2, return_neighbors=True).neighbors, (y,)
        )


def test_hessian_of_the_chamfer_distance_through_the_fixed_matching():
    x, y = torch.rand(1, 3, 2, dtype=torch.float64), torch.rand(1, 4, 2, dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(lambda x: paperops.chamfer_distance(x, y, point_reduction="sum")[0], x)
    forth = paperops.knn(x, y).indices[..., 0]
    back = paperops.knn(y, x).indices[..., 0]
    chosen = 1 + torch.bincount(back[0], minlength=3)  # how many terms each point of x stands in
    assert forth.shape == (1, 3)
    expected = torch.diag((2.0 * chosen).double().repeat_interleave(2))
    torch.testing.assert_close(hessian.reshape(6, 6), expected)


@fast_backend
def test_more_pairs_than_a_32_bit_index_counts(target):
    generator = torch.Generator().manual_seed(3)
    x, y = torch.rand(1, 50_000, 3, generator=generator), torch.rand(1, 50_000, 3, generator=generator)
    indices = run(target, paperops.knn, x, y).indices[0, :, 0]
    expected = torch.from_numpy(cKDTree(y[0].double().numpy()).query(x[0].double().numpy())[1])
    assert torch.equal(indices, expected)


def test_memory_grows_with_the_points_not_the_pairs():
    if backends.missing("native", "cpu") is not None:
        pytest.skip("the reference materialises all distances")
    code = """
import resource, torch, paperops
def run(n):
    x, y = torch.rand(1, n, 3, requires_grad=True), torch.rand(1, n, 3, requires_grad=True)
    paperops.chamfer_distance(x, y)[0].backward()
    paperops.knn(x, y, k=4).distances.sum().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
small = run(100)
print((run(20_000) - small) / 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    megabytes = float(done.stdout)
    assert megabytes < 100, f"{megabytes} MiB; all pairs in float32 would be {20_000**2 * 4 / 2**20:.0f}"


def test_export_keeps_the_op():
    class Loss(torch.nn.Module):
        def forward(self, x, y):
            return paperops.chamfer_distance(x, y)[0]

    x, y = torch.rand(2, 8, 3), torch.rand(2, 9, 3)
    program = torch.export.export(Loss(), (x, y))
    assert any("paperops.chamfer" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x, y), Loss()(x, y))


def test_inductor_compiles_forward_and_backward():
    def loss(x, y):
        return paperops.chamfer_distance(2 * x, y.sin(), squared=False)[0]

    x, y = torch.rand(2, 8, 3, requires_grad=True), torch.rand(2, 9, 3, requires_grad=True)
    compiled = torch.compile(loss, fullgraph=True)
    expected = torch.autograd.grad(loss(x, y), (x, y))
    torch.testing.assert_close(torch.autograd.grad(compiled(x, y), (x, y)), expected)


def test_a_failed_call_does_not_touch_the_arguments():
    x = torch.rand(2, 4, 3)
    before = x.clone()
    with pytest.raises(ValueError, match="x_lengths"):
        paperops.chamfer_distance(x, x, torch.tensor([9, 9]))
    assert torch.equal(x, before)


def test_lengths_out_of_range_are_clamped_where_values_are_not_read():
    x, y = torch.rand(2, 4, 3), torch.rand(2, 5, 3)
    compiled = torch.compile(lambda lengths: paperops.knn(x, y, x_lengths=lengths).indices, backend="aot_eager")
    assert torch.equal(compiled(torch.tensor([9, -3])), paperops.knn(x, y, x_lengths=torch.tensor([4, 0])).indices)


def large_cloud(kind, seed, points, dimensions):
    generator = torch.Generator().manual_seed(seed)
    cloud = torch.randn(1, points, dimensions, generator=generator)
    if kind == "lattice":
        return (8 * cloud).round()
    if kind == "surface":
        return 100 + cloud / cloud.norm(dim=2, keepdim=True)
    if kind == "two clusters":
        return cloud / 100 + 50 * torch.randint(0, 2, (1, points, 1), generator=generator)
    return cloud


@fast_backend
@pytest.mark.parametrize(("kind", "dimensions"), [("normal", 3), ("lattice", 3), ("surface", 3), ("two clusters", 2)])
def test_large_clouds_where_pairs_are_pruned(target, kind, dimensions):
    x, y = (large_cloud(kind, seed, points, dimensions) for seed, points in ((4, 66_000), (5, 70_001)))
    some = slice(1000, 1200)
    for k in (1, 5):
        forth, back = run(target, paperops.knn, x, y, k=k), run(target, paperops.knn, y, x, k=k)
        for found, queries, candidates in ((forth, x, y), (back, y, x)):
            distances, _ = brute_force(queries[:, some], candidates)
            expected, order = distances.sort(dim=2, stable=True)
            assert torch.equal(found.indices[:, some], order[..., :k])
            assert torch.equal(found.distances[:, some], expected[..., :k].float())
    loss = run(target, paperops.chamfer_distance, x, y)[0]
    singles = run(target, paperops.knn, x, y).distances, run(target, paperops.knn, y, x).distances
    torch.testing.assert_close(loss.double(), sum(single.double().mean() for single in singles), rtol=1e-6, atol=0)


def test_gradient_of_batch_weights_under_max():
    x, y = torch.rand(2, 5, 3, dtype=torch.float64), torch.rand(2, 6, 3, dtype=torch.float64)
    weights = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    options = {"point_reduction": "max", "batch_reduction": "sum", "weights": weights}
    (gradient,) = torch.autograd.grad(paperops.chamfer_distance(x, y, **options)[0], weights)
    largest = paperops.chamfer_distance(x, y, point_reduction="max", batch_reduction=None)[0]
    torch.testing.assert_close(gradient, largest)


def test_weights_whose_sum_overflows_float32():
    x, y = torch.rand(2, 5, 3), torch.rand(2, 6, 3)
    heavy = paperops.chamfer_distance(x, y, weights=torch.full((2,), 2.5e38))[0]
    torch.testing.assert_close(heavy, paperops.chamfer_distance(x, y)[0])
    with pytest.raises(ValueError, match="weights must be finite"):
        paperops.chamfer_distance(x, y, weights=torch.full((2,), 1e300, dtype=torch.float64))


def test_gradients_of_samples_with_lengths_of_their_own():
    x, y, lengths = torch.rand(4, 2, 5, 3), torch.rand(4, 2, 6, 3), torch.tensor([[5, 1], [2, 2], [0, 3], [4, 5]])

    def loss(x, y, lengths):
        return paperops.chamfer_distance(x, y, lengths)[0]

    together = torch.vmap(torch.func.grad(loss))(x, y, lengths)
    apart = [torch.func.grad(loss)(*each) for each in zip(x, y, lengths, strict=True)]
    torch.testing.assert_close(together, torch.stack(apart))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"norm": 2.0}, ValueError, "norm must be 1 or 2; got 2.0"),
        ({"k": 2**40}, ValueError, r"k must be less than 2\*\*31"),
        ({"return_neighbors": "yes"}, TypeError, "return_neighbors must be True or False; got 'yes'"),
        ({"x": torch.rand(2, 5, 3).to_sparse()}, TypeError, "x must be a dense tensor; got torch.sparse_coo"),
        (
            {"y": torch.nested.nested_tensor([torch.rand(2, 3)] * 2)},
            TypeError,
            "y must be a dense tensor; got a nested",
        ),
    ],
)
def test_refused(change, error, message):
    with pytest.raises(error, match=message):
        paperops.knn(**({"x": torch.rand(2, 5, 3), "y": torch.rand(2, 6, 3)} | change))


def test_numpy_integers_and_unsigned_lengths_are_taken():
    x, y = torch.rand(2, 5, 3), torch.rand(2, 6, 3)
    lengths = torch.tensor([6, 2], dtype=torch.uint16)
    found = paperops.knn(x, y, np.int64(2), y_lengths=lengths)
    assert torch.equal(found.indices, paperops.knn(x, y, 2, y_lengths=lengths.long()).indices)


def test_forward_mode_raises():
    x, y = torch.rand(2, 5, 3), torch.rand(2, 6, 3)
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        torch.func.jvp(lambda x: paperops.chamfer_distance(x, y)[0], (x,), (x,))

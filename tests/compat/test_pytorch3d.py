"""paperops.compat.pytorch3d's neighbours against definitions written term by term from PyTorch3D's documentation."""

import inspect
import itertools

import pytest
import torch
from torch import Tensor

from paperops.compat import pytorch3d
from paperops.compat.pytorch3d import ball_query, knn_gather, knn_points, radius

# --- the published argument lists ------------------------------------------------------------------------------------

PUBLISHED = {
    "knn_points": "p1 p2 lengths1=None lengths2=None norm=2 K=1 version=-1 return_nn=False return_sorted=True",
    "knn_gather": "x idx lengths=None",
    "ball_query": "p1 p2 lengths1=None lengths2=None K=500 radius=0.2 return_nn=True skip_points_outside_cube=False",
    "chamfer_distance": "x y x_lengths=None y_lengths=None x_normals=None y_normals=None weights=None "
    "batch_reduction='mean' point_reduction='mean' norm=2 single_directional=False abs_cosine=True",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_argument_list(name):
    parameters = inspect.signature(getattr(pytorch3d, name)).parameters.values()
    assert all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in parameters)
    ours = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]
    assert ours == PUBLISHED[name].split()


# --- definitions -----------------------------------------------------------------------------------------------------


def distance(a: Tensor, b: Tensor, norm: int) -> Tensor:
    """Between two points."""
    return ((a - b) ** 2).sum() if norm == 2 else (a - b).abs().sum()


def counts(lengths: Tensor | None, points: Tensor) -> list[int]:
    return [points.shape[1]] * points.shape[0] if lengths is None else lengths.tolist()


def knn_defined(p1, p2, lengths1, lengths2, norm, k):
    """dists and idx, 0 past a length and where there are fewer than k targets."""
    dists, idx, zero = [], [], 0 * (p1.nan_to_num().sum() + p2.nan_to_num().sum())
    for n, (count1, count2) in enumerate(zip(counts(lengths1, p1), counts(lengths2, p2))):
        for i in range(p1.shape[1]):
            near = []
            if i < count1:
                every = [distance(p1[n, i], p2[n, j], norm) for j in range(count2)]
                near = sorted(range(count2), key=lambda j: (every[j].item(), j))[:k]
                dists += [every[j] for j in near]
            dists += [zero] * (k - len(near))
            idx += near + [0] * (k - len(near))
    shape = (p1.shape[0], p1.shape[1], k)
    return torch.stack(dists).reshape(shape), torch.tensor(idx).reshape(shape)


def gather_defined(x, idx, lengths):
    """x[n, idx[n, l, k]], 0 where k >= lengths[n]."""
    out = torch.zeros(*idx.shape, x.shape[2], dtype=x.dtype)
    for n, count in enumerate(counts(lengths, x)):
        for place, k in itertools.product(range(idx.shape[1]), range(min(idx.shape[2], count))):
            out[n, place, k] = x[n, idx[n, place, k]]
    return out


def ball_defined(p1, p2, lengths1, lengths2, k, radius):
    """The first k points strictly inside, in order of index; distance 0 and index -1 elsewhere."""
    dists, idx, zero = [], [], 0 * (p1.nan_to_num().sum() + p2.nan_to_num().sum())
    for n, (count1, count2) in enumerate(zip(counts(lengths1, p1), counts(lengths2, p2))):
        for i in range(p1.shape[1]):
            inside = []
            if i < count1:
                every = [distance(p1[n, i], p2[n, j], 2) for j in range(count2)]
                inside = [j for j in range(count2) if every[j].item() < radius**2][:k]
                dists += [every[j] for j in inside]
            dists += [zero] * (k - len(inside))
            idx += inside + [-1] * (k - len(inside))
    shape = (p1.shape[0], p1.shape[1], k)
    return torch.stack(dists).reshape(shape), torch.tensor(idx).reshape(shape)


def leaf(*shape: int, whole: bool = False) -> Tensor:
    """float64 normal values; whole numbers make ties."""
    values = torch.randn(*shape, dtype=torch.float64)
    return ((2 * values).round() if whole else values).requires_grad_()


LENGTHS = [
    (None, None),
    (torch.tensor([5, 0, 3]), None),
    (None, torch.tensor([4, 2, 0])),
    (torch.tensor([5, 2, 0]), torch.tensor([0, 3, 1])),
]

# --- knn_points and knn_gather ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths1, lengths2", LENGTHS)
@pytest.mark.parametrize("norm", [1, 2])
@pytest.mark.parametrize("k", [1, 3, 6])
def test_knn_points(lengths1, lengths2, norm, k):
    p1, p2 = leaf(3, 5, 3, whole=True), leaf(3, 4, 3, whole=True)
    found = knn_points(p1, p2, lengths1, lengths2, norm, k, return_nn=True)
    dists, idx = knn_defined(p1, p2, lengths1, lengths2, norm, k)
    assert type(found).__name__ == "KNN" and found._fields == ("dists", "idx", "knn")
    assert torch.equal(found.idx, idx) and found.idx.dtype == torch.int64
    torch.testing.assert_close(found.dists, dists)
    neighbours = gather_defined(p2, idx, lengths2)
    assert torch.equal(found.knn, neighbours)

    cotangents = torch.randn_like(dists), torch.randn_like(neighbours)
    ours = torch.autograd.grad((found.dists, found.knn), (p1, p2), cotangents)
    defined = torch.autograd.grad((dists, neighbours), (p1, p2), cotangents, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(ours, defined)

    single = knn_points(p1.float(), p2.float(), lengths1, lengths2, norm, k)
    assert torch.equal(single.idx, idx) and single.knn is None and single.dists.dtype == torch.float32
    torch.testing.assert_close(single.dists, dists.float())


def test_knn_points_without_order_or_with_a_version_is_the_same():
    p1, p2 = leaf(2, 6, 3), leaf(2, 7, 3)
    sorted_ = knn_points(p1, p2, K=4)
    for version, return_sorted in itertools.product([-1, 0, 1, 2, 3, 17], [True, False]):
        other = knn_points(p1, p2, K=4, version=version, return_sorted=return_sorted)
        assert torch.equal(other.idx, sorted_.idx) and torch.equal(other.dists, sorted_.dists) and other.knn is None


@pytest.mark.parametrize("shape", [(2, 3, 0), (2, 0, 3), (0, 2, 3), (1, 0, 0)])
def test_knn_points_of_nothing(shape):
    batch, queries, targets = shape
    found = knn_points(torch.randn(batch, queries, 3), torch.randn(batch, targets, 3), K=2, return_nn=True)
    assert found.dists.shape == found.idx.shape == (batch, queries, 2) and found.knn.shape == (batch, queries, 2, 3)
    if targets == 0:
        assert not found.dists.any() and not found.idx.any() and not found.knn.any()


def test_knn_points_not_finite():
    p1 = torch.tensor([[[torch.nan], [1e30]]], requires_grad=True)
    p2 = torch.tensor([[[0.0], [torch.nan], [1.0]]])
    found = knn_points(p1, p2, K=4)
    assert found.idx.tolist() == [[[0, 0, 0, 0], [0, 2, 1, 0]]]
    assert found.dists.isnan().tolist() == [[[True, True, True, False], [False, False, True, False]]]
    assert found.dists[0, 1, :2].isinf().all() and not found.dists[..., 3].any()
    found.dists[:, :1].sum().backward()
    assert not p1.grad[:, 0].any()


def test_knn_points_second_derivatives_and_padding():
    p1, p2, lengths = leaf(2, 3, 2), leaf(2, 3, 2), torch.tensor([3, 1])
    function = lambda a, b: knn_points(a, b, lengths, lengths, K=2, return_nn=True)[::2]  # noqa: E731
    assert torch.autograd.gradcheck(function, (p1, p2)) and torch.autograd.gradgradcheck(function, (p1, p2))
    dists = knn_points(p1, p2, lengths, lengths, K=2).dists
    cotangent = torch.ones_like(dists)
    cotangent[1, :, 1], cotangent[1, 1:] = torch.nan, torch.nan  # of padding: must go nowhere
    assert all(not grad.isnan().any() for grad in torch.autograd.grad(dists, (p1, p2), cotangent))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_knn_points_in_half_precision(dtype):
    p1, p2 = leaf(2, 5, 3).to(dtype), leaf(2, 4, 3).to(dtype)
    dists, idx = knn_defined(p1.double(), p2.double(), None, None, 2, 2)
    found = knn_points(p1, p2, K=2)
    assert torch.equal(found.idx, idx)
    torch.testing.assert_close(found.dists, dists.float())


@pytest.mark.parametrize("lengths", [None, torch.tensor([4, 0, 2])])
@pytest.mark.parametrize("k", [1, 3, 6])
def test_knn_gather(lengths, k):
    x, idx = leaf(3, 4, 7), torch.randint(0, 4, (3, 5, k))
    gathered = knn_gather(x, idx, lengths)
    assert torch.equal(gathered, gather_defined(x, idx, lengths))
    assert torch.equal(
        knn_gather((x * 9).to(torch.int32), idx.int(), lengths), gather_defined((x * 9).int(), idx, lengths)
    )
    assert torch.autograd.gradcheck(lambda rows: knn_gather(rows, idx, lengths), x)


# --- ball_query ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths1, lengths2", LENGTHS)
@pytest.mark.parametrize("k", [1, 2, 9])
@pytest.mark.parametrize("within", [0.0, 2.0, 3.5, 100.0])
def test_ball_query(lengths1, lengths2, k, within):
    p1, p2 = leaf(3, 5, 3, whole=True), leaf(3, 4, 3, whole=True)  # whole coordinates: many lie exactly 2 away
    found = ball_query(p1, p2, lengths1, lengths2, k, within)
    dists, idx = ball_defined(p1, p2, lengths1, lengths2, k, within)
    assert torch.equal(found.idx, idx) and torch.equal(found.dists, dists)
    near = idx.clamp(min=0)
    neighbours = gather_defined(p2, near, None if k <= 4 else torch.tensor([9, 9, 9])).masked_fill(
        (idx < 0)[..., None], 0
    )
    assert torch.equal(found.knn, neighbours) and found._fields == ("dists", "idx", "knn")
    skipping = ball_query(p1, p2, lengths1, lengths2, k, within, return_nn=False, skip_points_outside_cube=True)
    assert torch.equal(skipping.idx, idx) and torch.equal(skipping.dists, dists) and skipping.knn is None

    cotangents = torch.randn_like(dists), torch.randn_like(neighbours)
    ours = torch.autograd.grad((found.dists, found.knn), (p1, p2), cotangents)
    defined = torch.autograd.grad((dists, neighbours), (p1, p2), cotangents, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(ours, defined)


def test_ball_query_takes_duplicates_in_order_of_index():
    p2 = torch.tensor([[[5.0], [1.0], [1.0], [0.0], [1.0]]])
    assert ball_query(torch.zeros(1, 1, 1), p2, K=3, radius=2).idx.tolist() == [[[1, 2, 3]]]
    assert ball_query(torch.zeros(1, 1, 1), p2, K=6, radius=2).idx.tolist() == [[[1, 2, 3, 4, -1, -1]]]


@pytest.mark.parametrize("within", [0.1, 0.3, 0.7, 1.1])
def test_ball_query_rounds_the_radius_as_float32(within):
    """At the radius itself a float32 point is outside, on whichever side of it the float32 radius fell."""
    p1, rounded = torch.zeros(1, 1, 3), torch.tensor(within)
    edge = torch.zeros(1, 2, 3)
    edge[0, 0, 0], edge[0, 1, 0] = rounded, torch.nextafter(rounded, torch.tensor(0.0))
    assert ball_query(p1, edge, K=2, radius=within).idx.tolist() == [[[1, -1]]]


@pytest.mark.parametrize("pairs", [1, 7, 30, 31, 95, 200])
def test_ball_query_in_blocks(pairs, monkeypatch):
    p1, p2 = torch.randn(4, 6, 3), torch.randn(4, 5, 3)
    lengths1, lengths2 = torch.tensor([6, 2, 0, 5]), torch.tensor([1, 5, 4, 0])
    whole = ball_query(p1, p2, lengths1, lengths2, 3, 1.5)
    sizes, squared_distances = [], radius._squared_distances
    monkeypatch.setattr(radius, "BLOCK_PAIRS", pairs)
    monkeypatch.setattr(
        radius,
        "_squared_distances",
        lambda x, y: sizes.append(x.shape[:2].numel() * y.shape[1]) or squared_distances(x, y),
    )
    assert all(torch.equal(a, b) for a, b in zip(whole, ball_query(p1, p2, lengths1, lengths2, 3, 1.5)))
    assert sum(sizes) == 4 * 6 * 5 and max(sizes) <= max(pairs, 5)


def test_ball_query_derivatives():
    p1, p2, lengths = leaf(2, 3, 2), leaf(2, 3, 2), torch.tensor([3, 1])
    function = lambda a, b: ball_query(a, b, lengths, lengths, K=2, radius=1.5)[::2]  # noqa: E731
    assert torch.autograd.gradcheck(function, (p1, p2)) and torch.autograd.gradgradcheck(function, (p1, p2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_ball_query_dtypes_and_nothing(dtype):
    p1, p2 = torch.randn(2, 5, 5).to(dtype), torch.randn(2, 4, 5).to(dtype)
    p2[0, 1, 0] = torch.nan
    found = ball_query(p1, p2, K=4, radius=3.0)
    dists, idx = ball_defined(p1.double(), p2.double(), None, None, 4, 3.0)
    assert torch.equal(found.idx, idx) and found.dists.dtype == dtype
    torch.testing.assert_close(found.dists, dists.to(dtype))
    assert (ball_query(p1, p2[:, :0], K=2).idx == -1).all() and ball_query(p1[:, :0], p2).knn.shape == (2, 0, 500, 5)
    assert ball_query(p1[:0], p2[:0]).dists.shape == (0, 5, 500)


# --- refused ---------------------------------------------------------------------------------------------------------

X, Y = torch.rand(2, 3, 3), torch.rand(2, 4, 3)
REFUSED = [
    (knn_points, (X, Y[:1]), {}, ValueError, "p2 must have the batch size of p1"),
    (knn_points, (X, Y[..., :2]), {}, ValueError, "p2 must have points of the dimension of p1"),
    (knn_points, (X[0], Y), {}, ValueError, "p1 must have shape"),
    (knn_points, (X, Y), {"norm": 3}, ValueError, "norm must be 1 or 2"),
    (knn_points, (X, Y), {"K": 0}, ValueError, "K must be at least 1"),
    (knn_points, (X, Y), {"K": 2.0}, TypeError, "K must be an int"),
    (knn_points, (X, Y), {"version": None}, TypeError, "version must be an int"),
    (knn_points, (X, Y.double()), {}, TypeError, "p2 must have the dtype of p1"),
    (knn_points, (X.int(), Y.int()), {}, TypeError, "p1 must be float"),
    (knn_points, ([1], Y), {}, TypeError, "p1 must be a torch.Tensor"),
    (knn_points, (X, Y), {"lengths2": torch.tensor([5, 1])}, ValueError, "lengths2 must be at most"),
    (knn_points, (X, Y), {"lengths1": torch.tensor([1])}, ValueError, "lengths1 must have shape"),
    (knn_gather, (X, torch.zeros(1, 2, 2, dtype=torch.long)), {}, ValueError, "idx must have the batch size of x"),
    (knn_gather, (X, torch.zeros(2, 2, dtype=torch.long)), {}, ValueError, "idx must have three dimensions"),
    (knn_gather, (X, X), {}, TypeError, "idx must have an integer dtype"),
    (ball_query, (X, Y[:1]), {}, ValueError, "p2 must have the batch size of p1"),
    (ball_query, (X, Y[..., :2]), {}, ValueError, "p2 must have points of the dimension of p1"),
    (ball_query, (X, Y), {"radius": -1.0}, ValueError, "radius must not be negative"),
    (ball_query, (X, Y), {"radius": "1"}, TypeError, "radius must be a number"),
    (ball_query, (X, Y), {"K": 0}, ValueError, "K must be at least 1"),
]  # fmt: skip


@pytest.mark.parametrize("function, arguments, options, error, message", REFUSED)
def test_refused(function, arguments, options, error, message):
    with pytest.raises(error, match=message):
        function(*arguments, **options)

"""paperops.compat.pytorch3d.chamfer_distance against a definition written from PyTorch3D's documentation and tests."""

import itertools

import pytest
import torch
from torch import Tensor

from paperops.compat.pytorch3d import chamfer_distance


def counts(lengths: Tensor | None, points: Tensor) -> list[int]:
    return [points.shape[1]] * points.shape[0] if lengths is None else lengths.tolist()


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


def flat(result) -> list[Tensor]:
    return (
        [] if result is None else [result] if isinstance(result, Tensor) else [t for part in result for t in flat(part)]
    )


def nearest_defined(a, b, a_lengths, b_lengths, norm):
    """Distance to, and index of, each point's nearest: 0 past a length and where the other cloud is empty."""
    dists, idx = [], []
    for n, (count1, count2) in enumerate(zip(counts(a_lengths, a), counts(b_lengths, b))):
        difference = a[n, :, None] - b[n, None, :count2]  # [P1, count, D]
        every = (difference**2 if norm == 2 else difference.abs()).sum(-1)
        nearest = every.min(1).values if count2 else 0 * a[n].sum(1)
        dists.append(nearest * (torch.arange(len(nearest)) < count1))
        idx.append(every.argmin(1).tolist() if count2 else None)
    return torch.stack(dists), idx


def chamfer_defined(
    x, y, x_lengths, y_lengths, x_normals, y_normals, weights, over_batch, over_points, norm, single, abs_
):
    """Loss and normals' loss: per point, then over points, then over the batch."""

    def direction(a, b, a_lengths, b_lengths, a_normals, b_normals):
        dists, idx = nearest_defined(a, b, a_lengths, b_lengths, norm)
        terms = [dists]  # each [N, P]
        if a_normals is not None:
            rows = []
            for n, (count1, count2) in enumerate(zip(counts(a_lengths, a), counts(b_lengths, b))):
                others = b_normals[n, idx[n]] if count2 else torch.zeros_like(a_normals[n])  # [P, 3]
                cosine = torch.cosine_similarity(a_normals[n], others, dim=1, eps=1e-6)
                rows.append((1 - (cosine.abs() if abs_ else cosine)) * (torch.arange(len(cosine)) < count1))
            terms.append(torch.stack(rows))
        reduced = []
        for term in terms:
            term = term if weights is None else term * weights[:, None]
            if over_points == "max":
                term = term.max(1).values
            elif over_points is not None:
                term = term.sum(1)
            if over_points == "mean":
                term = term / torch.tensor([max(count, 1) for count in counts(a_lengths, a)])
            reduced.append(term)
        return reduced

    forth = direction(x, y, x_lengths, y_lengths, x_normals, y_normals)
    back = direction(y, x, y_lengths, x_lengths, y_normals, x_normals)
    results = []
    for a, b in zip(forth, back):
        if over_points is None:
            results.append(a if single else (a, b))
            continue
        total = a if single else torch.maximum(a, b) if over_points == "max" else a + b
        if over_batch is not None:
            total = total.sum()
        if over_batch == "mean":
            total = total / (len(x) if weights is None else weights.sum())
        results.append(total)
    return results[0], results[1] if len(results) > 1 else None


LENGTHS = [
    (None, None),
    (torch.tensor([5, 0, 3]), None),
    (None, torch.tensor([4, 2, 0])),
    (torch.tensor([5, 2, 0]), torch.tensor([0, 3, 1])),
]

REDUCTIONS = [*itertools.product(["mean", "sum", None], ["mean", "sum", "max"]), (None, None)]


@pytest.mark.parametrize("x_lengths, y_lengths", LENGTHS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("over_batch, over_points", REDUCTIONS)
def test_chamfer_distance(over_batch, over_points, weighted, x_lengths, y_lengths):
    for norm, single, abs_cosine in itertools.product([1, 2], [False, True], [True, False]):
        leaves = [leaf(3, 5, 3), leaf(3, 4, 3)]
        if over_points != "max":
            leaves += [leaf(3, 5, 3), leaf(3, 4, 3)]
        normals = leaves[2:] or [None, None]
        weights = torch.rand(3, dtype=torch.float64, requires_grad=True) if weighted else None
        arguments = (
            *leaves[:2],
            x_lengths,
            y_lengths,
            *normals,
            weights,
            over_batch,
            over_points,
            norm,
            single,
            abs_cosine,
        )
        ours, defined = chamfer_distance(*arguments), chamfer_defined(*arguments)
        assert (ours[1] is None) == (over_points == "max")
        assert [isinstance(part, tuple) for part in ours] == [isinstance(part, tuple) for part in defined]
        ours, defined = flat(ours), flat(defined)
        torch.testing.assert_close(ours, defined)
        cotangents = [torch.randn_like(part) for part in defined]
        inputs = leaves + ([weights] if weighted else [])
        options = {"allow_unused": True, "materialize_grads": True}
        torch.testing.assert_close(
            torch.autograd.grad(ours, inputs, cotangents, **options),
            torch.autograd.grad(defined, inputs, cotangents, **options),
        )


class Clouds:
    """What chamfer_distance asks of PyTorch3D's Pointclouds."""

    def __init__(self, points, normals=None):
        self.points, self.normals = points, normals

    def _padded(self, rows):
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True) if rows else torch.zeros(0, 0, 3)

    def points_padded(self):
        return self._padded(self.points)

    def num_points_per_cloud(self):
        return torch.tensor([len(rows) for rows in self.points], dtype=torch.int64)

    def normals_padded(self):
        return None if self.normals is None else self._padded(self.normals)


def test_chamfer_distance_of_cloud_objects():
    def rows(*lengths):
        return [torch.randn(length, 3) for length in lengths]

    x, y = Clouds(rows(3, 5), rows(3, 5)), Clouds(rows(4, 2), rows(4, 2))
    tensors = [f() for f in (x.points_padded, y.points_padded, x.num_points_per_cloud, y.num_points_per_cloud)]
    with_normals = chamfer_distance(*tensors, x.normals_padded(), y.normals_padded())
    assert chamfer_distance(x, y) == with_normals
    # an object's own lengths and normals replace those given
    assert chamfer_distance(x, y, torch.tensor([1, 1]), None, torch.randn(2, 5, 3)) == with_normals
    assert chamfer_distance(x, Clouds(y.points)) == (with_normals[0], None)
    assert chamfer_distance(x, y.points_padded(), y_lengths=y.num_points_per_cloud()) == (with_normals[0], None)
    with pytest.raises(ValueError, match="normals"):
        chamfer_distance(x, y, point_reduction="max")


def test_chamfer_distance_of_empty_clouds():
    x, y = Clouds([torch.zeros(0, 3), torch.zeros(10, 3)]), torch.ones(2, 40, 3)
    assert chamfer_distance(x, y, batch_reduction=None)[0].tolist() == [0.0, 6.0]
    assert chamfer_distance(Clouds([]), Clouds([]))[0].item() == 0.0
    x, y = torch.rand(2, 3, 3), torch.rand(2, 0, 3)
    for over_batch, over_points in REDUCTIONS:
        assert not torch.cat(
            [part.flatten() for part in flat(chamfer_distance(x, y, None, None, *[None] * 3, over_batch, over_points))]
        ).any()
    assert chamfer_distance(x, y, x_normals=x, y_normals=y)[1].item() == 1.0


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("over_batch, over_points", REDUCTIONS)
def test_chamfer_distance_weights_all_zero(over_batch, over_points, single):
    """As the library's own tests have it: zeros for both results, that require gradients, [N, N] if not reduced."""
    x, y = leaf(3, 5, 3), leaf(3, 4, 3)
    loss, normals = chamfer_distance(
        x, y, weights=torch.zeros(3), batch_reduction=over_batch, point_reduction=over_points, single_directional=single
    )
    assert (normals is None) == (over_points == "max" and not single)
    assert isinstance(loss, tuple) == (over_points is None and not single)
    for part in flat((loss, normals)):
        assert part.shape == ((3, 3) if over_batch is None else ()) and part.requires_grad and not part.any()


def test_chamfer_distance_wider():
    x, y = leaf(2, 4, 3), leaf(2, 3, 3)
    loss, normals = chamfer_distance(x, y, x_normals=x)
    assert normals is None and torch.equal(loss, chamfer_distance(x, y)[0])
    for weights in (torch.tensor([1, 3]), torch.tensor([[1.0], [3.0]]), torch.tensor([1, 3], dtype=torch.float16)):
        assert torch.equal(
            chamfer_distance(x, y, weights=weights)[0], chamfer_distance(x, y, weights=torch.tensor([1.0, 3.0]))[0]
        )
    assert chamfer_distance(x.half(), y.half())[0].dtype == torch.float32
    lengths = torch.tensor([3, 2])
    padded = x.detach().clone()
    padded[0, 3:], padded[1, 2:] = torch.nan, torch.inf
    expected = chamfer_distance(x, y, lengths, x_normals=x, y_normals=y)
    assert chamfer_distance(padded, y, lengths, x_normals=padded, y_normals=y) == expected


# --- refused ---------------------------------------------------------------------------------------------------------

X, Y = torch.rand(2, 3, 3), torch.rand(2, 4, 3)
REFUSED = [
    (([1, 1, 1], [1, 1, 1]), {}, ValueError, "x must be a tensor"),
    ((X[None], Y), {}, ValueError, "x must have shape"),
    ((X, Y), {"x_lengths": torch.tensor([1, 2, 3])}, ValueError, "x_lengths must have shape"),
    ((X, Y), {"y_lengths": torch.tensor([5, 1])}, ValueError, "y_lengths must be at most"),
    ((X, Y), {"x_normals": X[None]}, ValueError, "x_normals must have shape"),
    ((X, Y), {"x_normals": X, "point_reduction": "max"}, ValueError, "point_reduction"),
    ((X, Y), {"batch_reduction": "max"}, ValueError, "batch_reduction must be one of"),
    ((X, Y), {"point_reduction": "min"}, ValueError, "point_reduction must be one of"),
    ((X, Y), {"point_reduction": None}, ValueError, "batch_reduction must be None"),
    ((X, Y), {"norm": 0}, ValueError, "norm must be 1 or 2"),
    ((X, Y), {"weights": -torch.ones(2)}, ValueError, "weights must be finite and not negative"),
    ((X, Y), {"weights": torch.zeros(1)}, ValueError, "weights must have shape"),
    ((X, Y[:1]), {}, ValueError, "y must have the batch size"),

]  # fmt: skip


@pytest.mark.parametrize("arguments, options, error, message", REFUSED)
def test_refused(arguments, options, error, message):
    with pytest.raises(error, match=message):
        chamfer_distance(*arguments, **options)

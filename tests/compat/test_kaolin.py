"""paperops.compat.kaolin against the formulas of Kaolin's documentation, written point by point."""

import inspect

import pytest
import torch
from torch import Tensor

from paperops.compat import kaolin
from paperops.compat.kaolin import chamfer_distance, f_score, sided_distance

PUBLISHED = {
    "sided_distance": "p1 p2",
    "chamfer_distance": "p1 p2 w1=1.0 w2=1.0 squared=True",
    "f_score": "gt_points pred_points radius=0.01 eps=1e-08",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_argument_list(name):
    parameters = inspect.signature(getattr(kaolin, name)).parameters.values()
    ours = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters]
    assert ours == PUBLISHED[name].split()


def sided_defined(p1: Tensor, p2: Tensor) -> tuple[Tensor, Tensor]:
    dist, idx = [], []
    for n in range(p1.shape[0]):
        for i in range(p1.shape[1]):
            every = [((p1[n, i] - p2[n, j]) ** 2).sum() for j in range(p2.shape[1])]
            best = min(range(len(every)), key=lambda j: (every[j].item(), j))
            dist.append(every[best])
            idx.append(best)
    return torch.stack(dist).reshape(p1.shape[:2]), torch.tensor(idx).reshape(p1.shape[:2])


def leaf(*shape: int, whole: bool = False) -> Tensor:
    values = torch.randn(*shape, dtype=torch.float64)
    return ((2 * values).round() if whole else values).requires_grad_()


TOLERANCE = {
    torch.float16: (2e-3, 1e-3),
    torch.bfloat16: (2e-2, 1e-2),
    torch.float32: (1e-6, 1e-6),
    torch.float64: (1e-12, 1e-12),
}


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_sided_distance(dtype):
    p1, p2 = leaf(3, 7, 3, whole=True), leaf(3, 5, 3, whole=True)
    dist, idx = sided_distance(p1.to(dtype), p2.to(dtype))
    expected, expected_idx = sided_defined(p1, p2)
    assert torch.equal(idx, expected_idx) and idx.dtype == torch.int64 and dist.dtype == dtype
    assert torch.equal(dist, expected.to(dtype))  # whole numbers: exact in every dtype
    cotangent = torch.randn(3, 7, dtype=torch.float64)
    ours = torch.autograd.grad(dist, (p1, p2), cotangent.to(dtype))
    rtol, atol = TOLERANCE[dtype]
    torch.testing.assert_close(ours, torch.autograd.grad(expected, (p1, p2), cotangent), rtol=10 * rtol, atol=10 * atol)


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("w1, w2", [(1.0, 1.0), (1, 1), (1.3, 0.8), (0.0, -2.0), (torch.tensor(0.5), 2.0)])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_chamfer_distance(dtype, w1, w2, squared):
    p1, p2 = leaf(3, 7, 3), leaf(3, 5, 3)
    rounded1, rounded2 = p1.to(dtype).double(), p2.to(dtype).double()
    forth, back = sided_defined(rounded1, rounded2)[0], sided_defined(rounded2, rounded1)[0]
    if not squared:
        forth, back = forth.sqrt(), back.sqrt()
    expected = w1 * forth.sum(1) / 7 + w2 * back.sum(1) / 5
    ours = chamfer_distance(p1.to(dtype), p2.to(dtype), w1, w2, squared)
    rtol, atol = TOLERANCE[dtype]
    assert ours.dtype == dtype and ours.shape == (3,)
    torch.testing.assert_close(ours.double(), expected, rtol=rtol, atol=atol)
    cotangent = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (p1, p2), cotangent.to(dtype)),
        torch.autograd.grad(expected, (p1, p2), cotangent),
        rtol=10 * rtol,
        atol=10 * atol,
    )


def f_score_defined(gt: Tensor, pred: Tensor, radius: float, eps: float) -> list[float]:
    scores = []
    for n in range(len(gt)):
        near = [[((a - b) ** 2).sum().sqrt() <= radius for b in pred[n]] for a in gt[n]]
        true_positives = sum(any(row[j] for row in near) for j in range(len(pred[n])))
        false_negatives = sum(not any(row) for row in near)
        precision = true_positives / len(pred[n])
        recall = true_positives / (true_positives + false_negatives)
        scores.append(2 * precision * recall / (precision + recall + eps))
    return scores


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("radius, eps", [(0.0, 1e-8), (1.0, 1e-8), (2.0, 0.5), (1.5, 1e-8), (99.0, 1e-8)])
def test_f_score(radius, eps, dtype):
    gt, pred = leaf(4, 6, 3, whole=True), leaf(4, 9, 3, whole=True)
    ours = f_score(gt.to(dtype), pred.to(dtype), radius, eps)
    expected = torch.tensor(f_score_defined(gt, pred, radius, eps), dtype=torch.float64)
    rtol, atol = TOLERANCE[dtype]
    assert ours.dtype == dtype and not ours.requires_grad
    torch.testing.assert_close(ours.double(), expected, rtol=rtol, atol=atol)


def test_f_score_counts_predicted_points_in_the_recall():
    """Two predictions meet one of two true points: Kaolin's recall is 2 / (2 + 1), the literature's 1 / 2."""
    gt, pred = torch.tensor([[[0.0] * 3, [9.0] * 3]]), torch.zeros(1, 2, 3)
    torch.testing.assert_close(f_score(gt, pred, radius=1.0), torch.tensor([0.8]))


def test_derivatives():
    p1, p2 = leaf(2, 3, 3), leaf(2, 4, 3)
    w1, w2 = leaf(2), leaf(2)
    functions = [
        (lambda a, b: sided_distance(a, b)[0], (p1, p2)),
        (chamfer_distance, (p1, p2)),
        (lambda *given: chamfer_distance(*given, squared=False), (p1, p2, w1, w2)),
    ]
    for function, inputs in functions:
        assert torch.autograd.gradcheck(function, inputs) and torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("w2", [1.0, 2.0])
def test_gradient_at_distance_zero(w2):
    p1 = torch.zeros(1, 2, 3, requires_grad=True)
    chamfer_distance(p1, torch.zeros(1, 1, 3), w2=w2, squared=False).backward()
    assert not p1.grad.any()


@pytest.mark.parametrize("shape", [(2, 3, 0), (2, 0, 3), (2, 0, 0), (0, 2, 3)])
def test_of_nothing(shape):
    batch, count1, count2 = shape
    p1, p2 = torch.rand(batch, count1, 3), torch.rand(batch, count2, 3)
    dist, idx = sided_distance(p1, p2)
    assert dist.shape == idx.shape == (batch, count1) and not dist.any() and not idx.any()
    for w2 in (1.0, 2.0):
        assert chamfer_distance(p1, p2, w2=w2).tolist() == [0.0] * batch
    assert f_score(p1, p2, 9.0).tolist() == [1.0 if count1 == count2 else 0.0] * batch


def test_not_finite():
    p1 = torch.tensor([[[torch.nan, 0.0, 0.0], [0.0, 0.0, 0.0]]], requires_grad=True)
    p2 = torch.tensor([[[torch.nan, 0.0, 0.0], [2.0, 0.0, 0.0]]])
    dist, idx = sided_distance(p1, p2)
    assert idx.tolist() == [[0, 1]] and dist.isnan().tolist() == [[True, False]]
    dist[0, 0].backward()
    assert not p1.grad.any()
    assert f_score(p1.detach(), p2, radius=5.0).item() == pytest.approx(0.5)


X, Y = torch.rand(2, 3, 3), torch.rand(2, 4, 3)


@pytest.mark.parametrize("function", [sided_distance, chamfer_distance, f_score])
@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((X, Y[:1]), ValueError, "must have the batch size of"),
        ((X, Y[..., :2]), ValueError, "must have points of the dimension of"),
        ((X[None], Y), ValueError, "must have shape"),
        ((X.int(), Y.int()), TypeError, "must be float"),
        ((X, None), TypeError, "must be a torch.Tensor"),
    ],
)
def test_refused(function, arguments, error, message):
    names = list(inspect.signature(function).parameters)[:2]
    with pytest.raises(error, match=f"^({'|'.join(names)}) {message}"):
        function(*arguments)

"""Rigid frames against their definitions, written term by term."""

import math

import pytest
import torch

from paperops.geometry import Frames

CPU = torch.Generator()


def random(*shape, seed=0):
    return torch.randn(*shape, generator=CPU.manual_seed(seed), dtype=torch.float64)


def frames(*shape, seed=0):
    return Frames.from_quaternion(random(*shape, 4, seed=seed), 10 * random(*shape, 3, seed=seed + 1))


def assert_same(a, b):
    torch.testing.assert_close(tuple(a), tuple(b), rtol=1e-13, atol=1e-13)


def test_rotations_are_rotations():
    for found in (frames(50), Frames.from_three_points(*random(3, 50, 3))):
        product = found.rotations @ found.rotations.mT
        torch.testing.assert_close(product, torch.eye(3, dtype=torch.float64).expand(50, 3, 3), rtol=0, atol=1e-14)
        torch.testing.assert_close(torch.linalg.det(found.rotations), torch.ones(50, dtype=torch.float64))


def test_apply_is_rotation_and_translation():
    t, points = frames(4, 5), random(4, 5, 7, 3)
    expected = torch.empty_like(points)
    for b in range(4):
        for n in range(5):
            for p in range(7):
                expected[b, n, p] = t.rotations[b, n] @ points[b, n, p] + t.translations[b, n]
    torch.testing.assert_close(t.apply(points), expected)
    torch.testing.assert_close(t.invert_apply(expected), points)
    torch.testing.assert_close(t.invert().apply(expected), points)
    every = t.unsqueeze(-1).apply(points[:, None, :, 0])  # each frame to the first point of each residue: [4, 5, 5, 3]
    torch.testing.assert_close(every[2, 3, 4], t.rotations[2, 3] @ points[2, 4, 0] + t.translations[2, 3])


def test_a_group():
    a, b, c = frames(6), frames(6, seed=2), frames(6, seed=4)
    x = random(6, 3)
    torch.testing.assert_close((a @ b).apply(x), a.apply(b.apply(x)))
    assert_same((a @ b) @ c, a.compose(b.compose(c)))
    one = Frames.identity(6, dtype=torch.float64)
    assert_same(a @ one, a)
    assert_same(one @ a, a)
    assert_same(a @ a.invert(), one)
    assert_same((a @ b).invert(), b.invert() @ a.invert())
    broadcast = frames(2, 1) @ frames(3, seed=2)
    assert broadcast.rotations.shape == (2, 3, 3, 3) and broadcast.translations.shape == (2, 3, 3)


def test_three_points():
    """Algorithm 21, on points that show what each axis is."""
    x, origin, y = torch.tensor([[5.0, 1, 1], [1, 1, 1], [2, 4, 1]], dtype=torch.float64)
    found = Frames.from_three_points(x, origin, y)
    assert_same(found, (torch.eye(3, dtype=torch.float64), origin))
    points = random(3, 20, 3)
    local = [Frames.from_three_points(*points).invert_apply(value) for value in points]
    zero = torch.zeros(20, dtype=torch.float64)
    torch.testing.assert_close(local[1], torch.zeros(20, 3, dtype=torch.float64))
    torch.testing.assert_close(local[0][:, 1:], torch.stack([zero, zero], -1), rtol=0, atol=1e-13)
    torch.testing.assert_close(local[2][:, 2], zero, rtol=0, atol=1e-13)
    assert (local[0][:, 0] > 0).all() and (local[2][:, 1] > 0).all()


def test_degenerate_points_are_finite():
    point, other = random(3), random(3, seed=1)
    for points in ((point, point, point), (other, point, other), (other, point, 2 * other - point)):
        leaves = [value.clone().requires_grad_() for value in points]
        found = Frames.from_three_points(*leaves)
        assert all(value.isfinite().all() for value in found)
        gradients = torch.autograd.grad(found.rotations.sum() + found.translations.sum(), leaves)
        assert all(value.isfinite().all() for value in gradients)


def test_half_precision_is_finite():
    found = Frames.from_three_points(*torch.zeros(3, 3, dtype=torch.float16))
    assert all(value.isfinite().all() for value in found)


def test_quaternions():
    half = math.sqrt(0.5)
    quarter = Frames.from_quaternion(torch.tensor([half, 0, 0, half], dtype=torch.float64))  # about z
    torch.testing.assert_close(quarter.apply(torch.tensor([1.0, 0, 0]).double()), torch.tensor([0.0, 1, 0]).double())
    assert_same(Frames.from_quaternion(torch.tensor([3.0, 0, 0, 0])), Frames.identity())
    a, b = random(2, 9, 4)
    product = torch.stack(  # Hamilton's
        [
            a[:, 0] * b[:, 0] - a[:, 1] * b[:, 1] - a[:, 2] * b[:, 2] - a[:, 3] * b[:, 3],
            a[:, 0] * b[:, 1] + a[:, 1] * b[:, 0] + a[:, 2] * b[:, 3] - a[:, 3] * b[:, 2],
            a[:, 0] * b[:, 2] - a[:, 1] * b[:, 3] + a[:, 2] * b[:, 0] + a[:, 3] * b[:, 1],
            a[:, 0] * b[:, 3] + a[:, 1] * b[:, 2] - a[:, 2] * b[:, 1] + a[:, 3] * b[:, 0],
        ],
        -1,
    )
    assert_same(Frames.from_quaternion(a) @ Frames.from_quaternion(b), Frames.from_quaternion(product))


def test_gradients_compile_and_vmap():
    q, t, x = random(3, 4), random(3, 3), random(3, 2, 3)

    def function(q, t, x):
        found = Frames.from_quaternion(q, t)
        return found.compose(found.invert()).compose(found).apply(x)

    leaves = [value.clone().requires_grad_() for value in (q, t, x)]
    assert torch.autograd.gradcheck(function, leaves)
    points = [value.clone().requires_grad_() for value in random(3, 2, 3)]
    assert torch.autograd.gradcheck(lambda *p: tuple(Frames.from_three_points(*p)), points)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, t, x), function(q, t, x))
    torch.testing.assert_close(torch.vmap(function)(q, t, x), function(q, t, x))


def test_autocast_takes_no_digits():
    found, x = Frames(*(value.float() for value in frames(8))), random(8, 3).float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = (found @ found.invert()).apply(x)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, x, rtol=0, atol=2e-5)


def test_far_from_the_origin():
    """Differences before rotations: the local coordinates of a point keep the digits that its difference has."""
    t = Frames(*(value.float() for value in frames(20)))
    local = random(20, 3).float()
    far = Frames(t.rotations, t.translations + 3000)
    points = far.apply(local)
    exact = Frames(far.rotations.double(), far.translations.double()).invert_apply(points.double())
    assert (far.invert_apply(points) - exact).abs().max() < 1e-6
    assert (far.invert().apply(points) - exact).abs().max() > 1e-5


def test_refused():
    t, x = frames(4), random(4, 3)
    for call, error, message in (
        (lambda: t.apply(x[:3]), RuntimeError, "size"),
        (lambda: t.apply(x[..., :2]), ValueError, r"points must have shape \[\*, 3\], one point each; got \[4, 2\]"),
        (lambda: t.apply(x[0]), ValueError, r"points must have the dimensions of the frames first, \[4\]; got \[3\]"),
        (lambda: t.apply(x.float()), TypeError, "points must have the dtype of translations, torch.float64; got"),
        (lambda: t.apply(x.to("meta")), ValueError, "points must be on the device of translations"),
        (lambda: t.apply([1.0]), TypeError, "points must be a torch.Tensor; got list"),
        (lambda: t @ x, TypeError, "frames must be a paperops.geometry.Frames; got Tensor"),
        (lambda: Frames(t.rotations[:, :2], x).invert(), ValueError, r"rotations must have shape \[\*, 3, 3\]; got"),
        (
            lambda: Frames(t.rotations, x[:3]).invert(),
            ValueError,
            r"translations must have shape \[4, 3\], one for each",
        ),
        (lambda: Frames(t.rotations.long(), x).invert(), TypeError, "rotations must be float16"),
        (lambda: Frames.from_quaternion(x), ValueError, r"quaternions must have shape \[\*, 4\]"),
        (lambda: Frames.from_three_points(x, x, x[..., :2]), ValueError, r"in_xy_plane must have shape \[\*, 3\]"),
        (lambda: Frames.from_three_points(x, x, x, eps=0), ValueError, "eps must be positive"),
        (lambda: t.unsqueeze(2), ValueError, "dim must be from -2 to 1; got 2"),
    ):
        with pytest.raises(error, match=message):
            call()


def test_to_quaternion():
    """Of any rotation, half turns too, where three of the four ways to read one off divide by 0."""
    quaternions = torch.cat([random(200, 4), torch.eye(4), torch.eye(4) + 1e-9 * random(4, 4, seed=3)]).double()
    quaternions = quaternions / quaternions.norm(dim=-1, keepdim=True)
    given = Frames.from_quaternion(quaternions)
    found = given.to_quaternion()
    assert (found[:, 0] >= 0).all()
    torch.testing.assert_close((found * quaternions).sum(-1).abs(), torch.ones(208).double(), rtol=0, atol=1e-15)
    assert_same(Frames.from_quaternion(found), given)
    single = Frames(given.rotations.float(), given.translations.float()).to_quaternion()
    torch.testing.assert_close((single * quaternions).sum(-1).abs(), torch.ones(208).double(), rtol=0, atol=5e-7)
    nothing = torch.zeros(3, 3, 3, requires_grad=True)
    out = Frames(nothing, torch.zeros(3, 3)).to_quaternion()
    assert out.isfinite().all() and torch.autograd.grad(out.sum(), nothing)[0].isfinite().all()


def test_gradient_of_to_quaternion():
    """The gradient along directions that keep a rotation one: through from_quaternion it is the identity's, less the
    part along the quaternion itself."""
    quaternions = random(20, 4)
    quaternions = (quaternions / quaternions.norm(dim=-1, keepdim=True) * quaternions[:, :1].sign()).requires_grad_()
    cotangent = random(20, 4, seed=5)
    (found,) = torch.autograd.grad(Frames.from_quaternion(quaternions).to_quaternion(), quaternions, cotangent)
    along = (cotangent * quaternions).sum(-1, keepdim=True) * quaternions
    torch.testing.assert_close(found, cotangent - along.detach())

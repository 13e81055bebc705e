"""DynOPool2d and ShapeAdaptor: sizes, the gradient through rounding, freezing, bounds, and what happens at NaN."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import paperops
from paperops.nn import DynOPool2d, ShapeAdaptor
from paperops.nn.learned_size import name_layers

DOUBLE = torch.float64


def set_alpha(layer: nn.Module, *values: float) -> None:
    with torch.no_grad():
        layer.alpha.copy_(torch.tensor(values).reshape(layer.alpha.shape))


def maps(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=DOUBLE).to(dtype)


# --- DynOPool2d ----------------------------------------------------------------------------------------------------


def test_half_is_max_pooling_by_two():
    x = maps(2, 3, 8, 6)
    assert torch.equal(DynOPool2d()(x), functional.max_pool2d(x, 2))
    torch.testing.assert_close(DynOPool2d(mode="mean")(x), functional.avg_pool2d(x, 2))


@pytest.mark.parametrize("alpha", [(2.0, 2.0), (1.3, 3.7), (0.6, 1.0), (9.0, 0.51)])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (12, 31)])
def test_is_the_op_at_the_rounded_ratio(alpha, size):
    layer = DynOPool2d(mode="mean")
    set_alpha(layer, *alpha)
    x = maps(2, 3, *size)
    cells = [max(1, round(pixels / torch.tensor(a).item())) for pixels, a in zip(size, alpha, strict=True)]
    ratio = torch.tensor([c / p for c, p in zip(cells, size, strict=True)], dtype=DOUBLE)
    out = layer(x)
    assert list(out.shape[2:]) == cells
    assert torch.equal(out, paperops.dynopool_2d(x, ratio, cells, "mean"))


def test_gradient_of_alpha_is_straight_through():
    """That of the op at the rounded ratio, times d(1/alpha)/d(alpha) at alpha as it is."""
    layer = DynOPool2d((0.43, 0.71), dtype=DOUBLE)
    x = maps(2, 3, 12, 11, dtype=DOUBLE).requires_grad_()
    out = layer(x)
    cotangent = maps(*out.shape, dtype=DOUBLE)
    of_alpha, of_x = torch.autograd.grad(out, (layer.alpha, x), cotangent)
    ratio = torch.tensor([out.shape[2] / 12, out.shape[3] / 11], dtype=DOUBLE, requires_grad=True)
    op = paperops.dynopool_2d(x, ratio, out.shape[2:])
    of_ratio, expected = torch.autograd.grad(op, (ratio, x), cotangent)
    torch.testing.assert_close(of_alpha, -of_ratio / layer.alpha.detach() ** 2, rtol=1e-12, atol=1e-12)
    assert torch.equal(of_x, expected) and of_alpha.abs().min() > 1e-3


def test_gradient_of_alpha_is_the_derivative_where_no_rounding_happens():
    layer = DynOPool2d((0.75, 0.375), mode="mean", dtype=DOUBLE)  # no sample lies on a pixel's centre
    x, h = maps(1, 2, 8, 8, dtype=DOUBLE), 1e-6
    layer(x).square().sum().backward()
    for axis in range(2):
        losses = []
        for step in (h, -h):
            alpha = layer.alpha.detach().clone()
            alpha[axis] += step
            losses.append(paperops.dynopool_2d(x, 1 / alpha, (6, 3), "mean").square().sum().item())
        assert layer.alpha.grad[axis].item() == pytest.approx((losses[0] - losses[1]) / (2 * h), rel=1e-6)


@pytest.mark.parametrize("mode", ["max", "mean"])
def test_same_as_its_twin_on_the_reference(mode):
    results = []
    for backend in (None, "reference"):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3), DynOPool2d((0.61, 0.47), mode), nn.ReLU(), nn.Conv2d(8, 5, 3), DynOPool2d((1.2, 0.3))
        )
        with paperops.use_backend(backend) if backend else torch.enable_grad():
            out = net(maps(2, 3, 17, 23))
            out.square().mean().backward()
        results.append([out.detach(), *(p.grad for p in net.parameters())])
    assert all(value.abs().max() > 1e-6 for value in results[0])
    for ours, twin in zip(*results, strict=True):
        torch.testing.assert_close(ours, twin, rtol=1e-5, atol=1e-6)


def test_layouts_and_halves():
    x = maps(2, 8, 13, 9)
    layer = DynOPool2d((0.6, 0.8))
    last = layer(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last) and torch.equal(last, layer(x))
    for dtype in (torch.float16, torch.bfloat16):
        out = layer(x.to(dtype))
        assert out.dtype == dtype
        out.float().sum().backward()
        assert layer.alpha.grad.dtype == torch.float32 and layer.alpha.grad.isfinite().all()
        layer.to(dtype)  # as half() does
        assert layer.alpha.dtype == layer.alpha.grad.dtype == torch.float32
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x.to(dtype)).dtype == dtype
    assert layer.double().alpha.dtype == DOUBLE
    assert layer(maps(0, 8, 13, 9)).shape == (0, 8, 8, 7)


def test_range_is_kept():
    layer = DynOPool2d(scale_range=(0.25, 1.0)).eval()
    x = maps(2, 2, 16, 16)
    set_alpha(layer, 100.0, -3.0)
    assert layer(x).shape == (2, 2, 4, 16)
    assert layer.alpha.tolist() == [100.0, -3.0]  # evaluation changes nothing
    layer.train()
    assert layer(x).shape == (2, 2, 4, 16)
    assert layer.alpha.tolist() == [4.0, 1.0]


def test_gradients_at_the_bounds_lead_back_only():
    layer = DynOPool2d(scale_range=(0.25, 1.0))
    set_alpha(layer, 4.0, 1.0)
    inwards = torch.tensor([-1.0, 1.0], dtype=DOUBLE)  # the loss falls as the scales move away from their bounds
    (of_alpha,) = torch.autograd.grad(layer.scale(), layer.alpha, inwards)
    torch.testing.assert_close(of_alpha, torch.tensor([1 / 16, -1.0]))
    (of_alpha,) = torch.autograd.grad(layer.scale(), layer.alpha, -inwards)
    assert of_alpha.tolist() == [0.0, 0.0]
    optimizer = torch.optim.SGD(layer.parameters(), lr=3.0)
    for _ in range(60):
        optimizer.zero_grad()
        layer(maps(1, 1, 16, 16))
        (layer.scale() - torch.tensor([0.5, 0.7])).square().sum().backward()
        optimizer.step()
    assert layer.current_scale() == pytest.approx((0.5, 0.7), abs=0.05)


def test_freeze():
    layer = DynOPool2d((0.3, 0.62))
    x = maps(2, 3, 19, 23)
    learned = layer(x)
    layer.freeze()
    assert layer.frozen and torch.equal(layer(x), learned) and not layer(x).requires_grad
    set_alpha(layer, 1.0, 1.0)
    assert torch.equal(layer(x), learned)
    assert "frozen at (0.3, 0.62)" in repr(layer)
    layer.load_state_dict(layer.state_dict())  # now its constants are those loaded
    assert layer(x).shape == x.shape
    layer.unfreeze()
    assert layer(x).requires_grad and "frozen" not in repr(layer)


def test_forced_sizes():
    layer = DynOPool2d((0.3, 0.62))
    x = maps(2, 3, 10, 10)
    layer.set_sizes((4, 9))
    out = layer(x)
    assert torch.equal(out, paperops.dynopool_2d(x, torch.tensor([0.4, 0.9], dtype=DOUBLE)))
    out.square().sum().backward()
    assert layer.alpha.grad.abs().min() > 0
    layer.set_sizes(None)
    assert layer(x).shape == (2, 3, 3, 6)


def test_export_of_what_is_frozen():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), DynOPool2d((0.3, 0.62)), nn.ReLU(), ShapeAdaptor()).eval()
    x = maps(2, 3, 19, 23)
    with pytest.raises(Exception, match="must be frozen before export"):
        torch.export.export(net, (x,))
    expected = net(x)
    for layer in (net[1], net[3]):
        layer.freeze()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(program.module()(x), expected)
    larger = torch.cat([x, x, x])
    torch.testing.assert_close(program.module()(larger), net(larger))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    torch.testing.assert_close(torch.export.load(file).module()(larger), net(larger))
    with pytest.raises(RuntimeError, match=r"\(DynOPool2d\) cannot be traced by torch.jit: freeze\(\) it and use"):
        torch.jit.trace(net, (x,))


class Net(nn.Module):
    """Three convolutions with two learned sizes between them."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, 4, 3, padding=1) for c in (3, 4, 4))
        self.first, self.second = kind(), kind()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.convs[0](x).relu())
        x = self.second(self.convs[1](x).relu())
        return self.convs[2](x)


@pytest.mark.parametrize("kind", [DynOPool2d, ShapeAdaptor])
def test_compiled_with_sizes_that_change_between_steps(kind):
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    torch.manual_seed(0)
    net = Net(kind)
    compiled = torch.compile(net, backend=counter)
    x, first = maps(2, 3, 40, 36), None
    for step, (a, b) in enumerate([(2.0, 1.7), (1.5, 1.9), (1.2, 3.1), (4.0, 1.1), (7.0, 9.0), (0.7, 2.5)]):
        for layer, value in ((net.first, a), (net.second, b)):
            set_alpha(layer, *([value, value / 2 + 0.5] if kind is DynOPool2d else [value - 2]))
        outs, gradients = [], []
        for function in (compiled, net):
            net.zero_grad()
            outs.append(function(x))
            outs[-1].square().sum().backward()
            gradients.append([p.grad.clone() for p in net.parameters()])
        torch.testing.assert_close(outs[0], outs[1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-3)
        first = counter.frame_count if step == 0 else first
    assert first == 3 and counter.frame_count - first <= 2

    torch._dynamo.reset()
    net.first.freeze()
    net.second.freeze()
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="aot_eager")(x), net(x))


def test_state_copies_and_words():
    layer = DynOPool2d((0.3, 0.6), "mean")
    set_alpha(layer, 1.5, 2.5)
    assert list(layer.state_dict()) == ["alpha"]
    other = DynOPool2d(mode="mean")
    other.load_state_dict(layer.state_dict())
    x = maps(1, 2, 9, 9)
    stored = io.BytesIO()
    torch.save(layer, stored)
    stored.seek(0)
    for same in (
        other,
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(stored, weights_only=False),
    ):
        assert torch.equal(same(x), layer(x))
    assert repr(layer) == "DynOPool2d(init_scale=(0.3, 0.6), mode='mean', scale_range=(0.1, 2.0))"
    layer.reset_parameters()
    torch.testing.assert_close(layer.alpha.detach(), torch.tensor([1 / 0.3, 1 / 0.6]))
    meta = DynOPool2d((0.5, 0.25), device="meta")
    assert meta(torch.empty(1, 2, 8, 8, device="meta")).shape == (1, 2, 4, 2)
    assert DynOPool2d(0.5).init_scale == (0.5, 0.5)


# --- trouble (acceptance 5) ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", [1.0, -1.0])
@pytest.mark.parametrize("kind", [DynOPool2d, ShapeAdaptor])
def test_training_that_drives_the_scale_to_its_bound(kind, direction):
    """Up and down, on maps that end as one pixel: everything stays finite and the size within its range."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), kind(), nn.Conv2d(2, 2, 3, padding=1), kind())
    optimizer = torch.optim.SGD(net.parameters(), lr=5.0)
    x = maps(2, 1, 4, 4)
    for _ in range(60):
        optimizer.zero_grad()
        out = net(x)
        push = sum(layer.scale().sum() for layer in (net[1], net[3]))
        (1e-3 * out.square().mean() + direction * push).backward()
        assert all(p.grad.isfinite().all() for p in net.parameters())
        optimizer.step()
    low, high = (0.1, 2.0) if kind is DynOPool2d else (0.5, 1.0)
    expected = low if direction > 0 else high
    for layer in (net[1], net[3]):
        assert layer.current_scale() == pytest.approx((expected, expected), rel=0.05)
    assert out.isfinite().all()
    assert tuple(out.shape[2:]) == ((1, 1) if direction > 0 else (16, 16) if kind is DynOPool2d else (4, 4))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", [DynOPool2d, ShapeAdaptor])
def test_alpha_that_is_not_finite_names_the_layer(kind, value):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(kind(), kind()))
    name_layers(net)
    optimizer = torch.optim.SGD([net[1][1].alpha], lr=1.0)
    (net(maps(1, 1, 9, 9)).sum() * value).backward()  # a loss that is not finite, as in training
    optimizer.step()
    assert not net[1][1].alpha.isfinite().all()
    for call in (lambda: net(maps(1, 1, 9, 9)), net[1][1].freeze):
        with pytest.raises(ValueError, match=r"1\.1 \(" + kind.__name__ + r"\): alpha must be finite; got \["):
            call()
    with torch.no_grad():
        net[1][0].alpha.fill_(math.nan)
    net[1][0].layer_name = None
    with pytest.raises(ValueError, match="a layer without a name"):
        net(maps(1, 1, 9, 9))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: DynOPool2d((0.5, 0.5, 0.5)), ValueError, "init_scale must be one number or two"),
        (lambda: DynOPool2d((0.5, 0.0)), ValueError, "init_scale must be positive and finite; got 0"),
        (lambda: DynOPool2d((0.5, "1")), TypeError, "init_scale must be a number; got str"),
        (lambda: DynOPool2d(0.01), ValueError, r"init_scale must lie in scale_range, \[0.1, 2\]; got 0.01"),
        (lambda: DynOPool2d(scale_range=(2.0, 0.1)), ValueError, "scale_range must not be empty"),
        (lambda: DynOPool2d(scale_range=0.1), ValueError, "scale_range must be two numbers"),
        (lambda: DynOPool2d(mode="min"), ValueError, "mode must be 'max' or 'mean'; got 'min'"),
        (lambda: DynOPool2d(mode=None), ValueError, "mode must be 'max' or 'mean'; got None"),
        (lambda: DynOPool2d()(torch.rand(3, 4, 4)), ValueError, r"x must have 4 dimensions; got \[3, 4, 4\]"),
        (lambda: DynOPool2d()(torch.rand(1, 3, 0, 4)), ValueError, r"x must have at least one pixel"),
        (lambda: DynOPool2d()(torch.ones(1, 1, 4, 4).long()), TypeError, "x must be float16"),
        (lambda: DynOPool2d()(torch.rand(1, 1, 4, 4, device="meta")), ValueError, "x must be on the device of alpha"),
        (lambda: DynOPool2d().set_sizes((0, 3)), ValueError, "size must be at least 1; got 0"),
        (lambda: DynOPool2d().set_sizes(3), ValueError, "size must be None or two integers"),
        (lambda: ShapeAdaptor(init_scale=1.0), ValueError, "init_scale must lie between r1 and r2, 0.5 and 1"),
        (lambda: ShapeAdaptor(r1=-1.0), ValueError, "r1 must be positive"),
        (lambda: ShapeAdaptor(branch_1=torch.relu), TypeError, "branch_1 must be a module or None; got builtin"),
        (lambda: ShapeAdaptor()(torch.rand(3, 4, 4)), ValueError, r"x must have 4 dimensions"),
    ],
)
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- ShapeAdaptor --------------------------------------------------------------------------------------------------


def test_a_gradient_for_each_sample():
    pool, x = paperops.nn.DynOPool2d((0.7, 0.4)), torch.rand(3, 2, 8, 9, generator=torch.Generator().manual_seed(0))
    parameters = dict(pool.named_parameters())

    def loss(parameters, one):
        return torch.func.functional_call(pool, parameters, (one[None],)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)["alpha"]
    right = torch.stack([torch.func.grad(loss)(parameters, one)["alpha"] for one in x])
    torch.testing.assert_close(found, right)
    with pytest.raises(ValueError, match="alpha must not be batched by vmap"):
        torch.func.vmap(loss, (0, None))({"alpha": torch.full((2, 2), 2.0)}, x[0])


@pytest.mark.parametrize("alpha", [-2.0, 0.0, 0.7])
def test_shape_adaptor_is_its_formula(alpha):
    torch.manual_seed(0)
    strided, plain = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(3, 4, 3, 1, 1)
    layer = ShapeAdaptor(strided, plain)
    set_alpha(layer, alpha)
    x = maps(2, 3, 16, 11)
    share = 1 / (1 + math.exp(-alpha))
    s = 0.5 * share + 0.5
    size = (round(16 * s), round(11 * s))
    first, second = (
        functional.interpolate(branch(x), size, mode="bilinear", align_corners=True) for branch in (strided, plain)
    )
    out = layer(x)
    torch.testing.assert_close(out, (1 - share) * first + share * second)
    (of_alpha,) = torch.autograd.grad(out.sum(), layer.alpha)
    torch.testing.assert_close(of_alpha, share * (1 - share) * (second - first).sum(), rtol=1e-4, atol=1e-4)
    layer.freeze()
    torch.testing.assert_close(layer(x), out)
    assert "frozen at" in repr(layer)


def test_shape_adaptor_starts_where_it_is_told():
    layer = ShapeAdaptor(init_scale=0.6)
    torch.testing.assert_close(layer.scale().detach(), torch.full((2,), 0.6, dtype=DOUBLE), rtol=1e-6, atol=0)
    assert layer.half().alpha.dtype == torch.float32
    assert layer(maps(1, 2, 10, 10).half()).dtype == torch.float16
    assert layer(maps(1, 2, 1, 1)).shape == (1, 2, 1, 1)

"""What is particular to ACmix's convolution path, beyond the generic checks."""

import itertools

import pytest
import torch
from paperops.benchmarks import memory
from paperops.benchmarks.peers import torch_eager
from torch.nn.functional import conv2d

import paperops
from paperops.testing.shift_conv import shift_conv_arguments
from paperops.testing.targets import targets

CPU = torch.device("cpu")
every = pytest.mark.parametrize("target", targets(), ids="-".join)
layouts = pytest.mark.parametrize("last", [False, True], ids=["planes", "pixels"])


def arguments(shape, channels, kernel=3, **options):
    return shift_conv_arguments(shape, channels, kernel, CPU, options.pop("dtype", torch.float64), **options)


def call(target, given, function=None):
    """The result, and the gradients of every tensor among the arguments, of a random cotangent."""
    leaves = {name: value.to(target[0]) for name, value in given.items() if torch.is_tensor(value)}
    leaves = {name: value.requires_grad_() for name, value in leaves.items()}
    with paperops.use_backend(target[1]):
        out = (function or paperops.shift_conv_2d)(**(given | leaves))
        generator = torch.Generator().manual_seed(7)
        grad = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)
        found = torch.autograd.grad(out, list(leaves.values()), grad)
    return [out.detach().cpu(), *(value.cpu() for value in found)]


def two_convolutions(x, fc_weight, conv_weight, stride=1, fc_bias=None):
    """As the layer is usually written: a 1 x 1 convolution, channels regrouped, and a grouped convolution."""
    batch, maps, depth, height, width = x.shape
    mixed = conv2d(x.reshape(batch, maps, depth * height, width), fc_weight[:, :, None, None], fc_bias)
    mixed = mixed.reshape(batch, -1, depth, height, width).transpose(1, 2).flatten(1, 2)  # d * K + kk
    return conv2d(mixed, conv_weight, padding=conv_weight.shape[-1] // 2, stride=stride, groups=depth)


def assert_as_two_convolutions(target, given):
    for ours, theirs in zip(call(target, given), call(("cpu", "reference"), given, two_convolutions), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


SWEPT = {  # sizes, strides and kernels of all combinations
    "native": ((1, 2, 3, 6, 7), (1, 2, 3), (1, 3, 5)),
    "reference": ((1, 6), (1, 2, 3), (1, 3, 5)),
    "triton": ((5,), (1, 2, 3), (1, 3)),
}


@layouts
@pytest.mark.parametrize("heads", [1, 8], ids=["merged", "staged"])
@every
def test_is_two_convolutions(target, heads, last):
    sizes, strides, kernels = SWEPT.get(target[1], SWEPT["native"])
    if target[1] == "triton" and heads > 1:
        pytest.skip("Triton merges the weights whatever the number of heads")
    for number, (height, stride, kernel) in enumerate(itertools.product(sizes, strides, kernels)):
        width = 2 * max(sizes) - height + 1
        options = {"stride": stride, "bias": number % 2 == 0, "channels_last": last}
        assert_as_two_convolutions(target, arguments((1, 3 * heads, 2, height, width), 2 * heads, kernel, **options))


@layouts
@pytest.mark.parametrize("target", targets("reference", "triton"), ids="-".join)
def test_many_groups_rows_and_columns(target, last):
    for depth, size, stride, heads in (
        (9, (40, 33), 1, 4),
        (17, (65, 9), 2, 3),
        (8, (9, 130), 3, 8),
        (2, (90, 90), 1, 4),
    ):
        given = arguments((2, 3 * heads, depth, *size), depth * heads, stride=stride, bias=True, channels_last=last)
        assert_as_two_convolutions(target, given)


@every
def test_shift_kernel_shifts(target):
    """Each mixed map is moved by its tap and they are summed."""
    x = torch.randn(2, 3, 4, 6, 7, dtype=torch.float64)
    fc = torch.randn(9, 3, dtype=torch.float64)
    given = {"x": x, "fc_weight": fc, "conv_weight": paperops.nn.shift_kernel(4, 3, dtype=torch.float64)}
    mixed = torch.einsum("kt,btdyx->bkdyx", fc, x)
    expected = torch.zeros(2, 4, 6, 7, dtype=torch.float64)
    for number, (dy, dx) in enumerate(itertools.product((-1, 0, 1), repeat=2)):
        rows, columns = slice(max(0, -dy), 6 - max(0, dy)), slice(max(0, -dx), 7 - max(0, dx))
        from_rows, from_columns = slice(max(0, dy), 6 + min(0, dy)), slice(max(0, dx), 7 + min(0, dx))
        expected[:, :, rows, columns] += mixed[:, number, :, from_rows, from_columns]
    torch.testing.assert_close(call(target, given)[0], expected)


@every
def test_the_bias_ends_at_the_border(target):
    """A bias alone: the sum of the taps that are inside, and nothing from the padding."""
    given = arguments((1, 2, 1, 4, 5), 1) | {"fc_bias": torch.arange(9.0, dtype=torch.float64)}
    out = call(target, given | {"x": torch.zeros(1, 2, 1, 4, 5, dtype=torch.float64)})[0]
    taps = torch.einsum("kyx,k->yx", given["conv_weight"][0], given["fc_bias"])
    expected = torch.stack(
        [
            torch.stack([taps[max(0, 1 - i) : min(3, 5 - i), max(0, 1 - j) : min(3, 6 - j)].sum() for j in range(5)])
            for i in range(4)
        ]
    )
    torch.testing.assert_close(out[0, 0], expected)
    assert not torch.allclose(expected, taps.sum())


@every
def test_channels_belong_to_groups_in_order(target):
    """Channel c reads channel c * D // C of x, and no other."""
    given = arguments((1, 3, 3, 4, 4), 6)
    whole = call(target, given)[0]
    for d in range(3):
        alone = torch.zeros_like(given["x"])
        alone[:, :, d] = given["x"][:, :, d]
        out = call(target, given | {"x": alone})[0]
        torch.testing.assert_close(out[:, 2 * d : 2 * d + 2], whole[:, 2 * d : 2 * d + 2])
        assert out.count_nonzero() == out[:, 2 * d : 2 * d + 2].count_nonzero()


@every
def test_pixels_that_no_position_reaches_have_no_gradient(target):
    given = arguments((1, 2, 2, 7, 8), 2, 1, stride=3)
    dx = call(target, given)[1]
    reached = torch.zeros(7, 8, dtype=torch.bool)
    reached[::3, ::3] = True
    assert torch.equal(dx != 0, reached.expand_as(dx))


@every
def test_views_of_one_convolution(target):
    """As ACmix passes it: queries, keys and values are views of one result, in either layout."""
    qkv = torch.randn(2, 24, 5, 6, dtype=torch.float64)
    for whole in (qkv, qkv.contiguous(memory_format=torch.channels_last)):
        view = whole.view(2, 6, 4, 5, 6)[:, :3]
        given = arguments((2, 3, 4, 5, 6), 8) | {"x": view.detach()}
        assert_as_two_convolutions(target, given)
        with paperops.use_backend(target[1]):
            out = paperops.shift_conv_2d(
                view.to(target[0]), given["fc_weight"].to(target[0]), given["conv_weight"].to(target[0])
            )
        assert out.is_contiguous() == (whole is qkv)
        assert out.is_contiguous(memory_format=torch.channels_last) == (whole is not qkv)


@every
def test_gradients_have_the_layout_of_x(target):
    for last in (False, True):
        given = arguments((2, 3, 4, 5, 6), 8, channels_last=last)
        dx = call(target, given)[1]
        assert dx.stride() == given["x"].stride()


@every
def test_nan_stays_near(target):
    """A pixel that is NaN reaches the positions around it, and no other channel, item or position."""
    given = arguments((2, 3, 2, 5, 6), 4, bias=True)
    given["x"][1, 2, 0, 2, 3] = torch.nan
    expected = torch.zeros(2, 4, 5, 6, dtype=torch.bool)
    expected[1, :2, 1:4, 2:5] = True
    out, dx = call(target, given)[:2]
    assert torch.equal(out.isnan(), expected)
    assert dx.isfinite().all()


@pytest.mark.parametrize("target", targets("triton"), ids="-".join)
def test_weights_in_float32_beside_halves(target):
    single = arguments((2, 6, 3, 6, 7), 6, bias=True, dtype=torch.float32)
    out, dx, dfc, dconv, dbias = call(target, single | {"x": single["x"].half()})
    assert out.dtype == dx.dtype == torch.float16
    assert dfc.dtype == dconv.dtype == dbias.dtype == torch.float32
    exact = call(("cpu", "reference"), single | {"x": single["x"].half().float()})
    torch.testing.assert_close(out.float(), exact[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(dfc, exact[2], rtol=1e-2, atol=5e-2)


def test_gradients_of_some_arguments_alone():
    given = arguments((1, 6, 2, 5, 4), 4, bias=True)
    whole = dict(zip(("x", "fc_weight", "conv_weight", "fc_bias"), call(("cpu", "reference"), given)[1:], strict=True))
    for wanted in itertools.chain.from_iterable(itertools.combinations(whole, count) for count in (1, 2)):
        leaves = {name: given[name].clone().requires_grad_() for name in wanted}
        out = paperops.shift_conv_2d(**(given | leaves))
        generator = torch.Generator().manual_seed(7)
        grad = torch.randn(out.shape, generator=generator, dtype=torch.float64)
        for name, value in zip(wanted, torch.autograd.grad(out, list(leaves.values()), grad), strict=True):
            torch.testing.assert_close(value, whole[name])


def test_keeps_x_and_the_weights_alone():
    given = arguments((2, 12, 4, 14, 14), 16, dtype=torch.float32)
    leaves = {name: value.requires_grad_() for name, value in given.items() if torch.is_tensor(value)}
    inner = given | {"x": leaves["x"] * 1}  # not a leaf: counted where it is kept
    assert (
        memory.saved_for_backward(lambda: paperops.shift_conv_2d(**inner), list(leaves.values())) == leaves["x"].nbytes
    )
    fixed = {name: value.detach() for name, value in given.items() if torch.is_tensor(value)}
    only_x = inner | {name: fixed[name] for name in ("fc_weight", "conv_weight")}
    kept = memory.saved_for_backward(lambda: paperops.shift_conv_2d(**only_x), [*leaves.values(), *fixed.values()])
    assert kept == 0


def test_the_peer_is_the_same():
    for last, stride in itertools.product((False, True), (1, 2)):
        given = arguments((2, 6, 3, 7, 8), 6, stride=stride, bias=True, channels_last=last)
        torch.testing.assert_close(torch_eager.shift_conv_2d(**given), paperops.shift_conv_2d(**given))


# --- nn.shift_kernel -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_shift_kernel_has_one_tap_a_map(kernel):
    weight = paperops.nn.shift_kernel(6, kernel, dtype=torch.float64)
    assert weight.shape == (6, kernel**2, kernel, kernel) and weight.dtype == torch.float64
    assert torch.equal(weight.flatten(2), torch.eye(kernel**2, dtype=torch.float64).expand(6, -1, -1))
    weight[0, 0] = 5  # memory of its own
    assert weight[1, 0].sum() == 1


@pytest.mark.parametrize(("channels", "kernel"), [(0, 3), (4, 2), (4, 0)])
def test_shift_kernel_refuses(channels, kernel):
    with pytest.raises(ValueError, match="must be"):
        paperops.nn.shift_kernel(channels, kernel)

"""What is particular to DynOPool's pooling and to resampling, beyond the generic checks."""

import itertools
import math

import pytest
import torch
from paperops.benchmarks import memory
from paperops.benchmarks.peers import torch_eager
from torch.nn.functional import grid_sample, interpolate, max_pool2d

import paperops
from paperops.testing.targets import targets

every = pytest.mark.parametrize("target", targets(), ids="-".join)
kernels = pytest.mark.parametrize("target", targets("reference"), ids="-".join)
layouts = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["planes", "pixels"])


def call(target, function, x, scale, *arguments, grad=None, **options):
    """The result, and the gradients of x and scale."""
    x, scale = x.to(target[0]).requires_grad_(), scale.to(target[0]).requires_grad_()
    with paperops.use_backend(target[1]):
        out = function(x, scale, *arguments, **options)
        found = torch.autograd.grad(out, (x, scale), torch.ones_like(out) if grad is None else grad.to(target[0]))
    return out.detach().cpu(), *(value.cpu() for value in found)


# --- explicit loops --------------------------------------------------------------------------------------------------


def taps(cell, place, pixels, ratio):
    """The pixels that one sample of an axis touches, with their weights and these weights' derivatives by the ratio."""
    position = (cell + place) / ratio - 0.5
    slope = -(cell + place) / ratio**2
    if position < 0 or position > pixels - 1:
        position, slope = min(max(position, 0.0), pixels - 1.0), 0.0
    first = math.floor(position)
    fraction = position - first
    if first == pixels - 1:
        return [(first, 1.0, 0.0)]
    return [(first, 1 - fraction, -slope), (first + 1, fraction, slope)]


def loops(x, scale, size, mode, grad):
    """The result and both gradients of one channel, cell by cell in Python's own numbers."""
    height, width = len(x), len(x[0])
    out = [[0.0] * size[1] for _ in range(size[0])]
    dx, dscale = [[0.0] * width for _ in range(height)], [0.0, 0.0]
    places = [(s, t) for s in (0.25, 0.75) for t in (0.25, 0.75)] if mode != "centre" else [(0.5, 0.5)]
    for i, j in itertools.product(range(size[0]), range(size[1])):
        samples = []
        for s, t in places:
            rows, columns = taps(i, s, height, scale[0]), taps(j, t, width, scale[1])
            value = sum(wy * wx * x[y][z] for y, wy, _ in rows for z, wx, _ in columns)
            samples.append((value, rows, columns))
        values = [value for value, _, _ in samples]
        taken = [values.index(max(values))] if mode == "max" else range(len(samples))
        out[i][j] = sum(values[n] for n in taken) / len(taken)
        for n in taken:
            g = grad[i][j] / len(taken)
            for (y, wy, sy), (z, wx, sx) in itertools.product(*samples[n][1:]):
                dx[y][z] += g * wy * wx
                dscale[0] += g * sy * wx * x[y][z]
                dscale[1] += g * wy * sx * x[y][z]
    return out, dx, dscale


@layouts
@pytest.mark.parametrize("mode", ["max", "mean", "centre"])
@kernels
def test_explicit_loops_at_sizes_1_to_9(target, mode, layout):
    scales = [(0.71, 0.38), (1.63, 0.83), (1.0, 1.0), (0.5, 2.7)]
    generator = torch.Generator().manual_seed(0)
    sizes = list(itertools.product(range(1, 10), repeat=2))
    for number, (height, width) in enumerate(sizes if target[1] != "triton" else sizes[::9]):
        scale = scales[number % len(scales)]
        for ratio in (scale, scale[::-1]):
            x = torch.randn(1, 5, height, width, generator=generator, dtype=torch.float64)
            size = tuple(max(1, round(n * r)) for n, r in zip((height, width), ratio, strict=True))
            grad = torch.randn(1, 5, *size, generator=generator, dtype=torch.float64)
            scale_tensor = torch.tensor(ratio, dtype=torch.float64)
            function = paperops.resample_2d if mode == "centre" else paperops.dynopool_2d
            options = {} if mode == "centre" else {"mode": mode}
            given = x.contiguous(memory_format=layout)
            out, dx, dscale = call(target, function, given, scale_tensor, grad=grad, **options)
            expected = [loops(x[0, c].tolist(), ratio, size, mode, grad[0, c].tolist()) for c in range(5)]
            torch.testing.assert_close(out[0], torch.tensor([value[0] for value in expected], dtype=torch.float64))
            torch.testing.assert_close(dx[0], torch.tensor([value[1] for value in expected], dtype=torch.float64))
            slopes = torch.tensor([value[2] for value in expected], dtype=torch.float64).sum(0)
            torch.testing.assert_close(dscale, slopes, rtol=1e-9, atol=1e-9)


# --- r = 1/2 ---------------------------------------------------------------------------------------------------------


@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@every
def test_half_is_max_pooling_bit_by_bit(target, dtype, layout):
    for shape in ((2, 3, 8, 10), (1, 5, 7, 9), (2, 4, 32, 70), (1, 33, 6, 4), (1, 1, 2, 2)):
        x = torch.randn(shape).round(decimals=1).to(dtype).contiguous(memory_format=layout)  # with ties
        size = (shape[2] // 2, shape[3] // 2)
        grad = torch.randn(*shape[:2], *size).to(dtype)
        out, dx, _ = call(target, paperops.dynopool_2d, x, torch.tensor([0.5, 0.5]), size, grad=grad)
        pooled = max_pool2d(x.requires_grad_(), 2)
        assert torch.equal(out, pooled.detach())
        assert torch.equal(dx, torch.autograd.grad(pooled, x, grad)[0])


@layouts
@every
def test_half_is_max_pooling_of_infinities_and_nan(target, layout):
    x = torch.randn(1, 4, 6, 8)
    x[0, 0, 1, 1] = torch.inf
    x[0, 1] = -torch.inf
    x[0, 2, 3, 4] = torch.nan
    x[0, 3, 2] = -torch.inf
    given = x.contiguous(memory_format=layout)
    out, dx, dscale = call(target, paperops.dynopool_2d, given, torch.tensor([0.5, 0.5]))
    x.requires_grad_()
    pooled = max_pool2d(x, 2)
    torch.testing.assert_close(out, pooled.detach(), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(dx, torch.autograd.grad(pooled.sum(), x)[0])
    without_nan = call(target, paperops.dynopool_2d, given[:, [0, 1, 3]], torch.tensor([0.5, 0.5]))
    assert without_nan[2].isfinite().all()


@every
def test_scale_learns_from_one_half_on(target):
    """All samples lie on pixels' centres there: the derivative is that of the right, and not 0."""
    x = torch.arange(64.0).reshape(1, 1, 8, 8)
    dscale = call(target, paperops.dynopool_2d, x, torch.tensor([0.5, 0.5]))[2]
    # The last sample of each cell is the largest, at i + 3/4; in the last row and column there is no pixel after it.
    steps = sum(4 * (i + 0.75) for i in range(3)) * 4
    torch.testing.assert_close(dscale, torch.tensor([-8.0 * steps, -steps]))


# --- other libraries' functions --------------------------------------------------------------------------------------


@every
def test_resampling_is_interpolation(target):
    x = torch.randn(2, 3, 6, 10)
    for scale in ((0.5, 1.5), (2.0, 0.3), (7 / 6, 3.0)):
        size = tuple(round(n * r) for n, r in zip((6, 10), scale, strict=True))
        ratio = torch.tensor(scale, dtype=torch.float64)
        out = call(target, paperops.resample_2d, x, ratio)[0]
        torch.testing.assert_close(out, interpolate(x, size=size, mode="bilinear"))
    for size in ((3, 15), (11, 2)):
        ratio = torch.tensor([(size[0] - 1) / 5, (size[1] - 1) / 9], dtype=torch.float64)
        out = call(target, paperops.resample_2d, x, ratio, size, align_corners=True)[0]
        torch.testing.assert_close(out, interpolate(x, size=size, mode="bilinear", align_corners=True))


@layouts
@pytest.mark.parametrize("padding_mode", ["border", "zeros"])
@every
def test_resampling_is_grid_sample(target, padding_mode, layout):
    x = torch.randn(2, 6, 7, 5, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    scale = torch.tensor([1.31, 0.77], dtype=torch.float64, requires_grad=True)
    size = (12, 6)  # beyond the map
    rows, columns = (
        (torch.arange(n, dtype=torch.float64) + 0.5) / r * 2 / pixels - 1
        for n, r, pixels in zip(size, scale, x.shape[2:], strict=True)
    )
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).expand(2, -1, -1, -1)
    sampled = grid_sample(x, grid, padding_mode=padding_mode, align_corners=False)
    grad = torch.randn_like(sampled)
    expected = sampled.detach(), *torch.autograd.grad(sampled, (x, scale), grad)
    found = call(target, paperops.resample_2d, x.detach(), scale.detach(), size, grad=grad, padding_mode=padding_mode)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


# --- conventions -----------------------------------------------------------------------------------------------------


@layouts
@every
def test_of_equal_samples_the_first_has_the_gradient(target, layout):
    x = torch.ones(1, 5, 4, 4).contiguous(memory_format=layout)
    dx = call(target, paperops.dynopool_2d, x, torch.tensor([0.5, 0.5]))[1]
    expected = torch.zeros(4, 4)
    expected[::2, ::2] = 1
    assert torch.equal(dx, expected.expand(1, 5, 4, 4))


@every
def test_no_gradient_where_positions_are_clamped(target):
    x = torch.randn(1, 2, 1, 9)
    dscale = call(target, paperops.dynopool_2d, x, torch.tensor([3.7, 0.61]))[2]
    assert dscale[0] == 0 and dscale[1] != 0
    beyond = call(target, paperops.resample_2d, torch.randn(1, 1, 2, 2), torch.tensor([0.1, 0.1]), (3, 3))[2]
    assert torch.equal(beyond, torch.zeros(2))


@every
def test_scale_1_is_not_the_identity(target):
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 2, 2] = 16
    out = call(target, paperops.dynopool_2d, x, torch.tensor([1.0, 1.0]))[0]
    assert out[0, 0, 2].tolist() == [0, 3, 9, 3, 0]
    assert torch.equal(call(target, paperops.resample_2d, x, torch.tensor([1.0, 1.0]))[0], x)


@pytest.mark.parametrize(
    ("pixels", "ratio", "cells"), [(5, 0.5, 2), (7, 0.5, 4), (3, 0.1, 1), (9, 1.5, 14), (10, 0.7, 7)]
)
def test_default_size_is_rounded_half_to_even(pixels, ratio, cells):
    x = torch.zeros(1, 1, pixels, pixels)
    assert paperops.dynopool_2d(x, torch.full((2,), ratio)).shape == (1, 1, cells, cells)
    assert paperops.resample_2d(x, torch.full((2,), ratio)).shape == (1, 1, cells, cells)


@kernels
def test_both_layouts_have_the_same_bits(target):
    x, scale = torch.randn(2, 7, 13, 11), torch.tensor([0.6, 1.2])
    by_planes = call(target, paperops.dynopool_2d, x, scale)
    by_pixels = call(target, paperops.dynopool_2d, x.contiguous(memory_format=torch.channels_last), scale)
    assert torch.equal(by_planes[0], by_pixels[0])
    assert by_pixels[0].is_contiguous(memory_format=torch.channels_last)
    assert by_pixels[1].is_contiguous(memory_format=torch.channels_last)
    assert by_planes[0].is_contiguous() and by_planes[1].is_contiguous()
    for ours, theirs in zip(by_planes, by_pixels, strict=True):
        torch.testing.assert_close(ours, theirs)


@every
def test_a_scale_that_is_nan_touches_nothing_else(target):
    """On a GPU it is not read: the result is NaN, and nothing is read or written elsewhere."""
    x = torch.randn(1, 3, 5, 6, device=target[0])
    ratio = torch.tensor([math.nan, 0.5], device=target[0])
    with paperops.use_backend(target[1]):
        for mode in range(4):
            out, chosen = torch.ops.paperops.dynopool(x, ratio, 4, 3, mode, False, True, False)
            assert out.isnan().all()
            dx, dscale = torch.ops.paperops.dynopool_backward(
                out.nan_to_num(1.0), chosen, ratio, x, 5, 6, mode, False, True, False
            )
            assert dx.shape == x.shape and dscale.shape == (2,)


def test_autocast_changes_nothing():
    x, scale = torch.randn(1, 2, 6, 6), torch.tensor([0.6, 0.6])
    with torch.autocast("cpu", torch.bfloat16):
        assert paperops.dynopool_2d(x, scale).dtype == torch.float32
        assert paperops.dynopool_2d(x.bfloat16(), scale).dtype == torch.bfloat16


# --- torch.compile, and memory ---------------------------------------------------------------------------------------


def test_sizes_that_change_between_steps_compile_at_most_twice_again():
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def step(x, scale, height, width):
        return paperops.dynopool_2d(x, scale, (height, width)).square().sum()

    compiled = torch.compile(step, backend=counter, fullgraph=True)
    x = torch.randn(2, 3, 16, 12)
    for height, width in ((8, 6), (9, 6), (9, 7), (10, 8), (7, 5), (13, 11)):
        scale = torch.tensor([height / 16, width / 12], requires_grad=True)
        (found,) = torch.autograd.grad(compiled(x, scale, height, width), scale)
        (expected,) = torch.autograd.grad(step(x, scale, height, width), scale)
        torch.testing.assert_close(found, expected)
    assert counter.frame_count <= 3


@pytest.mark.parametrize("mode", ["max", "mean"])
def test_without_a_size_the_graph_breaks_and_the_result_is_right(mode):
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, scale: paperops.dynopool_2d(x, scale, mode=mode) + 1, backend="aot_eager")
    x, scale = torch.randn(1, 2, 9, 9), torch.tensor([0.6, 0.7])
    torch.testing.assert_close(compiled(x, scale), paperops.dynopool_2d(x, scale, mode=mode) + 1)


def test_keeps_a_fifteenth_of_what_grid_sample_does():
    scale = torch.tensor([0.7, 0.55], requires_grad=True)
    x = torch.randn(2, 64, 56, 56, requires_grad=True)
    ours = memory.saved_for_backward(lambda: paperops.dynopool_2d(x, scale), [x, scale])
    theirs = memory.saved_for_backward(lambda: torch_eager.dynopool_2d(x, scale), [x, scale])
    assert ours == 2 * 16 * 39 * 31  # two bits an element
    assert 15 * ours < theirs
    assert memory.saved_for_backward(lambda: paperops.resample_2d(x, scale), [x, scale]) == 0


def test_without_a_gradient_of_the_scale_x_is_not_kept():
    x = torch.randn(1, 4, 9, 9, requires_grad=True)
    inner = x * 1  # not a leaf: would be counted if it were kept
    scale = torch.tensor([0.7, 0.55])
    assert memory.saved_for_backward(lambda: paperops.dynopool_2d(inner, scale), [x, scale]) == 6 * 5

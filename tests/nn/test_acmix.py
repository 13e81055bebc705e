"""ACmix: every term of the definition, the authors' names, its initialisation, memory, layouts and precisions."""

import pytest
import torch
from paperops.benchmarks import memory
from torch import nn
from torch.nn import functional

import paperops
from paperops.nn import ACmix

DOUBLE = torch.float64


def layer_of(*sizes, dtype=DOUBLE, **options):
    """A layer whose parameters are all away from where they start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sum(sizes))
        layer = ACmix(*sizes, dtype=DOUBLE, **options)
        with torch.no_grad():
            layer.rate1.fill_(0.7)
            layer.rate2.fill_(-0.4)
            layer.dep_conv.weight.add_(0.3 * torch.randn_like(layer.dep_conv.weight))
            layer.conv_p.weight.normal_()
    return layer.to(dtype)


def images(*shape, dtype=DOUBLE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=DOUBLE).to(dtype)


def windows(maps, layer):
    """``[B, H, D, slots, Ho * Wo]``: each query's window of maps ``[B, H, D, h, w]``."""
    mode = {"reflect": "reflect", "zeros": "constant"}[layer.padding_mode]
    padded = functional.pad(maps.flatten(0, 1), (layer.dilation * (layer.kernel_att // 2),) * 4, mode=mode)
    slots = functional.unfold(padded, layer.kernel_att, dilation=layer.dilation, stride=layer.stride)
    return slots.unflatten(1, (maps.shape[2], -1)).unflatten(0, maps.shape[:2])


def term_by_term(layer, x):
    """The layer from its definition: windows unfolded, positions uncancelled, k * k mixed maps, one shift at a time."""
    batch, _, height, width = x.shape
    heads, depth, step, side = layer.head, layer.head_dim, layer.stride, layer.kernel_conv
    q, k, v = (conv(x).unflatten(1, (heads, depth)) for conv in (layer.conv1, layer.conv2, layer.conv3))

    across = torch.linspace(-1, 1, width, dtype=DOUBLE).expand(height, width)
    down = torch.linspace(-1, 1, height, dtype=DOUBLE)[:, None].expand(height, width)
    p = layer.conv_p(torch.stack((across, down))[None])[:, None]  # [1, 1, D, h, w]
    query, own = (maps[..., ::step, ::step].flatten(3)[:, :, :, None] for maps in (q, p))
    relative = windows(k, layer) + own - windows(p, layer)  # [B, H, D, slots, Ho * Wo]
    weights = (depth**-0.5 * query * relative).sum(2).softmax(2)  # [B, H, slots, Ho * Wo]
    rows, columns = -(-height // step), -(-width // step)
    attention = (weights[:, :, None] * windows(v, layer)).sum(3).reshape(batch, -1, rows, columns)

    mixed = torch.einsum("nt,btdhw->bdnhw", layer.fc.weight[:, :, 0, 0], torch.cat((q, k, v), 1))
    padded = functional.pad(mixed, (side // 2,) * 4)
    kernel = layer.dep_conv.weight.unflatten(0, (depth, heads))  # [D, H, slots, side, side]
    convolution = 0
    for a in range(side):
        for b in range(side):
            shifted = padded[..., a : a + height : step, b : b + width : step]  # [B, D, slots, Ho, Wo]
            convolution = convolution + torch.einsum("dhn,bdnij->bdhij", kernel[..., a, b], shifted)
    return layer.rate1 * attention + layer.rate2 * convolution.flatten(1, 2)


CASES = [
    ((5, 12, 7, 3, 3, 1, 1), (2, 5, 9, 8)),
    ((5, 12, 7, 3, 3, 2, 1), (2, 5, 9, 8)),
    ((5, 12, 7, 3, 3, 2, 1), (1, 5, 11, 7)),
    ((4, 8, 3, 2, 3, 1, 2), (2, 4, 5, 6)),
    ((4, 8, 3, 2, 5, 2, 2), (2, 4, 7, 5)),
    ((3, 6, 5, 6, 1, 3, 1), (1, 3, 7, 10)),
]


@pytest.mark.parametrize("padding_mode", ["reflect", "zeros"])
@pytest.mark.parametrize(("sizes", "shape"), CASES, ids=str)
def test_is_its_definition_term_by_term(sizes, shape, padding_mode):
    layer = layer_of(*sizes, padding_mode=padding_mode)
    x = images(*shape).requires_grad_()
    out, expected = layer(x), term_by_term(layer, x)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
    assert expected.abs().max() > 0.3
    leaves = {"x": x, **dict(layer.named_parameters())}
    cotangent = images(*out.shape)
    found, exact = (torch.autograd.grad(result, list(leaves.values()), cotangent) for result in (out, expected))
    for name, one, other in zip(leaves, found, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")
        cancels = name == "conv_p.bias" and padding_mode == "reflect"
        assert (other.abs().max() < 1e-10) if cancels else (other.abs().max() > 0.1), name
    assert out.shape[2:] == tuple(-(-size // sizes[5]) for size in shape[2:])


@pytest.mark.parametrize(("padding_mode", "size"), [("mask", (2, 3)), ("zeros", (1, 2)), ("shift", (7, 9))])
def test_borders_where_reflection_cannot_go(padding_mode, size):
    """Attention of hand-written key sets: the pixels inside, with zeros beside them, or those of the nearest window."""
    layer = layer_of(4, 8, 7, 2, padding_mode=padding_mode)
    x = images(2, 4, *size)
    p = layer._positions(torch.empty(1, 1, 4, *size, dtype=DOUBLE))
    q, k, v = (conv(x).unflatten(1, (2, 4)) for conv in (layer.conv1, layer.conv2, layer.conv3))
    k = k - p
    with torch.no_grad():
        layer.rate2.zero_()
    out = layer(x).unflatten(1, (2, 4)) / layer.rate1
    height, width = size
    for i in range(height):
        for j in range(width):
            ranges = []
            for at, length in ((i, height), (j, width)):
                first = min(max(at - 3, 0), max(0, length - 7)) if padding_mode == "shift" else max(at - 3, 0)
                ranges.append(slice(first, first + 7 if padding_mode == "shift" else at + 4))
            keys, values = (maps[:, :, :, ranges[0], ranges[1]].flatten(3) for maps in (k, v))  # [B, H, D, n]
            beside = 49 - keys.shape[3] if padding_mode == "zeros" else 0
            keys, values = (functional.pad(maps, (0, beside)) for maps in (keys, values))
            weights = torch.einsum("bhd,bhdn->bhn", q[..., i, j], keys).div(2).softmax(2)
            expected = torch.einsum("bhn,bhdn->bhd", weights, values)
            torch.testing.assert_close(out[..., i, j], expected, rtol=0, atol=1e-10)


def test_names_and_shapes_are_the_authors():
    shapes = {name: tuple(value.shape) for name, value in ACmix(16, 24, 7, 6, 5).state_dict().items()}
    assert shapes == {
        "rate1": (1,), "rate2": (1,),
        "conv1.weight": (24, 16, 1, 1), "conv1.bias": (24,),
        "conv2.weight": (24, 16, 1, 1), "conv2.bias": (24,),
        "conv3.weight": (24, 16, 1, 1), "conv3.bias": (24,),
        "conv_p.weight": (4, 2, 1, 1), "conv_p.bias": (4,),
        "fc.weight": (25, 18, 1, 1),
        "dep_conv.weight": (24, 25, 5, 5),
    }  # fmt: skip


def test_starts_at_half_and_half_and_at_shifts():
    layer = ACmix(6, 8, head=2, dtype=DOUBLE)
    assert layer.rate1.item() == layer.rate2.item() == 0.5
    x = images(2, 6, 5, 7)
    with torch.no_grad():
        layer.rate1.zero_()
    maps = torch.cat([conv(x).unflatten(1, (2, 4)) for conv in (layer.conv1, layer.conv2, layer.conv3)], 1)
    mixed = functional.pad(torch.einsum("nt,btdhw->bndhw", layer.fc.weight[:, :, 0, 0], maps), (1, 1, 1, 1))
    shifts = [mixed[:, 3 * a + b, :, a : a + 5, b : b + 7] for a in range(3) for b in range(3)]
    expected = 0.5 * sum(shifts).repeat_interleave(2, 1)  # both heads' channels of a d are the same sum
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


def by_type(module):
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")


def by_name(module):
    if "conv" in type(module).__name__.lower():
        nn.init.normal_(module.weight)


@pytest.mark.parametrize("initialise", [by_type, by_name])
def test_initialising_a_model_keeps_the_shifts(initialise):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), ACmix(8, 8, head=2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.apply(initialise)
    same = [name for name, value in model.state_dict().items() if torch.equal(value, before[name])]
    kept = [name for name in same if not name.endswith("bias")]
    assert kept == ["1.rate1", "1.rate2", "1.dep_conv.weight"]
    with torch.no_grad():
        for value in model.parameters():
            value.fill_(3)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if name in kept)
    assert not (model[1].conv1.weight == 3).any()


def test_memory_kept_for_the_backward_pass():
    """At most 6 MiB an image, x included, at the first stage of a ResNet."""
    layer = ACmix(64, 64)
    kept = []
    for batch in (1, 3):
        x = torch.randn(batch, 64, 56, 56, requires_grad=True)
        parameters = list(layer.parameters())
        kept.append(memory.saved_for_backward(lambda x=x: layer(x), parameters))
    assert kept[0] <= 6 * 2**20
    assert (kept[1] - kept[0]) / 2 <= 6 * 2**20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layouts_and_precisions(dtype, layout):
    exact = layer_of(16, 32, 7, 4, 3, 2)
    layer = layer_of(16, 32, 7, 4, 3, 2, dtype=dtype)
    x = images(2, 16, 13, 10)
    expected = exact(x)
    out = layer(x.to(dtype).contiguous(memory_format=layout))
    assert out.dtype == dtype and out.is_contiguous(memory_format=layout)
    error = (out.double() - expected).abs().max() / expected.abs().max()
    assert error < 8 * torch.finfo(dtype).eps  # measured: 1.5 (float32), 1.5 (float16), 1.7 (bfloat16)


def test_autocast_gives_its_dtype_and_gradients_in_float32():
    layer = layer_of(8, 8, dtype=torch.float32)
    x = images(2, 8, 9, 9, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), layer(x), rtol=0, atol=0.05)
    out.float().square().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in layer.parameters())
    with pytest.raises(TypeError, match="x of torch.float16 does not go with parameters of torch.float32"):
        layer(x.half())


def test_empty_batch():
    out = ACmix(4, 8)(torch.empty(0, 4, 9, 9, requires_grad=True))
    assert out.shape == (0, 8, 9, 9)
    out.sum().backward()


def test_compiles_whole():
    layer = layer_of(8, 8, stride=2)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = images(2, 8, 11, 9)
    torch.testing.assert_close(compiled(x), layer(x))


def test_exports_with_any_batch_height_and_width():
    layer = layer_of(8, 8, stride=2)
    sizes = {0: torch.export.Dim("b"), 2: torch.export.Dim("h", min=4), 3: torch.export.Dim("w", min=4)}
    exported = torch.export.export(layer, (images(2, 8, 11, 9),), dynamic_shapes=(sizes,)).module()
    for shape in ((1, 8, 6, 14), (3, 8, 4, 4)):
        x = images(*shape)
        torch.testing.assert_close(exported(x), layer(x))


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_coordinates(size):
    p = layer_of(4, 8)._positions(torch.empty(1, 1, 2, size, 3, dtype=DOUBLE))  # [1, 1, D, size, 3]
    weight, bias = layer_of(4, 8).conv_p.weight[..., 0, 0], layer_of(4, 8).conv_p.bias
    x, y = torch.tensor([-1.0, 0, 1], dtype=DOUBLE), torch.linspace(-1, 1, size, dtype=DOUBLE)[:, None]
    expected = bias[:, None, None] + weight[:, 0, None, None] * x + weight[:, 1, None, None] * y
    torch.testing.assert_close(p[0, 0], expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"head": 3}, ValueError, "out_planes must be divisible by head, 3; got 8"),
        ({"kernel_att": 6}, ValueError, "kernel_att must be odd; got 6"),
        ({"kernel_conv": 2}, ValueError, "kernel_conv must be odd; got 2"),
        ({"stride": 0}, ValueError, "stride must be at least 1; got 0"),
        ({"dilation": 1.0}, TypeError, "dilation must be an int; got float"),
        ({"padding_mode": "wrap"}, ValueError, "padding_mode must be one of 'reflect', 'zeros', 'mask', 'shift'; got"),
    ],
)
def test_refused_arguments(options, error, message):
    with pytest.raises(error, match=message):
        ACmix(4, 8, **options)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(4, 9, 9), ValueError, r"x must have 4 dimensions; got \[4, 9, 9\]"),
        (torch.zeros(1, 5, 9, 9), ValueError, r"x must have shape \[B, 4, h, w\]; got \[1, 5, 9, 9\]"),
        (torch.zeros(1, 4, 3, 9), ValueError, "reflect"),
    ],
)
def test_refused_maps(x, error, message):
    with pytest.raises(error, match=message):
        ACmix(4, 8)(x)


def test_is_public():
    assert paperops.nn.ACmix is ACmix

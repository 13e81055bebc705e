"""ACmix's networks: published counts, names, values of each kind of layer written out, sizes, weights, refusals."""

import inspect

import pytest
import torch
from torch.nn import functional

import paperops
from paperops.models import acmix
from paperops.models.acmix.layers import StochasticDepth
from paperops.models.acmix.pvt import ReducedACmix
from paperops.models.acmix.san import PatchwiseACmix
from paperops.models.acmix.swin import Block, WindowACmix, in_windows, out_of_windows
from paperops.models.dynopool import MacsCounter

# Millions of parameters and 10^9 multiply-adds: published by the authors, and here.
COUNTS = {
    "resnet26": (10.6, 10_487_816, 2.3, 2.217),
    "resnet38": (14.6, 14_410_896, 2.9, 2.859),
    "resnet50": (18.6, 18_333_976, 3.6, 3.502),
    "san10": (12.1, 11_994_612, 1.9, 1.854),
    "san15": (16.6, 16_414_134, 2.7, 2.575),
    "san19": (21.2, 20_829_278, 3.4, 3.244),
    "pvt_tiny": (13, 13_396_128, 2.0, 2.017),
    "pvt_small": (25, 24_824_755, 3.9, 3.973),
    "swin_tiny": (30, 28_649_908, 4.6, 4.645),
    "swin_small": (51, 50_345_080, 9.0, 8.993),
}
SMALLEST = ("resnet26", "san10", "pvt_tiny", "swin_tiny")


@pytest.fixture(autouse=True)
def fixed_weights():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def without_data(name, *arguments):
    with torch.device("meta"):
        return getattr(acmix, name)(*arguments)


def randomised(layer):
    """The layer in float64 with all of its parameters away from where they start."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer.double().eval()


@pytest.mark.parametrize("name", COUNTS)
def test_counts_beside_the_published(name):
    model = without_data(name)
    published, parameters, published_macs, macs = COUNTS[name]
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert parameters / 1e6 == pytest.approx(published, rel=0.05)
    with MacsCounter(model) as counter:
        out = model(torch.empty(2, 3, 224, 224, device="meta"))
    assert counter.macs / 1e9 == pytest.approx(macs, abs=1e-3)
    assert macs == pytest.approx(published_macs, rel=0.05)
    assert out.shape == (2, 1000)
    out.sum().backward()
    assert all(parameter.grad.shape == parameter.shape for parameter in model.parameters())


NAMES = {
    "resnet38": {
        "conv1.weight": (64, 3, 7, 7),
        "layer1.0.conv2.conv_p.weight": (16, 2, 1, 1),
        "layer2.0.conv2.rate1": (1,),
        "layer3.4.conv2.fc.weight": (9, 12, 1, 1),
        "layer4.0.downsample.0.weight": (2048, 1024, 1, 1),
        "layer4.1.conv2.dep_conv.weight": (512, 9, 3, 3),
        "fc.weight": (1000, 2048),
    },
    "san15": {
        "conv_in.weight": (64, 3, 1, 1),
        "layer0.2.sam.conv_w.2.weight": (2, 40, 1, 1),
        "layer1.1.sam.conv_w.0.running_mean": (800,),
        "layer3.4.sam.conv3.weight": (256, 1024, 1, 1),
        "layer4.1.sam.conv_w.5.weight": (3136, 64, 1, 1),
        "layer4.1.conv.bias": (2048,),
        "bn4.weight": (2048,),
    },
    "pvt_small": {
        "patch_embed1.proj.weight": (64, 3, 4, 4),
        "pos_embed4": (1, 50, 512),
        "cls_token": (1, 1, 512),
        "block2.3.attn.sr.weight": (128, 128, 4, 4),
        "block3.5.attn.kv.bias": (640,),
        "block1.0.mlp.fc1.weight": (512, 64),
        "block4.2.attn.fc.bias": (9,),
        "head.weight": (1000, 512),
    },
    "swin_small": {
        "patch_embed.norm.weight": (96,),
        "layers.0.blocks.1.attn.relative_position_bias_table": (169, 3),
        "layers.1.downsample.reduction.weight": (384, 768),
        "layers.2.blocks.17.attn.qkv.weight": (1152, 384),
        "layers.2.blocks.17.attn.fc.weight": (9, 36, 1, 1),
        "layers.3.blocks.0.attn.dep_conv.weight": (768, 9, 3, 3),
        "layers.3.blocks.1.mlp.fc2.weight": (768, 3072),
        "head.bias": (1000,),
    },
}


@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes(name):
    state = without_data(name).state_dict()
    assert {key: tuple(state[key].shape) for key in NAMES[name]} == NAMES[name]


def odd_size(name):
    """An odd size that the network takes, and not much larger than it must be."""
    return {"san": (129, 131), "res": (97, 101)}.get(name[:3], (65, 95)) if name != "resnet26" else (49, 63)


def smallest(name):
    """Pixels a side."""
    return {"resnet26": 49}.get(name) or {"res": 97, "san": 128, "pvt": 32, "swi": 1}[name[:3]]


def has_gradient(name, key):
    """Biases may cancel, of keys in whole; of PVT the class token alone comes out, which has no convolution."""
    if name.startswith("pvt") and key.startswith(("block4.1.", "block4.2.")[name == "pvt_small"]):
        return not key.endswith(("rate2", "fc.weight", "fc.bias", "dep_conv.weight"))
    return not key.endswith(("conv_p.bias", "conv1.bias", "kv.bias", "qkv.bias"))


@pytest.mark.parametrize("name", COUNTS)
def test_forward_and_backward(name):
    """At an odd size all of them, at 224 x 224 pixels the smallest of each kind; of two channels."""
    model = getattr(acmix, name)(5, 2)
    for module in model.modules():
        if isinstance(module, StochasticDepth):
            module.eval()  # no block is left out
    for batch, size in [(2, odd_size(name))] + ([(1, (224, 224))] if name in SMALLEST else []):
        out = model(torch.rand(batch, 2, *size))
        assert out.shape == (batch, 5) and out.isfinite().all()
        out.square().sum().backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad.isfinite().all() and (parameter.grad.any() or not has_gradient(name, key)), key
        model.zero_grad()


@pytest.mark.parametrize("name", SMALLEST)
def test_own_weights_load_and_implementations_agree(name):
    model, other = (getattr(acmix, name)(5).eval().double() for _ in range(2))  # so that no ReLU turns by rounding
    other.load_state_dict(model.state_dict(), strict=True)
    images = torch.rand(2, 3, *odd_size(name), dtype=torch.float64)
    out = model(images)
    assert torch.equal(other(images), out) and not torch.equal(out[0], out[1])
    with paperops.use_backend("reference"):
        slow = other(images)
        cotangent = torch.randn(2, 5, dtype=torch.float64)
        exact = torch.autograd.grad(slow, list(other.parameters()), cotangent)
    torch.testing.assert_close(out, slow, rtol=1e-10, atol=1e-10)
    found = torch.autograd.grad(out, list(model.parameters()), cotangent)
    largest = max(grad.abs().max().item() for grad in exact)
    for (key, _), one, two in zip(model.named_parameters(), found, exact, strict=True):
        assert (one - two).abs().max() <= 1e-10 * largest, key


@pytest.mark.parametrize("name", ["pvt_tiny", "swin_tiny"])
def test_exports_with_any_batch(name):
    model, size = without_data(name, 5, 2).eval(), odd_size(name)
    batch = {0: torch.export.Dim("b")}
    exported = torch.export.export(model, (torch.empty(2, 2, *size, device="meta"),), dynamic_shapes=(batch,)).module()
    assert exported(torch.empty(3, 2, *size, device="meta")).shape == (3, 5)


def test_published_tables_of_swin_are_passed_over():
    state = without_data("swin_tiny").state_dict()
    extra = {
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(49, 49, device="meta"),
        "layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49, device="meta"),
    }
    without_data("swin_tiny").load_state_dict({**state, **extra}, strict=True, assign=True)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        without_data("swin_tiny").load_state_dict({**state, "layers.0.other": torch.zeros(1)}, strict=True)


# --- each kind of layer, written out -------------------------------------------------------------------------------


def convolved(layer, maps):
    """ACmix's convolution of maps [B, T, D, h, w] by torch's, the mixed maps channel by channel."""
    mixed = torch.einsum("nt,btdhw->bdnhw", layer.fc.weight[:, :, 0, 0], maps)
    if layer.fc.bias is not None:
        mixed = mixed + layer.fc.bias[:, None, None]
    return functional.conv2d(mixed.flatten(1, 2), layer.dep_conv.weight, padding=1, groups=maps.shape[2])


def test_windows_of_swin_with_their_shift():
    """One pixel after another: it attends to those of its window, as it lies in the shifted map, that belong to it."""
    layer, heads, size = randomised(WindowACmix(8, 2)), 2, (14, 21)
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    block = Block(8, 2, shift=3, dropped=0.0).double()
    block.attn = layer
    out = block._mixed(x)
    shifted = torch.roll(x, (-3, -3), (1, 2))
    q, k, v = layer.qkv(shifted).unflatten(3, (3, heads, 4)).unbind(3)  # [B, h, w, heads, D]
    attention = torch.empty_like(x)
    for i in range(size[0]):
        for j in range(size[1]):
            keys = [
                (a, b)
                for a in range(i // 7 * 7, i // 7 * 7 + 7)
                for b in range(j // 7 * 7, j // 7 * 7 + 7)
                if (a >= size[0] - 3) == (i >= size[0] - 3) and (b >= size[1] - 3) == (j >= size[1] - 3)
            ]
            logits = torch.stack(
                [
                    (q[:, i, j] * k[:, a, b]).sum(2) / 2
                    + layer.relative_position_bias_table[(i - a + 6) * 13 + j - b + 6]
                    for a, b in keys
                ]
            )  # [keys, B, heads]
            values = torch.stack([v[:, a, b] for a, b in keys])  # [keys, B, heads, D]
            attention[:, i, j] = (logits.softmax(0)[..., None] * values).sum(0).flatten(1)
    maps = torch.cat([part.permute(0, 3, 4, 1, 2) for part in (q, k, v)], 1)  # [B, 3 * heads, D, h, w]
    expected = layer.rate1 * layer.proj(attention) + layer.rate2 * convolved(layer, maps).permute(0, 2, 3, 1)
    torch.testing.assert_close(out, torch.roll(expected, (3, 3), (1, 2)), rtol=0, atol=1e-10)


def test_windows_and_back():
    x = torch.arange(2.0 * 14 * 21 * 3).reshape(2, 14, 21, 3)
    windows = in_windows(x)
    assert windows.shape == (12, 49, 3) and torch.equal(windows[4], x[0, 7:, 7:14].flatten(0, 1))
    assert torch.equal(out_of_windows(windows, 14, 21), x)


@pytest.mark.parametrize(("reduction", "others"), [(1, 1), (2, 0)])
def test_reduced_attention_of_pvt(reduction, others):
    layer, height, width = randomised(ReducedACmix(8, 2, reduction)), 5, 7
    x = torch.randn(3, others + height * width, 8, dtype=torch.float64)
    tokens = x
    if reduction > 1:
        patches = x.unflatten(1, (height, width))[:, :4, :6].unflatten(1, (2, 2)).unflatten(3, (3, 2))
        summed = torch.einsum("nyaxbc,ocab->nyxo", patches, layer.sr.weight)
        tokens = layer.norm(summed.flatten(1, 2) + layer.sr.bias)
    q = layer.q(x).unflatten(2, (2, 4))  # [B, N, heads, D]
    k, v = layer.kv(tokens).unflatten(2, (2, 2, 4)).unbind(2)
    weights = torch.einsum("bnhd,bmhd->bhnm", q, k).div(2).softmax(3)
    attention = layer.proj(torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2))
    full = []
    for part in (q, k, v):
        part = part[:, others:].permute(0, 2, 3, 1)  # [B, heads, D, pixels]
        if part.shape[3] == height * width:
            full.append(part.unflatten(3, (height, width)))
        else:
            rows, columns = torch.arange(height) * 2 // height, torch.arange(width) * 3 // width
            full.append(part.unflatten(3, (2, 3))[..., rows[:, None], columns])
    convolution = convolved(layer, torch.cat(full, 1)).flatten(2).transpose(1, 2)
    expected = layer.rate1 * attention
    expected[:, others:] += layer.rate2 * convolution
    torch.testing.assert_close(layer(x, height, width), expected, rtol=0, atol=1e-10)


def test_patchwise_attention_of_san():
    layer = randomised(PatchwiseACmix(64, 3))
    x = torch.randn(2, 64, 4, 5, dtype=torch.float64)
    q, k, v = (conv(x) for conv in (layer.conv1, layer.conv2, layer.conv3))
    padded_k, padded_v = (functional.pad(maps, (1, 1, 1, 1), mode="reflect") for maps in (k, v))
    attention = torch.empty_like(v)
    for i in range(4):
        for j in range(5):
            keys = padded_k[:, :, i : i + 3, j : j + 3].flatten(1)  # [B, 4 * 9], channel by channel
            patch = torch.cat((q[:, :, i, j], keys), 1)
            weights = layer.conv_w(patch[:, :, None, None]).reshape(2, 2, 9)  # [B, n, slots]
            values = padded_v[:, :, i : i + 3, j : j + 3].flatten(2)  # [B, 16, slots]
            attention[:, :, i, j] = (weights.repeat(1, 8, 1) * values).sum(2)
    maps = torch.cat((q[:, None], k[:, None], v.unflatten(1, (4, 4))), 1)
    expected = layer.rate1 * attention + layer.rate2 * convolved(layer, maps)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-10)


def test_stochastic_depth():
    layer, x = StochasticDepth(0.25), torch.ones(4000, 2, 3)
    out = layer(x)
    assert torch.equal(out.unique(), torch.tensor([0.0, 1.0]) / 0.75)
    assert (out == out[:, :1, :1]).all() and (out[:, 0, 0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert layer.eval()(x) is x
    rates = [block.drop_path.dropped for stage in without_data("swin_tiny").layers for block in stage.blocks]
    assert len(rates) == 12 and rates[0] == 0 and rates[-1] == pytest.approx(0.2)


@pytest.mark.parametrize("name", SMALLEST)
def test_refused(name):
    for arguments, error in (((0,), ValueError), ((10, 1.5), TypeError)):
        with pytest.raises(error, match="num_classes|in_channels"):
            without_data(name, *arguments)
    with pytest.raises(ValueError, match=r"images must have shape \[B, 3, H, W\]; got \[1, 4, 8, 8\]"):
        without_data(name)(torch.empty(1, 4, 8, 8, device="meta"))
    with pytest.raises(ValueError, match=r"images must have shape \[B, 3, H, W\]; got \[3, 224, 224\]"):
        without_data(name)(torch.empty(3, 224, 224, device="meta"))
    with pytest.raises(TypeError, match="images must have a floating dtype; got torch.uint8: convert them"):
        without_data(name)(torch.empty(1, 3, 224, 224, dtype=torch.uint8, device="meta"))


@pytest.mark.parametrize("name", COUNTS)
def test_smallest_images(name, monkeypatch):
    """The smallest that are said to do run, in training too; of those a pixel lower or narrower some layer cannot."""
    model, least = without_data(name, 5, 2), smallest(name)
    assert model(torch.empty(2, 2, least, least, device="meta")).shape == (2, 5)
    assert ("any size" if least == 1 else f"{least} at least") in getattr(acmix, name).__doc__
    if least > 1:
        for size in ((least - 1, 224), (224, least - 1)):
            images, got = torch.empty(2, 2, *size, device="meta"), f"got {size[0]} x {size[1]}"
            with pytest.raises(ValueError, match=f"images must be at least {least} x {least} pixels .*; {got}"):
                model(images)
            with monkeypatch.context() as unchecked:
                unchecked.setattr(inspect.getmodule(type(model)), "check_images", lambda *_: None)
                with pytest.raises((ValueError, RuntimeError), match="'reflect' needs|[Pp]adding size|alculated.*size"):
                    model(images)

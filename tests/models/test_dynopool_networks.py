"""DynOPool's networks: names, counts and values of the published ones, learned sizes, shared steps, refusals."""

import contextlib
import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import paperops
from paperops.models.dynopool import (
    MacsCounter,
    efficientnet_b0,
    gmacs_loss,
    hrnet_w48,
    replace_resizing,
    resnet50,
    vgg16,
)
from paperops.models.dynopool.efficientnet import MBConv
from paperops.models.dynopool.hrnet import FusionModule, HighResolutionNet
from paperops.models.dynopool.layers import Options
from paperops.models.dynopool.resnet import Bottleneck

LEARNED = ("dynopool", "shape_adaptor")


def narrow_hrnet(num_classes=5, in_channels=3, *, head="classification", stem="imagenet", resizing="dynopool"):
    """HRNet-W48 but for the width of its branches."""
    return HighResolutionNet(Options(num_classes, in_channels, stem, resizing), head, width=8)


def narrow_segmenter(num_classes=5, in_channels=3, **options):
    return narrow_hrnet(num_classes, in_channels, head="segmentation", **options)


def hrnet_segmenter(num_classes=19, in_channels=3, **options):
    return hrnet_w48(num_classes, in_channels, head="segmentation", **options)


def plain_vgg16(*arguments, **options):
    return vgg16(*arguments, batch_norm=False, **options)


PUBLISHED = (vgg16, plain_vgg16, resnet50, efficientnet_b0, hrnet_w48, hrnet_segmenter)
SMALL = (vgg16, resnet50, efficientnet_b0, narrow_hrnet, narrow_segmenter)


def without_data(network, *arguments, **options):
    with torch.device("meta"):
        return network(*arguments, **options).eval()


def sizes_of(model):
    """The layers that learn a size, by name."""
    kinds = (paperops.nn.DynOPool2d, paperops.nn.ShapeAdaptor)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def set_scale(layer, height, width):
    with torch.no_grad():
        layer.alpha.copy_(torch.tensor([1 / height, 1 / width]))


@pytest.fixture(autouse=True)
def fixed_weights():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


# --- the published networks ----------------------------------------------------------------------------------------

COUNTS = {
    vgg16: 138_365_992,
    plain_vgg16: 138_357_544,
    resnet50: 25_557_032,
    efficientnet_b0: 5_288_548,
    hrnet_w48: 77_469_864,
    hrnet_segmenter: 65_859_379,  # published as 65.9 M
}
# 10^9 at 224 x 224 pixels, as torchvision and timm publish them.
MULTIPLY_ADDS = {vgg16: 15.47, plain_vgg16: 15.47, resnet50: 4.09, efficientnet_b0: 0.386, hrnet_w48: 17.3}
NAMES = {
    vgg16: {
        "features.0.weight": (64, 3, 3, 3),
        "features.1.running_mean": (64,),
        "features.7.bias": (128,),
        "features.40.weight": (512, 512, 3, 3),
        "features.41.num_batches_tracked": (),
        "classifier.0.weight": (4096, 25088),
        "classifier.3.weight": (4096, 4096),
        "classifier.6.bias": (1000,),
    },
    plain_vgg16: {
        "features.0.weight": (64, 3, 3, 3),
        "features.5.weight": (128, 64, 3, 3),
        "features.28.bias": (512,),
        "classifier.6.weight": (1000, 4096),
    },
    resnet50: {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.running_var": (64,),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer2.0.conv2.weight": (128, 128, 3, 3),
        "layer2.0.downsample.1.bias": (512,),
        "layer3.5.bn3.weight": (1024,),
        "layer4.2.conv3.weight": (2048, 512, 1, 1),
        "fc.weight": (1000, 2048),
    },
    efficientnet_b0: {
        "features.0.0.weight": (32, 3, 3, 3),
        "features.0.1.weight": (32,),
        "features.1.0.block.0.0.weight": (32, 1, 3, 3),
        "features.1.0.block.1.fc1.weight": (8, 32, 1, 1),
        "features.1.0.block.2.0.weight": (16, 32, 1, 1),
        "features.2.0.block.1.0.weight": (96, 1, 3, 3),
        "features.2.0.block.2.fc2.bias": (96,),
        "features.6.3.block.3.1.running_mean": (192,),
        "features.8.0.weight": (1280, 320, 1, 1),
        "classifier.1.weight": (1000, 1280),
    },
    hrnet_w48: {
        "conv2.weight": (64, 64, 3, 3),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "transition1.0.0.weight": (48, 256, 3, 3),
        "transition1.1.0.0.weight": (96, 256, 3, 3),
        "transition3.3.0.1.bias": (384,),
        "stage2.0.branches.1.3.conv2.weight": (96, 96, 3, 3),
        "stage3.3.fuse_layers.0.2.0.weight": (48, 192, 1, 1),
        "stage4.2.fuse_layers.3.0.0.0.weight": (48, 48, 3, 3),
        "stage4.2.fuse_layers.3.0.2.0.weight": (384, 48, 3, 3),
        "incre_modules.0.0.downsample.0.weight": (128, 48, 1, 1),
        "downsamp_modules.2.0.bias": (1024,),
        "final_layer.0.weight": (2048, 1024, 1, 1),
        "classifier.weight": (1000, 2048),
    },
    hrnet_segmenter: {
        "stage4.0.fuse_layers.2.1.0.1.running_var": (192,),
        "last_layer.0.weight": (720, 720, 1, 1),
        "last_layer.1.bias": (720,),
        "last_layer.3.weight": (19, 720, 1, 1),
    },
}


@pytest.mark.parametrize("network", PUBLISHED)
def test_published_counts_and_names(network):
    model = without_data(network, resizing="fixed")
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[network]
    state = model.state_dict()
    assert {name: tuple(state[name].shape) for name in NAMES[network]} == NAMES[network]


def multiply_adds(model, size):
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, *size, device="meta"))
    return counter.get_total_flops() / 2e9


@pytest.mark.parametrize("network", MULTIPLY_ADDS)
def test_published_multiply_adds(network):
    fixed = multiply_adds(without_data(network, resizing="fixed"), (224, 224))
    assert fixed == pytest.approx(MULTIPLY_ADDS[network], rel=2e-3)


# Of the other libraries' networks (torchvision 0.29; timm 1.0 for HRNet, at this width) with the weights of `waves` on
# the images of `pattern`, in float64: three logits of each of two images.
VALUES = {
    vgg16: [[4.780719029034, 4.999795093208, 4.885985652666], [4.868110237189, 4.94496088247, 4.692568034761]],
    resnet50: [[-9.42192789539, 2.028568257181, 11.622683344044], [-10.179458839707, -0.609971338967, 9.680458514773]],
    efficientnet_b0: [
        [1.491128247666, 0.479498991648, -2.970144975492],
        [0.953159457274, 0.988914090252, -3.245652807319],
    ],
    narrow_hrnet: [
        [-1.706243302697, 3.144601773056, 4.924810633603],
        [-1.351089819836, 3.279779374196, 4.707970956982],
    ],
}


def waves(model):
    """Weights (of float32) by formula; batch normalisation by the batch, so that values stay of order one."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                wave = torch.sin(torch.arange(value.numel(), dtype=torch.float64) * 0.7 + len(name)).view_as(value)
                if value.dim() > 1:
                    wave = wave * math.sqrt(3 / value[0].numel())
                else:
                    wave = wave / 4 + name.endswith(("weight", "var"))
                value.copy_(wave)
    for module in model.double().eval().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    return model


def pattern(height, width):
    i = torch.arange(2 * 3 * height * width)
    return (i * i % 101).double().view(2, 3, height, width) / 50 - 1


@pytest.mark.parametrize("network", VALUES)
def test_published_values(network):
    options = {"stem": "cifar"} if network is vgg16 else {}
    model = waves(network(5, resizing="fixed", **options))
    size = (64, 96) if network is narrow_hrnet else (37, 50)
    with torch.no_grad():
        logits = model(pattern(*size))
    torch.testing.assert_close(logits[:, :3], torch.tensor(VALUES[network], dtype=torch.float64), rtol=0, atol=1e-8)


# --- learned sizes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
@pytest.mark.parametrize("resizing", LEARNED)
@pytest.mark.parametrize("network", PUBLISHED)
def test_fixed_weights_start_the_learned(network, resizing, stem):
    """What learns a size adds names and changes none."""
    fixed, learned = (without_data(network, resizing=kind, stem=stem) for kind in ("fixed", resizing))
    shapes = {name: value.shape for name, value in learned.state_dict().items()}
    added = {f"{name}.alpha" for name in sizes_of(learned)}
    assert set(shapes) - added == set(fixed.state_dict())
    assert all(shapes[name] == value.shape for name, value in fixed.state_dict().items())
    stem_resizes = {vgg16: 0, plain_vgg16: 0, efficientnet_b0: 1}.get(network, 2)
    steps = {vgg16: 5, plain_vgg16: 5, efficientnet_b0: 4}.get(network, 3)
    assert len(added) == steps + (stem_resizes if stem == "imagenet" else 0)
    assert all(module.stride == (1, 1) for module in learned.modules() if isinstance(module, nn.Conv2d))


@pytest.mark.parametrize("resizing", [*LEARNED, "fixed"])
@pytest.mark.parametrize("network", SMALL)
def test_forward_and_backward(network, resizing):
    model = network(5, in_channels=2, stem="cifar", resizing=resizing)
    images = torch.randn(2, 2, 33, 38)
    logits = model(images)
    assert logits.shape == ((2, 5, 33, 38) if network is narrow_segmenter else (2, 5))
    (logits * torch.randn(logits.shape)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    for name, layer in sizes_of(model).items():
        assert layer.alpha.grad.abs().max() > 0, name


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (45, 32)])
@pytest.mark.parametrize("network", SMALL)
def test_any_size(network, size):
    options = {"stem": "cifar"} if network is vgg16 else {}
    model = network(5, **options).eval()
    with torch.no_grad():
        logits = model(torch.randn(2, 3, *size))
    assert logits.isfinite().all()
    assert logits.shape == ((2, 5, *size) if network is narrow_segmenter else (2, 5))


@pytest.mark.parametrize("network", SMALL)
def test_own_state_loads(network):
    model, other = (network(5, stem="cifar").eval() for _ in range(2))
    for layer in sizes_of(model).values():
        set_scale(layer, 0.7, 0.4)
    other.load_state_dict(model.state_dict())
    images = torch.randn(1, 3, 32, 24)
    with torch.no_grad():
        torch.testing.assert_close(other(images), model(images), rtol=0, atol=0)


def strided_paths(model):
    """The strided convolutions of an HRNet, by the step between branches that they are on."""
    steps = {step: [f"transition{step + 1}.{step + 1}.0.0", f"downsamp_modules.{step}.0"] for step in range(3)}
    for name, module in model.named_modules():
        if "fuse_layers" in name and isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            *_, source, layer, _ = name.split(".")
            steps[int(source) + int(layer)].append(name)
    return list(steps.values())


@pytest.mark.parametrize("network", [vgg16, resnet50, efficientnet_b0, narrow_hrnet])
def test_learned_is_the_fixed_network_after_replacement(network):
    """Every strided layer and pooling is replaced alike, and shares what `replace_resizing` shares."""
    stem = "cifar" if network is vgg16 else "imagenet"
    fixed, learned = (network(5, resizing=kind, stem=stem).eval() for kind in ("fixed", "dynopool"))
    learned.load_state_dict(fixed.state_dict(), strict=False)
    replaced = replace_resizing(fixed, share=strided_paths(fixed) if network is narrow_hrnet else ())
    own = [name for name, *_, leader in replaced if leader is None]
    assert len(own) == len(sizes_of(learned)) == 5
    images = torch.randn(1, 3, 45, 70)
    with torch.no_grad(), MacsCounter(learned) as counter:
        torch.testing.assert_close(learned(images), fixed(images), rtol=0, atol=0)
    with MacsCounter(fixed) as other:
        assert counter.macs == other.macs


def test_multiply_adds_and_their_gradient_reach_every_scale():
    model = narrow_segmenter(stem="cifar")
    with MacsCounter(model) as counter:
        model(torch.randn(2, 3, 32, 32))
        gmacs_loss(model, 1.0).backward()
    assert counter.macs == multiply_adds(without_data(narrow_segmenter, stem="cifar"), (32, 32)) * 1e9
    gradients = [step.alpha.grad for step in model.steps]
    assert all((gradient < 0).all() for gradient in gradients)  # a larger alpha, 1 / scale, costs less


@pytest.mark.parametrize("network", [vgg16, resnet50, efficientnet_b0, narrow_segmenter])
def test_against_the_slow_twin(network):
    """The same weights on the definition: the same logits and the same gradients of every parameter."""
    model = network(5, stem="cifar").double().eval()
    for layer in sizes_of(model).values():
        set_scale(layer, 0.7, 0.8)
    # Sizes at which, layer after layer, no sample falls on a pixel's centre, where the scale's gradient has a kink, and
    # no two lie symmetrically about one, where they tie if its neighbours are 0 (after a ReLU).
    images = torch.randn(2, 3, 17, 20, dtype=torch.float64)
    results = []
    for backend in (None, "reference"):
        model.zero_grad()
        with contextlib.nullcontext() if backend is None else paperops.use_backend(backend):
            logits = model(images)
            logits.square().sum().backward()
        results.append([logits.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    for ours, twin in zip(*results):
        torch.testing.assert_close(ours, twin, rtol=1e-9, atol=1e-9 * twin.abs().max().item())


def test_vgg_starts_as_the_fixed_network():
    fixed, learned = (vgg16(5, stem="cifar", resizing=kind).eval() for kind in ("fixed", "dynopool"))
    learned.load_state_dict(fixed.state_dict(), strict=False)
    images = torch.randn(2, 3, 32, 64)
    with torch.no_grad():
        torch.testing.assert_close(learned(images), fixed(images), rtol=0, atol=0)


def test_vgg_imagenet():
    model = vgg16(10, in_channels=1).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 1, 40, 32)).shape == (1, 10)


def test_cifar_stems_keep_the_size():
    """The first stage sees maps of the images' own size."""
    images = torch.randn(1, 3, 32, 20)
    for network, first in ((resnet50, "layer1"), (efficientnet_b0, "features.1"), (narrow_hrnet, "layer1")):
        for stem, size in (("cifar", (32, 20)), ("imagenet", (16, 10) if network is efficientnet_b0 else (8, 5))):
            seen = []
            model = network(5, stem=stem).eval()
            model.get_submodule(first).register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0].shape[2:]))
            with torch.no_grad():
                model(images)
            assert seen == [size]


def test_errors_name_the_layer():
    for network, name in ((resnet50, "layer3.0.resize"), (narrow_hrnet, "steps.1"), (vgg16, "features.6")):
        model = network(5, stem="cifar")
        with torch.no_grad():
            sizes_of(model)[name].alpha.fill_(math.nan)
        with pytest.raises(ValueError, match=name):
            model(torch.randn(2, 3, 32, 32))


# --- where maps meet -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resizing", LEARNED)
def test_a_block_and_its_shortcut_share_a_size(resizing):
    block = Bottleneck(8, 4, 2, Options(5, 3, "cifar", resizing)).double()
    if resizing == "dynopool":
        set_scale(block.resize, 0.7, 0.3)
    x = torch.randn(2, 8, 13, 17, dtype=torch.float64)
    y = block.relu(block.bn1(block.conv1(x)))
    y = block.relu(block.bn2(block.resize(nn.functional.conv2d(y, block.conv2.weight, padding=1))))
    assert y.shape[2:] == ((9, 5) if resizing == "dynopool" else (10, 13))
    shortcut = block.downsample[1](block.resize(nn.functional.conv2d(x, block.downsample[0].weight)))
    expected = torch.relu(block.bn3(block.conv3(y)) + shortcut)
    torch.testing.assert_close(block(x), expected)


def test_every_path_between_branches_shares_its_step():
    model = narrow_hrnet().eval()
    for layer, scale in zip(model.steps, ((0.6, 0.9), (0.3, 0.5), (1.3, 0.7))):
        set_scale(layer, *scale)
    with torch.no_grad():
        maps = model.branches(torch.randn(1, 3, 61, 70))
        assert [tuple(x.shape[1:]) for x in maps] == [(8, 15, 18), (16, 9, 16), (32, 3, 8), (64, 4, 6)]
        assert model(torch.randn(1, 3, 61, 70)).isfinite().all()


@pytest.mark.parametrize("upsampling", ["nearest", "bilinear"])
def test_fusion(upsampling):
    """The sums, written out for two branches: down through the step before normalisation, up to the other's size."""
    options = Options(5, 3, "cifar", "dynopool")
    module = FusionModule([4, 8], options, upsampling).eval()
    step = options.resize(2)
    set_scale(step, 0.6, 0.4)
    maps = [torch.randn(2, 4, 10, 13), torch.randn(2, 8, 6, 5)]
    with torch.no_grad():
        a, b = (branch(x) for branch, x in zip(module.branches, maps))
        up, down = module.fuse_layers[0][1], module.fuse_layers[1][0][0]
        large = torch.relu(a + nn.functional.interpolate(up(b), size=(10, 13), mode=upsampling))
        small = torch.relu(down[1](step(nn.functional.conv2d(a, down[0].weight, padding=1))) + b)
        torch.testing.assert_close(module(maps, [step]), [large, small])


def test_stochastic_depth():
    options = Options(5, 3, "cifar", "fixed")
    block = MBConv(options, 4, 4, 6, 3, 1, skipped=0.5)
    x = torch.randn(64, 4, 6, 6)
    block.eval()
    with torch.no_grad():
        whole = block(x) - x  # [64, 4, 6, 6]
        block.training = True  # the block itself; its normalisation stays in evaluation
        change = block(x) - x
    skipped = (change == 0).flatten(1).all(1)
    assert 16 < skipped.sum() < 48
    torch.testing.assert_close(change[~skipped], 2 * whole[~skipped])
    depths = [module.skipped for module in efficientnet_b0(5).modules() if isinstance(module, MBConv)]
    assert depths == pytest.approx([0.2 * i / 16 for i in range(16)])


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [vgg16, resnet50, efficientnet_b0, hrnet_w48])
def test_bad_arguments(network):
    with pytest.raises(ValueError, match="num_classes must be at least 1; got 0"):
        network(0)
    with pytest.raises(TypeError, match="num_classes must be an int; got str"):
        network("10")
    with pytest.raises(ValueError, match="in_channels must be at least 1; got -3"):
        network(10, -3)
    with pytest.raises(ValueError, match="stem must be one of 'imagenet', 'cifar'; got 'mnist'"):
        network(stem="mnist")
    with pytest.raises(ValueError, match="resizing must be one of .*; got 'pooling'"):
        network(resizing="pooling")


def test_bad_options_of_one_network():
    with pytest.raises(ValueError, match="head must be one of 'classification', 'segmentation'; got 'detection'"):
        hrnet_w48(head="detection")
    with pytest.raises(TypeError, match="batch_norm must be True or False; got 1"):
        vgg16(batch_norm=1)


@pytest.mark.parametrize("network", SMALL)
def test_bad_images(network):
    model = without_data(network, 5, stem="cifar", resizing="fixed")
    for shape in ((3, 32, 32), (2, 1, 32, 32), (2, 3, 0, 32)):
        with pytest.raises(ValueError, match=r"images must have shape \[B, 3, H, W\]; got"):
            model(torch.empty(shape, device="meta"))

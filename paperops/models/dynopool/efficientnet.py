"""EfficientNet-B0, its strides learned or fixed."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from paperops.models.dynopool.layers import Options
from paperops.models.images import check_images
from paperops.nn.learned_size import name_layers

# Expansion, kernel, stride, channels, blocks: the paper's Table 1 after the stem.
_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
_DROPOUT = 0.2
_STOCHASTIC_DEPTH = 0.2


def efficientnet_b0(
    num_classes: int = 1000, in_channels: int = 3, *, stem: str = "imagenet", resizing: str = "dynopool"
) -> EfficientNetB0:
    """EfficientNet-B0 whose strides are learned.

    Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019 (arXiv
    1905.11946), with the resizing of arXiv 2205.15254: each strided convolution (the stem's, and four depthwise ones)
    becomes one of stride 1 followed, before its normalisation, by a :class:`paperops.nn.DynOPool2d` of initial scale
    1/2. No block that resizes has a shortcut. In training, blocks with a shortcut are skipped for single images with a
    probability that grows with depth to nearly 0.2, and a fifth of the features in front of the last layer is dropped.

    Args:
        num_classes: numbers that come out for each image.
        in_channels: channels of the images.
        stem: `"imagenet"`, or `"cifar"` (the stem's convolution has stride 1, for small images).
        resizing: `"dynopool"`, `"shape_adaptor"` (:class:`paperops.nn.ShapeAdaptor`, between the map and its 2 x 2
            maximum, in the same places) or `"fixed"` (strides).

    Returns:
        A module from images `[B, in_channels, H, W]` to `[B, num_classes]`. Its parameters have the names and shapes of
        torchvision's `efficientnet_b0`; what is learned of sizes stands beside them (`features.0.resize.*`,
        `features.2.0.block.1.resize.*`), so weights of the fixed network are a start for the others with
        `strict=False`.

    Raises:
        TypeError, ValueError: an argument is not as above; the message names it.

    With 1000 classes: 5,288,548 parameters and 0.39 G multiply-adds for 224 x 224 pixels when fixed. DynOPool adds ten
    parameters, and 0.05 G multiply-adds at its initial scales: the five convolutions see the map before it shrinks.

    Example:
        >>> import torch
        >>> model = efficientnet_b0(10, stem="cifar", resizing="fixed").eval()
        >>> model(torch.rand(2, 3, 20, 33)).shape
        torch.Size([2, 10])
    """
    return EfficientNetB0(Options(num_classes, in_channels, stem, resizing))


def _unit(
    before: int, channels: int, kernel: int, *, resize: tuple[int, nn.Module] | None = None, groups: int = 1,
    activation: bool = True,
) -> nn.Sequential:  # fmt: skip
    """Convolution, normalisation and SiLU under the names 0, 1 and 2; between the first two a resizing, if any."""
    stride = 1 if resize is None else resize[0]
    unit = nn.Sequential()
    unit.add_module("0", nn.Conv2d(before, channels, kernel, stride, kernel // 2, groups=groups, bias=False))
    if resize is not None:
        unit.add_module("resize", resize[1])
    unit.add_module("1", nn.BatchNorm2d(channels))
    if activation:
        unit.add_module("2", nn.SiLU(inplace=True))
    return unit


class SqueezeExcitation(nn.Module):
    """Each channel times a number in (0, 1), of all channels' means over the map."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.activation = nn.SiLU(inplace=True)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The scaled map, of x's shape `[B, channels, H, W]`."""
        return x * torch.sigmoid(self.fc2(self.activation(self.fc1(self.avgpool(x)))))


class MBConv(nn.Module):
    """Inverted residual block: 1 x 1 to `expansion` times the channels, depthwise (resizing), squeezing, 1 x 1."""

    def __init__(
        self, options: Options, before: int, channels: int, expansion: int, kernel: int, stride: int, skipped: float
    ) -> None:
        super().__init__()
        wide = before * expansion
        resize = None if stride == 1 else (options.stride(stride), options.resize(stride))
        layers: list[nn.Module] = [] if expansion == 1 else [_unit(before, wide, 1)]
        layers.append(_unit(wide, wide, kernel, resize=resize, groups=wide))
        layers.append(SqueezeExcitation(wide, max(1, before // 4)))
        layers.append(_unit(wide, channels, 1, activation=False))
        self.block = nn.Sequential(*layers)
        self.shortcut = stride == 1 and before == channels
        self.skipped = skipped

    def forward(self, x: Tensor) -> Tensor:
        """The map `[B, channels, h, w]` of x `[B, before, H, W]`."""
        y = self.block(x)  # [B, channels, h, w]
        if not self.shortcut:
            return y
        if self.training and self.skipped > 0:
            kept = 1 - self.skipped
            y = y * y.new_empty((len(y), 1, 1, 1)).bernoulli_(kept).div_(kept)
        return x + y


class EfficientNetB0(nn.Module):
    """What :func:`efficientnet_b0` makes."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.in_channels = options.in_channels
        stride = 1 if options.cifar else 2
        before = 32
        resize = None if stride == 1 else (options.stride(stride), options.resize(stride))
        layers: list[nn.Module] = [_unit(options.in_channels, before, 3, resize=resize)]
        total = sum(blocks for *_, blocks in _STAGES)
        number = 0
        for expansion, kernel, stride, channels, blocks in _STAGES:
            stage: list[nn.Module] = []
            for block in range(blocks):
                skipped = _STOCHASTIC_DEPTH * number / total
                stage.append(MBConv(options, before, channels, expansion, kernel, stride if block == 0 else 1, skipped))
                before, number = channels, number + 1
            layers.append(nn.Sequential(*stage))
        layers.append(_unit(before, 4 * before, 1))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(_DROPOUT, inplace=True), nn.Linear(4 * before, options.num_classes))

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                bound = 1 / math.sqrt(module.out_features)
                nn.init.uniform_(module.weight, -bound, bound)
                nn.init.zeros_(module.bias)
        name_layers(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, num_classes]` of images `[B, in_channels, H, W]`."""
        check_images(images, self.in_channels)
        return self.classifier(self.avgpool(self.features(images)).flatten(1))

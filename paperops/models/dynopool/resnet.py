"""ResNet-50, its strides learned or fixed."""

from __future__ import annotations

from torch import Tensor, nn

from paperops.models.dynopool.layers import Options
from paperops.models.images import check_images
from paperops.nn.learned_size import name_layers


def resnet50(
    num_classes: int = 1000, in_channels: int = 3, *, stem: str = "imagenet", resizing: str = "dynopool"
) -> ResNet50:
    """ResNet-50 whose strides and max pooling are learned.

    He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016 (arXiv 1512.03385), with a block's
    stride in its 3 x 3 convolution as in torchvision, and the resizing of arXiv 2205.15254: each of the four strided
    convolutions (one in the stem) becomes one of stride 1 followed, before its normalisation, by a
    :class:`paperops.nn.DynOPool2d` of initial scale 1/2, and such a module takes the place of the 3 x 3 max pooling.

    The strided 1 x 1 convolution of a block's shortcut is treated alike, with the same module: one learned scale serves
    both paths, so they always have the same size where they are added.

    Args:
        num_classes: numbers that come out for each image.
        in_channels: channels of the images.
        stem: `"imagenet"` (7 x 7 convolution and max pooling, each halving the map) or `"cifar"` (a 3 x 3 convolution
            of stride 1 and no pooling, for small images).
        resizing: `"dynopool"`, `"shape_adaptor"` (:class:`paperops.nn.ShapeAdaptor`, between the map and its 2 x 2
            maximum, in the same places) or `"fixed"` (strides and max pooling).

    Returns:
        A module from images `[B, in_channels, H, W]` to `[B, num_classes]`. Its parameters have the names and shapes of
        torchvision's `resnet50`; what is learned of sizes stands beside them (`resize.*`, `layer2.0.resize.*`,
        `maxpool.*`), so weights of the fixed network are a start for the others with `strict=False`.

    Raises:
        TypeError, ValueError: an argument is not as above; the message names it.

    With 1000 classes: 25,557,032 parameters and 4.09 G multiply-adds for 224 x 224 pixels when fixed. DynOPool adds ten
    parameters, and 2.3 G multiply-adds at its initial scales: the strided convolutions see the map before it shrinks.

    Example:
        >>> import torch
        >>> model = resnet50(10, stem="cifar", resizing="fixed").eval()
        >>> model(torch.rand(2, 3, 20, 33)).shape
        torch.Size([2, 10])
    """
    return ResNet50(Options(num_classes, in_channels, stem, resizing))


class Bottleneck(nn.Module):
    """A residual block: convolutions 1 x 1, 3 x 3 (resizing) and 1 x 1, from `before` channels to 4 * `width`."""

    def __init__(self, before: int, width: int, stride: int = 1, options: Options | None = None) -> None:
        super().__init__()
        kept = stride if options is None else options.stride(stride)
        self.conv1 = nn.Conv2d(before, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=kept, padding=1, bias=False)
        self.resize = nn.Identity() if options is None else options.resize(stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or before != 4 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, 4 * width, 1, stride=kept, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """The map `[B, 4 * width, h, w]` of x `[B, before, H, W]`."""
        y = self.relu(self.bn1(self.conv1(x)))  # [B, width, H, W]
        y = self.relu(self.bn2(self.resize(self.conv2(y))))  # [B, width, h, w]
        y = self.bn3(self.conv3(y))  # [B, 4 * width, h, w]
        if self.downsample is not None:
            convolution, normalisation = self.downsample
            x = normalisation(self.resize(convolution(x)))  # [B, 4 * width, h, w]
        return self.relu(y + x)


class ResNet50(nn.Module):
    """What :func:`resnet50` makes."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.in_channels = options.in_channels
        self.resize: nn.Module
        self.maxpool: nn.Module
        if options.cifar:
            self.conv1 = nn.Conv2d(options.in_channels, 64, 3, padding=1, bias=False)
            self.resize = nn.Identity()
            self.maxpool = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(options.in_channels, 64, 7, stride=options.stride(2), padding=3, bias=False)
            self.resize = options.resize(2)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if options.fixed else options.resize(2)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(options, 64, 64, blocks=3, stride=1)
        self.layer2 = _stage(options, 256, 128, blocks=4, stride=2)
        self.layer3 = _stage(options, 512, 256, blocks=6, stride=2)
        self.layer4 = _stage(options, 1024, 512, blocks=3, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2048, options.num_classes)
        initialise_convolutions(self)
        name_layers(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, num_classes]` of images `[B, in_channels, H, W]`."""
        check_images(images, self.in_channels)
        x = self.maxpool(self.relu(self.bn1(self.resize(self.conv1(images)))))  # [B, 64, h, w]
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # [B, 2048, h, w]
        return self.fc(self.avgpool(x).flatten(1))


def _stage(options: Options, before: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(before, width, stride, options)
    return nn.Sequential(first, *(Bottleneck(4 * width, width) for _ in range(1, blocks)))


def initialise_convolutions(network: nn.Module) -> None:
    """He's normal initialisation of every convolution's weights, by the size of its output."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

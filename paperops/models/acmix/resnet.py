"""ResNet-26, -38 and -50 with ACmix in the place of every 3 x 3 convolution of their blocks."""

from __future__ import annotations

from torch import Tensor, nn

from paperops.models.images import check_images
from paperops.nn.acmix import ACmix
from paperops.ops import _checks

_REACH = 3  # of attention's windows of 7 x 7


def resnet26(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """ResNet-ACmix with blocks 1, 2, 4, 1: see :func:`resnet50`. H and W are 49 at least.

    The last stage has but a strided block, whose windows lie on maps 16 times smaller than the images.
    """
    return ResNet((1, 2, 4, 1), num_classes, in_channels)


def resnet38(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """ResNet-ACmix with blocks 2, 3, 5, 2: see :func:`resnet50`. H and W are 97 at least."""
    return ResNet((2, 3, 5, 2), num_classes, in_channels)


def resnet50(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """ResNet-50 whose 3 x 3 convolutions, but for the stem, are ACmix, strided ones too.

    He et al., "Deep Residual Learning for Image Recognition", CVPR 2016 (arXiv 1512.03385), with blocks 3, 4, 6, 3, and
    in each block :class:`paperops.nn.ACmix` with windows of 7 x 7 and 4 heads (Pan et al., arXiv 2111.14556).

    Args:
        num_classes: numbers that come out for each image.
        in_channels: channels of the images.

    Returns:
        A module from floating images ``[B, in_channels, H, W]`` to ``[B, num_classes]``. H and W are 97 at least: the
        last maps, 32 times smaller, must have more than 3 pixels a side, which is what windows reach beyond the border.
        Parameters have the names of torchvision's ``resnet50`` and of the authors' code.

    Raises:
        TypeError, ValueError: an argument is not as above, or images are not, before any layer runs; the message names
            what was expected and what came.

    Example:
        >>> import torch
        >>> from paperops.models.acmix import resnet26
        >>> model = resnet26(10).eval()
        >>> model(torch.rand(1, 3, 49, 64)).shape
        torch.Size([1, 10])
    """
    return ResNet((3, 4, 6, 3), num_classes, in_channels)


class Bottleneck(nn.Module):
    """A residual block: 1 x 1 convolution, ACmix, 1 x 1 convolution, from `before` channels to 4 * `width`."""

    def __init__(self, before: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = ACmix(width, width, kernel_att=2 * _REACH + 1, head=4, kernel_conv=3, stride=stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or before != 4 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, 4 * width, 1, stride=stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """The map `[B, 4 * width, h, w]` of x `[B, before, H, W]`."""
        y = self.relu(self.bn1(self.conv1(x)))  # [B, width, H, W]
        y = self.relu(self.bn2(self.conv2(y)))  # [B, width, h, w]
        y = self.bn3(self.conv3(y))  # [B, 4 * width, h, w]
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """What :func:`resnet50` makes."""

    def __init__(self, blocks: tuple[int, int, int, int], num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.in_channels = _checks.positive_int("in_channels", in_channels)
        # The smallest map that windows lie on has REACH + 1 pixels a side: the last, or where its stage has the strided
        # block alone, the one before.
        self.smallest = _REACH * (32 if blocks[3] > 1 else 16) + 1
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(64, 64, blocks[0], stride=1)
        self.layer2 = _stage(256, 128, blocks[1], stride=2)
        self.layer3 = _stage(512, 256, blocks[2], stride=2)
        self.layer4 = _stage(1024, 512, blocks[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2048, _checks.positive_int("num_classes", num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, num_classes]` of images `[B, in_channels, H, W]`."""
        check_images(images, self.in_channels, self.smallest)
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))  # [B, 64, h, w]
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # [B, 2048, h, w]
        return self.fc(self.avgpool(x).flatten(1))


def _stage(before: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(Bottleneck(before, width, stride), *(Bottleneck(4 * width, width) for _ in range(1, blocks)))

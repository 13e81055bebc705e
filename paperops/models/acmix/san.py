"""SAN-10, -15 and -19 whose patchwise attention is mixed with a convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from paperops.models.acmix.layers import MixedPaths
from paperops.models.images import check_images
from paperops.ops import _checks

_SHARED = 8  # channels of the values that share a weight
_SMALLEST = 128  # pixels a side: 4 on the last map, from whose border windows of 7 x 7 reach 3 beyond it


def san10(num_classes: int = 1000, in_channels: int = 3) -> SAN:
    """SAN-ACmix with blocks 2, 1, 2, 4, 1: see :func:`san19`. H and W are 128 at least."""
    return SAN((2, 1, 2, 4, 1), num_classes, in_channels)


def san15(num_classes: int = 1000, in_channels: int = 3) -> SAN:
    """SAN-ACmix with blocks 3, 2, 3, 5, 2: see :func:`san19`. H and W are 128 at least."""
    return SAN((3, 2, 3, 5, 2), num_classes, in_channels)


def san19(num_classes: int = 1000, in_channels: int = 3) -> SAN:
    """SAN-19 with patchwise attention, and beside it the convolution of ACmix.

    Zhao, Jia and Koltun, "Exploring Self-attention for Image Recognition", CVPR 2020 (arXiv 2004.13621), with blocks
    3, 3, 4, 6, 3 and windows of 3 x 3 in the first stage, 7 x 7 in the others: the weights of a window come from a
    small network of its query and all of its keys, and no softmax. Mixed as in Pan et al., arXiv 2111.14556.

    Neither the paper nor the authors' repository tells how the two are joined where queries and keys are a quarter as
    wide as the values, c / 16 and c / 4 channels of c. Here: the queries are one map, the keys one and the values four,
    all of c / 16 channels, and ``fc`` mixes these six.

    Args:
        num_classes: numbers that come out for each image.
        in_channels: channels of the images.

    Returns:
        A module from floating images ``[B, in_channels, H, W]`` to ``[B, num_classes]``. H and W are 128 at least: the
        last maps, 32 times smaller and rounded down, must have more than 3 pixels a side, which is what windows reach
        beyond the border. Parameters have the names of SAN's code.

    Raises:
        TypeError, ValueError: an argument is not as above, or images are not, before any layer runs; the message names
            what was expected and what came.

    Example:
        >>> import torch
        >>> from paperops.models.acmix import san10
        >>> model = san10(10).eval()
        >>> model(torch.rand(1, 3, 129, 131)).shape
        torch.Size([1, 10])
    """
    return SAN((3, 3, 4, 6, 3), num_classes, in_channels)


class PatchwiseACmix(MixedPaths):
    """Patchwise attention and the convolution, of ``channels`` to ``channels // 4``."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        narrow, wide = channels // 16, channels // 4  # of queries and keys; of values
        super().__init__(wide, narrow, 6, bias=False)
        self.kernel_size = kernel_size
        self.conv1 = nn.Conv2d(channels, narrow, 1)
        self.conv2 = nn.Conv2d(channels, narrow, 1)
        self.conv3 = nn.Conv2d(channels, wide, 1)
        patch, weights = narrow * (kernel_size**2 + 1), wide // _SHARED
        self.conv_w = nn.Sequential(
            nn.BatchNorm2d(patch), nn.ReLU(inplace=True), nn.Conv2d(patch, weights, 1, bias=False),
            nn.BatchNorm2d(weights), nn.ReLU(inplace=True), nn.Conv2d(weights, kernel_size**2 * weights, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """The map `[B, channels // 4, h, w]` of x `[B, channels, h, w]`."""
        q, k, v = self.conv1(x), self.conv2(x), self.conv3(x)
        maps = torch.cat((q, k, v), 1).unflatten(1, (6, -1))  # [B, 6, narrow, h, w]
        return self.mixed(self._attention(q, k, v), self.convolution(maps))

    def _attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        patch = torch.cat((q.flatten(2), self._windows(k).flatten(1, 2)), 1)  # [B, narrow * (slots + 1), h * w]
        weights = self.conv_w(patch[:, :, None]).unflatten(1, (-1, self.kernel_size**2))  # [B, n, slots, 1, h * w]
        values = self._windows(v).unflatten(1, (_SHARED, -1))  # channel c has the weight c % n
        return torch.einsum("bnsp,bgnsp->bgnp", weights[:, :, :, 0], values).reshape(v.shape)

    def _windows(self, maps: Tensor) -> Tensor:
        """The windows of a map `[B, C, h, w]` with reflected borders, `[B, C, slots, h * w]`."""
        padded = functional.pad(maps, (self.kernel_size // 2,) * 4, mode="reflect")
        return functional.unfold(padded, self.kernel_size).unflatten(1, (maps.shape[1], -1))


class Block(nn.Module):
    """A residual block: the mixed layer to a quarter of the channels, and a 1 x 1 convolution back."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.sam = PatchwiseACmix(channels, kernel_size)
        self.bn2 = nn.BatchNorm2d(channels // 4)
        self.conv = nn.Conv2d(channels // 4, channels, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Of x's shape `[B, channels, h, w]`."""
        return x + self.conv(self.relu(self.bn2(self.sam(self.relu(self.bn1(x))))))


class SAN(nn.Module):
    """What :func:`san19` makes."""

    def __init__(self, blocks: tuple[int, ...], num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.in_channels = _checks.positive_int("in_channels", in_channels)
        channels = before = 64
        self.conv_in = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn_in = nn.BatchNorm2d(channels)
        for stage, count in enumerate(blocks):
            setattr(self, f"conv{stage}", nn.Conv2d(before, channels, 1, bias=False))
            setattr(self, f"bn{stage}", nn.BatchNorm2d(channels))
            kernel_size = 3 if stage == 0 else 7
            setattr(self, f"layer{stage}", nn.Sequential(*(Block(channels, kernel_size) for _ in range(count))))
            before, channels = channels, channels * (4 if stage == 0 else 2)
        self.stages = len(blocks)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(before, _checks.positive_int("num_classes", num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, num_classes]` of images `[B, in_channels, H, W]`."""
        check_images(images, self.in_channels, _SMALLEST)
        x = self.relu(self.bn_in(self.conv_in(images)))
        for stage in range(self.stages):
            entry, norm, layer = (getattr(self, f"{name}{stage}") for name in ("conv", "bn", "layer"))
            x = self.relu(norm(layer(entry(self.pool(x)))))
        return self.fc(self.avgpool(x).flatten(1))

"""HRNet-W48, the sizes of its four branches learned or fixed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperops.models.dynopool.layers import Options
from paperops.models.dynopool.resnet import Bottleneck, initialise_convolutions
from paperops.models.images import check_images
from paperops.nn.learned_size import name_layers
from paperops.ops import _checks

_MODULES = (1, 4, 3)  # of the stages with two, three and four branches
_BLOCKS = 4  # in a row in each branch of a module
_HEAD_WIDTHS = (32, 64, 128, 256)


def hrnet_w48(
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    head: str = "classification",
    stem: str = "imagenet",
    resizing: str = "dynopool",
) -> HighResolutionNet:
    """HRNet-W48 whose strides, and with them the sizes of its branches, are learned; to classify or to segment.

    Wang et al., "Deep High-Resolution Representation Learning for Visual Recognition", PAMI 2020 (arXiv 1908.07919),
    with the resizing of arXiv 2205.15254: every strided convolution becomes one of stride 1 followed, before its
    normalisation, by a :class:`paperops.nn.DynOPool2d` of initial scale 1/2. There are five of those: the stem's
    `resize1` and `resize2`, and `steps.0` to `steps.2`, from each branch to the next smaller one. All paths between the
    same two branches share their step (the transition that opens the branch, the fusions, the head's way down), so
    maps that are added always have the same size. On the way up a map is enlarged to the size of the branch that it is
    added to: to the nearest pixel for classification, bilinearly for segmentation, as in the authors' two networks.

    Args:
        num_classes: numbers that come out for each image or each pixel.
        in_channels: channels of the images.
        head: `"classification"` or `"segmentation"`: the four branches, enlarged bilinearly to the largest and
            concatenated, then two 1 x 1 convolutions with normalisation and ReLU between them.
        stem: `"imagenet"`, or `"cifar"` (the stem's two convolutions have stride 1, for small images).
        resizing: `"dynopool"`, `"shape_adaptor"` (:class:`paperops.nn.ShapeAdaptor`, between the map and its 2 x 2
            maximum, in the same places) or `"fixed"` (strides).

    Returns:
        A module from images `[B, in_channels, H, W]` to `[B, num_classes]`, or with `head="segmentation"` to
        `[B, num_classes, H, W]`: logits at the size of the images, enlarged bilinearly from the largest branch (the
        authors leave this last step to their loss). Parameters have the names and shapes of the authors' `cls_hrnet`
        and `seg_hrnet` (align_corners=False), so weights of the fixed network are a start for the others with
        `strict=False`.

    Raises:
        TypeError, ValueError: an argument is not as above; the message names it.

    With 1000 classes: 77,469,864 parameters and 17.3 G multiply-adds for 224 x 224 pixels when fixed; to segment into
    19, 65,859,379 and 17.9 G. DynOPool adds ten parameters, and 6.2 G (4.1 G) multiply-adds at its initial scales: the
    strided convolutions, those of the fusions too, see the map before it shrinks.

    Example:
        >>> import torch
        >>> with torch.device("meta"):  # without data: for shapes and counts
        ...     model = hrnet_w48(19, head="segmentation", resizing="fixed").eval()
        ...     print(model(torch.rand(2, 3, 65, 33)).shape)
        torch.Size([2, 19, 65, 33])
    """
    return HighResolutionNet(Options(num_classes, in_channels, stem, resizing), head)


class HighResolutionNet(nn.Module):
    """What :func:`hrnet_w48` makes; `width` is the number of channels of the largest branch."""

    def __init__(self, options: Options, head: str, width: int = 48) -> None:
        super().__init__()
        _checks.choice("head", head, ("classification", "segmentation"))
        self.in_channels, self.head = options.in_channels, head
        stride = 1 if options.cifar else 2
        self.conv1 = nn.Conv2d(options.in_channels, 64, 3, options.stride(stride), 1, bias=False)
        self.resize1 = options.resize(stride)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 64, 3, options.stride(stride), 1, bias=False)
        self.resize2 = options.resize(stride)
        self.bn2 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(Bottleneck(64, 64), *(Bottleneck(256, 64) for _ in range(3)))

        widths = [width * 2**i for i in range(4)]
        self.steps = nn.ModuleList(options.resize(2) for _ in range(3))
        self.transition1 = nn.ModuleList(
            [_unit(256, widths[0]), _Descents([(256, widths[1])], options, last_relu=True)]
        )
        self.transition2 = _opening(widths[:3], options)
        self.transition3 = _opening(widths, options)
        upsampling = "nearest" if head == "classification" else "bilinear"
        self.stage2, self.stage3, self.stage4 = (
            nn.Sequential(*(FusionModule(widths[: 2 + i], options, upsampling) for _ in range(modules)))
            for i, modules in enumerate(_MODULES)
        )
        if head == "classification":
            self._make_classifier(widths, options)
        else:
            total = sum(widths)
            self.last_layer = nn.Sequential(
                nn.Conv2d(total, total, 1), nn.BatchNorm2d(total), nn.ReLU(inplace=True),
                nn.Conv2d(total, options.num_classes, 1),
            )  # fmt: skip
        initialise_convolutions(self)
        name_layers(self)

    def _make_classifier(self, widths: list[int], options: Options) -> None:
        self.incre_modules = nn.ModuleList(
            nn.Sequential(Bottleneck(width, narrow)) for width, narrow in zip(widths, _HEAD_WIDTHS)
        )
        wide = [4 * narrow for narrow in _HEAD_WIDTHS]
        self.downsamp_modules = nn.ModuleList(
            Descent(before, after, options, relu=True, bias=True) for before, after in zip(wide, wide[1:])
        )
        self.final_layer = nn.Sequential(nn.Conv2d(wide[-1], 2048, 1), nn.BatchNorm2d(2048), nn.ReLU(inplace=True))
        self.classifier = nn.Linear(2048, options.num_classes)

    def branches(self, images: Tensor) -> list[Tensor]:
        """The four maps `[B, 48 * 2^i, h_i, w_i]` of images `[B, in_channels, H, W]`, the largest first."""
        check_images(images, self.in_channels)
        x = self.relu(self.bn1(self.resize1(self.conv1(images))))  # [B, 64, h, w]
        x = self.relu(self.bn2(self.resize2(self.conv2(x))))  # [B, 64, h_0, w_0]
        x = self.layer1(x)  # [B, 256, h_0, w_0]
        steps = list(self.steps)
        same, opened = self.transition1
        maps = [same(x), opened(x, steps)]
        for opening, stage in ((None, self.stage2), (self.transition2, self.stage3), (self.transition3, self.stage4)):
            if opening is not None:
                maps.append(opening[-1](maps[-1], steps[len(maps) - 1 :]))
            for module in stage:
                maps = module(maps, steps)
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, num_classes]`, or `[B, num_classes, H, W]`, of images `[B, in_channels, H, W]`."""
        maps = self.branches(images)
        if self.head == "segmentation":
            size = maps[0].shape[2:]
            x = torch.cat([maps[0], *(_enlarged(map, size, "bilinear") for map in maps[1:])], dim=1)
            return _enlarged(self.last_layer(x), images.shape[2:], "bilinear")
        x = self.incre_modules[0](maps[0])  # [B, 128, h_0, w_0]
        for i, descend in enumerate(self.downsamp_modules):
            x = self.incre_modules[i + 1](maps[i + 1]) + descend(x, self.steps[i])
        return self.classifier(self.final_layer(x).mean(dim=(2, 3)))


class FusionModule(nn.Module):
    """Four residual blocks in each branch, then each branch becomes the sum of all, brought to its size."""

    def __init__(self, widths: list[int], options: Options, upsampling: str) -> None:
        super().__init__()
        self.upsampling = upsampling
        self.branches = nn.ModuleList(nn.Sequential(*(BasicBlock(width) for _ in range(_BLOCKS))) for width in widths)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(self._path(widths, source, target, options) for source in range(len(widths)))
            for target in range(len(widths))
        )
        self.relu = nn.ReLU(inplace=True)

    @staticmethod
    def _path(widths: list[int], source: int, target: int, options: Options) -> nn.Module:
        if source == target:
            return nn.Identity()
        if source > target:
            return nn.Sequential(
                nn.Conv2d(widths[source], widths[target], 1, bias=False), nn.BatchNorm2d(widths[target])
            )
        before = widths[source]
        pairs = [(before, before)] * (target - source - 1) + [(before, widths[target])]
        return _Descents(pairs, options, last_relu=False)

    def forward(self, maps: list[Tensor], steps: list[nn.Module]) -> list[Tensor]:
        """The fused maps, of the shapes of `maps`; `steps[i]` leads from branch i to branch i + 1."""
        maps = [branch(x) for branch, x in zip(self.branches, maps)]
        fused = []
        for target, paths in enumerate(self.fuse_layers):
            parts = []
            for source, (path, x) in enumerate(zip(paths.children(), maps)):
                if source < target:
                    x = path(x, steps[source:])
                elif source > target:
                    x = _enlarged(path(x), maps[target].shape[2:], self.upsampling)
                parts.append(x)
            fused.append(self.relu(sum(parts[1:], parts[0])))
        return fused


class BasicBlock(nn.Module):
    """A residual block of two 3 x 3 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """A map of x's shape `[B, width, H, W]`."""
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + x)


class Descent(nn.Sequential):
    """A 3 x 3 convolution, normalisation and perhaps ReLU under the names 0 to 2; the step between is given."""

    def __init__(self, before: int, after: int, options: Options, *, relu: bool, bias: bool = False) -> None:
        super().__init__(nn.Conv2d(before, after, 3, options.stride(2), 1, bias=bias), nn.BatchNorm2d(after))
        if relu:
            self.append(nn.ReLU(inplace=True))

    def forward(self, x: Tensor, step: nn.Module) -> Tensor:  # type: ignore[override]
        """The map of the next smaller branch's size; `step` resizes between convolution and normalisation."""
        for index, layer in enumerate(self):
            x = step(layer(x)) if index == 0 else layer(x)
        return x


class _Descents(nn.Sequential):
    """As many descents as there are pairs of channels in and out; the last with ReLU or without."""

    def __init__(self, pairs: list[tuple[int, int]], options: Options, *, last_relu: bool) -> None:
        last = len(pairs) - 1
        super().__init__(*(Descent(*pair, options, relu=last_relu or index < last) for index, pair in enumerate(pairs)))

    def forward(self, x: Tensor, steps: list[nn.Module]) -> Tensor:  # type: ignore[override]
        for descent, step in zip(self, steps):
            x = descent(x, step)
        return x


def _opening(widths: list[int], options: Options) -> nn.ModuleList:
    """What lies between two stages: nothing for the branches that are there, a descent from the last to a new one."""
    return nn.ModuleList(
        [*(nn.Identity() for _ in widths[:-1]), _Descents([(widths[-2], widths[-1])], options, last_relu=True)]
    )


def _unit(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
    )


def _enlarged(x: Tensor, size: torch.Size, mode: str) -> Tensor:
    return F.interpolate(x, size=size, mode=mode)

"""VGG-16, its pooling learned or fixed."""

from __future__ import annotations

from torch import Tensor, nn

from paperops.models.dynopool.layers import Options
from paperops.models.images import check_images
from paperops.nn.learned_size import name_layers
from paperops.ops import _checks

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg16(
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    stem: str = "imagenet",
    resizing: str = "dynopool",
    batch_norm: bool = True,
) -> VGG16:
    """VGG-16 whose five max poolings are learned.

    Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015 (arXiv
    1409.1556), configuration D, with the resizing of arXiv 2205.15254: every 2 x 2 max pooling becomes a
    :class:`paperops.nn.DynOPool2d` of initial scale 1/2, which at that scale is the same pooling where sizes are even.

    Args:
        num_classes: numbers that come out for each image.
        in_channels: channels of the images.
        stem: `"imagenet"`, or `"cifar"` for small images. VGG has no strided stem: what differs is the classifier, for
            CIFAR the mean over the map and one linear layer.
        resizing: `"dynopool"`, `"shape_adaptor"` (:class:`paperops.nn.ShapeAdaptor`, between the map and its 2 x 2
            maximum) or `"fixed"` (max pooling, which needs images of 32 x 32 pixels at least).
        batch_norm: batch normalisation after every convolution. Parameters have the names and shapes of torchvision's
            `vgg16_bn`, or without of its `vgg16`.

    Returns:
        A module from images `[B, in_channels, H, W]` to `[B, num_classes]`.

    Raises:
        TypeError, ValueError: an argument is not as above; the message names it.

    With 1000 classes: 138,365,992 parameters (138,357,544 without normalisation) and 15.5 G multiply-adds for 224 x 224
    pixels with fixed pooling; ten parameters more with DynOPool, which adds no multiply-adds to the convolutions.

    Example:
        >>> import torch
        >>> model = vgg16(10, in_channels=1, stem="cifar", resizing="fixed").eval()
        >>> model(torch.rand(2, 1, 32, 32)).shape
        torch.Size([2, 10])
    """
    _checks.flag("batch_norm", batch_norm)
    return VGG16(Options(num_classes, in_channels, stem, resizing), batch_norm)


class VGG16(nn.Module):
    """What :func:`vgg16` makes."""

    def __init__(self, options: Options, batch_norm: bool) -> None:
        super().__init__()
        self.in_channels = options.in_channels
        layers: list[nn.Module] = []
        before = options.in_channels
        for widths in _STAGES:
            for width in widths:
                layers.append(nn.Conv2d(before, width, 3, padding=1))
                layers += [nn.BatchNorm2d(width)] if batch_norm else []
                layers.append(nn.ReLU(inplace=True))
                before = width
            layers.append(nn.MaxPool2d(2, 2) if options.fixed else options.resize(2))
        self.features = nn.Sequential(*layers)

        self.avgpool: nn.Module
        self.classifier: nn.Module
        if options.cifar:
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.classifier = nn.Linear(before, options.num_classes)
        else:
            self.avgpool = nn.AdaptiveAvgPool2d(7)
            self.classifier = nn.Sequential(
                nn.Linear(before * 7 * 7, 4096), nn.ReLU(inplace=True), nn.Dropout(),
                nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(),
                nn.Linear(4096, options.num_classes),
            )  # fmt: skip

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
        name_layers(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, num_classes]` of images `[B, in_channels, H, W]`."""
        check_images(images, self.in_channels)
        return self.classifier(self.avgpool(self.features(images)).flatten(1))

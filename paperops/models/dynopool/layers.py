"""What the four networks share: their options, and a strided layer's replacement."""

from __future__ import annotations

from torch import nn

import paperops.nn
from paperops.ops import _checks


class Options:
    """The checked options of a network, and how it makes maps smaller.

    A network asks for every stride that it has: :meth:`stride` is what remains of it in the convolution,
    :meth:`resize` the module that does the rest.
    """

    def __init__(self, num_classes: int, in_channels: int, stem: str, resizing: str) -> None:
        self.num_classes = _checks.positive_int("num_classes", num_classes)
        self.in_channels = _checks.positive_int("in_channels", in_channels)
        _checks.choice("stem", stem, ("imagenet", "cifar"))
        _checks.choice("resizing", resizing, ("dynopool", "shape_adaptor", "fixed"))
        self.cifar = stem == "cifar"
        self.resizing = resizing

    @property
    def fixed(self) -> bool:
        """Whether the strides stay where they are."""
        return self.resizing == "fixed"

    def stride(self, stride: int) -> int:
        """The stride of the convolution itself."""
        return stride if self.fixed else 1

    def resize(self, stride: int) -> nn.Module:
        """What follows the convolution: nothing where nothing is learned."""
        if stride == 1 or self.fixed:
            return nn.Identity()
        if self.resizing == "shape_adaptor":
            return paperops.nn.ShapeAdaptor()  # between the map and its 2 x 2 maximum
        return paperops.nn.DynOPool2d(init_scale=(1 / stride, 1 / stride))

"""DynOPool: networks that learn the height and the width of their feature maps.

Jang, Chu, Kim and Han, "Pooling Revisited: Your Receptive Field is Suboptimal", CVPR 2022 (arXiv 2205.15254).

:func:`replace_resizing` makes the sizes of any model learned; :func:`gmacs_loss` is the term of the loss that bounds
what they cost, and :class:`MacsCounter` the table of it; :func:`synchronise` keeps data-parallel ranks together.

:func:`vgg16`, :func:`resnet50`, :func:`efficientnet_b0` and :func:`hrnet_w48` are made with learned sizes, with the
baseline :class:`paperops.nn.ShapeAdaptor` in the same places, or as published (`resizing="fixed"`, for which published
weights load with `strict=True`). What becomes of shortcuts, and where branches meet, stands with each. Nothing is
downloaded.
"""

from paperops.models.dynopool.efficientnet import efficientnet_b0
from paperops.models.dynopool.hrnet import hrnet_w48
from paperops.models.dynopool.macs import MacsCounter, gmacs_loss
from paperops.models.dynopool.resizing import Replaced, ResizedConv2d, replace_resizing, synchronise
from paperops.models.dynopool.resnet import resnet50
from paperops.models.dynopool.vgg import vgg16

__all__ = [
    "MacsCounter",
    "Replaced",
    "ResizedConv2d",
    "efficientnet_b0",
    "gmacs_loss",
    "hrnet_w48",
    "replace_resizing",
    "resnet50",
    "synchronise",
    "vgg16",
]

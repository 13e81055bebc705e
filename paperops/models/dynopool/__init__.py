"""DynOPool: networks that learn the height and the width of their feature maps.

Jang, Chu, Kim and Han, "Pooling Revisited: Your Receptive Field is Suboptimal", CVPR 2022 (arXiv 2205.15254).

:func:`replace_resizing` makes the sizes of any model learned; :func:`gmacs_loss` is the term of the loss that bounds
what they cost, and :class:`MacsCounter` the table of it; :func:`synchronise` keeps data-parallel ranks together.
"""

from paperops.models.dynopool.macs import MacsCounter, gmacs_loss
from paperops.models.dynopool.resizing import Replaced, ResizedConv2d, replace_resizing, synchronise

__all__ = ["MacsCounter", "Replaced", "ResizedConv2d", "gmacs_loss", "replace_resizing", "synchronise"]

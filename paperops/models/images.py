"""The check of what networks for images are given."""

from __future__ import annotations

from torch import Tensor

from paperops.ops import _checks


def check_images(images: Tensor, in_channels: int, smallest: int = 1) -> None:
    """Floating images `[B, in_channels, H, W]` of any height and width that are at least the smallest.

    A network that is given its smallest size refuses smaller ones here: a layer in it would speak of its own map.
    """
    _checks.tensor("images", images)
    if images.dim() != 4 or images.shape[1] != in_channels or 0 in images.shape[2:]:
        raise ValueError(f"images must have shape [B, {in_channels}, H, W]; got {list(images.shape)}")
    if not images.is_floating_point():
        raise TypeError(f"images must have a floating dtype; got {images.dtype}: convert them, as by images.float()")
    height, width = images.shape[2:]
    if height < smallest or width < smallest:
        least = f"{smallest} x {smallest}"
        raise ValueError(f"images must be at least {least} pixels for this network; got {height} x {width}")

"""The check of what networks for images are given."""

from __future__ import annotations

from torch import Tensor

from paperops.ops import _checks


def check_images(images: Tensor, in_channels: int) -> None:
    """Images `[B, in_channels, H, W]`, of any height and width."""
    _checks.tensor("images", images)
    if images.dim() != 4 or images.shape[1] != in_channels or 0 in images.shape[2:]:
        raise ValueError(f"images must have shape [B, {in_channels}, H, W]; got {list(images.shape)}")

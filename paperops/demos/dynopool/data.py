"""Handwritten digits in three disguises of 1024 pixels, each of which asks for other maps than square pooling makes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

SIZES = {"stretched": (64, 16), "tiled": (32, 32), "enlarged": (32, 32)}
"""Height and width of the images by their kind."""


class Digits(NamedTuple):
    """Images and what they show."""

    images: Tensor  # [B, 1, h, w], mean 0 and standard deviation 1
    labels: Tensor  # [B]


def load(kind: str, seed: int) -> tuple[Digits, Digits]:
    """The training part and the held-out fifth of scikit-learn's 1797 scans of 8 x 8 pixels.

    ``stretched``: 8 times as high and 2 times as wide, 64 x 16. ``tiled``: the scan 4 x 4 times, 32 x 32. ``enlarged``:
    4 times as high and as wide, 32 x 32.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    scans = torch.from_numpy(raw.images).float()[:, None]  # [B, 1, 8, 8]
    images = disguised(scans, kind)
    images = (images - images.mean()) / images.std()
    labels = torch.from_numpy(raw.target)
    order = torch.randperm(len(scans), generator=torch.Generator().manual_seed(seed))
    held_out = len(scans) // 5
    whole = Digits(images, labels)
    return Digits(*(part[order[held_out:]] for part in whole)), Digits(*(part[order[:held_out]] for part in whole))


def disguised(scans: Tensor, kind: str) -> Tensor:
    """Images ``[B, 1, h, w]`` of the kind, of scans ``[B, 1, 8, 8]``."""
    if kind == "tiled":
        return scans.repeat(1, 1, 4, 4)
    return functional.interpolate(scans, SIZES[kind], mode="bilinear", align_corners=False)

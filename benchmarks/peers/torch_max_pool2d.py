"""torch's own max_pool2d(2), which DynOPool's pooling equals at scale 1/2; it has no gradient to a scale."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from . import NotComparable

NAME = "torch max_pool2d"
UNASKED = ("cpu", "cuda")


def available(device: torch.device) -> str | None:
    return None


def dynopool_2d(x: Tensor, scale: Tensor, output_size: Sequence[int] | None = None, mode: str = "max") -> Tensor:
    size = output_size or [max(1, round(pixels / 2)) for pixels in x.shape[2:]]
    if mode != "max" or scale.tolist() != [0.5, 0.5] or list(size) != [pixels // 2 for pixels in x.shape[2:]]:
        raise NotComparable("max_pool2d(2) is the scale 1/2")
    if scale.requires_grad:
        raise NotComparable("max_pool2d has no gradient to a scale")
    return max_pool2d(x, 2)

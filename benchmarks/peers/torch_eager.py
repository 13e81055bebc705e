"""What one writes without a library: plain torch, eager."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NAME = "torch eager"
UNASKED = ("cpu", "cuda")


def available(device: torch.device) -> str | None:
    return None


def memory(op: str, arguments: dict[str, Any]) -> int:
    """The matrix of distances [B, N, M], once, and for the backward pass once more."""
    if "x" not in arguments or "y" not in arguments:
        return 0  # not an op on pairs
    x, y = arguments["x"], arguments["y"]
    passes = 2 if x.requires_grad else 1
    return passes * x.shape[0] * x.shape[1] * y.shape[1] * x.element_size()


def knn(x: Tensor, y: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    distances, indices = torch.cdist(x, y).topk(k, dim=2, largest=False)  # [B, N, k]
    return distances.square(), indices


def chamfer_distance(x: Tensor, y: Tensor) -> tuple[Tensor, None]:
    distances = torch.cdist(x, y)  # [B, N, M]
    forth, back = distances.min(dim=2).values, distances.min(dim=1).values  # [B, N], [B, M]
    return (forth.square().mean(1) + back.square().mean(1)).mean(), None


def f_score(x: Tensor, y: Tensor, radius: float) -> tuple[Tensor, Tensor, Tensor]:
    distances = torch.cdist(x, y)  # [B, N, M]
    precision = (distances.amin(2) <= radius).to(x.dtype).mean(1)  # [B]
    recall = (distances.amin(1) <= radius).to(x.dtype).mean(1)  # [B]
    both = precision + recall
    return torch.where(both > 0, 2 * precision * recall / both, 0), precision, recall


def hausdorff_distance(x: Tensor, y: Tensor) -> Tensor:
    distances = torch.cdist(x, y)  # [B, N, M]
    return torch.maximum(distances.amin(2).amax(1), distances.amin(1).amax(1))  # [B]

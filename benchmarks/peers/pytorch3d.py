"""PyTorch3D, where it is installed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import importable

NAME = "PyTorch3D"
UNASKED = ("cpu", "cuda")


def available(device: torch.device) -> str | None:
    return importable("pytorch3d.ops", "it is built from source: see its INSTALL.md")


def knn(x: Tensor, y: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    from pytorch3d.ops import knn_points

    found = knn_points(x, y, K=k)
    return found.dists, found.idx


def chamfer_distance(x: Tensor, y: Tensor) -> Any:
    from pytorch3d.loss import chamfer_distance as theirs

    return theirs(x, y)

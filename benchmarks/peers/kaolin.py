"""Kaolin, where it is installed; its point cloud metrics are CUDA kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from . import importable

NAME = "Kaolin"
UNASKED = ("cuda",)


def available(device: torch.device) -> str | None:
    if device.type != "cuda":
        return "its point cloud metrics run on CUDA devices only"
    return importable("kaolin.metrics.pointcloud", "see its installation page for wheels by torch and CUDA version")


def knn(x: Tensor, y: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    from kaolin.metrics.pointcloud import sided_distance

    from . import NotComparable

    if k != 1:
        raise NotComparable("it finds one neighbour only")
    distances, indices = sided_distance(x, y)
    return distances[..., None], indices[..., None]


def chamfer_distance(x: Tensor, y: Tensor) -> tuple[Tensor, None]:
    from kaolin.metrics.pointcloud import chamfer_distance as theirs

    return theirs(x, y).mean(), None


def f_score(x: Tensor, y: Tensor, radius: float) -> Tensor:
    from kaolin.metrics.pointcloud import f_score as theirs

    return theirs(y, x, radius=radius)  # the true cloud comes first

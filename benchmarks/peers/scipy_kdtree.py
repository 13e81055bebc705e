"""SciPy's k-d tree, built and queried for every cloud of the batch, on as many threads as torch has.

It computes in float64 whatever it is given.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import importable

NAME = "SciPy cKDTree"
UNASKED = ("cpu",)
GRADIENTS = False


def available(device: torch.device) -> str | None:
    if device.type != "cpu":
        return "it runs on the CPU only"
    return importable("scipy", "pip install '.[bench]' in the checkout")


def _query(queries: Tensor, targets: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Distances, not squared, and indices [B, N, k]; the trees are built over the targets."""
    from scipy.spatial import cKDTree

    distances = queries.new_empty((*queries.shape[:2], k))
    indices = queries.new_empty((*queries.shape[:2], k), dtype=torch.int64)
    for one in range(queries.shape[0]):
        slots = list(range(1, k + 1))  # a list, so that k = 1 keeps its dimension
        found = cKDTree(targets[one].numpy()).query(queries[one].numpy(), slots, workers=torch.get_num_threads())
        distances[one], indices[one] = torch.from_numpy(found[0]), torch.from_numpy(found[1])
    return distances, indices


def _both(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return _query(x, y, 1)[0].squeeze(2), _query(y, x, 1)[0].squeeze(2)  # [B, N], [B, M]


def knn(x: Tensor, y: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    distances, indices = _query(x, y, k)
    return distances.square(), indices


def chamfer_distance(x: Tensor, y: Tensor) -> tuple[Tensor, None]:
    forth, back = _both(x, y)
    return (forth.square().mean(1) + back.square().mean(1)).mean(), None


def f_score(x: Tensor, y: Tensor, radius: float) -> tuple[Tensor, Tensor, Tensor]:
    precision, recall = ((found <= radius).to(x.dtype).mean(1) for found in _both(x, y))  # [B]
    both = precision + recall
    return torch.where(both > 0, 2 * precision * recall / both, 0), precision, recall


def hausdorff_distance(x: Tensor, y: Tensor) -> Tensor:
    forth, back = _both(x, y)
    return torch.maximum(forth.amax(1), back.amax(1))

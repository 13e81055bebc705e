"""Definition of k nearest neighbours between two batches of point clouds."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class KNN(NamedTuple):
    """Neighbours of every query, nearest first."""

    distances: Tensor  # [B, N, k]
    indices: Tensor  # [B, N, k] int64
    neighbors: Tensor | None  # [B, N, k, D], only if asked for


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of distances between points of ``dtype``: a square overflows float16, so halves give float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def full_lengths(lengths: Tensor | None, batch: int, points: int, device: torch.device) -> Tensor:
    """``lengths`` as int64 [B] within [0, points]; None means that every cloud is full."""
    if lengths is None:
        return torch.full((batch,), points, dtype=torch.int64, device=device)
    return lengths.to(torch.int64).clamp(0, points)


def gather_points(points: Tensor, indices: Tensor) -> Tensor:
    """points [B, M, C] at indices [B, N, k] -> [B, N, k, C]; 0 where the index is -1."""
    batch, queries, k = indices.shape
    if points.shape[1] == 0:
        return points.new_zeros(batch, queries, k, points.shape[2])
    flat = indices.clamp(min=0).reshape(batch, queries * k, 1).expand(-1, -1, points.shape[2])
    gathered = points.gather(1, flat).reshape(batch, queries, k, points.shape[2])
    return gathered.masked_fill((indices < 0)[..., None], 0)


def length(difference: Tensor, norm: int) -> Tensor:
    """sum_d difference_d^2 for norm 2, sum_d |difference_d| for norm 1, added in the order of the dimensions."""
    terms = difference * difference if norm == 2 else difference.abs()
    total = terms[..., 0]
    for dimension in range(1, terms.shape[-1]):
        total = total + terms[..., dimension]
    return total


def matched_distances(x: Tensor, y: Tensor, indices: Tensor, norm: int) -> Tensor:
    """Distances [B, N, k] from each query to the targets at ``indices``, 0 at -1: what is differentiated."""
    working = result_dtype(x.dtype)
    difference = x.to(working)[:, :, None] - gather_points(y.to(working), indices)  # [B, N, k, D]
    return length(torch.where((indices >= 0)[..., None], difference, 0), norm)


def knn(
    x: Tensor,
    y: Tensor,
    k: int = 1,
    *,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    norm: int = 2,
    return_neighbors: bool = False,
) -> KNN:
    """See :func:`paperops.knn`. Orders in float64, materialises all B * N * M distances."""
    batch, queries, _ = x.shape
    targets = y.shape[1]
    x_lengths = full_lengths(x_lengths, batch, queries, x.device)
    y_lengths = full_lengths(y_lengths, batch, targets, x.device)
    in_x = torch.arange(queries, device=x.device) < x_lengths[:, None]  # [B, N]
    in_y = torch.arange(targets, device=x.device) < y_lengths[:, None]  # [B, M]

    with torch.no_grad():
        exact = length(x.double()[:, :, None] - y.double()[:, None], norm)  # [B, N, M]
        # Ascending by (NaN, distance, index): torch sorts NaN last. What lies past the length becomes NaN, and comes
        # after any valid NaN because its index is larger.
        order = exact.masked_fill(~in_y[:, None], torch.nan).argsort(dim=2, stable=True)[..., :k]  # [B, N, min(k, M)]
        order = torch.nn.functional.pad(order, (0, k - order.shape[2]), value=-1)  # [B, N, k]
        slot = torch.arange(k, device=x.device)
        found = (slot < y_lengths[:, None, None]) & in_x[..., None]  # [B, N, k]
        bad_query = x.isnan().any(-1)[..., None]  # [B, N, 1]
        indices = torch.where(found & ~bad_query, order, -1)

    distances = matched_distances(x, y, indices, norm)
    distances = torch.where(in_x[..., None] & ~found, torch.inf, distances)
    distances = torch.where(found & bad_query, torch.nan, distances)
    return KNN(distances, indices, gather_points(y, indices) if return_neighbors else None)

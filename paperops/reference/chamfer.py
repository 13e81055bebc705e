"""Definitions of the Chamfer distance, the F-score and the Hausdorff distance of two batches of point clouds."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from paperops.reference.nearest import full_lengths, gather_points, knn, result_dtype


class FScore(NamedTuple):
    """Harmonic mean of precision and recall, and both."""

    f: Tensor  # [B]
    precision: Tensor  # [B]
    recall: Tensor  # [B]


def root(squared: Tensor) -> Tensor:
    """Square root with gradient 0, not infinity, at 0."""
    zero = squared == 0
    return torch.where(zero, 0, torch.where(zero, 1, squared).sqrt())


def _one_direction(
    x: Tensor,
    y: Tensor,
    x_lengths: Tensor,
    y_lengths: Tensor,
    x_normals: Tensor | None,
    y_normals: Tensor | None,
    x_weights: Tensor | None,
    point_reduction: str | None,
    norm: int,
    abs_cosine: bool,
    squared: bool,
) -> tuple[Tensor, Tensor | None]:
    """Point-reduced distance, and normals' loss, from each point of x to its nearest in y: [B], or [B, N]."""
    found = knn(x, y, x_lengths=x_lengths, y_lengths=y_lengths, norm=norm)
    valid = (torch.arange(x.shape[1], device=x.device) < x_lengths[:, None]) & (y_lengths > 0)[:, None]  # [B, N]
    distances = torch.where(valid, found.distances[..., 0], 0)  # [B, N]
    if not squared:
        distances = root(distances)
    normals_loss = None
    if x_normals is not None and y_normals is not None:
        working = result_dtype(x.dtype)
        near = gather_points(y_normals.to(working), found.indices)[:, :, 0]  # [B, N, D]
        cosine = torch.nn.functional.cosine_similarity(x_normals.to(working), near, dim=2, eps=1e-6)
        normals_loss = torch.where(
            found.indices[..., 0] >= 0, 1 - (cosine.abs() if abs_cosine else cosine), 0
        )  # [B, N]

    if point_reduction is None:
        weight = 1 if x_weights is None else x_weights
        return distances * weight, None if normals_loss is None else normals_loss * weight
    if point_reduction == "max":
        weighted = distances if x_weights is None else distances * x_weights
        return torch.nn.functional.pad(weighted, (0, 1)).max(dim=1).values, None
    weight = (torch.ones_like(distances) if x_weights is None else x_weights) * valid  # [B, N]
    total = weight.sum(1)
    divisor = torch.where(total == 0, 1, total) if point_reduction == "mean" else torch.ones_like(total)
    reduced = (distances * weight).sum(1) / divisor
    return reduced, None if normals_loss is None else (normals_loss * weight).sum(1) / divisor


def _over_batch(value: Tensor, weights: Tensor | None, reduction: str | None) -> Tensor:
    """[B] -> [B] or []; a weighted mean divides by the sum of the weights."""
    batch = value.shape[0]
    weighted = value if weights is None else value * weights.reshape((batch,) + (1,) * (value.dim() - 1))
    if reduction is None:
        return weighted
    if reduction == "sum":
        return weighted.sum()
    total = value.new_tensor(max(batch, 1)) if weights is None else weights.sum()
    return weighted.sum() / torch.where(total == 0, 1, total)


def chamfer_distance(
    x: Tensor,
    y: Tensor,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    x_normals: Tensor | None = None,
    y_normals: Tensor | None = None,
    weights: Tensor | None = None,
    batch_reduction: str | None = "mean",
    point_reduction: str | None = "mean",
    norm: int = 2,
    single_directional: bool = False,
    abs_cosine: bool = True,
    *,
    squared: bool = True,
    x_weights: Tensor | None = None,
    y_weights: Tensor | None = None,
) -> tuple[Tensor | tuple[Tensor, Tensor], Tensor | tuple[Tensor, Tensor] | None]:
    """See :func:`paperops.chamfer_distance`."""
    x_lengths = full_lengths(x_lengths, x.shape[0], x.shape[1], x.device)
    y_lengths = full_lengths(y_lengths, y.shape[0], y.shape[1], y.device)
    settings = (point_reduction, norm, abs_cosine, squared)
    directions = [_one_direction(x, y, x_lengths, y_lengths, x_normals, y_normals, x_weights, *settings)]
    if not single_directional:
        directions.append(_one_direction(y, x, y_lengths, x_lengths, y_normals, x_normals, y_weights, *settings))

    def combine(values: list[Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        if point_reduction is None:
            reduced = tuple(_over_batch(value, weights, batch_reduction) for value in values)
            return reduced[0] if single_directional else (reduced[0], reduced[1])
        together = torch.stack(values).max(dim=0).values if point_reduction == "max" else torch.stack(values).sum(0)
        return _over_batch(together, weights, batch_reduction)

    loss = combine([distance for distance, _ in directions])
    normals = [value for _, value in directions if value is not None]
    return loss, combine(normals) if normals else None


def f_score(
    x: Tensor, y: Tensor, radius: float, *, x_lengths: Tensor | None = None, y_lengths: Tensor | None = None
) -> FScore:
    """See :func:`paperops.f_score`."""
    x_lengths = full_lengths(x_lengths, x.shape[0], x.shape[1], x.device)
    y_lengths = full_lengths(y_lengths, y.shape[0], y.shape[1], y.device)

    def share_within(a: Tensor, b: Tensor, a_lengths: Tensor, b_lengths: Tensor) -> Tensor:
        found = knn(a, b, x_lengths=a_lengths, y_lengths=b_lengths)
        near = (found.distances[..., 0].sqrt() <= radius) & (found.indices[..., 0] >= 0)  # [B, N]
        return near.sum(1) / a_lengths.clamp(min=1).to(found.distances.dtype)

    precision = share_within(x, y, x_lengths, y_lengths)
    recall = share_within(y, x, y_lengths, x_lengths)
    both_empty = (x_lengths == 0) & (y_lengths == 0)
    precision, recall = torch.where(both_empty, 1, precision), torch.where(both_empty, 1, recall)
    total = precision + recall
    return FScore(2 * precision * recall / torch.where(total == 0, 1, total), precision, recall)


def hausdorff_distance(
    x: Tensor,
    y: Tensor,
    *,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    single_directional: bool = False,
) -> Tensor:
    """See :func:`paperops.hausdorff_distance`."""
    x_lengths = full_lengths(x_lengths, x.shape[0], x.shape[1], x.device)
    y_lengths = full_lengths(y_lengths, y.shape[0], y.shape[1], y.device)

    def farthest(a: Tensor, b: Tensor, a_lengths: Tensor, b_lengths: Tensor) -> Tensor:
        distances = knn(a, b, x_lengths=a_lengths, y_lengths=b_lengths).distances[..., 0]  # [B, N]; 0 past a's length
        return torch.nn.functional.pad(distances, (0, 1)).max(dim=1).values

    result = farthest(x, y, x_lengths, y_lengths)
    if not single_directional:
        result = torch.maximum(result, farthest(y, x, y_lengths, x_lengths))
    result = torch.where((x_lengths == 0) ^ (y_lengths == 0), torch.inf, result)
    return root(result)

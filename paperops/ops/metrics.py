"""Metrics of predicted point clouds over the nearest family's ops: F-score and Hausdorff distance."""

from __future__ import annotations

import torch
from torch import Tensor

from paperops.ops import _checks
from paperops.ops.chamfer import counted_distances, one_or_both, share
from paperops.ops.nearest import nearest
from paperops.reference.chamfer import FScore, root


def f_score(
    x: Tensor, y: Tensor, radius: float, *, x_lengths: Tensor | None = None, y_lengths: Tensor | None = None
) -> FScore:
    r"""F-score of predicted clouds: the harmonic mean of precision and recall at a distance.

    Precision is the share of predicted points with a true point within ``radius``, recall the share of true points
    with a predicted point within it, and :math:`F = 2 P R / (P + R)`, 0 where both are 0.

    Args:
        x: predicted points ``[B, N, D]``.
        y: true points ``[B, M, D]`` of the same dtype and device.
        radius: distance, not squared, in the points' unit; within means at most. Finite, at least 0. (Kaolin's function
            of this name takes the true points first; :mod:`paperops.compat.kaolin` has it.)
        x_lengths, y_lengths: integers ``[B]``, how many points of each cloud count; None means all.

    Returns:
        ``FScore(f, precision, recall)``, each ``[B]``; all 0 where one cloud is empty, all 1 where both are. Not
        differentiable.

    Raises:
        TypeError, ValueError: as :func:`paperops.knn`; a radius that is negative or not finite.

    Source:
        Tatarchenko et al., "What Do Single-view 3D Reconstruction Networks Learn?", CVPR 2019, section 5.

    Cost:
        9 B N M operations at most in three dimensions, for both directions; B (N + M) (D + 3) values moved.

    Example:
        >>> import torch, paperops
        >>> x = torch.tensor([[[0.0, 0.0], [5.0, 0.0]]])
        >>> y = torch.tensor([[[0.0, 1.0]]])
        >>> [round(score.item(), 4) for score in paperops.f_score(x, y, radius=1.0)]
        [0.6667, 0.5, 1.0]
    """
    _checks.clouds(x, y)
    radius = _checks.radius(radius)
    x_lengths, y_lengths = _checks.lengths("x_lengths", x_lengths, x), _checks.lengths("y_lengths", y_lengths, y)
    with torch.no_grad():
        found = nearest(x, y, x_lengths, y_lengths, 2)
        empty_x, empty_y = _empty(x, x_lengths), _empty(y, y_lengths)
        shares = []
        for points, lengths, distances, indices in ((x, x_lengths, *found[:2]), (y, y_lengths, *found[2:])):
            within = ((distances.sqrt() <= radius) & (indices >= 0)).sum(1)  # [B]
            count = max(points.shape[1], 1) if lengths is None else lengths.clamp(1, max(points.shape[1], 1))
            shares.append(torch.where(empty_x & empty_y, 1, within.to(distances.dtype) / count))
        precision, recall = shares
        return FScore(share(2 * precision * recall, precision + recall), precision, recall)


def hausdorff_distance(
    x: Tensor,
    y: Tensor,
    *,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    single_directional: bool = False,
) -> Tensor:
    r"""Hausdorff distance: how far the farthest point is from the other cloud.

    .. math:: \max(\max_i \min_j |x_i - y_j|, \max_j \min_i |x_i - y_j|)

    Args:
        x: ``[B, N, D]``.
        y: ``[B, M, D]`` of the same dtype and device.
        x_lengths, y_lengths: integers ``[B]``, how many points of each cloud count; None means all.
        single_directional: only from x to y.

    Returns:
        ``[B]`` Euclidean distances, not squared, in the points' unit: inf where one cloud is empty, 0 where both are.
        Differentiable twice, through the pair of points that attains it; gradient 0 at distance 0.

    Raises:
        TypeError, ValueError: as :func:`paperops.knn`, but a cloud may be empty.

    Cost:
        9 B N M operations at most in three dimensions, for both directions; B (N + M) (D + 3) values moved; saves x, y
        and the indices for backward.

    Example:
        >>> import torch, paperops
        >>> x = torch.tensor([[[0.0, 0.0], [3.0, 4.0]]])
        >>> paperops.hausdorff_distance(x, torch.zeros(1, 1, 2))
        tensor([5.])
    """
    _checks.clouds(x, y)
    _checks.flag("single_directional", single_directional)
    x_lengths, y_lengths = _checks.lengths("x_lengths", x_lengths, x), _checks.lengths("y_lengths", y_lengths, y)
    found = one_or_both(x, y, x_lengths, y_lengths, 2, single_directional)
    values = [counted_distances(distances, indices, squared=True) for distances, indices in found]
    farthest = [torch.nn.functional.pad(value, (0, 1)).max(dim=1).values for value in values]  # [B]
    squared = farthest[0] if single_directional else torch.maximum(farthest[0], farthest[1])
    one_empty = _empty(x, x_lengths) ^ _empty(y, y_lengths)
    return root(squared).masked_fill(one_empty, float("inf"))


def _empty(points: Tensor, lengths: Tensor | None) -> Tensor:
    """Which clouds have no point: bool [B]."""
    if lengths is None:
        return torch.full(points.shape[:1], points.shape[1] == 0, device=points.device)
    return lengths.clamp(max=points.shape[1]) <= 0

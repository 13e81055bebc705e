"""Kaolin's point cloud metrics, over paperops' ops: ``kaolin.metrics.pointcloud`` of its version 0.18.

Arguments, defaults, result types and formulas are the same. What holds for all three functions, beyond the library:

- CPU and any other device, and bfloat16 (there: CUDA alone; float16, float32 and float64 as here);
- points of any dimension D >= 1 (there: 3);
- float16 is accumulated in float32 and rounded once, at the end (there: sums and counts in float16);
- a neighbour is the exact one, by float64 distance, ties to the lowest index; a NaN distance sorts last;
- second derivatives; and gradients added in a fixed order, so that two runs agree bit for bit (there: atomics);
- no 32-bit index: clouds and pairs past 2^31; empty clouds have a defined result.

What is accepted differently: integer points are refused, with TypeError, and wrong shapes with ValueError (there:
RuntimeError).
"""

from __future__ import annotations

import numbers

import torch
from torch import Tensor

from paperops.ops import _checks
from paperops.ops.chamfer import chamfer_distance as paperops_chamfer_distance
from paperops.ops.chamfer import counted_distances
from paperops.ops.nearest import knn_op, nearest

__all__ = ["chamfer_distance", "f_score", "sided_distance"]


def sided_distance(p1: Tensor, p2: Tensor) -> tuple[Tensor, Tensor]:
    r"""Squared distance from each point of p1 to its nearest in p2, and that point's index.

    :math:`\min_j \sum_d (x_d - y_{jd})^2`: ``kaolin.metrics.pointcloud.sided_distance``.

    Args:
        p1: ``[B, N, 3]``.
        p2: ``[B, M, 3]``.

    Returns:
        ``(dist [B, N] in the points' dtype, idx [B, N] int64)``. Where p2 is empty both are 0; a point with a NaN has
        distance NaN, index 0 and no gradient.

    Differentiable twice in p1 and p2. Wider than the library: see :mod:`paperops.compat.kaolin`.

    Raises:
        TypeError: not tensors, or not of one floating dtype.
        ValueError: batches or dimensions that differ, or other than three dimensions.

    Example:
        >>> import torch
        >>> from paperops.compat.kaolin import sided_distance
        >>> p1 = torch.tensor([[[0.0, 0.0, 0.0], [3.0, 0.0, 0.0]]])
        >>> p2 = torch.tensor([[[1.0, 0.0, 0.0], [5.0, 0.0, 0.0], [2.0, 0.0, 0.0]]])
        >>> sided_distance(p1, p2)
        (tensor([[1., 1.]]), tensor([[0, 2]]))
    """
    _checks.clouds(p1, p2, ("p1", "p2"))
    distances, indices = knn_op(p1, p2, None, None, 1, 2)  # [B, N, 1]
    if p2.shape[1] == 0:
        distances = distances.masked_fill(indices < 0, 0)
    return distances.squeeze(2).to(p1.dtype), indices.squeeze(2).clamp(min=0)


def chamfer_distance(
    p1: Tensor, p2: Tensor, w1: float | Tensor = 1.0, w2: float | Tensor = 1.0, squared: bool = True
) -> Tensor:
    r"""Chamfer distance of each pair of clouds: ``kaolin.metrics.pointcloud.chamfer_distance``.

    .. math:: \frac{w_1}{N} \sum_i \min_j d(x_i, y_j) + \frac{w_2}{M} \sum_j \min_i d(y_j, x_i)

    with d the squared Euclidean distance, or its root with ``squared=False``.

    Args:
        p1: ``[B, N, 3]``.
        p2: ``[B, M, 3]``.
        w1, w2: weights of the two directions: numbers, or tensors of shape ``[]`` or ``[B]``.
        squared: False takes the root of each nearest distance.

    Returns:
        ``[B]`` in the points' dtype; 0 for a pair in which either cloud is empty (there: NaN).

    Differentiable twice in p1 and p2, and in w1 and w2 if they are tensors. With ``squared=False`` the gradient at
    distance 0 is 0 (there: NaN). Wider than the library: see :mod:`paperops.compat.kaolin`.

    Raises:
        TypeError, ValueError: as :func:`sided_distance`.

    Example:
        >>> import torch
        >>> from paperops.compat.kaolin import chamfer_distance
        >>> p1 = torch.tensor([[[0.0, 0.0, 0.0], [3.0, 0.0, 0.0]]])
        >>> chamfer_distance(p1, torch.tensor([[[1.0, 0.0, 0.0]]]), w2=10.0)
        tensor([12.5000])
    """
    _checks.clouds(p1, p2, ("p1", "p2"))
    _checks.flag("squared", squared)
    for name, weight in (("w1", w1), ("w2", w2)):
        if isinstance(weight, Tensor):
            if weight.dim() > 1 or (weight.dim() == 1 and weight.shape != p1.shape[:1]):
                raise ValueError(f"{name} must be a number or of shape [] or [B]; got {list(weight.shape)}")
        elif isinstance(weight, bool) or not isinstance(weight, numbers.Real):
            raise TypeError(f"{name} must be a number or a tensor; got {type(weight).__name__}")
    if not isinstance(w1, Tensor) and not isinstance(w2, Tensor) and w1 == w2 == 1:
        loss: Tensor = paperops_chamfer_distance(p1, p2, batch_reduction=None, squared=squared)[0]
        return loss.to(p1.dtype)
    to_p2, p2_indices, to_p1, p1_indices = nearest(p1, p2, None, None, 2)  # [B, N], [B, M]
    forth, back = counted_distances(to_p2, p2_indices, squared), counted_distances(to_p1, p1_indices, squared)
    loss = w1 * (forth.sum(1) / max(p1.shape[1], 1)) + w2 * (back.sum(1) / max(p2.shape[1], 1))
    return loss.to(p1.dtype)


def f_score(gt_points: Tensor, pred_points: Tensor, radius: float = 0.01, eps: float = 1e-8) -> Tensor:
    r"""F-score of predicted clouds at a distance: ``kaolin.metrics.pointcloud.f_score``.

    :math:`2 P R / (P + R + \epsilon)` with P = TP / (TP + FP) and R = TP / (TP + FN), where TP is the number of
    predicted points with a true one within the radius, FP that of the other predicted points, and FN that of true
    points with no predicted one within it. TP counts predicted points in R too, as it does there;
    :func:`paperops.f_score` has the recall of the literature, the share of true points that are met.

    Args:
        gt_points: true points ``[B, N, 3]``.
        pred_points: predicted points ``[B, M, 3]``.
        radius: distance, not squared, in the points' unit; within means at most.
        eps: keeps the quotient finite.

    Returns:
        ``[B]`` in the points' dtype: 0 where one cloud is empty, 1 where both are (there: 1 and NaN, from buffers that
        no kernel wrote, whatever the radius). Not differentiable. A point with a NaN is met by none (there: by all).

    Wider than the library: see :mod:`paperops.compat.kaolin`.

    Raises:
        TypeError, ValueError: as :func:`sided_distance`.

    Example:
        >>> import torch
        >>> from paperops.compat.kaolin import f_score
        >>> gt_points = torch.tensor([[[0.0, 0.0, 0.0], [9.0, 0.0, 0.0]]])
        >>> f_score(gt_points, torch.tensor([[[0.0, 0.0, 1.0]]]), radius=1.0)
        tensor([0.6667])
    """
    _checks.clouds(gt_points, pred_points, ("gt_points", "pred_points"))
    batch, true_count, _ = gt_points.shape
    count = pred_points.shape[1]
    if true_count == count == 0:
        return gt_points.new_ones(batch)
    with torch.no_grad():
        to_pred, _, to_gt, _ = nearest(gt_points, pred_points, None, None, 2)
        hits = (to_gt.sqrt() <= radius).sum(1).to(to_gt.dtype)  # [B]: TP
        missed = (~(to_pred.sqrt() <= radius)).sum(1)  # [B]: FN
        precision = hits / max(count, 1)
        recall = hits / (hits + missed).clamp(min=1)
        return (2 * precision * recall / (precision + recall + eps)).to(gt_points.dtype)

"""``ball_query`` as PyTorch3D has it."""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import Tensor

from paperops.compat.pytorch3d.knn import KNN
from paperops.ops import _checks
from paperops.ops.nearest import gather_rows, knn_backward
from paperops.reference.nearest import result_dtype

BLOCK_PAIRS = 2**20
"""How many pairs of points are looked at together: the bound on the memory of the search."""


def ball_query(
    p1: Tensor,
    p2: Tensor,
    lengths1: Tensor | None = None,
    lengths2: Tensor | None = None,
    K: int = 500,
    radius: float = 0.2,
    return_nn: bool = True,
    skip_points_outside_cube: bool = False,
) -> KNN:
    r"""The first K points of p2 nearer than a radius, for every point of p1: ``pytorch3d.ops.ball_query``.

    In order of index, not of distance: the neighbours of :math:`x` are the first K of
    :math:`\{ j : \sum_d (x_d - y_{jd})^2 < r^2 \}`. A point at exactly the radius is outside.

    Args:
        p1: centres ``[N, P1, D]``.
        p2: points ``[N, P2, D]``.
        lengths1, lengths2: integers ``[N]``, how many points of each cloud count; None means all.
        K: at most so many neighbours.
        radius: in the points' unit, not negative; inf takes every point at a finite distance.
        return_nn: also return the neighbours.
        skip_points_outside_cube: accepted, and of no effect. There it saves multiplications, and never changes the
            result: a point outside the cube around a ball is outside the ball.

    Returns:
        ``KNN(dists [N, P1, K], idx [N, P1, K], knn [N, P1, K, D] or None)``: squared distances in p1's dtype, indices.
        Slots without a neighbour, and rows past ``lengths1``, hold distance 0, index -1 and neighbour 0.

    For float32 points distances, radius and square are rounded as the library's CPU code rounds them (float32,
    dimension by dimension), so the same points are inside. Differentiable twice in p1 and p2 through ``dists``, and in
    p2 through ``knn``.

    Wider than the library: see :mod:`paperops.compat.pytorch3d`; also, float16 and bfloat16 points are compared in
    float32, float64 points with the radius in float64 (there: rounded to float32), a NaN is in no ball, and P2 = 0
    works with ``return_nn``. A negative radius is refused (there: squared).

    Raises:
        TypeError: not tensors, not of one floating dtype, K not an int, radius not a number, lengths not integers.
        ValueError: batches or dimensions that differ, other than three dimensions, K < 1, a radius that is negative or
            NaN, lengths out of range.

    Cost:
        3 N P1 P2 D operations. Beside the result, the search holds at most 2^20 pairs at a time (all P2 pairs of one
        query, where P2 is larger): about 14 bytes each, 22 for float64. Saves p1, p2 and the indices for backward.

    Source:
        Qi et al., "PointNet++", NeurIPS 2017, section 3.2; PyTorch3D's documentation of ``pytorch3d.ops.ball_query``.

    Example:
        >>> import torch
        >>> from paperops.compat.pytorch3d import ball_query
        >>> p1, p2 = torch.tensor([[[0.0]]]), torch.tensor([[[3.0], [1.0], [0.5]]])
        >>> found = ball_query(p1, p2, K=3, radius=2.0)
        >>> found.idx.tolist(), found.dists.tolist()
        ([[[1, 2, -1]]], [[[1.0, 0.25, 0.0]]])
    """
    _checks.clouds(p1, p2, ("p1", "p2"))
    K = _checks.positive_int("K", K)
    if isinstance(radius, bool) or not isinstance(radius, numbers.Real):
        raise TypeError(f"radius must be a number; got {type(radius).__name__}")
    if not radius >= 0:
        raise ValueError(f"radius must not be negative or NaN; got {radius}")
    if p1.dtype != p2.dtype:  # under autocast: the ops take both as float32
        p1, p2 = p1.float(), p2.float()
    lengths1, lengths2 = _checks.lengths("lengths1", lengths1, p1), _checks.lengths("lengths2", lengths2, p2)
    dists, idx = _BallQuery.apply(p1, p2, lengths1, lengths2, K, float(radius))
    return KNN(dists, idx, gather_rows(p2, idx) if return_nn else None)


class _BallQuery(torch.autograd.Function):
    """The search, with knn's derivative: the distances to fixed neighbours."""

    @staticmethod
    def forward(
        p1: Tensor, p2: Tensor, lengths1: Tensor | None, lengths2: Tensor | None, k: int, radius: float
    ) -> tuple[Tensor, Tensor]:
        return _search(p1, p2, lengths1, lengths2, k, radius)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        p1, p2, *_ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(p1, p2, output[1])

    @staticmethod
    def backward(ctx: Any, grad_dists: Tensor, _: Any) -> tuple[Any, ...]:
        p1, p2, idx = ctx.saved_tensors
        grad_p1, grad_p2 = knn_backward(grad_dists.to(result_dtype(p1.dtype)), p1, p2, idx, 2)
        return grad_p1, grad_p2, None, None, None, None


def _search(
    p1: Tensor, p2: Tensor, lengths1: Tensor | None, lengths2: Tensor | None, k: int, radius: float
) -> tuple[Tensor, Tensor]:
    """(squared distances [N, P1, k], indices [N, P1, k]), a block of at most BLOCK_PAIRS pairs after another."""
    batch, queries, _ = p1.shape
    targets = p2.shape[1]
    working = result_dtype(p1.dtype)
    # On the device, so that nothing is copied there; through float64, because a radius may overflow float32.
    limit = torch.full((), radius, dtype=torch.float64, device=p1.device).to(working).square()
    dists = torch.zeros((batch, queries, k), dtype=p1.dtype, device=p1.device)
    idx = torch.full((batch, queries, k), -1, dtype=torch.int64, device=p1.device)
    if 0 in (batch, queries, targets):
        return dists, idx

    slots = min(k, targets)
    rows = max(1, BLOCK_PAIRS // targets)
    row_step, batch_step = min(rows, queries), max(1, rows // queries)
    for cloud in range(0, batch, batch_step):
        clouds = slice(cloud, cloud + batch_step)
        y = p2[clouds].to(working)  # [b, P2, D]
        in_y = None if lengths2 is None else torch.arange(targets, device=p2.device) < lengths2[clouds, None, None]
        for row in range(0, queries, row_step):
            block = slice(row, row + row_step)
            x = p1[clouds, block].to(working)  # [b, n, D]
            squared = _squared_distances(x, y)  # [b, n, P2]
            near = squared < limit
            if in_y is not None:
                near &= in_y
            if lengths1 is not None:
                near &= torch.arange(row, row + x.shape[1], device=p1.device)[:, None] < lengths1[clouds, None, None]
            count_dtype = torch.int32 if targets < 2**31 else torch.int64
            count = near.cumsum(2, dtype=count_dtype)  # [b, n, P2]: neighbours up to and with each point
            rank = torch.arange(1, slots + 1, dtype=count_dtype, device=p1.device).repeat(*count.shape[:2], 1)
            place = torch.searchsorted(count, rank)  # [b, n, slots]: where the count reaches the rank; P2 if nowhere
            missing = place == targets
            found = squared.gather(2, place.clamp(max=targets - 1)).masked_fill(missing, 0)
            dists[clouds, block, :slots] = found.to(p1.dtype)
            idx[clouds, block, :slots] = place.masked_fill(missing, -1)
    return dists, idx


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """[b, n, D], [b, m, D] -> [b, n, m], dimension by dimension: in a fixed order, and without a [b, n, m, D]."""
    x = x.transpose(1, 2)[..., None].contiguous()  # [b, D, n, 1]
    y = y.transpose(1, 2)[:, :, None].contiguous()  # [b, D, 1, m]
    total = x[:, 0] - y[:, 0]
    total *= total
    for d in range(1, x.shape[1]):
        difference = x[:, d] - y[:, d]
        total += difference.mul_(difference)
    return total

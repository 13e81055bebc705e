"""``chamfer_distance`` as PyTorch3D has it: paperops' own, which follows it, and what differs in the corners."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from paperops.ops import _checks
from paperops.ops.chamfer import chamfer_distance as paperops_chamfer_distance
from paperops.reference.nearest import full_lengths, result_dtype


def chamfer_distance(
    x: Any,
    y: Any,
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
) -> tuple[Any, Any]:
    r"""Chamfer distance of two batches of point clouds, and of their normals: ``pytorch3d.loss.chamfer_distance``.

    .. math:: L = \frac{1}{P_1} \sum_i \min_j d(x_i, y_j) + \frac{1}{P_2} \sum_j \min_i d(y_j, x_i)

    with d as in :func:`~paperops.compat.pytorch3d.knn_points`; the normals' loss is :math:`1 - |\cos|` between each
    point's normal and its neighbour's, reduced likewise.

    Args:
        x: ``[N, P1, D]``, or a ``Pointclouds`` object: anything with ``points_padded()``, ``num_points_per_cloud()``
            and, if it has normals, ``normals_padded()``. Its lengths and normals then replace those given.
        y: ``[N, P2, D]``, or such an object.
        x_lengths, y_lengths: integers ``[N]``, how many points of each cloud count; None means all.
        x_normals, y_normals: ``[N, P1, D]``, ``[N, P2, D]``; one alone is ignored.
        weights: ``[N]``, not negative, of each pair of clouds; "mean" over the batch divides by their sum.
        batch_reduction: ``"mean"``, ``"sum"`` or None.
        point_reduction: ``"mean"``, ``"sum"``, ``"max"`` (the larger of both directions' largest; no normals) or None
            (needs ``batch_reduction=None``).
        norm: 1 or 2.
        single_directional: only from x to y.
        abs_cosine: whether opposite normals count as equal.

    Returns:
        ``(loss, loss_normals)``; the second is None without normals. Scalars, or ``[N]`` with
        ``batch_reduction=None``; with ``point_reduction=None`` pairs ``([N, P1], [N, P2])``, or ``[N, P1]`` alone if
        single-directional. Points past their length count 0. A pair of clouds in which either is empty adds 0 to the
        loss, but 1 to the normals' loss for each point of the other one, whose neighbour's normal is taken as 0.
        Weights that are all 0 give zeros for both results, with or without normals (but None for the second with
        "max" in both directions), and of shape ``[N, N]`` without a batch reduction: so it is there.

    Differentiable twice in points, normals and weights.

    Wider than the library: see :mod:`paperops.compat.pytorch3d`; also, half-precision points give float32 losses
    (there: refused), "max" takes clouds with P = 0, weights may be of any dtype, and a NaN in the padding reaches
    nothing. On a GPU, and inside torch.compile, weights are not read back: negative ones are not refused then, and
    weights that are all 0 give zeros of the shapes, and the None, of other weights.

    Raises:
        TypeError: not of one floating dtype, lengths not integers.
        ValueError: x or y neither a tensor nor such an object, wrong shapes, lengths out of range, weights negative or
            not finite, an unknown norm or reduction, reductions that do not go together, normals with "max".

    Source:
        PyTorch3D's documentation of ``pytorch3d.loss.chamfer_distance``.

    Example:
        >>> import torch
        >>> from paperops.compat.pytorch3d import chamfer_distance
        >>> x = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]])
        >>> chamfer_distance(x, torch.tensor([[[0.0, 0.0, 2.0]]]), single_directional=True)
        (tensor(4.5000), None)
    """
    if point_reduction == "max" and (x_normals is not None or y_normals is not None):
        raise ValueError("point_reduction must not be 'max' with normals: a largest angle has no meaning")
    x, x_lengths, x_normals = _unpack("x", x, x_lengths, x_normals)
    y, y_lengths, y_normals = _unpack("y", y, y_lengths, y_normals)
    if x_normals is None or y_normals is None:
        x_normals = y_normals = None
    if weights is not None:
        weights = _weights(weights, x)
    settings = (batch_reduction, point_reduction, norm, single_directional, abs_cosine)
    loss, loss_normals = paperops_chamfer_distance(x, y, x_lengths, y_lengths, x_normals, y_normals, weights, *settings)

    if weights is not None and _checks.values_are_free(weights) and not weights.any():
        return _weightless(x, y, weights, batch_reduction, point_reduction, single_directional)
    if loss_normals is None or (x_lengths is None and y_lengths is None and x.shape[1] and y.shape[1]):
        return loss, loss_normals
    x_lengths = full_lengths(x_lengths, x.shape[0], x.shape[1], x.device)
    y_lengths = full_lengths(y_lengths, y.shape[0], y.shape[1], y.device)
    directions = [(x, x_lengths, y_lengths), (y, y_lengths, x_lengths)][: 1 if single_directional else 2]
    missed = [_unmatched(*direction, weights, batch_reduction, point_reduction) for direction in directions]
    if isinstance(loss_normals, tuple):
        return loss, tuple(part + more for part, more in zip(loss_normals, missed))
    return loss, sum(missed, loss_normals)


def _unpack(
    name: str, points: Any, lengths: Tensor | None, normals: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Points, lengths and normals of an argument that is a tensor or an object like ``Pointclouds``."""
    if isinstance(points, Tensor):
        if normals is not None and _checks.tensor(f"{name}_normals", normals).dim() != 3:
            raise ValueError(f"{name}_normals must have shape [batch, points, 3]; got {list(normals.shape)}")
        return points, lengths, normals
    if not (hasattr(points, "points_padded") and hasattr(points, "num_points_per_cloud")):
        raise ValueError(
            f"{name} must be a tensor [batch, points, dimensions], or have points_padded() and num_points_per_cloud() "
            f"as PyTorch3D's Pointclouds; got {type(points).__name__}"
        )
    own_normals = points.normals_padded() if hasattr(points, "normals_padded") else None
    return points.points_padded(), points.num_points_per_cloud(), own_normals


def _weights(weights: Tensor, x: Tensor) -> Tensor:
    """Weights of any dtype, [N] or [N, 1], as floating [N]."""
    _checks.tensor("weights", weights)
    if weights.is_complex():
        raise TypeError(f"weights must be real; got {weights.dtype}")
    if not weights.is_floating_point():
        weights = weights.to(result_dtype(x.dtype))
    return weights.squeeze(1) if weights.dim() == 2 and weights.shape[1] == 1 else weights


def _weightless(
    x: Tensor, y: Tensor, weights: Tensor, batch_reduction: str | None, point_reduction: str | None, single: bool
) -> tuple[Any, Any]:
    """The library's results for weights that are all 0: zeros that still depend on the points and the weights."""

    def zeros(points: Tensor) -> Tensor:
        always = torch.ones((), dtype=torch.bool, device=points.device)
        per_cloud = points.to(result_dtype(x.dtype)).masked_fill(always, 0).sum((1, 2))  # [N]
        nothing = per_cloud * weights.to(per_cloud.dtype)[:, None]  # [N, N]
        return nothing if batch_reduction is None else nothing.sum()

    forth = zeros(x)
    if single:
        return forth, forth.clone()
    back = zeros(y)
    if point_reduction is None:
        return (forth, back), (forth.clone(), back.clone())
    both = forth + back
    return both, None if point_reduction == "max" else both.clone()


def _unmatched(
    points: Tensor,
    lengths: Tensor,
    other_lengths: Tensor,
    weights: Tensor | None,
    batch_reduction: str | None,
    point_reduction: str | None,
) -> Tensor:
    """What the normals of points whose other cloud is empty add to the loss: 1 each, reduced as the loss is."""
    batch, count = points.shape[:2]
    unmatched = (torch.arange(count, device=points.device) < lengths[:, None]) & (other_lengths == 0)[:, None]  # [N, P]
    dtype = result_dtype(points.dtype)
    value = unmatched.to(dtype) if point_reduction is None else unmatched.sum(1).to(dtype)  # [N, P] or [N]
    if point_reduction == "mean":
        value = value / lengths.clamp(min=1)
    total: Any = max(batch, 1)
    if weights is not None:
        value = value * weights.to(dtype).reshape((batch,) + (1,) * (value.dim() - 1))
        total = weights.to(dtype).sum()
        total = torch.where(total == 0, 1, total)
    if batch_reduction is None:
        return value
    return value.sum() / total if batch_reduction == "mean" else value.sum()

"""``knn_points`` and ``knn_gather`` as PyTorch3D has them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from paperops.ops import _checks
from paperops.ops.nearest import gather_rows, knn_op


class KNN(NamedTuple):
    """Result of :func:`knn_points` and :func:`~paperops.compat.pytorch3d.ball_query`."""

    dists: Tensor  # [N, P1, K]
    idx: Tensor  # [N, P1, K] int64
    knn: Tensor | None  # [N, P1, K, D], only if asked for


def knn_points(
    p1: Tensor,
    p2: Tensor,
    lengths1: Tensor | None = None,
    lengths2: Tensor | None = None,
    norm: int = 2,
    K: int = 1,
    version: int = -1,
    return_nn: bool = False,
    return_sorted: bool = True,
) -> KNN:
    r"""The K nearest points of p2 for every point of p1: ``pytorch3d.ops.knn_points``.

    :math:`d(x, y) = \sum_d (x_d - y_d)^2` for ``norm=2`` (not rooted), :math:`\sum_d |x_d - y_d|` for ``norm=1``.

    Args:
        p1: queries ``[N, P1, D]``.
        p2: targets ``[N, P2, D]``.
        lengths1, lengths2: integers ``[N]``, how many points of each cloud count; None means all.
        norm: 1 or 2.
        K: number of neighbours; it may exceed P2.
        version: accepted, and of no effect. There it picks a CUDA kernel, and never the result; a number that does
            not fit D and K is replaced there, with a line on standard output.
        return_nn: also return the neighbours, as :func:`knn_gather` gives them.
        return_sorted: accepted, and of no effect: neighbours are always sorted. (There, without it, the CUDA kernels
            leave them in any order.)

    Returns:
        ``KNN(dists [N, P1, K], idx [N, P1, K], knn [N, P1, K, D] or None)``, nearest first. Slots without a target, and
        rows past ``lengths1``, hold distance 0 and index 0, and ``knn`` of such a slot is 0; ``knn`` of a row past
        ``lengths1`` is the first point of p2, which is what index 0 gathers.

    Differentiable twice in p1 and p2, through ``dists`` and ``knn``.

    Wider than the library: see :mod:`paperops.compat.pytorch3d`; also, ``dists`` of float16 and bfloat16 points are
    float32 (there: refused), a NaN distance sorts last, a point of p1 with a NaN gets distance NaN, index 0 and no
    gradient (there: an arbitrary order), and P2 = 0 and N = 0 work with ``return_nn`` and K > 1 too.

    Raises:
        TypeError: not tensors, not of one floating dtype, K or version not an int, lengths not integers.
        ValueError: batches or dimensions that differ, other than three dimensions, norm other than 1 or 2, K < 1,
            lengths out of range.

    Source:
        PyTorch3D's documentation of ``pytorch3d.ops.knn_points``.

    Example:
        >>> import torch
        >>> from paperops.compat.pytorch3d import knn_points
        >>> p1, p2 = torch.tensor([[[0.0], [4.0]]]), torch.tensor([[[1.0], [9.0]]])
        >>> found = knn_points(p1, p2, K=3)
        >>> found.dists.tolist(), found.idx.tolist()
        ([[[1.0, 81.0, 0.0], [9.0, 25.0, 0.0]]], [[[0, 1, 0], [0, 1, 0]]])
    """
    _checks.clouds(p1, p2, ("p1", "p2"))
    _checks.norm(norm)
    K = _checks.positive_int("K", K)
    if isinstance(version, bool) or not isinstance(version, int):
        raise TypeError(f"version must be an int (it has no effect); got {type(version).__name__}")
    lengths1, lengths2 = _checks.lengths("lengths1", lengths1, p1), _checks.lengths("lengths2", lengths2, p2)

    dists, idx = knn_op(p1, p2, lengths1, lengths2, K, int(norm))  # [N, P1, K]
    if lengths2 is not None or K > p2.shape[1]:
        # A slot without a target is (inf, -1). A distance that overflowed is inf too, but has its index.
        dists = dists.masked_fill((idx < 0) & dists.isinf(), 0)
    idx = idx.clamp(min=0)
    return KNN(dists, idx, knn_gather(p2, idx, lengths2) if return_nn else None)


def knn_gather(x: Tensor, idx: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Rows of x at the indices that :func:`knn_points` returned: ``pytorch3d.ops.knn_gather``.

    ``out[n, l, k] = x[n, idx[n, l, k]]``, and 0 where ``k >= lengths[n]``.

    Args:
        x: ``[N, M, U]`` of any dtype: the targets, or any features of theirs.
        idx: integers ``[N, L, K]``.
        lengths: integers ``[N]``, how many rows of each x count; None means all M.

    Returns:
        ``[N, L, K, U]``, differentiable in x. A query that had no neighbours because it lies past its cloud's length
        has index 0, and gathers row 0.

    Wider than the library: M = 0 and N = 0 give zeros (there: an error); idx of any integer dtype; an index of -1,
    :func:`~paperops.compat.pytorch3d.ball_query`'s padding, gathers 0 (there: an error); on a GPU the gradient is
    added in a fixed order.

    Raises:
        TypeError: not tensors, or idx or lengths not integers.
        ValueError: batches that differ, other than three dimensions, lengths out of range.
        RuntimeError: on the CPU, an index of M or more.

    Example:
        >>> import torch
        >>> from paperops.compat.pytorch3d import knn_gather
        >>> x = torch.tensor([[[1.0], [2.0], [3.0]]])
        >>> knn_gather(x, torch.tensor([[[2, 0]]]), torch.tensor([1])).tolist()
        [[[[3.0], [0.0]]]]
    """
    for name, value in (("x", x), ("idx", idx)):
        if _checks.tensor(name, value).dim() != 3:
            raise ValueError(f"{name} must have three dimensions; got shape {list(value.shape)}")
    if idx.is_floating_point() or idx.is_complex() or idx.dtype == torch.bool:
        raise TypeError(f"idx must have an integer dtype; got {idx.dtype}")
    if x.shape[0] != idx.shape[0]:
        raise ValueError(f"idx must have the batch size of x, {x.shape[0]}; got {idx.shape[0]}")
    lengths = _checks.lengths("lengths", lengths, x)
    rows = gather_rows(x, idx.to(torch.int64))  # [N, L, K, U]
    targets, slots = x.shape[1], idx.shape[2]
    if lengths is None and slots <= targets:
        return rows
    slot = torch.arange(slots, device=x.device)
    missing = (slot >= targets)[None] if lengths is None else slot >= lengths[:, None]  # [N or 1, K]
    return rows.masked_fill(missing[:, None, :, None], 0)

"""k nearest neighbours between two batches of point clouds, and the dispatcher ops of the nearest family.

    knn       each query's k nearest targets
    nearest   both directions with k = 1, in one pass over the pairs
    chamfer   nearest, reduced to a weighted sum of distances per pair of clouds

Distances are differentiated through the matching that the forward pass fixed: d(x, y_i) with i held constant.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from paperops.ops import _checks
from paperops.ops._define import cuda, define, native, plain, triton
from paperops.reference.nearest import KNN, gather_points, result_dtype
from paperops.reference.nearest import knn as reference_knn

CUDA_MAX_DIMENSIONS = 8
CUDA_MAX_K = 32
_REFERENCE_ELEMENTS = 2**24


def _cuda_declines(x: Tensor, k: int) -> str | None:
    if x.shape[2] > CUDA_MAX_DIMENSIONS:
        return f"the CUDA kernels take up to {CUDA_MAX_DIMENSIONS} dimensions, not {x.shape[2]}"
    return f"the CUDA kernels take k up to {CUDA_MAX_K}, not {k}" if k > CUDA_MAX_K else None


# --- knn ---------------------------------------------------------------------------------------------------------


def _knn_reference(
    x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None, k: int, norm: int
) -> tuple[Tensor, Tensor]:
    # by blocks of queries, so that their distances to all targets fit into memory
    rows = max(1, _REFERENCE_ELEMENTS // max(1, x.shape[0] * y.shape[1] * x.shape[2]))
    blocks = []
    for start in range(0, max(1, x.shape[1]), rows):
        lengths = None if x_lengths is None else x_lengths.clamp(max=x.shape[1]) - start
        block = x[:, start : start + rows]
        blocks.append(reference_knn(block, y, k, x_lengths=lengths, y_lengths=y_lengths, norm=norm))
    return torch.cat([block.distances for block in blocks], 1), torch.cat([block.indices for block in blocks], 1)


def _knn_fake(
    x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None, k: int, norm: int
) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], x.shape[1], k)
    return x.new_empty(shape, dtype=result_dtype(x.dtype)), x.new_empty(shape, dtype=torch.int64)


def _knn_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, y, _, _, _, ctx.norm = inputs
    ctx.save_for_backward(x, y, output[1])
    ctx.mark_non_differentiable(output[1])


def _knn_derivative(ctx: Any, grad_distances: Tensor, _: Any) -> tuple[Any, ...]:
    grad_x, grad_y = knn_backward(grad_distances, *ctx.saved_tensors, ctx.norm)
    return grad_x, grad_y, None, None, None, None


def _knn_backward_reference(
    grad_distances: Tensor, x: Tensor, y: Tensor, indices: Tensor, norm: int
) -> tuple[Tensor, Tensor]:
    """2 g (x - y_i), or g sign(x - y_i), to x, and minus that to y_i."""
    working = result_dtype(x.dtype)
    difference = x.to(working)[:, :, None] - gather_points(y.to(working), indices)  # [B, N, k, D]
    slope = 2 * difference if norm == 2 else difference.sign()
    found = (indices >= 0)[..., None]
    push = torch.where(found, grad_distances[..., None] * slope, 0)  # [B, N, k, D]
    grad_y = torch.zeros(y.shape, dtype=working, device=y.device)
    if y.shape[1] > 0:
        batch = torch.arange(x.shape[0], device=x.device)[:, None, None].expand(indices.shape)
        _add_rows(grad_y, batch, indices.clamp(min=0), -push)
    return push.sum(2).to(x.dtype), grad_y.to(y.dtype)


def _add_rows(total: Tensor, batch: Tensor, rows: Tensor, values: Tensor) -> None:
    """total[batch, rows] += values, in a fixed order: scatter on the CPU, sorted indexing on a GPU."""
    if total.device.type == "cpu":
        flat = values.flatten(1, 2)
        total.scatter_add_(1, rows.flatten(1)[..., None].expand(flat.shape), flat)
    else:
        total.index_put_((batch, rows), values, accumulate=True)


def _knn_backward_fake(
    grad_distances: Tensor, x: Tensor, y: Tensor, indices: Tensor, norm: int
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), y.new_empty(y.shape)


def _slope(x: Tensor, y: Tensor, tangent_x: Tensor, tangent_y: Tensor, indices: Tensor, norm: int) -> Tensor:
    """Derivative [B, N, k] of the distances to the fixed neighbours along the tangents of x and y."""
    working = result_dtype(x.dtype)
    difference = x.to(working)[:, :, None] - gather_points(y.to(working), indices)  # [B, N, k, D]
    tangent = tangent_x.to(working)[:, :, None] - gather_points(tangent_y.to(working), indices)  # [B, N, k, D]
    slope = ((2 * difference if norm == 2 else difference.sign()) * tangent).sum(-1)  # [B, N, k]
    return slope.masked_fill(indices < 0, 0)


def _knn_backward_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.norm = inputs
    ctx.save_for_backward(*tensors)


def _knn_backward_derivative(ctx: Any, tangent_x: Tensor, tangent_y: Tensor) -> tuple[Any, ...]:
    grad_distances, x, y, indices = ctx.saved_tensors
    slope = _slope(x, y, tangent_x, tangent_y, indices, ctx.norm)
    if ctx.norm == 1:  # sign(x - y) is constant almost everywhere
        return slope, torch.zeros_like(x), torch.zeros_like(y), None, None
    # 2 g (x - y) is linear in (x, y): its transpose is the same op on the tangents
    second_x, second_y = knn_backward(grad_distances, tangent_x, tangent_y, indices, ctx.norm)
    return slope, second_x, second_y, None, None


knn_backward = define(
    "knn_backward",
    "(Tensor grad_distances, Tensor x, Tensor y, Tensor indices, int norm) -> (Tensor, Tensor)",
    {
        "reference": plain(_knn_backward_reference),
        "native": native("knn_backward"),
        "cuda": cuda("knn_backward", lambda g, x, y, indices, norm: _cuda_declines(x, 1)),
        "triton": triton("nearest", "knn_backward"),
    },
    fake=_knn_backward_fake,
    save=_knn_backward_save,
    backward=_knn_backward_derivative,
)

knn_op = define(
    "knn",
    "(Tensor x, Tensor y, Tensor? x_lengths, Tensor? y_lengths, int k, int norm) -> (Tensor, Tensor)",
    {
        "reference": plain(_knn_reference),
        "native": native("knn"),
        "cuda": cuda("knn", lambda x, y, x_lengths, y_lengths, k, norm: _cuda_declines(x, k)),
        "triton": triton("nearest", "knn"),
    },
    fake=_knn_fake,
    save=_knn_save,
    backward=_knn_derivative,
)


# --- nearest: both directions, k = 1 -----------------------------------------------------------------------------


def _nearest_reference(
    x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None, norm: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    forth = _knn_reference(x, y, x_lengths, y_lengths, 1, norm)
    back = _knn_reference(y, x, y_lengths, x_lengths, 1, norm)
    return forth[0].squeeze(2), forth[1].squeeze(2), back[0].squeeze(2), back[1].squeeze(2)


def _nearest_fake(
    x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None, norm: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    forth, back = _knn_fake(x, y, None, None, 1, norm), _knn_fake(y, x, None, None, 1, norm)
    return forth[0].squeeze(2), forth[1].squeeze(2), back[0].squeeze(2), back[1].squeeze(2)


def _nearest_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, y, _, _, ctx.norm = inputs
    _, x_indices, _, y_indices = output
    ctx.save_for_backward(x, y, x_indices, y_indices)
    ctx.mark_non_differentiable(x_indices, y_indices)


def _nearest_derivative(ctx: Any, grad_x_distances: Tensor, _: Any, grad_y_distances: Tensor, __: Any) -> Any:
    grad_x, grad_y = nearest_backward(grad_x_distances, grad_y_distances, *ctx.saved_tensors, ctx.norm)
    return grad_x, grad_y, None, None, None


def _nearest_backward_reference(
    grad_x_distances: Tensor,
    grad_y_distances: Tensor,
    x: Tensor,
    y: Tensor,
    x_indices: Tensor,
    y_indices: Tensor,
    norm: int,
) -> tuple[Tensor, Tensor]:
    # in the working precision, so that the two directions' sum is rounded once
    working = result_dtype(x.dtype)
    forth = _knn_backward_reference(
        grad_x_distances[..., None], x.to(working), y.to(working), x_indices[..., None], norm
    )
    back = _knn_backward_reference(
        grad_y_distances[..., None], y.to(working), x.to(working), y_indices[..., None], norm
    )
    return (forth[0] + back[1]).to(x.dtype), (forth[1] + back[0]).to(y.dtype)


def _nearest_backward_fake(
    grad_x_distances: Tensor,
    grad_y_distances: Tensor,
    x: Tensor,
    y: Tensor,
    x_indices: Tensor,
    y_indices: Tensor,
    norm: int,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), y.new_empty(y.shape)


def _nearest_backward_derivative(ctx: Any, tangent_x: Tensor, tangent_y: Tensor) -> tuple[Any, ...]:
    grad_x_distances, grad_y_distances, x, y, x_indices, y_indices = ctx.saved_tensors
    slope_x = _slope(x, y, tangent_x, tangent_y, x_indices[..., None], ctx.norm).squeeze(2)
    slope_y = _slope(y, x, tangent_y, tangent_x, y_indices[..., None], ctx.norm).squeeze(2)
    if ctx.norm == 1:
        return slope_x, slope_y, torch.zeros_like(x), torch.zeros_like(y), None, None, None
    second = nearest_backward(grad_x_distances, grad_y_distances, tangent_x, tangent_y, x_indices, y_indices, ctx.norm)
    return slope_x, slope_y, *second, None, None, None


nearest_backward = define(
    "nearest_backward",
    "(Tensor grad_x_distances, Tensor grad_y_distances, Tensor x, Tensor y, Tensor x_indices, Tensor y_indices, "
    "int norm) -> (Tensor, Tensor)",
    {
        "reference": plain(_nearest_backward_reference),
        "native": native("nearest_backward"),
        "cuda": cuda("nearest_backward", lambda gx, gy, x, y, ix, iy, norm: _cuda_declines(x, 1)),
        "triton": triton("nearest", "nearest_backward"),
    },
    fake=_nearest_backward_fake,
    save=_knn_backward_save,
    backward=_nearest_backward_derivative,
)

nearest = define(
    "nearest",
    "(Tensor x, Tensor y, Tensor? x_lengths, Tensor? y_lengths, int norm) -> (Tensor, Tensor, Tensor, Tensor)",
    {
        "reference": plain(_nearest_reference),
        "native": native("nearest"),
        "cuda": cuda("nearest", lambda x, y, x_lengths, y_lengths, norm: _cuda_declines(x, 1)),
        "triton": triton("nearest", "nearest"),
    },
    fake=_nearest_fake,
    save=_nearest_save,
    backward=_nearest_derivative,
)


# --- the public function -----------------------------------------------------------------------------------------


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
    r"""The k nearest targets of every query, exactly.

    :math:`d(x, y) = \sum_d (x_d - y_d)^2` for ``norm=2`` (squared Euclidean), :math:`\sum_d |x_d - y_d|` for
    ``norm=1``. The order is that of the float64 distances of the given values, in every dtype; equal distances come
    in order of index. Distances are formed from differences, so clouds far from the origin lose nothing.

    Args:
        x: queries ``[B, N, D]``, float16, bfloat16, float32 or float64, in any unit; D is at least 1.
        y: targets ``[B, M, D]`` of the same dtype and device; M is at least 1.
        k: number of neighbours, at least 1; it may exceed M.
        x_lengths: integers ``[B]``, how many rows of each cloud count; None means all. On a GPU, and inside
            torch.compile, they are not read back but clamped to ``[0, N]``.
        y_lengths: the same for y.
        norm: 1 or 2.
        return_neighbors: also gather the neighbours' coordinates.

    Returns:
        ``KNN(distances [B, N, k], indices [B, N, k], neighbors [B, N, k, D] or None)``, nearest first. Distances are
        float64 for float64 points and float32 otherwise; indices are int64. A slot without a target holds distance
        inf, index -1 and neighbour 0; a row past its length distance 0 and index -1. A NaN distance sorts last; a
        query with a NaN coordinate has index -1.

    Differentiable twice in x and y through ``distances``, and in y through ``neighbors``; gradients are summed in a
    fixed order, so two runs agree bit for bit.

    Raises:
        TypeError: x and y are not tensors of one floating dtype, k is not an int, lengths are not integers.
        ValueError: wrong shapes or devices, D = 0, M = 0, k < 1, norm other than 1 or 2, lengths out of range.

    Cost:
        3 B N M D floating-point operations; fewer on the CPU for two clouds of 65536 points or more in up to three
        dimensions, where boxes of points that are too far away are skipped. Memory beyond the result O(B (N + M));
        saves x, y and the indices for backward.

    Example:
        >>> import torch, paperops
        >>> x = torch.tensor([[[0.0, 0.0], [1.0, 1.0]]])
        >>> y = torch.tensor([[[0.0, 1.0], [3.0, 1.0], [1.0, 1.0]]])
        >>> found = paperops.knn(x, y, k=2)
        >>> found.indices.tolist(), found.distances.tolist()
        ([[[0, 2], [2, 0]]], [[[1.0, 2.0], [0.0, 1.0]]])
    """
    _checks.clouds(x, y)
    k = _checks.positive_int("k", k)
    _checks.norm(norm)
    _checks.flag("return_neighbors", return_neighbors)
    if y.shape[1] == 0:
        raise ValueError(
            f"y must have at least one point for k={k} neighbours to be found in; got an empty cloud (M = 0)"
        )
    x_lengths, y_lengths = _checks.lengths("x_lengths", x_lengths, x), _checks.lengths("y_lengths", y_lengths, y)
    distances, indices = knn_op(x, y, x_lengths, y_lengths, k, norm)
    return KNN(distances, indices, gather_rows(y, indices) if return_neighbors else None)


def gather_rows(rows: Tensor, indices: Tensor) -> Tensor:
    """rows [B, M, C] at indices [B, N, k] -> [B, N, k, C], 0 at index -1, with a gradient summed in a fixed order."""
    if rows.device.type == "cpu" or rows.shape[1] == 0:
        return gather_points(rows, indices)
    # On a GPU the derivative of torch.gather adds with atomics; that of indexing sorts first.
    batch = torch.arange(rows.shape[0], device=rows.device)[:, None, None]
    return rows[batch, indices.clamp(min=0)].masked_fill((indices < 0)[..., None], 0)

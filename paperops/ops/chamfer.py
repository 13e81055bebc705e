"""Chamfer distance of batches of point clouds: the nearest family's fused reduction, and the public function."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from paperops.ops import _checks
from paperops.ops._define import define, fold, inner_batch, native, plain, unfold
from paperops.ops.nearest import gather_rows, nearest, nearest_backward
from paperops.ops.nearest import knn_op as one_sided
from paperops.reference.chamfer import root
from paperops.reference.nearest import matched_distances, result_dtype

# --- chamfer: nearest, reduced per pair of clouds ------------------------------------------------------------------


def counted_distances(distances: Tensor, indices: Tensor, squared: bool) -> Tensor:
    """The distances that enter a sum: 0, not inf, where the other cloud is empty; rooted on demand."""
    distances = torch.where((indices < 0) & distances.isinf(), 0, distances)
    return distances if squared else root(distances)


def _chamfer_composed(
    x: Tensor,
    y: Tensor,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    x_coefficients: Tensor | None,
    y_coefficients: Tensor | None,
    x_divisor: int,
    y_divisor: int,
    norm: int,
    squared: bool,
    reduce_batch: bool,
) -> tuple[Tensor, ...]:
    """``nearest`` on the backend that is due, then torch's sums."""
    found = nearest(x, y, x_lengths, y_lengths, norm)
    forth, back = counted_distances(found[0], found[1], squared), counted_distances(found[2], found[3], squared)
    forth = forth if x_coefficients is None else forth * x_coefficients
    back = back if y_coefficients is None else back * y_coefficients
    loss = forth.sum(1) / x_divisor + back.sum(1) / y_divisor  # [B]
    return (loss.sum() if reduce_batch else loss, *found)


def _chamfer_fake(
    x: Tensor,
    y: Tensor,
    x_lengths: Tensor | None,
    y_lengths: Tensor | None,
    x_coefficients: Tensor | None,
    y_coefficients: Tensor | None,
    x_divisor: int,
    y_divisor: int,
    norm: int,
    squared: bool,
    reduce_batch: bool,
) -> tuple[Tensor, ...]:
    working = result_dtype(x.dtype)
    results = [x.new_empty(() if reduce_batch else x.shape[:1], dtype=working)]
    for cloud in (x, y):
        results += [cloud.new_empty(cloud.shape[:2], dtype=dtype) for dtype in (working, torch.int64)]
    return tuple(results)


def _chamfer_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, y, _, _, x_coefficients, y_coefficients, *ctx.settings, _ = inputs
    _, x_distances, x_indices, y_distances, y_indices = output
    ctx.mark_non_differentiable(x_distances, x_indices, y_distances, y_indices)
    ctx.set_materialize_grads(False)
    needed = not ctx.settings[-1] or ctx.needs_input_grad[4] or ctx.needs_input_grad[5]
    distances = (x_distances, y_distances) if needed else (None, None)
    ctx.save_for_backward(x, y, x_coefficients, y_coefficients, x_indices, y_indices, *distances)


def _chamfer_derivative(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad_loss is None:
        return (None,) * 11
    x, y, x_coefficients, y_coefficients, x_indices, y_indices, x_distances, y_distances = ctx.saved_tensors
    x_divisor, y_divisor, norm, squared = ctx.settings
    if grad_loss.dim() == 1:
        grad_loss = grad_loss[:, None]  # [B, 1]; [] where the loss was summed over the batch
    if torch.is_grad_enabled() and x_distances is not None:  # a second derivative goes through the distances too
        x_distances = matched_distances(x, y, x_indices[..., None], norm).squeeze(2)
        y_distances = matched_distances(y, x, y_indices[..., None], norm).squeeze(2)

    grad_x = grad_loss if x_divisor == 1 else grad_loss / x_divisor
    grad_y = grad_x if y_divisor == x_divisor else grad_loss / y_divisor
    grad_x_distances = grad_x.expand(x_indices.shape) if x_coefficients is None else grad_x * x_coefficients
    grad_y_distances = grad_y.expand(y_indices.shape) if y_coefficients is None else grad_y * y_coefficients
    grad_x_coefficients = grad_y_coefficients = None
    if x_distances is not None:
        x_counted = counted_distances(x_distances, x_indices, squared)
        y_counted = counted_distances(y_distances, y_indices, squared)
        if ctx.needs_input_grad[4]:
            grad_x_coefficients = grad_x * x_counted
        if ctx.needs_input_grad[5]:
            grad_y_coefficients = grad_y * y_counted
        if not squared:
            grad_x_distances = _through_root(grad_x_distances, x_counted)
            grad_y_distances = _through_root(grad_y_distances, y_counted)
    grads = nearest_backward(grad_x_distances, grad_y_distances, x, y, x_indices, y_indices, norm)
    return *grads, None, None, grad_x_coefficients, grad_y_coefficients, *[None] * 5


def _through_root(grad: Tensor, rooted: Tensor) -> Tensor:
    """grad / (2 rooted), the derivative of the root, and 0 at 0."""
    zero = rooted == 0
    return torch.where(zero, 0, grad / (2 * torch.where(zero, 1, rooted)))


def _chamfer_batched(info: Any, in_dims: Any, *arguments: Any) -> tuple[Any, Any]:
    size, reduce_batch = info.batch_size, arguments[-1]
    folded = [
        fold(argument, dim, size) if isinstance(argument, Tensor) else argument
        for argument, dim in zip(arguments[:-1], in_dims, strict=False)
    ]
    inner = inner_batch(arguments, in_dims)
    loss, *rest = (unfold(result, size, inner) for result in chamfer(*folded, False))
    return (loss.sum(1) if reduce_batch else loss, *rest), (0,) * 5


chamfer = define(
    "chamfer",
    "(Tensor x, Tensor y, Tensor? x_lengths, Tensor? y_lengths, Tensor? x_coefficients, Tensor? y_coefficients, "
    "SymInt x_divisor, SymInt y_divisor, int norm, bool squared, bool reduce_batch) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    {
        "reference": plain(_chamfer_composed),
        "native": native("chamfer"),
        "cuda": plain(_chamfer_composed),
        "triton": plain(_chamfer_composed),
    },
    fake=_chamfer_fake,
    save=_chamfer_save,
    backward=_chamfer_derivative,
    batched=_chamfer_batched,
)


# --- the public function -------------------------------------------------------------------------------------------


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
) -> tuple[Any, Any]:
    r"""Chamfer distance of two batches of point clouds, and of their normals.

    .. math:: L = \frac{1}{N} \sum_i \min_j d(x_i, y_j) + \frac{1}{M} \sum_j \min_i d(y_j, x_i)

    with d the squared Euclidean distance for ``norm=2`` and the sum of absolute differences for ``norm=1``. The first
    twelve arguments and the meaning of the result are those of PyTorch3D's function of this name.

    Args:
        x: ``[B, N, D]``, float16, bfloat16, float32 or float64; N, and B, may be 0.
        y: ``[B, M, D]`` of the same dtype and device.
        x_lengths, y_lengths: integers ``[B]``, how many points of each cloud count; None means all. Not read back
            from a GPU, nor inside torch.compile: clamped there.
        x_normals, y_normals: normals of x's and y's shape. When both are given the second result is
            ``1 - |cos|`` between each point's normal and its neighbour's, reduced like the distance.
        weights: ``[B]``, not negative, of each pair of clouds; "mean" over the batch divides by their sum.
        batch_reduction: ``"mean"``, ``"sum"`` or None.
        point_reduction: ``"mean"``, ``"sum"``, ``"max"`` (the larger of both directions' largest; no normals) or None
            (needs ``batch_reduction=None``).
        norm: 1 or 2.
        single_directional: only from x to y.
        abs_cosine: whether opposite normals count as equal.
        squared: False takes the root of each nearest distance (norm 2 only), with gradient 0 at distance 0.
        x_weights, y_weights: ``[B, N]``, ``[B, M]``, not negative, of single points; "mean" over the points then
            divides by their sum over the valid points, and gives 0 where that is 0. Differentiable.

    Returns:
        ``(loss, loss_normals)``, float64 for float64 points and float32 otherwise; the second is None without
        normals. Scalars, or ``[B]`` with ``batch_reduction=None``; with ``point_reduction=None`` each is a pair
        ``([B, N], [B, M])``, or ``[B, N]`` alone if single-directional. A pair of clouds in which either is empty
        contributes 0.

    Differentiable twice in x, y, normals and weights, through the matching that the forward pass fixed; summed in a
    fixed order, so two runs agree bit for bit.

    Raises:
        TypeError: not tensors, or of a wrong or unequal dtype.
        ValueError: wrong shapes or devices, lengths out of range, weights negative or not finite, an unknown norm or
            reduction, or reductions that do not go together.

    Cost:
        9 B N M operations at most in three dimensions, for both directions; B (N + M) (D + 3) values moved; saves x,
        y and the indices for backward.

    Source:
        Fan, Su, Guibas, "A Point Set Generation Network for 3D Object Reconstruction from a Single Image", CVPR 2017,
        equation 1; unsquared as in Mandikal et al., "3D-LMNet", BMVC 2018.

    Example:
        >>> import torch, paperops
        >>> x = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]])
        >>> y = torch.tensor([[[0.0, 0.0, 2.0]]])
        >>> loss, normals = paperops.chamfer_distance(x, y)
        >>> loss, normals
        (tensor(8.5000), None)
    """
    _checks.clouds(x, y)
    _checks.norm(norm)
    _checks.choice("batch_reduction", batch_reduction, ("mean", "sum", None))
    _checks.choice("point_reduction", point_reduction, ("mean", "sum", "max", None))
    if point_reduction is None and batch_reduction is not None:
        raise ValueError(f"batch_reduction must be None if point_reduction is None; got {batch_reduction!r}")
    for name, value in (("single_directional", single_directional), ("abs_cosine", abs_cosine), ("squared", squared)):
        _checks.flag(name, value)
    if not squared and norm != 2:
        raise ValueError(f"squared=False takes the root of squared distances and needs norm=2; got norm={norm}")
    if (x_normals is None) != (y_normals is None):
        raise ValueError("x_normals and y_normals must be given together; got one of them")
    if x_normals is not None and point_reduction == "max":
        raise ValueError("point_reduction must not be 'max' with normals: a largest angle has no meaning")
    x_normals, y_normals = _checks.normals("x_normals", x_normals, x), _checks.normals("y_normals", y_normals, y)
    x_lengths, y_lengths = _checks.lengths("x_lengths", x_lengths, x), _checks.lengths("y_lengths", y_lengths, y)
    weights = _checks.weights("weights", weights, x.shape[:1], x)
    x_weights = _checks.weights("x_weights", x_weights, x.shape[:2], x)
    y_weights = _checks.weights("y_weights", y_weights, y.shape[:2], y)

    sides = [_Side(x, x_lengths, x_weights), _Side(y, y_lengths, y_weights)][: 1 if single_directional else 2]
    batch_factor, batch_divisor = _batch_factor(x, weights, batch_reduction)
    for side in sides:
        side.weigh(point_reduction)
        if point_reduction != "max":  # a factor of the batch must not decide which distance is the largest
            side.weigh_batch(batch_factor, batch_divisor)

    if point_reduction in ("mean", "sum") and not single_directional:
        coefficients = (side.coefficients for side in sides)
        divisors = (side.divisor for side in sides)
        reduce_batch = batch_reduction is not None
        loss, _, x_indices, _, y_indices = chamfer(
            x, y, x_lengths, y_lengths, *coefficients, *divisors, norm, squared, reduce_batch
        )
        indices = [x_indices, y_indices]
    else:
        found = one_or_both(x, y, x_lengths, y_lengths, norm, single_directional)
        values = [counted_distances(distances, index, squared) for distances, index in found]
        loss = _reduce(values, sides, batch_factor, batch_divisor, batch_reduction, point_reduction)
        indices = [index for _, index in found]

    if x_normals is None or y_normals is None:
        return loss, None
    normals = [x_normals, y_normals]
    values = [
        _angle(own, other, index[..., None], abs_cosine)
        for own, other, index in zip(normals, normals[::-1], indices, strict=False)
    ]
    return loss, _reduce(values, sides, batch_factor, batch_divisor, batch_reduction, point_reduction)


class _Side:
    """One of the two clouds, and how much each of its points counts in the reduced loss."""

    def __init__(self, points: Tensor, lengths: Tensor | None, point_weights: Tensor | None) -> None:
        self.points, self.lengths, self.point_weights = points, lengths, point_weights
        self.coefficients: Tensor | None = None  # [B, N]; None where every point counts the same
        self.divisor = 1  # an integer: torch.compile keeps those symbolic but specialises floats

    def weigh(self, point_reduction: str | None) -> None:
        """Fold point weights and the mean over points into one factor a point, ``coefficients / divisor``."""
        batch, count = self.points.shape[:2]
        factor = self.point_weights  # [B, N], [B, 1] or None
        if factor is not None and self.lengths is not None:
            factor = factor * (torch.arange(count, device=factor.device) < self.lengths[:, None])
        if point_reduction == "mean":
            if factor is not None:
                # in float64: the derivative of a share is a small difference
                factor = share(factor.double(), factor.double().sum(1, keepdim=True)).to(factor.dtype)
            elif self.lengths is not None:
                dtype = result_dtype(self.points.dtype)
                factor = self.lengths.clamp(1, max(count, 1)).to(dtype).reciprocal()[:, None]
            else:
                self.divisor *= max(count, 1)
        self.coefficients = None if factor is None else factor.expand(batch, count)

    def weigh_batch(self, factor: Tensor | None, divisor: int) -> None:
        """The same for the weights [B] and the mean over the batch."""
        self.divisor *= divisor
        if factor is not None:
            points = self.points.shape[:2]
            self.coefficients = factor[:, None].expand(points) * (1 if self.coefficients is None else self.coefficients)


def _batch_factor(points: Tensor, weights: Tensor | None, batch_reduction: str | None) -> tuple[Tensor | None, int]:
    """How much each pair of clouds counts: ``factor / divisor``, the factor [B] or None for 1."""
    if weights is None:
        return None, max(points.shape[0], 1) if batch_reduction == "mean" else 1
    if batch_reduction == "mean":
        weights = share(weights.double(), weights.double().sum()).to(weights.dtype)
    return weights, 1


def share(part: Tensor, total: Tensor) -> Tensor:
    """part / total, 0 where the total is 0."""
    return part / torch.where(total == 0, 1, total)


def one_or_both(
    x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None, norm: int, single_directional: bool
) -> list[tuple[Tensor, Tensor]]:
    """(distances [B, N], indices [B, N]) from x to y, and from y to x unless single-directional."""
    if single_directional:
        distances, indices = one_sided(x, y, x_lengths, y_lengths, 1, norm)
        return [(distances.squeeze(2), indices.squeeze(2))]
    found = nearest(x, y, x_lengths, y_lengths, norm)
    return [found[:2], found[2:]]


def _angle(normals: Tensor, others: Tensor, indices: Tensor, abs_cosine: bool) -> Tensor:
    """1 - |cos| [B, N] between each point's normal and its neighbour's; 0 without a neighbour."""
    working = result_dtype(normals.dtype)
    near = gather_rows(others.to(working), indices).squeeze(2)  # [B, N, D]
    own = normals.to(working).contiguous()  # torch's order of summation depends on strides
    cosine = torch.nn.functional.cosine_similarity(own, near.contiguous(), dim=2, eps=1e-6)
    return (1 - (cosine.abs() if abs_cosine else cosine)).masked_fill(indices.squeeze(2) < 0, 0)


def _reduce(
    values: list[Tensor],
    sides: list[_Side],
    batch_factor: Tensor | None,
    batch_divisor: int,
    batch_reduction: str | None,
    point_reduction: str | None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The values [B, N] and [B, M] of one or two sides, weighed and reduced as the arguments say."""
    if point_reduction in ("mean", "sum"):
        totals = [_weighed(value, side).sum(1) / side.divisor for value, side in zip(values, sides, strict=True)]  # [B]
        total = totals[0] if len(totals) == 1 else totals[0] + totals[1]
        return total if batch_reduction is None else total.sum()
    weighed = [_weighed(value, side) / side.divisor for value, side in zip(values, sides, strict=True)]
    if point_reduction is None:
        return weighed[0] if len(weighed) == 1 else (weighed[0], weighed[1])
    largest = [torch.nn.functional.pad(value, (0, 1)).max(dim=1).values for value in weighed]  # [B]; 0 if empty
    total = largest[0] if len(largest) == 1 else torch.maximum(largest[0], largest[1])
    total = (total if batch_factor is None else total * batch_factor) / batch_divisor
    return total if batch_reduction is None else total.sum()


def _weighed(values: Tensor, side: _Side) -> Tensor:
    return values if side.coefficients is None else values * side.coefficients

"""Nearest neighbours in Triton: any D, any k, both norms, float16 to float64.

The four functions have the meaning of the dispatcher's ops of the same names. Each plans its launches, with all
memory allocated by torch, and runs them on the device of its arguments; nothing is read back.

Work per pair of points (norm 2, float32): D subtractions, D multiply-adds and one minimum; at D = 3 these are 7 of the
8.1 instructions a pair that the assembler emits for sm_90. Per query one tile of targets is measured again in float64.
Where the float32 filter does not decide (see nearest_forward) the pairs are visited twice. k > 1 adds the insertions,
about k * (1 + ln(M / k)) a query of O(k) each, and a k above 32 goes over the targets once for every 32 neighbours.
Memory: O(N + M), and a transposed copy of the points where D > 8.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .launch import Architecture, Launch, accumulator, architecture, run
from .nearest_backward import plan_gradient
from .nearest_plans import plan_knn, plan_nearest


def knn(
    x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None, k: int, norm: int
) -> tuple[Tensor, Tensor]:
    """The k nearest points of y [B, M, D] of every point of x [B, N, D]: distances and indices [B, N, k]."""
    arch = architecture(x.device)
    x_lengths, y_lengths = (None if v is None else v.contiguous() for v in (x_lengths, y_lengths))
    if k == 1:
        (distances, indices, _, _), launches = plan_nearest(x, y, x_lengths, y_lengths, norm, False, arch)
        run(x.device, launches)
        return distances.unsqueeze(2), indices.unsqueeze(2)
    (distances, indices), launches = plan_knn(x, y, x_lengths, y_lengths, k, norm, arch)
    run(x.device, launches)
    return distances, indices


def nearest(
    x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None, norm: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The nearest point in the other cloud, in both directions, in one launch: distances and indices [B, N], [B, M]."""
    x_lengths, y_lengths = (None if v is None else v.contiguous() for v in (x_lengths, y_lengths))
    outputs, launches = plan_nearest(x, y, x_lengths, y_lengths, norm, True, architecture(x.device))
    run(x.device, launches)
    return outputs  # type: ignore[return-value]


def knn_backward(grad_distances: Tensor, x: Tensor, y: Tensor, indices: Tensor, norm: int) -> tuple[Tensor, Tensor]:
    """Gradients of x and y from those of the distances [B, N, k]; slots with index -1 contribute nothing."""
    arch = architecture(x.device)
    grad_x, launches = plan_gradient(x, y, norm, grad_distances, indices, None, None, arch)
    grad_y, more = plan_gradient(y, x, norm, None, None, grad_distances, indices, arch)
    run(x.device, launches + more)
    return grad_x, grad_y


def nearest_backward(
    grad_x_distances: Tensor,
    grad_y_distances: Tensor,
    x: Tensor,
    y: Tensor,
    x_indices: Tensor,
    y_indices: Tensor,
    norm: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of x and y from those of both directions' distances, [B, N] and [B, M]."""
    arch = architecture(x.device)
    x_pairs = grad_x_distances.unsqueeze(2), x_indices.unsqueeze(2)
    y_pairs = grad_y_distances.unsqueeze(2), y_indices.unsqueeze(2)
    grad_x, launches = plan_gradient(x, y, norm, *x_pairs, *y_pairs, arch)
    grad_y, more = plan_gradient(y, x, norm, *y_pairs, *x_pairs, arch)
    run(x.device, launches + more)
    return grad_x, grad_y


def aot_cases(arch: Architecture) -> Iterator[tuple[str, Launch]]:
    """The launches to compile ahead of time: every kernel, each with the parameters of typical calls."""

    def cloud(b: int, n: int, d: int, dtype: torch.dtype) -> Tensor:
        return torch.empty((b, n, d), dtype=dtype, device="meta")

    def indices(b: int, n: int, k: int) -> Tensor:
        return torch.empty((b, n, k), dtype=torch.int64, device="meta")

    lengths = torch.empty((32,), dtype=torch.int64, device="meta")
    names = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32", torch.float64: "f64"}
    for dtype, d, norm in (
        *((dtype, 3, 2) for dtype in names),
        *((dtype, d, 2) for dtype in (torch.float32, torch.float64) for d in (8, 64)),
        (torch.float32, 4, 2),
        (torch.float32, 3, 1),
    ):
        points = cloud(32, 2048, d, dtype)
        for launch in plan_nearest(points, points, lengths, None, norm, True, arch)[1]:
            yield f"nearest-{names[dtype]}-d{d}-norm{norm}", launch
    few, many = cloud(1, 64, 3, torch.float32), cloud(1, 10**6, 3, torch.float32)
    for launch in plan_nearest(few, many, None, None, 2, False, arch)[1]:
        yield "nearest-split", launch
    for dtype, d, k in (
        (torch.float32, 3, 16),
        (torch.float32, 3, 100),
        (torch.bfloat16, 3, 32),
        (torch.float64, 8, 32),
        (torch.float32, 64, 32),
    ):
        points = cloud(32, 4096, d, dtype)
        for launch in plan_knn(points, points, lengths, lengths, k, 2, arch)[1]:
            yield f"knn-{names[dtype]}-d{d}-k{k}", launch
    for launch in plan_knn(few, many, None, None, 32, 2, arch)[1]:
        yield "knn-split", launch
    for dtype, d, norm, k in ((torch.float32, 3, 2, 1), (torch.float16, 3, 2, 1), (torch.float64, 64, 1, 16)):
        points, chosen = cloud(32, 2048, d, dtype), indices(32, 2048, k)
        gradients = torch.empty_like(chosen, dtype=accumulator(dtype))
        for launch in plan_gradient(points, points, norm, gradients, chosen, gradients, chosen, arch)[1]:
            yield f"backward-{names[dtype]}-d{d}-norm{norm}-k{k}", launch

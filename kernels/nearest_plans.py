"""The launches of a search: their tiles, the bounds of the float32 filter, and the memory they write."""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Architecture, Launch, accumulator, compiler_options
from .nearest_forward import merge_kernel, nearest_kernel
from .nearest_knn import knn_kernel, merge_lists_kernel

UNROLLED = 8  # the largest D whose coordinates are held in registers
LIST_SLOTS = 32  # neighbours a query of knn keeps in registers
INT32_MAX = 2**31 - 1
MERGE_BLOCK = 128


@dataclass(frozen=True)
class Tiles:
    """Launch parameters of a search: queries and targets a tile, warps, stages of the pipeline of target loads,
    targets a step of the float64 part, and the most registers of a thread (NVIDIA)."""

    queries: int
    targets: int
    warps: int
    stages: int = 1
    chunk: int = 2
    registers: int = 255


def nearest_tiles(arch: Architecture, points: int, d: int, dtype: torch.dtype) -> Tiles:
    """For clouds of up to `points` points."""
    if arch.vendor == "none":  # the interpreter pays by the program
        return Tiles(min(max(triton.next_power_of_2(points), 16), 256), 16, 4, chunk=16)
    double = dtype == torch.float64
    warp = 64 if arch.vendor == "amd" else 32
    if points <= 8 * warp:
        return Tiles(4 * warp, 16, 4)
    if arch.vendor == "amd":
        return Tiles(256, 8, 4) if double else Tiles(512, 16, 4, chunk=1)
    if d > UNROLLED:
        return Tiles(256, 16, 4, registers=168) if double else Tiles(512, 16, 4, chunk=1, registers=168)
    if double:
        return Tiles(256, 16 if d <= 4 else 8, 4, stages=3, registers=168)
    if d > 3:
        return Tiles(256, 16, 4, stages=3)
    # 168 registers: three programs a processor. Loads of two bytes cannot be pipelined and need more than that.
    return Tiles(512, 16, 4, stages=3, registers=168 if dtype == torch.float32 else 255)


def knn_tiles(arch: Architecture, points: int, d: int, dtype: torch.dtype) -> Tiles:
    """For `points` queries: one a thread, which keeps the list and, where D is unrolled, the coordinates."""
    if arch.vendor == "none":
        return Tiles(min(max(triton.next_power_of_2(points), 16), 128), 16, 4)
    return Tiles(64 if arch.vendor == "amd" else 32, 8 if dtype == torch.float64 and 4 < d <= UNROLLED else 16, 1)


def splits_for(arch: Architecture, programs: int, targets: int, tiles: Tiles, resident: int) -> int:
    """Ranges of targets, so that few queries fill the device: `resident` programs a processor, of 8 tiles or more."""
    if programs == 0 or 2 * programs >= 3 * arch.processors:
        return 1
    wanted = triton.cdiv(resident * arch.processors, programs)
    return max(1, min(wanted, triton.cdiv(targets, 8 * tiles.targets)))


def filter_arguments(x: Tensor, norm: int) -> dict[str, Any]:
    """What the kernels' distances have in common, with the bounds of the float32 filter.

    With e = 2^-24 a float32 distance of D terms (all >= 0) is the exact one times a factor within (1 +- e)^(D + 2).
    What looks nearest is truly no nearer than the true nearest, which therefore looks at most (1 + g) / (1 - g) times
    as far, g = (D + 4) e; 4 e more are for the roundings of the limit itself. TINY covers underflow: a term is off by
    at most a few 2^-126. In float64 the filter is the definition itself.
    """
    d = x.shape[2]
    exact = x.dtype == torch.float64
    gamma = (d + 4) * 2.0**-24
    slack = 2 * gamma / (1 - gamma) + 4 * 2.0**-24 if gamma < 0.5 else float("inf")
    return {
        "SLACK": 0.0 if exact else slack,
        "TINY": 0.0 if exact else max(d, 1) * 2.0**-120,
        "D": d,
        "NORM": norm,
        "SMALL": d <= UNROLLED,
        "ACC": tl.float64 if exact else tl.float32,
    }


def laid_out(points: Tensor) -> Tensor:
    """[B, N, D] where D is unrolled, [B, D, N] otherwise; see nearest_tiles."""
    return points.contiguous() if points.shape[2] <= UNROLLED else points.transpose(1, 2).contiguous()


def plan_nearest(
    x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None, norm: int, both: bool, arch: Architecture
) -> tuple[tuple[Tensor, ...], list[Launch]]:
    (b, n, d), m = x.shape, y.shape[1]
    acc = accumulator(x.dtype)
    x_out = x.new_empty((b, n), dtype=acc), x.new_empty((b, n), dtype=torch.int64)
    y_out = (x.new_empty((b, m), dtype=acc), x.new_empty((b, m), dtype=torch.int64)) if both else x_out
    tiles = nearest_tiles(arch, max(n, m) if both else n, d, x.dtype)
    x_blocks = triton.cdiv(n, tiles.queries)
    y_blocks = triton.cdiv(m, tiles.queries) if both else 0
    programs = b * (x_blocks + y_blocks)
    if programs == 0:
        return x_out + y_out, []
    splits = splits_for(arch, programs, max(n, m) if both else m, tiles, 3)
    rows = b * (n + m) if both else b * n
    parts = [x.new_empty((splits, rows), dtype=torch.int64) for _ in range(2)] if splits > 1 else [None, None]
    outputs = dict(
        zip(("x_distances", "x_indices", "y_distances", "y_indices"), x_out + y_out, strict=True),
        part_keys=parts[0],
        part_rows=parts[1],
    )
    search = {
        "x": laid_out(x),
        "y": laid_out(y),
        "x_lengths": x_lengths,
        "y_lengths": y_lengths,
        **outputs,
        **{"B": b, "N": n, "M": m, "x_blocks": x_blocks, "y_blocks": y_blocks, "splits": splits, "part_stride": rows},
        **filter_arguments(x, norm),
        **{"BLOCK_Q": tiles.queries, "BLOCK_T": tiles.targets, "CHUNK": tiles.chunk, "STAGES": tiles.stages},
        "SPLIT": splits > 1,
    }
    options = compiler_options(arch, tiles.warps, tiles.registers)
    launches = [Launch(nearest_kernel, (programs * splits,), search, options)]
    if splits > 1:
        merge = {**outputs, "x_rows": b * n, "y_rows": rows - b * n, "splits": splits}
        merge |= {"ACC": search["ACC"], "BLOCK": MERGE_BLOCK}
        launches.append(Launch(merge_kernel, (triton.cdiv(rows, MERGE_BLOCK),), merge, compiler_options(arch)))
    return x_out + y_out, launches


def plan_knn(
    x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None, k: int, norm: int, arch: Architecture
) -> tuple[tuple[Tensor, ...], list[Launch]]:
    (b, n, d), m = x.shape, y.shape[1]
    acc = accumulator(x.dtype)
    out = x.new_empty((b, n, k), dtype=acc), x.new_empty((b, n, k), dtype=torch.int64)
    tiles = knn_tiles(arch, n, d, x.dtype)
    x_blocks = triton.cdiv(n, tiles.queries)
    programs = b * x_blocks
    if programs == 0:
        return out, []
    slots = min(triton.next_power_of_2(k), LIST_SLOTS)
    passes = triton.cdiv(min(k, max(m, 1)), slots)
    splits = splits_for(arch, programs, m, tiles, 16) if k <= slots else 1
    parts = [x.new_empty((splits, b * n, k), dtype=torch.int64) for _ in range(2)] if splits > 1 else [None, None]
    outputs = {"out_distances": out[0], "out_indices": out[1], "part_keys": parts[0], "part_rows": parts[1]}
    search = {
        "x": laid_out(x),
        "y": laid_out(y),
        "x_lengths": x_lengths,
        "y_lengths": y_lengths,
        **outputs,
        **{"B": b, "N": n, "M": m, "k": k, "x_blocks": x_blocks, "splits": splits, "passes": passes},
        **filter_arguments(x, norm),
        **{"SLOTS": slots, "BLOCK_Q": tiles.queries, "BLOCK_T": tiles.targets, "SPLIT": splits > 1},
        "ROW": tl.int32 if m <= INT32_MAX else tl.int64,
    }
    options = compiler_options(arch, tiles.warps, tiles.registers)
    launches = [Launch(knn_kernel, (programs * splits,), search, options)]
    if splits > 1:
        merge = {**outputs, "rows_total": b * n, "k": k, "splits": splits}
        merge |= {"ACC": search["ACC"], "SLOTS": slots, "BLOCK": tiles.queries, "CHUNK": 4}
        grid = (triton.cdiv(b * n, tiles.queries),)
        launches.append(Launch(merge_lists_kernel, grid, merge, compiler_options(arch, tiles.warps)))
    return out, launches

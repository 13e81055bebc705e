"""lDDT in Triton: any N, float16 to float64. Counts are integers, so that their sums have no order.

One program has a block of residues and goes through all of them, block by block: about 25 operations a pair. Bytes:
the positions, from the L2 cache but for the first time.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import accumulator_type, widen
from .launch import Architecture, Launch, accumulator, architecture, compiler_options, run


@triton.jit
def load_point(positions, residues, exists, ACC: tl.constexpr):
    """x, y and z of residues of [N, 3]."""
    x = widen(tl.load(positions + residues * 3, mask=exists, other=0.0), ACC)
    y = widen(tl.load(positions + residues * 3 + 1, mask=exists, other=0.0), ACC)
    z = widen(tl.load(positions + residues * 3 + 2, mask=exists, other=0.0), ACC)
    return x, y, z


@triton.jit
def squared_distances(a, b):
    """[I, J] of points a [I] and b [J]."""
    x = a[0][:, None] - b[0][None, :]
    y = a[1][:, None] - b[1][None, :]
    z = a[2][:, None] - b[2][None, :]
    return tl.fma(z, z, tl.fma(y, y, x * x))


@triton.jit(do_not_specialize=["N", "blocks"])
def lddt_kernel(
    pred, target, mask, squared_cutoff, pairs, kept, N, blocks, ACC: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr
):
    """One program: BI residues i of an item.

        pairs_i = |P_i|,  kept_i = sum_{j in P_i} sum_t [| |p_i - p_j| - |t_i - t_j| | < t],  t = 0.5, 1, 2, 4
        P_i = {j != i: |t_i - t_j| < cutoff}, of the residues that the mask keeps

    Reads pred (p) and target (t) [B, N, 3], mask [B, N]; writes pairs and kept [B, N], int64.
    """
    program = tl.program_id(0)
    base = (program // blocks).to(tl.int64) * N
    pred += base * 3
    target += base * 3
    i = program % blocks * BI + tl.arange(0, BI)
    i_exists = i < N
    i_valid = tl.load(mask + base + i, mask=i_exists, other=0) != 0
    own_true, own_pred = load_point(target, i, i_exists, ACC), load_point(pred, i, i_exists, ACC)
    bound = tl.load(squared_cutoff)
    pair_counts = tl.zeros([BI, BJ], tl.int32)
    kept_counts = tl.zeros([BI, BJ], tl.int32)
    for start in range(0, N, BJ):
        j = start + tl.arange(0, BJ)
        j_exists = j < N
        j_valid = tl.load(mask + base + j, mask=j_exists, other=0) != 0
        true = squared_distances(own_true, load_point(target, j, j_exists, ACC))  # [BI, BJ]
        inside = i_valid[:, None] & j_valid[None, :] & (i[:, None] != j[None, :]) & (true < bound)
        found = squared_distances(own_pred, load_point(pred, j, j_exists, ACC))
        error = tl.abs(tl.sqrt(true) - tl.sqrt(found))
        below = (error < 0.5).to(tl.int32) + (error < 1.0).to(tl.int32)
        below += (error < 2.0).to(tl.int32) + (error < 4.0).to(tl.int32)
        pair_counts += inside.to(tl.int32)
        kept_counts += tl.where(inside, below, 0)
    tl.store(pairs + base + i, tl.sum(pair_counts, axis=1).to(tl.int64), mask=i_exists)
    tl.store(kept + base + i, tl.sum(kept_counts, axis=1).to(tl.int64), mask=i_exists)


def plan_lddt(
    pred: Tensor, target: Tensor, mask: Tensor, cutoff: float, arch: Architecture
) -> tuple[list[Launch], tuple[Tensor, Tensor]]:
    """The launches and what they write. Made of tensors on the device "meta", the plan is compiled without a GPU."""
    batch, n, _ = pred.shape
    pairs, kept = (mask.new_empty((batch, n), dtype=torch.int64) for _ in range(2))
    rows, columns = (64, 64) if arch.vendor == "none" else (8, 128)
    blocks = triton.cdiv(n, rows)
    arguments = {
        "pred": pred.contiguous(), "target": target.contiguous(), "mask": mask.contiguous(),
        "squared_cutoff": torch.full((1,), cutoff * cutoff, dtype=accumulator(pred.dtype), device=pred.device),
        "pairs": pairs, "kept": kept, "N": n, "blocks": blocks, "ACC": accumulator_type(pred.dtype),
        "BI": rows, "BJ": columns,
    }  # fmt: skip
    return [Launch(lddt_kernel, (batch * blocks,), arguments, compiler_options(arch))], (pairs, kept)


def lddt(pred_positions: Tensor, target_positions: Tensor, mask: Tensor, cutoff: float) -> tuple[Tensor, Tensor]:
    """The dispatcher's op of this name: pairs and kept, [B, N] both."""
    arch = architecture(pred_positions.device)
    launches, results = plan_lddt(pred_positions, target_positions, mask, cutoff, arch)
    run(pred_positions.device, launches)
    return results


def aot_cases(arch: Architecture) -> Iterator[tuple[str, Launch]]:
    """Typical calls, to compile ahead of time."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        positions = torch.empty((2, 1024, 3), dtype=dtype, device="meta")
        mask = torch.empty((2, 1024), dtype=torch.bool, device="meta")
        for launch in plan_lddt(positions, positions, mask, 15.0, arch)[0]:
            yield f"{dtype}".removeprefix("torch."), launch

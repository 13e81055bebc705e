"""The predicted TM-score in Triton: any N and bins, float16 to float64.

A program reads one row of logits, once; another kernel picks the row of each item. Bytes: the logits; about 6
operations for each of them. Memory beyond that [B, N].
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import accumulator_type, widen
from .launch import Architecture, Launch, accumulator, architecture, compiler_options, run

EPS = 1e-8  # that of the definition


@triton.jit(do_not_specialize=["N"])
def alignment_kernel(
    logits, weights, chains, bin_scores, eps, by_alignment, N, BINS: tl.constexpr, BLOCK_BINS: tl.constexpr,
    BJ: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program: the score of row i of an item,

        w_i sum_j w_j m_ij E_ij / (eps + w_i sum_j w_j m_ij),  E_ij = sum_b softmax_b(logits_ij) bin_scores_b

    Reads logits [B, N, N, BINS] of the pairs whose weight is not 0, weights [B, N], chains [B, N] (None: m = 1, else
    m = 1 between different chains), bin_scores [B, BINS]; writes by_alignment [B, N].
    """
    row = tl.program_id(0).to(tl.int64)
    batch = row // N
    weight_i = tl.load(weights + row)
    bins = tl.arange(0, BLOCK_BINS)
    score = tl.load(bin_scores + batch * BINS + bins, mask=bins < BINS, other=0.0)
    expected_sum = tl.zeros([BJ], ACC)
    weight_sum = tl.zeros([BJ], ACC)
    for start in range(0, N, BJ):
        j = start + tl.arange(0, BJ)
        weight = tl.load(weights + batch * N + j, mask=j < N, other=0.0)
        if chains is not None:
            other = tl.load(chains + batch * N + j, mask=j < N, other=0) != tl.load(chains + row)
            weight = tl.where(other, weight, 0.0)
        counts = weight * weight_i != 0  # NaN does
        inside = counts[:, None] & (bins < BINS)[None, :]
        at = logits + (row * N + j[:, None]) * BINS + bins[None, :]
        x = widen(tl.load(at, mask=inside, other=0.0), ACC)
        x = tl.where((bins < BINS)[None, :], x, float("-inf"))
        x = tl.exp(x - tl.max(x, axis=1)[:, None])
        expected = tl.sum(x * score[None, :], axis=1) / tl.sum(x, axis=1)
        expected_sum += tl.where(counts, weight * expected, 0.0)
        weight_sum += tl.where(counts, weight, 0.0)
    above = weight_i * tl.sum(expected_sum, axis=0)
    tl.store(by_alignment + row, above / (tl.load(eps) + weight_i * tl.sum(weight_sum, axis=0)))


@triton.jit(do_not_specialize=["N"])
def best_row_kernel(by_alignment, weights, score, best, N, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """One program: of an item, the first row i whose by_alignment_i w_i is the largest, and its by_alignment_i.

    Reads by_alignment and weights [B, N], writes score and best (int64) [B]. The first NaN is larger than all.
    """
    batch = tl.program_id(0).to(tl.int64)
    most = tl.full([1], float("-inf"), ACC)
    chosen = tl.zeros([1], tl.int64)
    for start in range(0, N, BLOCK):
        i = start + tl.arange(0, BLOCK)
        value = tl.load(by_alignment + batch * N + i, mask=i < N, other=0.0)
        value *= tl.load(weights + batch * N + i, mask=i < N, other=0.0)
        value = tl.where(value != value, float("inf"), tl.where(i < N, value, float("-inf")))
        largest = tl.max(value, axis=0)
        first = tl.min(tl.where(value == largest, i, start + BLOCK), axis=0)
        chosen = tl.where(largest > most, first.to(tl.int64), chosen)
        most = tl.maximum(most, largest)
    one = tl.arange(0, 1)
    tl.store(best + batch + one, chosen)
    tl.store(score + batch + one, tl.load(by_alignment + batch * N + chosen))


def plan_score(
    logits: Tensor, weights: Tensor, chains: Tensor | None, bin_scores: Tensor, arch: Architecture
) -> tuple[list[Launch], tuple[Tensor, Tensor]]:
    """The launches and what they write. Made of tensors on the device "meta", the plan is compiled without a GPU."""
    batch, n, _, bins = logits.shape
    wide = accumulator(logits.dtype)
    if n == 0:
        return [], (weights.new_zeros(batch), weights.new_zeros(batch, dtype=torch.int64))
    by_alignment = weights.new_empty((batch, n))
    score, best = weights.new_empty(batch), weights.new_empty(batch, dtype=torch.int64)
    block = triton.next_power_of_2(bins)
    columns = max(min(32, n) if arch.vendor == "none" else 2048 // block, 1)
    common = {
        "by_alignment": by_alignment, "weights": weights.contiguous(), "N": n, "ACC": accumulator_type(logits.dtype),
    }  # fmt: skip
    arguments = {
        **common, "logits": logits.contiguous(), "chains": None if chains is None else chains.contiguous(),
        "bin_scores": bin_scores.contiguous(), "eps": torch.full((1,), EPS, dtype=wide, device=logits.device),
        "BINS": bins, "BLOCK_BINS": block, "BJ": triton.next_power_of_2(columns),
    }  # fmt: skip
    choice = {**common, "score": score, "best": best, "BLOCK": 256}
    return [
        Launch(alignment_kernel, (batch * n,), arguments, compiler_options(arch)),
        Launch(best_row_kernel, (batch,), choice, compiler_options(arch)),
    ], (score, best)


def predicted_tm_score(
    logits: Tensor, weights: Tensor, chains: Tensor | None, bin_scores: Tensor
) -> tuple[Tensor, Tensor]:
    """The dispatcher's op of this name: each item's score, and the row that has it."""
    launches, results = plan_score(logits, weights, chains, bin_scores, architecture(logits.device))
    run(logits.device, launches)
    return results


def aot_cases(arch: Architecture) -> Iterator[tuple[str, Launch]]:
    """Typical calls, to compile ahead of time."""

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        wide = accumulator(dtype)
        for bins, chains in ((64, None), (50, empty(2, 1024, dtype=torch.int64))):
            logits, weights = empty(2, 1024, 1024, bins, dtype=dtype), empty(2, 1024, dtype=wide)
            launches = plan_score(logits, weights, chains, empty(2, bins, dtype=wide), arch)[0]
            name = f"{dtype}".removeprefix("torch.")
            yield from ((f"{name}-{bins}{'' if chains is None else '-interface'}", launch) for launch in launches)

"""Gradients of nearest-neighbour distances: gathering for the queries, the sorted inverse map for the targets.

d(q, t) = sum_d (q_d - t_d)^2 gives 2 g (q - t) to the query and minus that to the target; sum_d |q_d - t_d| gives
g sign(q - t). Seen from either end of a pair the term is that of `own - other`, so one kernel serves both.

No atomics: `order` sorts the pairs by the target they chose, and a target sums its segment in that order. Segments are
found by bisection. A target that very many queries chose would keep one program busy for long, so `chunk_sums_kernel`
first sums those chunks of CHUNK sorted pairs that belong to one target, and a segment is then read as its head, its
whole chunks, and its tail.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Architecture, Launch, accumulator, compiler_options

PAIRS_PER_CHUNK = 64  # sorted pairs summed together where all of them chose one target


@triton.jit
def pair_term(own, other, gradient, NORM: tl.constexpr):
    difference = own - other
    if NORM == 2:
        return 2.0 * gradient * difference
    else:
        return gradient * ((difference > 0).to(difference.dtype) - (difference < 0).to(difference.dtype))


@triton.jit
def first_not_below(values, wanted, count, STEPS: tl.constexpr):
    """For each `wanted`, the first position of the sorted `values[:count]` that is not below it."""
    low = tl.zeros_like(wanted)
    high = low + count
    for _ in range(STEPS):
        middle = (low + high) // 2
        below = tl.load(values + middle, mask=low < high, other=0).to(tl.int64) < wanted
        below = below & (low < high)
        high = tl.where(below | (low >= high), high, middle)
        low = tl.where(below, middle + 1, low)
    return low


@triton.jit(do_not_specialize=["A", "O", "pairs", "chunks", "blocks"])
def chunk_sums_kernel(
    own, other, gradients, order, chosen, sums, A, O, pairs, k, chunks, blocks,
    D: tl.constexpr, NORM: tl.constexpr, ACC: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program: the sums over BLOCK chunks of CHUNK sorted pairs, where the whole chunk chose one target.

    Reads own [B, A, D] (the targets), other [B, O, D], gradients, order, chosen [B, pairs]; writes sums
    [B, chunks, D], of which only those of whole chunks are ever read.
    """
    pid = tl.program_id(0)
    batch = (pid // blocks).to(tl.int64)
    chunk = (pid % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    base = batch * pairs
    begin = tl.load(chosen + base + chunk * CHUNK, mask=chunk < chunks, other=-1).to(tl.int64)
    end = tl.load(chosen + base + chunk * CHUNK + (CHUNK - 1), mask=chunk < chunks, other=-2).to(tl.int64)
    whole = (begin == end) & (begin >= 0)  # [C]
    if tl.max(whole.to(tl.int32), axis=0) > 0:
        lane = tl.arange(0, CHUNK)
        pair = tl.load(order + base + chunk[:, None] * CHUNK + lane[None, :], mask=whole[:, None], other=0)  # [C, L]
        gradient = tl.load(gradients + base + pair, mask=whole[:, None], other=0.0).to(ACC)
        for start in range(0, D, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            inside = whole[:, None] & (d < D)[None, :]
            a = tl.load(own + (batch * A + begin[:, None]) * D + d[None, :], mask=inside, other=0.0).to(ACC)
            o_rows = batch * O + pair // k
            o = tl.load(other + o_rows[:, :, None] * D + d[None, None, :], mask=inside[:, None, :], other=0.0).to(ACC)
            total = tl.sum(pair_term(a[:, None, :], o, gradient[:, :, None], NORM), axis=1)  # [C, D]
            tl.store(sums + (batch * chunks + chunk[:, None]) * D + d[None, :], total, mask=inside)


@triton.jit(do_not_specialize=["A", "O", "pairs", "chunks", "blocks"])
def points_gradient_kernel(
    own, other, out, own_gradients, own_indices, gradients, order, chosen, sums, A, O, pairs, own_k, k, chunks, blocks,
    D: tl.constexpr, NORM: tl.constexpr, ACC: tl.constexpr, CHUNK: tl.constexpr, STEPS: tl.constexpr,
    BLOCK: tl.constexpr, LANES: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program: the gradients of BLOCK points of one cloud, `own` [B, A, D], written to out [B, A, D].

        out_a = sum_s term(own_a, other_{own_indices[a, s]}, own_gradients[a, s])        unless own_gradients is None
              + sum over pairs p = (o, s) that chose a of term(own_a, other_o, gradients[p])   unless order is None

    own_gradients, own_indices [B, A, own_k]; gradients, order, chosen [B, pairs] with pairs = O * k; `chosen` is
    sorted and `order` says from where each came; sums [B, chunks, D] of chunk_sums_kernel, or None.
    """
    pid = tl.program_id(0)
    batch = (pid // blocks).to(tl.int64)
    point = (pid % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [P]
    exists = point < A
    own_row = batch * A + point

    if order is not None:
        base = batch * pairs
        count = tl.cast(pairs, tl.int64)
        begin = first_not_below(chosen + base, point, count, STEPS)
        end = first_not_below(chosen + base, point + 1, count, STEPS)
        end = tl.where(exists, end, begin)
        first_whole = end
        wholes = tl.zeros_like(end)
        head = end - begin
        if sums is not None:
            spans = end // CHUNK > (begin + CHUNK - 1) // CHUNK
            first_whole = (begin + CHUNK - 1) // CHUNK
            wholes = tl.where(spans, end // CHUNK - first_whole, 0)
            head = tl.where(spans, first_whole * CHUNK - begin, end - begin)
        items = head + wholes + tl.where(wholes > 0, end - (first_whole + wholes) * CHUNK, 0)
        most = tl.max(items, axis=0)

    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        inside = exists[:, None] & (d < D)[None, :]
        a = tl.load(own + own_row[:, None] * D + d[None, :], mask=inside, other=0.0).to(ACC)  # [P, D]
        total = tl.zeros([BLOCK, BLOCK_D], ACC)
        if own_gradients is not None:
            for slot in range(own_k):
                index = tl.load(own_indices + own_row * own_k + slot, mask=exists, other=-1)
                matched = index >= 0  # [P]
                gradient = tl.load(own_gradients + own_row * own_k + slot, mask=matched, other=0.0).to(ACC)
                o_inside = inside & matched[:, None]
                o = tl.load(other + (batch * O + index[:, None]) * D + d[None, :], mask=o_inside, other=0.0).to(ACC)
                total += tl.where(matched[:, None], pair_term(a, o, gradient[:, None], NORM), 0.0)
        if order is not None:
            for turn in range(0, most, LANES):
                item = tl.cast(turn, tl.int64) + tl.arange(0, LANES)[None, :]  # [1, L]
                in_chunk = (item >= head[:, None]) & (item < (head + wholes)[:, None])  # [P, L]
                single = (item < items[:, None]) & (in_chunk == 0)
                # Past the head and the whole chunks, the tail begins where the last whole chunk ends.
                after = (first_whole * CHUNK + wholes * (CHUNK - 1) - head)[:, None] + item
                position = tl.where(item < head[:, None], begin[:, None] + item, after)
                pair = tl.load(order + base + position, mask=single, other=0)
                gradient = tl.load(gradients + base + pair, mask=single, other=0.0).to(ACC)
                o_row = batch * O + pair // k
                o_inside = single[:, :, None] & (d < D)[None, None, :]
                o = tl.load(other + o_row[:, :, None] * D + d[None, None, :], mask=o_inside, other=0.0).to(ACC)
                term = tl.where(single[:, :, None], pair_term(a[:, None, :], o, gradient[:, :, None], NORM), 0.0)
                if sums is not None:
                    chunk = batch * chunks + first_whole[:, None] + item - head[:, None]
                    c_inside = in_chunk[:, :, None] & (d < D)[None, None, :]
                    term += tl.load(sums + chunk[:, :, None] * D + d[None, None, :], mask=c_inside, other=0.0)
                total += tl.sum(term, axis=1)
        tl.store(out + own_row[:, None] * D + d[None, :], total, mask=inside)


def plan_gradient(
    own: Tensor, other: Tensor, norm: int,
    own_gradients: Tensor | None, own_indices: Tensor | None, gradients: Tensor | None, indices: Tensor | None,
    arch: Architecture,
) -> tuple[Tensor, list[Launch]]:  # fmt: skip
    """The gradient of `own` from the neighbours it chose (own_* [B, A, k]), and from being chosen ([B, O, k])."""
    (b, a, d), o = own.shape, other.shape[1]
    out = torch.empty_like(own, memory_format=torch.contiguous_format)
    if out.numel() == 0:
        return out, []
    acc = accumulator(own.dtype)
    block_d = min(triton.next_power_of_2(d), 32)
    common = {
        **{"own": own.contiguous(), "other": other.contiguous(), "A": a, "O": o, "D": d, "NORM": norm},
        **{"ACC": tl.float64 if acc == torch.float64 else tl.float32, "CHUNK": PAIRS_PER_CHUNK, "BLOCK_D": block_d},
    }
    launches: list[Launch] = []
    order = chosen = sums = None
    pairs = chunks = 0
    k = 1
    if indices is not None and gradients is not None and indices.numel():
        k = indices.shape[2]
        pairs = o * k
        flat = indices.reshape(b, pairs)
        chosen, order = torch.sort(flat.to(torch.int32) if a <= 2**31 - 1 else flat, dim=1, stable=True)
        gradients = gradients.contiguous()
        chunks = pairs // PAIRS_PER_CHUNK
        if chunks > 4:
            sums = own.new_empty((b, chunks, d), dtype=acc)
            block = max(1, 16 // block_d)
            blocks = triton.cdiv(chunks, block)
            arguments = {
                **common,
                **{"gradients": gradients, "order": order, "chosen": chosen, "sums": sums},
                **{"pairs": pairs, "k": k, "chunks": chunks, "blocks": blocks, "BLOCK": block},
            }
            launches.append(Launch(chunk_sums_kernel, (b * blocks,), arguments, compiler_options(arch)))
    else:
        gradients = None
    if own_gradients is None or own_indices is None or o == 0:
        own_gradients = own_indices = None
        own_k = 1
    else:
        own_gradients, own_indices = own_gradients.contiguous(), own_indices.contiguous()
        own_k = own_indices.shape[2]
    block = max(8, 128 // block_d)
    blocks = triton.cdiv(a, block)
    arguments = {
        **common,
        **{"out": out, "own_gradients": own_gradients, "own_indices": own_indices, "own_k": own_k},
        **{"gradients": gradients, "order": order, "chosen": chosen, "sums": sums},
        **{"pairs": pairs, "k": k, "chunks": chunks, "blocks": blocks},
        **{"STEPS": max(pairs, 1).bit_length(), "BLOCK": block, "LANES": 4},
    }
    launches.append(Launch(points_gradient_kernel, (b * blocks,), arguments, compiler_options(arch)))
    return out, launches

"""Invariant point attention, forward: one pass over the pairs, with the softmax kept up to date as keys come.

z is read once, for all heads: a program holds all heads of a tile of queries, and each tile of z gives the bias (unless
that is given) and then the pair values. The rest is read again by every tile of queries and comes from the L2 cache.

Bytes a pair for H = 12, C = 16, 4 query and 8 value points, Cz = 128, 16-bit, BI queries a program: z 256; k and v 768,
points 576 + 1152, together 2496 / BI from the L2 cache. Operations a pair and head: 2 C + 3 * 3 Pq + 2 Cz (bias), 2 C +
6 Pv + 2 Cz (values).
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .invariant_point_attention_plans import Problem, padded
from .invariant_point_attention_tiles import (
    add_pair_bias,
    add_points,
    heads_first,
    load_bias,
    load_near,
    load_pairs,
    load_rows,
    no_bias,
    point_sums,
    product_of_parts,
    squared_distances,
    store_points,
    store_rows,
    tile_logits,
    turned,
)
from .launch import Launch, compiler_options


@triton.jit(do_not_specialize=["blocks", "batches", "run"])
def attention_kernel(
    q, k, v, q_coordinates, k_coordinates, v_points, z, centres, point_weights, bias, weight, constant, mask, infinity,
    o, o_points, o_pair, lse, N, blocks, batches, run, z_batch, z_i, z_j, bias_batch, bias_i, bias_j, bias_h,
    H: tl.constexpr, C: tl.constexpr, PQ: tl.constexpr, PV: tl.constexpr, CZ: tl.constexpr, BI: tl.constexpr,
    BJ: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_PV: tl.constexpr, BLOCK_Z: tl.constexpr,
    PARTS: tl.constexpr, DIGITS: tl.constexpr, PART: tl.constexpr, W_L: tl.constexpr, SCALE: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program: all heads of BI queries of one batch element, over a run of keys.

        s_ihj = W_L (q_ih.k_jh / sqrt(C) + bias_ijh) - w_h sum_p |q_ihp - k_jhp|^2,   a = softmax_j s
        o = sum_j a v_j,   o_points = sum_j a (v_points_j - centre_i),   o_pair = sum_j a z_ij,   lse = log sum_j exp s

    Reads q, k, v [B, N, H, C], the coordinates of queries and keys [B, H, PQ, 3, N], v_points [B, N, H, 3, PV], centres
    [B, N, 3], z [B, N, N, CZ] and, unless None, bias [B, N, N, H] by their strides, weight [PARTS, H, CZ], constant
    [H], mask [B, N], infinity [1]. Writes o [.., B, N, H, C], o_points [.., PV, 3], o_pair [.., CZ] and lse [.., B,
    H, N], of run `split` if PART, else there is one run. The lse of a query without a key is inf, or -inf if PART.
    """
    program = tl.program_id(0).to(tl.int64)
    split = program // blocks // batches
    batch = program // blocks % batches
    first = (program % blocks * BI).to(tl.int32)
    i = tl.arange(0, BI)
    i_exists = i < N - first
    heads = tl.arange(0, BLOCK_H)
    row = batch * N + first
    q += row * H * C
    k += batch * N * H * C
    v += batch * N * H * C
    q_coordinates += batch * H * 3 * PQ * N + first
    k_coordinates += batch * H * 3 * PQ * N
    v_points += batch * N * H * 3 * PV
    z += batch * z_batch + tl.cast(first, tl.int64) * z_i
    centres += row * 3
    if mask is not None:
        mask += batch * N

    weights = tl.load(point_weights + heads, mask=heads < H, other=0.0)
    largest = tl.full([BI, BLOCK_H], float("-inf"), ACC)
    total = tl.zeros([BI, BLOCK_H], ACC)
    values = tl.zeros([BLOCK_H, BLOCK_C, BI], ACC)
    points = point_sums(BLOCK_H, BLOCK_PV, BI, ACC)
    pairs = ()
    for _ in tl.static_range(0, CZ, BLOCK_Z):
        pairs = pairs + (tl.zeros([BI, BLOCK_H, BLOCK_Z], ACC),)
    start_j = (split * run).to(tl.int32)
    for start in tl.range(start_j, tl.minimum(start_j + run, N), BJ, disable_licm=True):
        j = start + tl.arange(0, BJ)
        j_exists = j < N
        tile = load_pairs(z, i, j, i_exists, j_exists, z_i, z_j, CZ, BLOCK_Z, OPERAND)
        q_tile = load_rows(q, i, i_exists, heads, H, C, BLOCK_C, OPERAND)
        k_tile = load_rows(k, j, j_exists, heads, H, C, BLOCK_C, OPERAND)
        distances = squared_distances(q_coordinates, k_coordinates, i, j, i_exists, j_exists, heads, N, H, PQ, ACC)
        if bias is None:
            b = no_bias(constant, heads, BI, BJ, H, ACC)
            for start_z in tl.static_range(0, CZ, BLOCK_Z):
                b = add_pair_bias(
                    b, tile[start_z // BLOCK_Z], weight, heads, start_z, BI, H, CZ, BLOCK_Z, PARTS, OPERAND,
                    PRECISION, ACC,
                )  # fmt: skip
        else:
            at = bias + batch * bias_batch + tl.cast(first, tl.int64) * bias_i
            b = load_bias(at, i, j, i_exists, j_exists, heads, bias_i, bias_j, bias_h, H, ACC)
        s = tile_logits(
            q_tile, k_tile, b, distances, weights, mask, infinity, first + i, j, i_exists, j_exists, False, W_L,
            SCALE, PRECISION, ACC,
        )  # fmt: skip
        larger = tl.maximum(largest, tl.max(s, axis=2))  # a NaN is in p all the same
        shift = tl.where(larger == float("-inf"), 0.0, larger)
        keep = tl.exp(largest - shift)  # [i, H]
        p = tl.exp(s - shift[:, :, None])
        largest = larger
        total = total * keep + tl.sum(p, axis=2)
        by_head, keep_by_head = heads_first(p), tl.trans(keep)[:, None, :]
        v_tile = load_rows(v, j, j_exists, heads, H, C, BLOCK_C, OPERAND)
        values = product_of_parts(turned(v_tile), by_head, values * keep_by_head, DIGITS, OPERAND, PRECISION, ACC)
        near = load_near(v_points, j, j_exists, heads, centres, H, PV, BLOCK_PV)
        points = add_points(points, near, by_head, keep_by_head, ACC)
        sums = ()
        for start_z in tl.static_range(0, CZ, BLOCK_Z):
            kept = pairs[start_z // BLOCK_Z] * keep[:, :, None]
            sums = sums + (product_of_parts(p, tile[start_z // BLOCK_Z], kept, DIGITS, OPERAND, PRECISION, ACC),)
        pairs = sums

    empty = total == 0
    scale = 1.0 / tl.where(empty, 1.0, total)  # [i, H]
    by_head = tl.trans(scale)[:, None, :]
    out = program // blocks * N + first
    store_rows(o + out * H * C, turned(values * by_head), i, i_exists, heads, H, C, BLOCK_C)
    means = ()
    for x in tl.static_range(3):
        moved = tl.load(centres + x) - tl.load(centres + i * 3 + x, mask=i_exists, other=0.0)
        moved = tl.where(tl.trans(empty), 0.0, moved[None, :])
        means = means + (turned(points[x] * by_head + moved[:, None, :]),)
    store_points(o_points + out * H * 3 * PV, means, i, i_exists, heads, H, PV, BLOCK_PV)
    o_pair += out * H * CZ
    inside = i_exists[:, None] & (heads < H)[None, :]
    for start_z in tl.static_range(0, CZ, BLOCK_Z):
        channels = start_z + tl.arange(0, BLOCK_Z)
        at = o_pair + (i[:, None] * (H * CZ) + heads[None, :] * CZ)[:, :, None] + channels[None, None, :]
        stored = inside[:, :, None] & (channels < CZ)[None, None, :]
        tl.store(at, pairs[start_z // BLOCK_Z] * scale[:, :, None], mask=stored)
    found = tl.where(empty, float("-inf") if PART else float("inf"), largest + tl.log(tl.where(empty, 1.0, total)))
    lse += (out - first) * H + first
    tl.store(lse + heads[None, :].to(tl.int64) * N + i[:, None], found, mask=inside)


@triton.jit
def merge_rows(
    parts,
    out,
    rows,
    exists,
    lse_parts,
    lse,
    lse_rows,
    row_count,
    splits,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """out [rows, WIDTH] = sum over runs of exp(their lse - lse) parts."""
    for start in tl.static_range(0, WIDTH, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = exists[:, None] & (columns < WIDTH)[None, :]
        at = rows[:, None] * WIDTH + columns[None, :]
        total = tl.zeros([rows.shape[0], BLOCK], ACC)
        for split in range(0, splits):
            skipped = split * row_count
            part_lse = tl.load(lse_parts + skipped + lse_rows, mask=exists, other=float("-inf"))
            share = tl.exp(part_lse - lse)  # 0 of a run without keys
            part = tl.load(parts + skipped * WIDTH + at, mask=inside, other=0.0)
            total = tl.fma(share[:, None] + tl.zeros_like(part), part, total)
        tl.store(out + at, total, mask=inside)


@triton.jit(do_not_specialize=["row_count", "splits"])
def merge_kernel(
    o_parts, o_points_parts, o_pair_parts, lse_parts, o, o_points, o_pair, lse, row_count, N, splits, H: tl.constexpr,
    C: tl.constexpr, PV: tl.constexpr, CZ: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_Z: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK rows (a query and a head) of the results, from those of the runs of keys.

        lse = log sum_s exp lse_s,   o = sum_s exp(lse_s - lse) o_s,   and so o_points, o_pair

    Reads o_parts [splits, B, N, H, C] and the like, lse_parts [splits, B, H, N]; writes o, o_points, o_pair and lse,
    which is inf where there is no key. row_count = B N H.
    """
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row_count = tl.cast(row_count, tl.int64)
    exists = rows < row_count
    query = rows // H
    lse_rows = (query // N * H + rows % H) * N + query % N
    largest = tl.full([BLOCK], float("-inf"), ACC)
    for split in range(0, splits):
        found = tl.load(lse_parts + split * row_count + lse_rows, mask=exists, other=float("-inf"))
        largest = tl.maximum(largest, found)
    shift = tl.where(largest == float("-inf"), 0.0, largest)
    total = tl.zeros([BLOCK], ACC)
    for split in range(0, splits):
        found = tl.load(lse_parts + split * row_count + lse_rows, mask=exists, other=float("-inf"))
        total += tl.exp(found - shift)
    merged = tl.where(total == 0, float("inf"), shift + tl.log(tl.where(total == 0, 1.0, total)))
    tl.store(lse + lse_rows, merged, mask=exists)
    merge_rows(o_parts, o, rows, exists, lse_parts, merged, lse_rows, row_count, splits, C, BLOCK_C, ACC)
    merge_rows(
        o_points_parts, o_points, rows, exists, lse_parts, merged, lse_rows, row_count, splits, 3 * PV, BLOCK_C, ACC
    )
    merge_rows(o_pair_parts, o_pair, rows, exists, lse_parts, merged, lse_rows, row_count, splits, CZ, BLOCK_Z, ACC)


def plan_attention(problem: Problem, splits: int | None = None) -> tuple[tuple[Tensor, ...], list[Launch]]:
    """o, o_points, o_pair and lse, and the launches that make them; `splits` runs of keys, or as the device wants."""
    tiles = problem.tiles("forward")
    b, n, h, c, _, pv, cz = problem.sizes
    blocks = triton.cdiv(n, tiles.queries)
    run, splits = problem.runs(b * blocks, tiles.keys, splits)

    def results(*lead: int) -> dict[str, Tensor]:
        shapes = {"o": (b, n, h, c), "o_points": (b, n, h, pv, 3), "o_pair": (b, n, h, cz), "lse": (b, h, n)}
        return {name: problem.q.new_empty((*lead, *shape), dtype=problem.wide) for name, shape in shapes.items()}

    out = results()
    made = out if splits == 1 else results(splits)
    arguments = problem.arguments(tiles) | made
    arguments |= {"blocks": blocks, "batches": b, "run": run, "PART": splits > 1}
    arguments["BLOCK_PV"] = padded(pv, 8)  # no product runs over points here
    launches = [problem.launch(attention_kernel, splits * b * blocks, tiles, arguments)]
    if splits > 1:
        launches.append(plan_merge(problem, made, out, splits))
    return tuple(out.values()), launches


def plan_merge(problem: Problem, parts: dict[str, Tensor], out: dict[str, Tensor], splits: int) -> Launch:
    b, n, h, *_ = problem.sizes
    block = 1024 if problem.arch.vendor == "none" else 16
    arguments = problem.arguments(problem.tiles("forward")) | out
    arguments |= {f"{name}_parts": value for name, value in parts.items()}
    arguments |= {"row_count": b * n * h, "splits": splits, "BLOCK": block}
    taken = {name: arguments[name] for name in merge_kernel.arg_names}
    return Launch(merge_kernel, (triton.cdiv(b * n * h, block),), taken, compiler_options(problem.arch, 4))


def attention_bytes(launch: Launch) -> dict[str, int]:
    """What the programs of an attention kernel's launch load and store of each of its tensors, in bytes.

    A pair's values are loaded once; a key's by each block of queries, a query's for each tile of keys, and the weight
    for each tile of pairs. What is loaded more than once comes from a cache but for the first time.
    """
    sizes: dict[str, Any] = launch.arguments
    n, h, c, pq, pv, cz, batch, blocks = (
        sizes[name] for name in ("N", "H", "C", "PQ", "PV", "CZ", "batches", "blocks")
    )
    splits = launch.grid[0] // max(batch * blocks, 1)
    run, tile = sizes["run"], sizes["BJ"]
    key_tiles = sum(triton.cdiv(min(run, n - start), tile) for start in range(0, n, run))  # of a block of queries
    by_key, by_query, by_tile = batch * blocks * n, batch * n * key_tiles, batch * blocks * key_tiles
    elements = {
        "z": batch * n * n * cz, "bias": batch * n * n * h, "k": by_key * h * c, "v": by_key * h * c,
        "k_coordinates": by_key * h * 3 * pq, "v_points": by_key * h * 3 * pv, "q": by_query * h * c,
        "q_coordinates": by_query * h * 3 * pq, "mask": by_key + by_query, "weight": by_tile * sizes["PARTS"] * h * cz,
        "constant": by_tile * h, "infinity": by_tile, "point_weights": batch * blocks * splits * h,
        "centres": 3 * (by_tile + splits * batch * (n + blocks)), "o": splits * batch * n * h * c,
        "o_points": splits * batch * n * h * 3 * pv, "o_pair": splits * batch * n * h * cz,
        "lse": splits * batch * n * h,
    }  # fmt: skip
    given = {name: count for name, count in elements.items() if sizes[name] is not None}
    return {name: count * sizes[name].element_size() for name, count in given.items()}

"""Invariant point attention, backward, the pass over queries: sums over keys.

A program has some of the heads, for the sums of all do not fit a processor's registers; programs of other heads of the
same queries are its neighbours and find z in the L2 cache. Bytes a pair for Cz = 128, 16-bit: z 256.
"""

import triton
import triton.language as tl

from .invariant_point_attention_tiles import (
    add_pair_bias,
    add_points,
    heads_first,
    load_bias,
    load_head_values,
    load_heads,
    load_near,
    load_pair_block,
    load_points,
    load_rows,
    moved_sums,
    no_bias,
    point_sums,
    product,
    squared_distances,
    store_points,
    store_rows,
    tile_gradients,
    tile_logits,
    turned,
)


@triton.jit(do_not_specialize=["blocks", "batches", "groups", "run"])
def query_gradient_kernel(
    q, k, v, q_coordinates, k_coordinates, q_points, k_points, v_points, z, centres, point_weights, bias, weight,
    constant, mask, infinity, do, do_points, do_pair, delta, lse, dq, dq_points, dconstant, dpoint_weights, N, blocks,
    batches, groups, run, z_batch, z_i, z_j, bias_batch, bias_i, bias_j, bias_h, H: tl.constexpr,
    C: tl.constexpr, PQ: tl.constexpr, PV: tl.constexpr, CZ: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_PQ: tl.constexpr, BLOCK_PV: tl.constexpr,
    BLOCK_Z: tl.constexpr, PARTS: tl.constexpr, W_L: tl.constexpr, SCALE: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_H heads of BI queries of one batch element, over a run of keys.

        dq = W_L / sqrt(C) sum_j ds k_j,   dq_points = -2 w_h sum_j ds (q_points_i - k_points_j)
        dconstant = W_L sum_ij ds,   dpoint_weights = - sum_ij ds sum_p |q_points_i - k_points_j|^2

    with ds as in the pass over pairs, whose inputs it reads, z and bias again. Writes the parts of run `split` dq
    [splits, B, N, H, C], dq_points [.., PQ, 3], and dconstant (None: not wanted), dpoint_weights [.., H] of its heads
    and queries.
    """
    group = tl.program_id(0) % groups
    program = tl.program_id(0).to(tl.int64) // groups
    split = program // blocks // batches
    batch = program // blocks % batches
    first = (program % blocks * BI).to(tl.int32)
    i = tl.arange(0, BI)
    i_exists = i < N - first
    heads = group * BLOCK_H + tl.arange(0, BLOCK_H)
    row = batch * N + first
    k += batch * N * H * C
    v += batch * N * H * C
    q_coordinates += batch * H * 3 * PQ * N + first
    k_coordinates += batch * H * 3 * PQ * N
    k_points += batch * N * H * 3 * PQ
    v_points += batch * N * H * 3 * PV
    z += batch * z_batch + tl.cast(first, tl.int64) * z_i
    centres += row * 3
    if mask is not None:
        mask += batch * N

    weights = tl.load(point_weights + heads, mask=heads < H, other=0.0)
    do_pair += row * H * CZ
    do_points += row * H * 3 * PV
    shift = moved_sums(
        load_points(do_points, i, i_exists, heads, H, PV, BLOCK_PV), centres, centres, i, i_exists
    )  # [H, i]
    at_heads = batch * H * N + first
    delta_tile = load_head_values(delta + at_heads, i, i_exists, heads, N, H, 0.0)
    lse_tile = load_head_values(lse + at_heads, i, i_exists, heads, N, H, float("inf"))
    dq_sum = tl.zeros([BLOCK_H, BLOCK_C, BI], ACC)
    key_sums = point_sums(BLOCK_H, BLOCK_PQ, BI, ACC)  # sum_j ds (k_points_j - the tile's first centre)
    ds_sum = tl.zeros([BLOCK_H, BI], ACC)
    distance_sum = tl.zeros([BLOCK_H, BI], ACC)
    w_l = tl.full([1], W_L, ACC)
    start_j = (split * run).to(tl.int32)
    for start in tl.range(start_j, tl.minimum(start_j + run, N), BJ, disable_licm=True):
        j = start + tl.arange(0, BJ)
        j_exists = j < N
        b = no_bias(constant, heads, BI, BJ, H, ACC)
        da = tl.zeros([BI, BLOCK_H, BJ], ACC)
        for start_z in tl.range(0, CZ, BLOCK_Z, disable_licm=True):
            tile = load_pair_block(z, i, j, i_exists, j_exists, z_i, z_j, start_z, CZ, BLOCK_Z, OPERAND)
            if bias is None:
                b = add_pair_bias(b, tile, weight, heads, start_z, BI, H, CZ, BLOCK_Z, PARTS, OPERAND, PRECISION, ACC)
            do_block = load_heads(do_pair, i, i_exists, heads, start_z, H, CZ, BLOCK_Z, OPERAND)
            da = product(do_block, turned(tile), da, PRECISION, ACC)
        q_tile = load_rows(q + row * H * C, i, i_exists, heads, H, C, BLOCK_C, OPERAND)
        k_tile = load_rows(k, j, j_exists, heads, H, C, BLOCK_C, OPERAND)
        distances = squared_distances(q_coordinates, k_coordinates, i, j, i_exists, j_exists, heads, N, H, PQ, ACC)
        if bias is not None:
            at = bias + batch * bias_batch + tl.cast(first, tl.int64) * bias_i
            b = load_bias(at, i, j, i_exists, j_exists, heads, bias_i, bias_j, bias_h, H, ACC)
        s = tile_logits(
            q_tile, k_tile, b, distances, weights, mask, infinity, first + i, j, i_exists, j_exists, True, W_L,
            SCALE, PRECISION, ACC,
        )  # fmt: skip
        v_tile = load_rows(v, j, j_exists, heads, H, C, BLOCK_C, OPERAND)
        near = load_near(v_points, j, j_exists, heads, centres, H, PV, BLOCK_PV)
        do_tile = load_rows(do + row * H * C, i, i_exists, heads, H, C, BLOCK_C, OPERAND)
        do_points_tile = load_points(do_points, i, i_exists, heads, H, PV, BLOCK_PV)
        a, ds = tile_gradients(
            s, da, v_tile, near, do_tile, do_points_tile, shift, delta_tile, lse_tile, BI, BLOCK_H, BJ, PRECISION,
            ACC,
        )  # fmt: skip
        by_head = heads_first(ds)
        dq_sum = product(turned(k_tile), by_head.to(OPERAND), dq_sum, PRECISION, ACC)
        near = load_near(k_points, j, j_exists, heads, centres, H, PQ, BLOCK_PQ)
        key_sums = add_points(key_sums, near, by_head, 1.0, ACC)
        ds_sum += tl.sum(by_head, axis=1)
        distance_sum += tl.sum(by_head * distances, axis=1)

    out = program // blocks * N + first
    store_rows(dq + out * H * C, turned(dq_sum) * tl.full([1], SCALE, ACC), i, i_exists, heads, H, C, BLOCK_C)
    own = load_near(q_points + row * H * 3 * PQ, i, i_exists, heads, centres, H, PQ, BLOCK_PQ)
    found = ()
    for x in tl.static_range(3):
        found = found + ((own[x] * ds_sum[:, :, None] - turned(key_sums[x])) * (-2.0 * weights)[:, None, None],)
    store_points(dq_points + out * H * 3 * PQ, found, i, i_exists, heads, H, PQ, BLOCK_PQ)
    tl.store(dpoint_weights + program * H + heads, -tl.sum(distance_sum, axis=1), mask=heads < H)
    if dconstant is not None:
        tl.store(dconstant + program * H + heads, tl.sum(ds_sum, axis=1) * w_l, mask=heads < H)

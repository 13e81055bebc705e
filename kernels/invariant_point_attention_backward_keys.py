"""Invariant point attention, backward, the pass over keys: sums over queries.

A program has some of the heads, as in the pass over queries. Bytes a pair for Cz = 128, 16-bit: z 256.
"""

import triton
import triton.language as tl

from .invariant_point_attention_tiles import (
    add_key_points,
    add_pair_bias,
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
def key_gradient_kernel(
    q, k, v, q_coordinates, k_coordinates, q_points, k_points, v_points, z, centres, point_weights, bias, weight,
    constant, mask, infinity, do, do_points, do_pair, delta, lse, dk, dv, dk_points, dv_points, N, blocks, batches,
    groups, run, z_batch, z_i, z_j, bias_batch, bias_i, bias_j, bias_h, H: tl.constexpr, C: tl.constexpr,
    PQ: tl.constexpr,
    PV: tl.constexpr, CZ: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_PQ: tl.constexpr, BLOCK_PV: tl.constexpr, BLOCK_Z: tl.constexpr, PARTS: tl.constexpr,
    W_L: tl.constexpr, SCALE: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_H heads of BJ keys of one batch element, over a run of queries.

        dk = W_L / sqrt(C) sum_i ds q_i,   dk_points = 2 w_h sum_i ds (q_points_i - k_points_j)
        dv = sum_i a do_i,   dv_points = sum_i a do_points_i

    with a and ds as in the pass over pairs, whose inputs it reads, z and bias again. Writes the parts
    of run `split`: dk, dv [splits, B, N, H, C], dk_points [.., PQ, 3], dv_points [.., PV, 3].
    """
    group = tl.program_id(0) % groups
    program = tl.program_id(0).to(tl.int64) // groups
    split = program // blocks // batches
    batch = program // blocks % batches
    first = (program % blocks * BJ).to(tl.int32)
    j = tl.arange(0, BJ)
    j_exists = j < N - first
    heads = group * BLOCK_H + tl.arange(0, BLOCK_H)
    row = batch * N + first
    q += batch * N * H * C
    do += batch * N * H * C
    do_points += batch * N * H * 3 * PV
    do_pair += batch * N * H * CZ
    delta += batch * H * N
    lse += batch * H * N
    q_coordinates += batch * H * 3 * PQ * N
    k_coordinates += batch * H * 3 * PQ * N + first
    q_points += batch * N * H * 3 * PQ
    z += batch * z_batch + tl.cast(first, tl.int64) * z_j
    origin = centres + row * 3
    centres += batch * N * 3
    if mask is not None:
        mask += batch * N

    weights = tl.load(point_weights + heads, mask=heads < H, other=0.0)
    dk_sum = tl.zeros([BLOCK_H, BJ, BLOCK_C], ACC)
    dv_sum = tl.zeros([BLOCK_H, BJ, BLOCK_C], ACC)
    value_sums = point_sums(BLOCK_H, BJ, BLOCK_PV, ACC)
    query_sums = point_sums(BLOCK_H, BJ, BLOCK_PQ, ACC)  # sum_i ds (q_points_i - the tile's first centre)
    ds_sum = tl.zeros([BLOCK_H, BJ], ACC)
    start_i = (split * run).to(tl.int32)
    for start in tl.range(start_i, tl.minimum(start_i + run, N), BI, disable_licm=True):
        i = start + tl.arange(0, BI)
        i_exists = i < N
        b = no_bias(constant, heads, BI, BJ, H, ACC)
        da = tl.zeros([BI, BLOCK_H, BJ], ACC)
        for start_z in tl.range(0, CZ, BLOCK_Z, disable_licm=True):
            tile = load_pair_block(z, i, j, i_exists, j_exists, z_i, z_j, start_z, CZ, BLOCK_Z, OPERAND)
            if bias is None:
                b = add_pair_bias(b, tile, weight, heads, start_z, BI, H, CZ, BLOCK_Z, PARTS, OPERAND, PRECISION, ACC)
            do_block = load_heads(do_pair, i, i_exists, heads, start_z, H, CZ, BLOCK_Z, OPERAND)
            da = product(do_block, turned(tile), da, PRECISION, ACC)
        k_tile = load_rows(k + row * H * C, j, j_exists, heads, H, C, BLOCK_C, OPERAND)
        q_tile = load_rows(q, i, i_exists, heads, H, C, BLOCK_C, OPERAND)
        distances = squared_distances(q_coordinates, k_coordinates, i, j, i_exists, j_exists, heads, N, H, PQ, ACC)
        if bias is not None:
            at = bias + batch * bias_batch + tl.cast(first, tl.int64) * bias_j
            b = load_bias(at, i, j, i_exists, j_exists, heads, bias_i, bias_j, bias_h, H, ACC)
        s = tile_logits(
            q_tile, k_tile, b, distances, weights, mask, infinity, i, first + j, i_exists, j_exists, True, W_L,
            SCALE, PRECISION, ACC,
        )  # fmt: skip
        do_tile = load_rows(do, i, i_exists, heads, H, C, BLOCK_C, OPERAND)
        do_points_tile = load_points(do_points, i, i_exists, heads, H, PV, BLOCK_PV)
        shift = moved_sums(do_points_tile, origin, centres, i, i_exists)
        delta_tile = load_head_values(delta, i, i_exists, heads, N, H, 0.0)
        lse_tile = load_head_values(lse, i, i_exists, heads, N, H, float("inf"))
        v_tile = load_rows(v + row * H * C, j, j_exists, heads, H, C, BLOCK_C, OPERAND)
        near = load_near(v_points + row * H * 3 * PV, j, j_exists, heads, origin, H, PV, BLOCK_PV)
        a, ds = tile_gradients(
            s, da, v_tile, near, do_tile, do_points_tile, shift, delta_tile, lse_tile, BI, BLOCK_H, BJ, PRECISION,
            ACC,
        )  # fmt: skip
        by_key = heads_first(a)  # [H, j, i]
        dv_sum = product(by_key.to(OPERAND), do_tile, dv_sum, PRECISION, ACC)
        value_sums = add_key_points(value_sums, by_key, do_points_tile, ACC)
        by_key = heads_first(ds)
        dk_sum = product(by_key.to(OPERAND), q_tile, dk_sum, PRECISION, ACC)
        own = load_near(q_points, i, i_exists, heads, origin, H, PQ, BLOCK_PQ)
        query_sums = add_key_points(query_sums, by_key, own, ACC)
        ds_sum += tl.sum(by_key, axis=2)

    out = program // blocks * N + first
    store_rows(dk + out * H * C, dk_sum * tl.full([1], SCALE, ACC), j, j_exists, heads, H, C, BLOCK_C)
    store_rows(dv + out * H * C, dv_sum, j, j_exists, heads, H, C, BLOCK_C)
    store_points(dv_points + out * H * 3 * PV, value_sums, j, j_exists, heads, H, PV, BLOCK_PV)
    own = load_near(k_points + row * H * 3 * PQ, j, j_exists, heads, origin, H, PQ, BLOCK_PQ)
    found = ()
    for x in tl.static_range(3):
        found = found + ((query_sums[x] - own[x] * ds_sum[:, :, None]) * (2.0 * weights)[:, None, None],)
    store_points(dk_points + out * H * 3 * PQ, found, j, j_exists, heads, H, PQ, BLOCK_PQ)

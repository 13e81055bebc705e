"""Invariant point attention, backward, the pass over pairs: what is written for each, and the bias weight's gradient.

Bytes a pair for H = 12, Cz = 128, 16-bit: z read and dz written, 512; bias (where it is given) read and dbias written,
48. The keys' tensors, 1920 a key, are read by each tile of BI queries from the L2 cache.
"""

import triton
import triton.language as tl

from .invariant_point_attention_tiles import (
    add_pair_bias,
    load_bias,
    load_head_values,
    load_heads,
    load_near,
    load_pairs,
    load_points,
    load_rows,
    load_weight,
    moved_sums,
    no_bias,
    product,
    product_of_parts,
    squared_distances,
    tile_gradients,
    tile_logits,
    turned,
)


@triton.jit(do_not_specialize=["blocks", "batches", "run"])
def pair_gradient_kernel(
    q, k, v, q_coordinates, k_coordinates, v_points, z, centres, point_weights, bias, weight, constant, mask, infinity,
    do, do_points, do_pair, delta, lse, dz, dbias, dweight, N, blocks, batches, run, z_batch, z_i, z_j, bias_batch,
    bias_i, bias_j, bias_h, H: tl.constexpr,
    C: tl.constexpr, PQ: tl.constexpr, PV: tl.constexpr, CZ: tl.constexpr, BI: tl.constexpr, BJ: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_PV: tl.constexpr,
    BLOCK_Z: tl.constexpr, PARTS: tl.constexpr, W_L: tl.constexpr, SCALE: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program: all heads of BI queries of one batch element, over a run of keys.

        dz = sum_h a do_pair_i + W_L ds weight_h,   dbias = W_L ds,   dweight = sum_ij dbias z

    with s as in the forward pass, a = exp(s - lse), ds = a (do.v + do_points.(v_points - centre) + do_pair.z - delta).
    Reads the forward pass's inputs, do [B, N, H, C], do_points [.., 3, PV], do_pair [.., CZ], delta and lse [B, H, N].
    Writes dz [B, N, N, CZ] and dbias [B, N, N, H] (where bias is given) or its part dweight [programs, H, CZ].
    """
    program = tl.program_id(0).to(tl.int64)
    split = program // blocks // batches
    batch = program // blocks % batches
    first = (program % blocks * BI).to(tl.int32)
    i = tl.arange(0, BI)
    i_exists = i < N - first
    heads = tl.arange(0, BLOCK_H)
    row = batch * N + first
    k += batch * N * H * C
    v += batch * N * H * C
    q_coordinates += batch * H * 3 * PQ * N + first
    k_coordinates += batch * H * 3 * PQ * N
    v_points += batch * N * H * 3 * PV
    z += batch * z_batch + tl.cast(first, tl.int64) * z_i
    dz += row * N * CZ
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
    sums = ()
    for _ in tl.static_range(0, CZ, BLOCK_Z):
        if bias is None:
            sums = sums + (tl.zeros([BLOCK_H, BLOCK_Z], ACC),)
    w_l = tl.full([1], W_L, ACC)
    start_j = (split * run).to(tl.int32)
    for start in tl.range(start_j, tl.minimum(start_j + run, N), BJ, disable_licm=True):
        j = start + tl.arange(0, BJ)
        j_exists = j < N
        exists = i_exists[:, None] & j_exists[None, :]
        tile = load_pairs(z, i, j, i_exists, j_exists, z_i, z_j, CZ, BLOCK_Z, OPERAND)
        q_tile = load_rows(q + row * H * C, i, i_exists, heads, H, C, BLOCK_C, OPERAND)
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
            q_tile, k_tile, b, distances, weights, mask, infinity, first + i, j, i_exists, j_exists, True, W_L,
            SCALE, PRECISION, ACC,
        )  # fmt: skip
        v_tile = load_rows(v, j, j_exists, heads, H, C, BLOCK_C, OPERAND)
        near = load_near(v_points, j, j_exists, heads, centres, H, PV, BLOCK_PV)
        da = tl.zeros([BI, BLOCK_H, BJ], ACC)
        for start_z in tl.static_range(0, CZ, BLOCK_Z):
            do_block = load_heads(do_pair, i, i_exists, heads, start_z, H, CZ, BLOCK_Z, OPERAND)
            da = product(do_block, turned(tile[start_z // BLOCK_Z]), da, PRECISION, ACC)
        do_tile = load_rows(do + row * H * C, i, i_exists, heads, H, C, BLOCK_C, OPERAND)
        do_points_tile = load_points(do_points, i, i_exists, heads, H, PV, BLOCK_PV)
        a, ds = tile_gradients(
            s, da, v_tile, near, do_tile, do_points_tile, shift, delta_tile, lse_tile, BI, BLOCK_H, BJ, PRECISION,
            ACC,
        )  # fmt: skip

        dlogit = ds * w_l
        pairs = i[:, None].to(tl.int64) * N + j[None, :]
        if bias is not None:
            there = exists[:, :, None] & (heads < H)[None, None, :]
            at = dbias + (row * N + pairs)[:, :, None] * H + heads[None, None, :]
            tl.store(at, turned(dlogit).to(dbias.dtype.element_ty), mask=there)
        by_pair = tl.reshape(tl.permute(dlogit, (1, 0, 2)), (BLOCK_H, BI * BJ))
        added = ()
        for start_z in tl.static_range(0, CZ, BLOCK_Z):
            channels = start_z + tl.arange(0, BLOCK_Z)
            do_block = load_heads(do_pair, i, i_exists, heads, start_z, H, CZ, BLOCK_Z, OPERAND)
            block = tl.zeros([BI, BJ, BLOCK_Z], ACC)
            block = product(turned(a.to(OPERAND)), do_block, block, PRECISION, ACC)
            if bias is None:
                rows = load_weight(weight, heads, start_z, BI, H, CZ, BLOCK_Z, OPERAND)
                block = product(turned(dlogit.to(OPERAND)), rows, block, PRECISION, ACC)
                flat = tl.reshape(tile[start_z // BLOCK_Z], (BI * BJ, BLOCK_Z))
                added = added + (
                    product_of_parts(by_pair, flat, sums[start_z // BLOCK_Z], PARTS, OPERAND, PRECISION, ACC),
                )
            there = exists[:, :, None] & (channels < CZ)[None, None, :]
            at = dz + pairs[:, :, None] * CZ + channels[None, None, :]
            tl.store(at, block.to(dz.dtype.element_ty), mask=there)
        sums = added

    if bias is None:
        for start_z in tl.static_range(0, CZ, BLOCK_Z):
            channels = start_z + tl.arange(0, BLOCK_Z)
            there = (heads < H)[:, None] & (channels < CZ)[None, :]
            at = dweight + program * H * CZ + heads[:, None] * CZ + channels[None, :]
            tl.store(at, sums[start_z // BLOCK_Z], mask=there)

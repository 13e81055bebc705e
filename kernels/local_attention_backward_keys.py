"""Local attention backward, by keys: each tile of keys gathers from the queries whose windows reach it.

Those of an axis are listed in the table of reach_kernel. The product of both axes' lists is gone over in blocks.
"""

import triton
import triton.language as tl

from .local_attention_tiles import (
    add_products,
    all_finite,
    load_bias,
    load_rows,
    places,
    products,
    program_place,
    scalar,
    store_rows,
)


@triton.jit
def listed(table, cell, entry, place, REACH: tl.constexpr):
    """Of entries [N] of the lists of cells [G, 1]: the query and whether there is one [G, N]; and for the keys at
    places [G, M] of their sub-tiles, which slot of its window each is, and whether it is one [G, M, N]."""
    at = table + cell * (4 * REACH) + entry[None, :]
    query = tl.load(at)
    slot = tl.load(at + REACH)
    lowest = tl.load(at + 2 * REACH)
    amount = tl.load(at + 3 * REACH)
    turn = tl.where(amount < 0, -1, 1)
    slot = slot[:, None, :] + turn[:, None, :] * place[:, :, None]
    slots = tl.abs(amount)[:, None, :]
    above = slot - lowest[:, None, :]
    valid = (above >= 0) & (above < slots)
    return query, amount != 0, slot, valid


@triton.jit
def reaching(number, total, table, cell_y, cell_x, place_y, place_x, COLUMNS: tl.constexpr, REACH: tl.constexpr):
    """Of queries [N], of `total`, of the product of both axes' lists: row, column and whether there is one [G, N]; of
    keys the slots (a, b) and whether they are slots [G, M, N]."""
    inside = number < total
    number = tl.where(inside, number, 0)
    i, there_y, a, valid_y = listed(table, cell_y, number // COLUMNS, place_y, REACH)
    j, there_x, b, valid_x = listed(table, cell_x, number % COLUMNS, place_x, REACH)
    return i, j, there_y & there_x & inside[None, :], a, b, valid_y & valid_x & inside[None, None, :]


@triton.jit
def store_query_by_query(
    grad, q, k, v, bias, logsumexp, delta, dk, dv, table, channel, head, scale, columns, stride, queries_total, cell_y,
    cell_x, place_y, place_x, there, k_at, v_at, d_at, grad_d, grad_y, grad_x, q_d, q_y, q_x, k_d, v_d, d_d,
    channels, D: tl.constexpr, KERNEL: tl.constexpr, COLUMNS: tl.constexpr, REACH: tl.constexpr, CHUNK: tl.constexpr,
    GROUP: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradients of keys and values without products of matrices, as the forward pass."""
    for first in range(channel, channel + GROUP, CHUNK):
        keys_total = tl.zeros([there.shape[0], there.shape[1], CHUNK], ACC)
        values_total = tl.zeros([there.shape[0], there.shape[1], CHUNK], ACC)
        for number in range(queries_total):
            i, j, exists, a, b, valid = reaching(
                tl.zeros([1], tl.int32) + number, queries_total, table, cell_y, cell_x, place_y, place_x, COLUMNS, REACH
            )
            q_at = i.to(INDEX) * stride * q_y + j.to(INDEX) * stride * q_x
            grad_at = i.to(INDEX) * grad_y + j.to(INDEX) * grad_x
            logit = tl.zeros([there.shape[0], there.shape[1], 1], ACC)
            change = tl.zeros([there.shape[0], there.shape[1], 1], ACC)
            for other in range(0, channels, CHUNK):
                queries = load_rows(q, q_at, exists, q_d, other, D, CHUNK, ACC)
                logit += tl.sum(load_rows(k, k_at, there, k_d, other, D, CHUNK, ACC) * queries, axis=2)[:, :, None]
                shares = load_rows(grad, grad_at, exists, grad_d, other, D, CHUNK, ACC)
                change += tl.sum(load_rows(v, v_at, there, v_d, other, D, CHUNK, ACC) * shares, axis=2)[:, :, None]
            logit *= scale
            if bias is not None:
                logit += load_bias(bias, head, a, b, valid, KERNEL, ACC)
            lse = tl.load(logsumexp + (i * columns + j), mask=exists, other=0.0)
            lse = tl.where(lse == float("-inf"), 0.0, lse)
            mean = tl.load(delta + (i * columns + j), mask=exists, other=0.0)
            weight = tl.exp(logit - lse[:, None, :])
            shares = load_rows(grad, grad_at, exists, grad_d, first, D, CHUNK, ACC, GROUP)
            values_total += tl.where(valid, weight * shares, 0.0)
            queries = load_rows(q, q_at, exists, q_d, first, D, CHUNK, ACC, GROUP)
            keys_total += tl.where(valid, weight * (change - mean[:, None, :]) * queries, 0.0)
        store_rows(dk, keys_total * scale, d_at, there, d_d, first, D, CHUNK, GROUP)
        store_rows(dv, values_total, d_at, there, d_d, first, D, CHUNK, GROUP)


@triton.jit(
    do_not_specialize=[
        "heads", "channels", "height", "width", "rows", "columns", "stride", "dilation", "blocks_y", "blocks_x",
    ]
)  # fmt: skip
def key_gradient_kernel(
    grad, q, k, v, bias, logsumexp, delta, scale, table, counts, dk, dv, heads, channels, height, width, rows, columns,
    stride, dilation, blocks_y, blocks_x, grad_b, grad_h, grad_d, grad_y, grad_x, q_b, q_h, q_d, q_y, q_x, k_b, k_h,
    k_d, k_y, k_x, v_b, v_h, v_d, v_y, v_x, d_b, d_h, d_d, d_y, d_x, D: tl.constexpr, KERNEL: tl.constexpr,
    COLUMNS: tl.constexpr, REACH: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, DOWN: tl.constexpr,
    ACROSS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, GROUP: tl.constexpr, KEEP: tl.constexpr,
    INDEX: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program: the gradients of GROUP channels of a tile of the keys and values y = residue + dilation m, over the
    queries i, each as often as its window reaches the key,

        dk = scale sum_i ds_i q_i,  dv = sum_i p_i grad_i,  p_i = exp(s_i - lse_i),  ds_i = p_i (grad_i.v - delta_i)

    Reads grad, q, k, v by their strides, bias, logsumexp and delta [B, H, rows, columns], and table and counts of
    reach_kernel, of whose lists those of columns have COLUMNS queries at most; writes dk and dv [B, H, D, height,
    width], both of the same strides.
    """
    if D <= CHUNK:
        channels = D  # no loop
    G: tl.constexpr = DOWN * ACROSS
    M: tl.constexpr = HEIGHT * WIDTH
    channel, image, batch, head, residue_y, residue_x, block_y, block_x = program_place(
        heads, dilation, blocks_y, blocks_x, D, GROUP, INDEX
    )
    grad += batch * grad_b + head * grad_h
    q += batch * q_b + head * q_h
    k += batch * k_b + head * k_h
    v += batch * v_b + head * v_h
    dk += batch * d_b + head * d_h
    dv += batch * d_b + head * d_h
    logsumexp += image * rows * columns
    delta += image * rows * columns
    scale = scalar(scale, ACC)
    top, left, place_y, place_x = places(HEIGHT, WIDTH, DOWN, ACROSS)
    top += block_y * (HEIGHT * DOWN)
    left += block_x * (WIDTH * ACROSS)
    cell_y = residue_y * (blocks_y * DOWN) + top // HEIGHT  # [G, 1]
    cell_x = dilation * (blocks_y * DOWN) + residue_x * (blocks_x * ACROSS) + left // WIDTH
    queries_total = tl.max(tl.max(tl.load(counts + cell_y), axis=1), axis=0) * COLUMNS
    y = residue_y + dilation * (top + place_y)  # [G, M]
    x = residue_x + dilation * (left + place_x)
    there = (y < height) & (x < width)
    k_at = y * k_y + x * k_x
    v_at = y * v_y + x * v_x
    keys = ()
    values = ()
    keys_sums = ()
    values_sums = ()
    if KEEP:
        for chunk in tl.static_range(0, D, CHUNK):
            keys = keys + (load_rows(k, k_at, there, k_d, chunk, D, CHUNK, OPERAND),)
            values = values + (load_rows(v, v_at, there, v_d, chunk, D, CHUNK, OPERAND),)
    for _chunk in tl.static_range(0, GROUP, CHUNK):
        keys_sums = keys_sums + (tl.zeros([G, M, CHUNK], ACC),)
        values_sums = values_sums + (tl.zeros([G, M, CHUNK], ACC),)
    for first in tl.range(0, queries_total, BLOCK, disable_licm=True):
        i, j, exists, a, b, valid = reaching(
            first + tl.arange(0, BLOCK), queries_total, table, cell_y, cell_x, place_y, place_x, COLUMNS, REACH
        )
        q_at = i.to(INDEX) * stride * q_y + j.to(INDEX) * stride * q_x
        grad_at = i.to(INDEX) * grad_y + j.to(INDEX) * grad_x
        logits = scale * products(
            keys, k, k_at, there, k_d, q, q_at, exists, q_d, channels, D, CHUNK, KEEP, OPERAND, PRECISION, ACC
        )
        changes = products(
            values,
            v,
            v_at,
            there,
            v_d,
            grad,
            grad_at,
            exists,
            grad_d,
            channels,
            D,
            CHUNK,
            KEEP,
            OPERAND,
            PRECISION,
            ACC,
        )
        if bias is not None:
            logits += load_bias(bias, head, a, b, valid, KERNEL, ACC)
        lse = tl.load(logsumexp + (i * columns + j), mask=exists, other=0.0)  # [G, BLOCK]
        lse = tl.where(lse == float("-inf"), 0.0, lse)
        mean = tl.load(delta + (i * columns + j), mask=exists, other=0.0)
        weights = tl.where(valid, tl.exp(logits - lse[:, None, :]), 0.0)
        dlogits = tl.where(valid, weights * (changes - mean[:, None, :]), 0.0)
        values_sums = add_products(
            values_sums, weights.to(OPERAND), grad, grad_at, exists, grad_d, channel, D, CHUNK, GROUP, OPERAND,
            PRECISION, ACC,
        )  # fmt: skip
        keys_sums = add_products(
            keys_sums, dlogits.to(OPERAND), q, q_at, exists, q_d, channel, D, CHUNK, GROUP, OPERAND, PRECISION, ACC
        )

    d_at = y * d_y + x * d_x
    if all_finite(keys_sums + values_sums, there, 2 * (GROUP // CHUNK)):
        for chunk in tl.static_range(0, GROUP, CHUNK):
            store_rows(dk, keys_sums[chunk // CHUNK] * scale, d_at, there, d_d, channel + chunk, D, CHUNK, GROUP)
            store_rows(dv, values_sums[chunk // CHUNK], d_at, there, d_d, channel + chunk, D, CHUNK, GROUP)
    else:
        store_query_by_query(
            grad, q, k, v, bias, logsumexp, delta, dk, dv, table, channel, head, scale, columns, stride, queries_total,
            cell_y, cell_x, place_y, place_x, there, k_at, v_at, d_at, grad_d, grad_y, grad_x, q_d, q_y, q_x, k_d, v_d,
            d_d, channels, D, KERNEL, COLUMNS, REACH, CHUNK, GROUP, INDEX, ACC,
        )  # fmt: skip

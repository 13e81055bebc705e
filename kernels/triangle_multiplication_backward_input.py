"""Backward of the triangle multiplicative update, input side: from a = m p sigmoid(g), b and the gate back to x.

Names as in `paperops.ops.triangle_multiplication.gradients`: p = W_p h + b_p and g = W_g h + b_g have the channels of
a, then those of b; s = sigmoid(g).

    dp = dab m s,   dg = dab m p s (1 - s),   dh = dp W_p + dg W_g + dq W_q
"""

import triton
import triton.language as tl

from .triangle_multiplication_backward_tiles import (
    load_matrix,
    norm_gradient,
    normal_tile,
    normed_operand,
    project_transposed,
    row_sums,
    store_tile,
    store_vector,
)
from .triangle_multiplication_tiles import advanced, load_tile, multiply, project, rows_of, sigmoid


@triton.jit
def logits_gradients(
    rows, mask, dab, pairs, w_p, b_p, w_g, b_g, e, C: tl.constexpr, D: tl.constexpr, BLOCK_C: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dp and dg of the channels `e` of a, or of b, of a tile of pairs: the pointers are to the one's or the other's."""
    inside = rows[4]
    p = project(rows, w_p, b_p, e, D, C, BLOCK_C, OPERAND, PRECISION, ACC)
    s = sigmoid(project(rows, w_g, b_g, e, D, C, BLOCK_C, OPERAND, PRECISION, ACC))
    gradient = load_tile(dab, rows[1], e, 1, pairs, inside, D, ACC)
    if mask is not None:
        gradient *= tl.load(mask + rows[1], mask=inside, other=0.0).to(ACC)[:, None]
    dp = tl.where(inside[:, None], gradient * s, 0.0)
    return dp, tl.where(inside[:, None], dp * p * (1 - s), 0.0)


@triton.jit
def normed_gradient(
    rows, mask, da, db, dq, pairs, w_p, b_p, w_g, b_g, w_q, c, C: tl.constexpr, D: tl.constexpr, G: tl.constexpr,
    P: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """dh of the channels `c` of a tile of pairs."""
    total = tl.zeros([P, c.shape[0]], ACC)
    for half in tl.static_range(2):
        dab = da if half == 0 else db
        p_half, g_half = w_p + half * D * C, w_g + half * D * C
        for start in range(0, D, BLOCK_E):
            e = start + tl.arange(0, BLOCK_E)
            dp, dg = logits_gradients(
                rows, mask, dab, pairs, p_half, advanced(b_p, half * D), g_half, advanced(b_g, half * D), e, C, D,
                BLOCK_C, OPERAND, PRECISION, ACC,
            )  # fmt: skip
            total = multiply(dp.to(OPERAND), load_matrix(p_half, e, c, D, C, OPERAND), total, PRECISION, ACC)
            total = multiply(dg.to(OPERAND), load_matrix(g_half, e, c, D, C, OPERAND), total, PRECISION, ACC)
    for start in range(0, G, BLOCK_E):
        g = start + tl.arange(0, BLOCK_E)
        left = load_tile(dq, rows[1], g, G, 1, rows[4], G, ACC).to(OPERAND)
        total = multiply(left, load_matrix(w_q, g, c, G, C, OPERAND), total, PRECISION, ACC)
    return tl.where(rows[4][:, None], total, 0.0)


@triton.jit
def input_gradient_kernel(
    x, mask, da, db, dq, gamma_1, beta_1, w_p, b_p, w_g, b_g, w_q, epsilon, dx, dgamma_1, dbeta_1, pairs, blocks,
    C: tl.constexpr, D: tl.constexpr, G: tl.constexpr, P: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_C: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program: P pairs of one batch element.

        dx = scale (w - mean(w) - x' mean(w x')),  w = dh gamma_1,  x' = (x - mean) scale
        dgamma_1 = sum dh x',  dbeta_1 = sum dh     over the program's pairs

    Reads x [B, pairs, C], mask [B, pairs], da, db [B, D, pairs], dq [B, pairs, G]; writes dx [B, pairs, C] and the
    parts dgamma_1, dbeta_1 [programs, C] (None: not wanted). Of C beyond one block all is computed twice: for the two
    means, and again for dx.
    Bytes in units of one [B, pairs, 128] tensor, C = D = 128: 4 read, 1 written.
    """
    program = tl.program_id(0).to(tl.int64)
    batch, first = program // blocks, program % blocks * P
    count = tl.cast(pairs, tl.int64)
    row = batch * count + first
    pair = tl.arange(0, P)
    inside = pair < count - first
    rows = rows_of(x + row * C, pair, C, 1, inside, gamma_1, beta_1, epsilon, C, BLOCK_C, OPERAND, ACC)
    mask = advanced(mask, row)
    da += batch * D * count + first
    db += batch * D * count + first
    dq += row * G
    dx += row * C

    c = tl.arange(0, BLOCK_C)
    dh = normed_gradient(
        rows, mask, da, db, dq, count, w_p, b_p, w_g, b_g, w_q, c, C, D, G, P, BLOCK_E, BLOCK_C, OPERAND, PRECISION, ACC
    )
    mean_1, mean_2 = row_sums(dh, rows, c, C, ACC)
    if C <= BLOCK_C:
        found = norm_gradient(dh, rows, c, mean_1 / C, mean_2 / C, C, ACC)
        store_tile(dx, found, pair, c, C, 1, inside, C)
        store_vector(dbeta_1, program * C, tl.sum(dh, axis=0), c, C)
        store_vector(dgamma_1, program * C, tl.sum(dh * normal_tile(rows, c, C, ACC), axis=0), c, C)
    else:
        for start in range(BLOCK_C, C, BLOCK_C):
            c = start + tl.arange(0, BLOCK_C)
            dh = normed_gradient(
                rows, mask, da, db, dq, count, w_p, b_p, w_g, b_g, w_q, c, C, D, G, P, BLOCK_E, BLOCK_C, OPERAND,
                PRECISION, ACC,
            )  # fmt: skip
            more_1, more_2 = row_sums(dh, rows, c, C, ACC)
            mean_1 += more_1
            mean_2 += more_2
        for start in range(0, C, BLOCK_C):
            c = start + tl.arange(0, BLOCK_C)
            dh = normed_gradient(
                rows, mask, da, db, dq, count, w_p, b_p, w_g, b_g, w_q, c, C, D, G, P, BLOCK_E, BLOCK_C, OPERAND,
                PRECISION, ACC,
            )  # fmt: skip
            found = norm_gradient(dh, rows, c, mean_1 / C, mean_2 / C, C, ACC)
            store_tile(dx, found, pair, c, C, 1, inside, C)
            store_vector(dbeta_1, program * C, tl.sum(dh, axis=0), c, C)
            store_vector(dgamma_1, program * C, tl.sum(dh * normal_tile(rows, c, C, ACC), axis=0), c, C)


@triton.jit
def input_weights_kernel(
    x, mask, da, db, gamma_1, beta_1, w_p, b_p, w_g, b_g, epsilon, dw_p, dw_g, db_p, db_g, pairs, blocks, tiles, run,
    hidden_blocks, column_blocks,
    C: tl.constexpr, D: tl.constexpr, P: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program: sums over a run of `run` tiles of P pairs, for BLOCK_E channels e of a, or of b, and BLOCK_N c of h.

        dW_p[e, c] = sum dp[e] h[c],   dW_g[e, c] = sum dg[e] h[c],   db_p[e] = sum dp[e],   db_g[e] = sum dg[e]

    Reads x [B, pairs, C], mask [B, pairs], da, db [B, D, pairs]; writes the parts [splits, 2 D, C] and [splits, 2 D],
    of which the vectors (None: not wanted) come from the programs of the first columns. Tiles of logits are [channels,
    pairs], as da and db lie in memory, and so they are a product's left operand where they stand, in registers.
    Bytes: 3 tensors read; programs of one run are neighbours and find x in the L2 cache when one of them has read it.
    """
    program = tl.program_id(0).to(tl.int64)
    column_block = program % column_blocks
    hidden_block = program // column_blocks % (2 * hidden_blocks)
    split = program // column_blocks // (2 * hidden_blocks)
    half = hidden_block // hidden_blocks
    e = (hidden_block % hidden_blocks * BLOCK_E).to(tl.int32) + tl.arange(0, BLOCK_E)
    n = (column_block * BLOCK_N).to(tl.int32) + tl.arange(0, BLOCK_N)
    exists = e < D
    count = tl.cast(pairs, tl.int64)
    w_p += half * D * C
    w_g += half * D * C
    b_p = advanced(b_p, half * D)
    b_g = advanced(b_g, half * D)
    if half == 0:
        dab = da
    else:
        dab = db
    total_p = tl.zeros([BLOCK_E, BLOCK_N], ACC)
    total_g = tl.zeros([BLOCK_E, BLOCK_N], ACC)
    bias_p = tl.zeros([BLOCK_E], ACC)
    bias_g = tl.zeros([BLOCK_E], ACC)
    for tile in range(split * run, tl.minimum((split + 1) * run, tiles)):
        batch = tile // blocks
        pair = tile % blocks * P + tl.arange(0, P)
        inside = pair < count
        base = batch * count
        rows = rows_of(x + base * C, pair, C, 1, inside, gamma_1, beta_1, epsilon, C, BLOCK_C, OPERAND, ACC)
        p = project_transposed(rows, w_p, b_p, e, D, C, BLOCK_C, OPERAND, PRECISION, ACC)
        s = sigmoid(project_transposed(rows, w_g, b_g, e, D, C, BLOCK_C, OPERAND, PRECISION, ACC))
        dp = load_tile(dab + base * D, e, pair, count, 1, exists, count, ACC) * s
        if mask is not None:
            dp *= tl.load(mask + base + pair, mask=inside, other=0.0).to(ACC)[None, :]
        dp = tl.where(inside[None, :], dp, 0.0)
        dg = tl.where(inside[None, :], dp * p * (1 - s), 0.0)
        bias_p += tl.sum(dp, axis=1)
        bias_g += tl.sum(dg, axis=1)
        h = normed_operand(rows, n, C, BLOCK_N, BLOCK_C, OPERAND, ACC)
        total_p = multiply(dp.to(OPERAND), h, total_p, PRECISION, ACC)
        total_g = multiply(dg.to(OPERAND), h, total_g, PRECISION, ACC)

    part = (split * 2 + half) * D
    store_tile(dw_p + part * C, total_p, e, n, C, 1, exists, C)
    store_tile(dw_g + part * C, total_g, e, n, C, 1, exists, C)
    if column_block == 0:
        store_vector(db_p, part, bias_p, e, D)
        store_vector(db_g, part, bias_g, e, D)

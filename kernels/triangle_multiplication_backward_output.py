"""Backward of the triangle multiplicative update, output side: from y = q (W_o LN(t) + b_o) back to t and the gate.

Names as in `paperops.ops.triangle_multiplication.gradients`: q = sigmoid(W_q h + b_q) with h = LN(x), n = LN(t), and
the gradients do of the projection's result, dq of the gate's logits, dn of n.

    after the projection:  do = dy q,  dq = dy (W_o n + b_o) q (1 - q),   dn = do W_o
    before it:             do = dy,    dq = (dy W_o) n q (1 - q),         dn = (dy W_o) q
"""

import triton
import triton.language as tl

from .triangle_multiplication_backward_tiles import (
    load_matrix,
    norm_gradient,
    normal_tile,
    normalised_transposed,
    normed_operand,
    project_transposed,
    row_sums,
    store_tile,
    store_vector,
)
from .triangle_multiplication_tiles import load_tile, load_transposed, multiply, normed_tile, project, rows_of, sigmoid


@triton.jit
def gate_gradients(
    grad, x_rows, t_rows, w_o, b_o, w_q, b_q, g, C: tl.constexpr, D: tl.constexpr, GATE_FIRST: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Of the gate's channels `g` (of C, or of D if GATE_FIRST) of a tile of pairs: q, its logits' gradient, and

    do, or if GATE_FIRST dy W_o, which is the gradient of q n.
    """
    inside = x_rows[4]
    if GATE_FIRST:
        q = sigmoid(project(x_rows, w_q, b_q, g, D, C, BLOCK_C, OPERAND, PRECISION, ACC))
        passed = tl.zeros_like(q)
        for start in range(0, C, BLOCK_C):
            c = start + tl.arange(0, BLOCK_C)
            dy = load_tile(grad, x_rows[1], c, C, 1, inside, C, ACC).to(OPERAND)
            passed = multiply(dy, load_matrix(w_o, c, g, C, D, OPERAND), passed, PRECISION, ACC)
        passed = tl.where(inside[:, None], passed, 0.0)
        dq = passed * normed_tile(t_rows, g, D, ACC) * q * (1 - q)
    else:
        q = sigmoid(project(x_rows, w_q, b_q, g, C, C, BLOCK_C, OPERAND, PRECISION, ACC))
        dy = load_tile(grad, x_rows[1], g, C, 1, inside, C, ACC)
        passed = tl.where(inside[:, None], dy * q, 0.0)
        dq = dy * project(t_rows, w_o, b_o, g, C, D, BLOCK_D, OPERAND, PRECISION, ACC) * q * (1 - q)
    return q, tl.where(inside[:, None], dq, 0.0), passed


@triton.jit
def normed_gradient(
    grad, x_rows, t_rows, w_o, b_o, w_q, b_q, dq, d, C: tl.constexpr, D: tl.constexpr, GATE_FIRST: tl.constexpr,
    STORE: tl.constexpr, P: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dn of the channels `d` of a tile of pairs; stores the dq that it comes by if STORE."""
    inside = x_rows[4]
    if GATE_FIRST:
        q, found, passed = gate_gradients(
            grad, x_rows, t_rows, w_o, b_o, w_q, b_q, d, C, D, True, BLOCK_C, BLOCK_D, OPERAND, PRECISION, ACC
        )
        if STORE:
            store_tile(dq, found, x_rows[1], d, D, 1, inside, D)
        total = tl.where(inside[:, None], passed * q, 0.0)
    else:
        total = tl.zeros([P, d.shape[0]], ACC)
        for start in range(0, C, BLOCK_G):
            c = start + tl.arange(0, BLOCK_G)
            q, found, passed = gate_gradients(
                grad, x_rows, t_rows, w_o, b_o, w_q, b_q, c, C, D, False, BLOCK_C, BLOCK_D, OPERAND, PRECISION, ACC
            )
            if STORE:
                store_tile(dq, found, x_rows[1], c, C, 1, inside, C)
            total = multiply(passed.to(OPERAND), load_matrix(w_o, c, d, C, D, OPERAND), total, PRECISION, ACC)
        total = tl.where(inside[:, None], total, 0.0)
    return total


@triton.jit
def output_gradient_kernel(
    grad, x, t, gamma_1, beta_1, gamma_2, beta_2, w_o, b_o, w_q, b_q, epsilon, dt, dq, dgamma_2, dbeta_2, pairs, blocks,
    C: tl.constexpr, D: tl.constexpr, GATE_FIRST: tl.constexpr, P: tl.constexpr, BLOCK_G: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program: P pairs of one batch element.

        dt = scale (w - mean(w) - n' mean(w n')),  w = dn gamma_2,  n' = (t - mean) scale
        dgamma_2 = sum dn n',  dbeta_2 = sum dn     over the program's pairs

    Reads grad, x [B, pairs, C] and t [B, D, pairs]; writes dt [B, D, pairs], dq [B, pairs, C (D if GATE_FIRST)] and the
    parts dgamma_2, dbeta_2 [programs, D] (None: not wanted). Of D beyond one block all is computed twice: for the two
    means, and again for dt.
    Bytes in units of one [B, pairs, 128] tensor, C = D = 128: 3 read, 2 written.
    """
    program = tl.program_id(0).to(tl.int64)
    batch, first = program // blocks, program % blocks * P
    count = tl.cast(pairs, tl.int64)
    row = batch * count + first
    pair = tl.arange(0, P)
    inside = pair < count - first
    x_rows = rows_of(x + row * C, pair, C, 1, inside, gamma_1, beta_1, epsilon, C, BLOCK_C, OPERAND, ACC)
    t += batch * D * count + first
    t_rows = rows_of(t, pair, 1, count, inside, gamma_2, beta_2, epsilon, D, BLOCK_D, OPERAND, ACC)
    G: tl.constexpr = D if GATE_FIRST else C
    grad += row * C
    dq += row * G
    dt += batch * D * count + first

    d = tl.arange(0, BLOCK_D)
    dn = normed_gradient(
        grad, x_rows, t_rows, w_o, b_o, w_q, b_q, dq, d, C, D, GATE_FIRST, True, P, BLOCK_G, BLOCK_C, BLOCK_D,
        OPERAND, PRECISION, ACC,
    )  # fmt: skip
    mean_1, mean_2 = row_sums(dn, t_rows, d, D, ACC)
    if D <= BLOCK_D:
        found = norm_gradient(dn, t_rows, d, mean_1 / D, mean_2 / D, D, ACC)
        store_tile(dt, found, pair, d, 1, count, inside, D)
        store_vector(dbeta_2, program * D, tl.sum(dn, axis=0), d, D)
        store_vector(dgamma_2, program * D, tl.sum(dn * normal_tile(t_rows, d, D, ACC), axis=0), d, D)
    else:
        for start in range(BLOCK_D, D, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            dn = normed_gradient(
                grad, x_rows, t_rows, w_o, b_o, w_q, b_q, dq, d, C, D, GATE_FIRST, GATE_FIRST, P, BLOCK_G, BLOCK_C,
                BLOCK_D, OPERAND, PRECISION, ACC,
            )  # fmt: skip
            more_1, more_2 = row_sums(dn, t_rows, d, D, ACC)
            mean_1 += more_1
            mean_2 += more_2
        for start in range(0, D, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            dn = normed_gradient(
                grad, x_rows, t_rows, w_o, b_o, w_q, b_q, dq, d, C, D, GATE_FIRST, False, P, BLOCK_G, BLOCK_C,
                BLOCK_D, OPERAND, PRECISION, ACC,
            )  # fmt: skip
            found = norm_gradient(dn, t_rows, d, mean_1 / D, mean_2 / D, D, ACC)
            store_tile(dt, found, pair, d, 1, count, inside, D)
            store_vector(dbeta_2, program * D, tl.sum(dn, axis=0), d, D)
            store_vector(dgamma_2, program * D, tl.sum(dn * normal_tile(t_rows, d, D, ACC), axis=0), d, D)


@triton.jit
def output_weights_kernel(
    grad, x, t, gamma_1, beta_1, gamma_2, beta_2, w_o, b_o, w_q, b_q, epsilon, dw_o, dw_q, db_o, db_q, pairs, blocks,
    tiles, run, gate_blocks, column_blocks,
    C: tl.constexpr, D: tl.constexpr, GATE_FIRST: tl.constexpr, P: tl.constexpr, BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program: sums over a run of `run` tiles of P pairs, for BLOCK_G of the gate's channels g and BLOCK_N columns.

        dW_q[g, c] = sum dq[g] h[c],    db_q[g] = sum dq[g],    db_o[c] = sum do[c]
        dW_o[g, d] = sum do[g] n[d],    or if GATE_FIRST dW_o[c, g] = sum dy[c] q[g] n[g]

    Reads grad, x [B, pairs, C] and t [B, D, pairs]; writes the parts [splits, G, C], [splits, C, D], [splits, G] and
    [splits, C], of which the vectors (None: not wanted) come from the programs of the first block only. Tiles of logits
    are [channels, pairs]: so they are a product's left operand where they stand, in registers.
    Bytes: 3 tensors read; programs of one run are neighbours and find x, t in the L2 cache when one has read them.
    """
    program = tl.program_id(0).to(tl.int64)
    column_block = program % column_blocks
    gate_block = program // column_blocks % gate_blocks
    split = program // column_blocks // gate_blocks
    g = (gate_block * BLOCK_G).to(tl.int32) + tl.arange(0, BLOCK_G)
    n = (column_block * BLOCK_N).to(tl.int32) + tl.arange(0, BLOCK_N)
    G: tl.constexpr = D if GATE_FIRST else C
    exists = g < G
    count = tl.cast(pairs, tl.int64)
    total_o = tl.zeros([BLOCK_G, BLOCK_N], ACC)
    total_q = tl.zeros([BLOCK_G, BLOCK_N], ACC)
    bias_q = tl.zeros([BLOCK_G], ACC)
    bias_o = tl.zeros([BLOCK_N if GATE_FIRST else BLOCK_G], ACC)
    for tile in range(split * run, tl.minimum((split + 1) * run, tiles)):
        batch = tile // blocks
        pair = tile % blocks * P + tl.arange(0, P)
        inside = pair < count
        c_base, d_base = batch * count * C, batch * count * D
        x_rows = rows_of(x + c_base, pair, C, 1, inside, gamma_1, beta_1, epsilon, C, BLOCK_C, OPERAND, ACC)
        t_rows = rows_of(t + d_base, pair, 1, count, inside, gamma_2, beta_2, epsilon, D, BLOCK_D, OPERAND, ACC)
        q = sigmoid(project_transposed(x_rows, w_q, b_q, g, G, C, BLOCK_C, OPERAND, PRECISION, ACC))  # [G, P]
        if GATE_FIRST:
            gated = q * normalised_transposed(t_rows, g, count, D, ACC)
            dy = load_tile(grad + c_base, pair, n, C, 1, inside, C, ACC)
            bias_o += tl.sum(dy, axis=0)
            left = tl.where(inside[None, :], gated, 0.0).to(OPERAND)
            total_o = multiply(left, dy.to(OPERAND), total_o, PRECISION, ACC)
            passed = tl.zeros([BLOCK_G, P], ACC)
            for start in range(0, C, BLOCK_C):
                c = start + tl.arange(0, BLOCK_C)
                given = load_tile(grad + c_base, pair, c, C, 1, inside, C, ACC).to(OPERAND)
                passed = multiply(load_transposed(w_o, c, g, C, D, OPERAND), tl.trans(given), passed, PRECISION, ACC)
            dq = passed * gated * (1 - q)
        else:
            dy = load_tile(grad + c_base, g, pair, 1, C, exists, count, ACC)  # [G, P]
            do = tl.where(inside[None, :], dy * q, 0.0)
            bias_o += tl.sum(do, axis=1)
            normed = normed_operand(t_rows, n, D, BLOCK_N, BLOCK_D, OPERAND, ACC)
            total_o = multiply(do.to(OPERAND), normed, total_o, PRECISION, ACC)
            dq = do * (1 - q) * project_transposed(t_rows, w_o, b_o, g, C, D, BLOCK_D, OPERAND, PRECISION, ACC)
        dq = tl.where(inside[None, :], dq, 0.0)
        bias_q += tl.sum(dq, axis=1)
        h = normed_operand(x_rows, n, C, BLOCK_N, BLOCK_C, OPERAND, ACC)
        total_q = multiply(dq.to(OPERAND), h, total_q, PRECISION, ACC)

    if GATE_FIRST:
        store_tile(dw_o + split * C * D, total_o, g, n, 1, D, exists, C)
    else:
        store_tile(dw_o + split * C * D, total_o, g, n, D, 1, exists, D)
    store_tile(dw_q + split * G * C, total_q, g, n, C, 1, exists, C)
    if column_block == 0:
        store_vector(db_q, split * G, bias_q, g, G)
        if not GATE_FIRST:
            store_vector(db_o, split * C, bias_o, g, C)
    if GATE_FIRST:
        if gate_block == 0:
            store_vector(db_o, split * C, bias_o, n, C)

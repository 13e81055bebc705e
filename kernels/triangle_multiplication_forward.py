"""The two kernels of the triangle multiplicative update beside its contraction; each visits every pair once.

With h = LN(x), names as in `paperops.triangle_multiplicative_update`:

    input    a, b = m sigmoid(W_g h + b_g) (W_p h + b_p)                       channel-major, for the contraction
    output   y = sigmoid(W_q h + b_q) (W_o LN(t) + b_o),  or W_o (sigmoid(W_q h + b_q) LN(t)) + b_o

Bytes in units U of one [B, N, N, 128] tensor of x's dtype, for C = D = 128: input 1 read + 2 written, output 2 read + 1
written; the weights come from the L2 cache. Operations a pair: input 8 C D, output 2 C D + 2 C C.
"""

import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import accumulator_type, operand_type
from .launch import Architecture, Launch
from .triangle_multiplication_tiles import (
    advanced,
    channel_block,
    load_transposed,
    load_vector,
    multiply,
    normed_tile,
    project,
    project_kept,
    rows_of,
    sigmoid,
    tiles,
)


@triton.jit(do_not_specialize=["blocks", "batch_planes"])
def input_kernel(
    x, mask, gamma, beta, w_p, b_p, w_g, b_g, epsilon, ab, pairs, blocks, batch_planes, C: tl.constexpr,
    D: tl.constexpr, HALF: tl.constexpr, P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_E: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """One program: a and b of P pairs of one batch element, D channels of each.

        h = LN(x),  a or b = mask * sigmoid(w_g h + b_g) * (w_p h + b_p)

    Reads x [B, pairs, C], mask [B, pairs] or None; w_p, w_g [.., C] and their biases, of which rows 0 to D belong to a
    and HALF to HALF + D to b; writes ab [2, B, D, pairs], with batch_planes = B * D. If KEEP blocks do not hold the
    channels of x, they are read again for each step of BLOCK_E channels.
    """
    program = tl.program_id(0).to(tl.int64)
    batch = program // blocks
    pair = program % blocks * P + tl.arange(0, P)
    exists = pair < pairs
    first = batch * pairs
    rows = rows_of(x + first * C, pair, C, 1, exists, gamma, beta, epsilon, C, BLOCK_C, OPERAND, ACC, KEEP)
    target = ab + first * D
    STEPS: tl.constexpr = (D + BLOCK_E - 1) // BLOCK_E
    for step in range(0, 2 * STEPS):
        half = step // STEPS
        e = step % STEPS * BLOCK_E + tl.arange(0, BLOCK_E)
        weights = half.to(tl.int64) * HALF * C
        p = project(rows, w_p + weights, advanced(b_p, half * HALF), e, D, C, BLOCK_C, OPERAND, PRECISION, ACC, KEEP)
        g = project(rows, w_g + weights, advanced(b_g, half * HALF), e, D, C, BLOCK_C, OPERAND, PRECISION, ACC, KEEP)
        value = p * sigmoid(g)
        if mask is not None:
            value *= tl.load(mask + first + pair, mask=exists, other=0.0).to(ACC)[:, None]
        planes = half.to(tl.int64) * batch_planes + e
        pointers = target + planes[None, :] * pairs + pair[:, None]
        tl.store(pointers, value.to(ab.dtype.element_ty), mask=exists[:, None] & (e < D)[None, :])


@triton.jit(do_not_specialize=["pairs", "blocks"])
def output_kernel(
    x, t, gamma_1, beta_1, gamma_2, beta_2, w_o, b_o, w_q, b_q, epsilon, out, pairs, blocks, t_batch, t_channel,
    t_pair, C: tl.constexpr, D: tl.constexpr, GATE_FIRST: tl.constexpr, IN_PLACE: tl.constexpr, P: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_O: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, KEEP: tl.constexpr, KEEP_D: tl.constexpr,
):  # fmt: skip
    """One program: y of P pairs of one batch element.

        q = sigmoid(w_q LN(x) + b_q),  y = q (w_o LN(t) + b_o),  or if GATE_FIRST w_o (q LN(t)) + b_o

    Reads x [B, pairs, C] and t by its strides of a batch element, a channel and a pair; writes out [B, pairs, C]. If
    IN_PLACE, t lies in the memory of out, each pair's D values among the pair's own C: KEEP_D blocks hold them all, and
    all are read before the first is overwritten.
    """
    program = tl.program_id(0).to(tl.int64)
    batch = program // blocks
    pair = program % blocks * P + tl.arange(0, P)
    exists = pair < pairs
    first = batch * pairs
    KEEP_T: tl.constexpr = 0 if GATE_FIRST else KEEP_D  # its blocks are needed once if the gate comes first
    t_rows = rows_of(
        t + batch * t_batch, pair, t_pair, t_channel, exists, gamma_2, beta_2, epsilon, D, BLOCK_D, OPERAND, ACC, KEEP_T
    )
    rows = rows_of(x + first * C, pair, C, 1, exists, gamma_1, beta_1, epsilon, C, BLOCK_C, OPERAND, ACC, KEEP)
    target = out + (first + pair)[:, None] * C
    if GATE_FIRST and D <= KEEP_D * BLOCK_D:
        d = tl.arange(0, BLOCK_D)
        q = sigmoid(project(rows, w_q, b_q, d, D, C, BLOCK_C, OPERAND, PRECISION, ACC, KEEP))
        gated = (q * normed_tile(t_rows, d, D, ACC)).to(OPERAND)
        others = ()
        for start in tl.static_range(BLOCK_D, D, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            q = sigmoid(project(rows, w_q, b_q, d, D, C, BLOCK_C, OPERAND, PRECISION, ACC, KEEP))
            others = others + ((q * normed_tile(t_rows, d, D, ACC)).to(OPERAND),)
    if IN_PLACE:
        tl.debug_barrier()  # several threads may have read one value
    for start in range(0, C, BLOCK_O):
        o = start + tl.arange(0, BLOCK_O)
        if GATE_FIRST:
            if D <= KEEP_D * BLOCK_D:
                y = project_kept(gated, others, w_o, o, C, D, BLOCK_D, OPERAND, PRECISION, ACC)
            else:
                y = tl.zeros([P, BLOCK_O], ACC)
                for d_start in range(0, D, BLOCK_D):
                    d = d_start + tl.arange(0, BLOCK_D)
                    q = sigmoid(project(rows, w_q, b_q, d, D, C, BLOCK_C, OPERAND, PRECISION, ACC, KEEP))
                    value = (q * normed_tile(t_rows, d, D, ACC)).to(OPERAND)
                    y = multiply(value, load_transposed(w_o, o, d, C, D, OPERAND), y, PRECISION, ACC)
            if b_o is not None:
                y += load_vector(b_o, o, C, ACC)[None, :]
        else:
            q = sigmoid(project(rows, w_q, b_q, o, C, C, BLOCK_C, OPERAND, PRECISION, ACC, KEEP))
            y = q * project(t_rows, w_o, b_o, o, C, D, BLOCK_D, OPERAND, PRECISION, ACC, KEEP_D)
        tl.store(target + o[None, :], y.to(out.dtype.element_ty), mask=exists[:, None] & (o < C)[None, :])


def plan_input(
    x: Tensor,
    mask: Tensor | None,
    parameters: tuple[Tensor | None, ...],
    epsilon: Tensor,
    precision: str,
    arch: Architecture,
    ab: Tensor,
    first: int = 0,
) -> Launch:
    """Channels `first` and following of a and b, into ab [2, B, channels, N, N].

    x [B, N, N, C] and mask [B, N, N] are contiguous, and so are the parameters, the projections in x's dtype.
    """
    gamma, beta, w_p, b_p, w_g, b_g = parameters[:6]
    assert w_p is not None and w_g is not None
    (b, n, _, c), d = x.shape, ab.shape[2]
    used = tiles(arch, x.dtype, precision, c, n * n, "input")
    blocks = triton.cdiv(n * n, used.pairs)
    arguments = {
        "x": x, "mask": mask, "gamma": gamma, "beta": beta, "epsilon": epsilon, "ab": ab,
        "w_p": w_p[first:], "b_p": None if b_p is None else b_p[first:],
        "w_g": w_g[first:], "b_g": None if b_g is None else b_g[first:],
        "pairs": n * n, "blocks": blocks, "batch_planes": b * d, "C": c, "D": d, "HALF": w_p.shape[0] // 2,
        "P": used.pairs, "BLOCK_C": used.block(c), "BLOCK_E": min(used.step, channel_block(d)),
        "OPERAND": operand_type(x.dtype, arch), "PRECISION": precision, "ACC": accumulator_type(x.dtype),
        "KEEP": used.keep,
    }  # fmt: skip
    return Launch(input_kernel, (b * blocks,), arguments, used.options(arch))


def plan_output(
    x: Tensor,
    t: Tensor,
    parameters: tuple[Tensor | None, ...],
    gate_first: bool,
    epsilon: Tensor,
    precision: str,
    arch: Architecture,
    out: Tensor,
    in_place: bool,
) -> Launch:
    """y into out [B, N, N, C]; t is [B, D, N, N] and contiguous, or in_place."""
    gamma_1, beta_1, *_, gamma_2, beta_2, w_o, b_o, w_q, b_q = parameters
    b, n, _, c = x.shape
    d = t.shape[1]
    used = tiles(arch, x.dtype, precision, max(c, d), n * n, "gated" if gate_first else "output")
    block_d = used.block(d)
    keep_d = triton.cdiv(d, block_d) if in_place else used.keep
    blocks = triton.cdiv(n * n, used.pairs)
    arguments = {
        "x": x, "t": t, "gamma_1": gamma_1, "beta_1": beta_1, "gamma_2": gamma_2, "beta_2": beta_2,
        "w_o": w_o, "b_o": b_o, "w_q": w_q, "b_q": b_q, "epsilon": epsilon, "out": out, "pairs": n * n,
        "blocks": blocks, "t_batch": t.stride(0), "t_channel": t.stride(1), "t_pair": t.stride(3), "C": c, "D": d,
        "GATE_FIRST": gate_first, "IN_PLACE": in_place, "P": used.pairs, "BLOCK_C": used.block(c), "BLOCK_D": block_d,
        "BLOCK_O": min(used.step, channel_block(c)), "OPERAND": operand_type(x.dtype, arch), "PRECISION": precision,
        "ACC": accumulator_type(x.dtype), "KEEP": used.keep, "KEEP_D": keep_d,
    }  # fmt: skip
    return Launch(output_kernel, (b * blocks,), arguments, used.options(arch))

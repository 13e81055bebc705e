"""Local attention forward: each tile of queries goes over the keys of its windows once, with an online softmax."""

import triton
import triton.language as tl

from .local_attention_tiles import (
    add_products,
    all_finite,
    keys_of,
    load_bias,
    load_rows,
    products,
    program_place,
    query_tile,
    scalar,
    store_rows,
)


@triton.jit
def store_key_by_key(
    q, k, v, bias, out, channel, head, scale, dilation, q_at, out_at, there, windows_y, windows_x, largest, share, q_d,
    k_d, k_y, k_x, v_d, v_y, v_x, out_d, channels, D: tl.constexpr, KERNEL: tl.constexpr, STEP: tl.constexpr,
    PADDING: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, GROUP: tl.constexpr,
    INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The result without products of matrices, in which a weight of 0, of a key beyond the window, and a value that is
    not finite make NaN."""
    LATTICE: tl.constexpr = ((HEIGHT - 1) * STEP + KERNEL) * ((WIDTH - 1) * STEP + KERNEL)
    for first in range(channel, channel + GROUP, CHUNK):
        total = tl.zeros([there.shape[0], there.shape[1], CHUNK], ACC)
        for number in range(LATTICE):
            y, x, exists, a, b, valid = keys_of(
                tl.zeros([1], tl.int32) + number, windows_y, windows_x, dilation, STEP, KERNEL, PADDING, HEIGHT, WIDTH
            )
            logit = tl.zeros([there.shape[0], there.shape[1], 1], ACC)
            for other in range(0, channels, CHUNK):
                keys = load_rows(k, y.to(INDEX) * k_y + x.to(INDEX) * k_x, exists, k_d, other, D, CHUNK, ACC)
                logit += tl.sum(load_rows(q, q_at, there, q_d, other, D, CHUNK, ACC) * keys, axis=2)[:, :, None]
            logit *= scale
            if bias is not None:
                logit += load_bias(bias, head, a, b, valid, KERNEL, ACC)
            weight = tl.exp(tl.where(valid, logit, float("-inf")) - largest[:, :, None])
            values = load_rows(v, y.to(INDEX) * v_y + x.to(INDEX) * v_x, exists, v_d, first, D, CHUNK, ACC, GROUP)
            total += tl.where(valid, weight * values, 0.0)
        store_rows(out, total * share[:, :, None], out_at, there, out_d, first, D, CHUNK, GROUP)


@triton.jit(
    do_not_specialize=[
        "heads", "channels", "height", "width", "rows", "columns", "stride", "dilation", "classes", "blocks_y",
        "blocks_x",
    ]
)  # fmt: skip
def attention_kernel(
    q, k, v, bias, scale, out, logsumexp, heads, channels, height, width, rows, columns, stride, dilation, classes,
    blocks_y, blocks_x, q_b, q_h, q_d, q_y, q_x, k_b, k_h, k_d, k_y, k_x, v_b, v_h, v_d, v_y, v_x, out_b, out_h, out_d,
    out_y, out_x, D: tl.constexpr, KERNEL: tl.constexpr, STEP: tl.constexpr, PADDING: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr, BLOCK: tl.constexpr,
    CHUNK: tl.constexpr, GROUP: tl.constexpr, KEEP: tl.constexpr, INDEX: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program: GROUP channels of a tile of queries of one class, head and batch element, over the keys (a, b) of
    their windows,

        out = sum_ab exp(s_ab - lse) v_ab,  s_ab = scale q.k_ab + bias_ab,  lse = log sum_ab exp(s_ab)

    Reads q, k, v [B, H, D, height, width] by their strides and bias [H, KERNEL, KERNEL]; writes out [B, H, D, rows,
    columns] by its strides and logsumexp [B, H, rows, columns].
    """
    if D <= CHUNK:
        channels = D  # no loop
    G: tl.constexpr = DOWN * ACROSS
    M: tl.constexpr = HEIGHT * WIDTH
    channel, image, batch, head, class_y, class_x, block_y, block_x = program_place(
        heads, classes, blocks_y, blocks_x, D, GROUP, INDEX
    )
    q += batch * q_b + head * q_h
    k += batch * k_b + head * k_h
    v += batch * v_b + head * v_h
    out += batch * out_b + head * out_h
    scale = scalar(scale, ACC)
    i, j, there, windows_y, windows_x = query_tile(
        height, width, rows, columns, stride, dilation, classes, class_y, class_x, block_y, block_x, KERNEL, STEP,
        PADDING, HEIGHT, WIDTH, DOWN, ACROSS,
    )  # fmt: skip
    q_at = i * stride * q_y + j * stride * q_x
    queries = ()
    sums = ()
    if KEEP:
        for chunk in tl.static_range(0, D, CHUNK):
            queries = queries + (load_rows(q, q_at, there, q_d, chunk, D, CHUNK, OPERAND),)
    for _chunk in tl.static_range(0, GROUP, CHUNK):
        sums = sums + (tl.zeros([G, M, CHUNK], ACC),)
    largest = tl.full([G, M], float("-inf"), ACC)
    total = tl.zeros([G, M], ACC)
    for first in tl.range(0, ((HEIGHT - 1) * STEP + KERNEL) * ((WIDTH - 1) * STEP + KERNEL), BLOCK, disable_licm=True):
        y, x, exists, a, b, valid = keys_of(
            first + tl.arange(0, BLOCK), windows_y, windows_x, dilation, STEP, KERNEL, PADDING, HEIGHT, WIDTH
        )
        at = y.to(INDEX) * k_y + x.to(INDEX) * k_x
        logits = scale * products(
            queries, q, q_at, there, q_d, k, at, exists, k_d, channels, D, CHUNK, KEEP, OPERAND, PRECISION, ACC
        )
        if bias is not None:
            logits += load_bias(bias, head, a, b, valid, KERNEL, ACC)
        logits = tl.where(valid, logits, float("-inf"))
        larger = tl.maximum(largest, tl.max(logits, axis=2))  # a NaN is in the weights all the same
        shift = tl.where(larger == float("-inf"), 0.0, larger)
        keep = tl.exp(largest - shift)
        weights = tl.exp(logits - shift[:, :, None])
        largest = larger
        total = total * keep + tl.sum(weights, axis=2)
        kept = ()
        for chunk in tl.static_range(0, GROUP, CHUNK):
            kept = kept + (sums[chunk // CHUNK] * keep[:, :, None],)
        at = y.to(INDEX) * v_y + x.to(INDEX) * v_x
        sums = add_products(
            kept, weights.to(OPERAND), v, at, exists, v_d, channel, D, CHUNK, GROUP, OPERAND, PRECISION, ACC
        )

    empty = total == 0
    largest = tl.where(empty, 0.0, largest)
    total = tl.where(empty, 1.0, total)
    lse = tl.where(empty, float("-inf"), largest + tl.log(total))
    if channel == 0:
        tl.store(logsumexp + image * rows * columns + (i * columns + j), lse, mask=there)
    out_at = i * out_y + j * out_x
    if all_finite(sums, there, GROUP // CHUNK):
        for chunk in tl.static_range(0, GROUP, CHUNK):
            mean = sums[chunk // CHUNK] / total[:, :, None]
            store_rows(out, mean, out_at, there, out_d, channel + chunk, D, CHUNK, GROUP)
    else:
        store_key_by_key(
            q, k, v, bias, out, channel, head, scale, dilation, q_at, out_at, there, windows_y, windows_x, largest,
            1.0 / total, q_d, k_d, k_y, k_x, v_d, v_y, v_x, out_d, channels, D, KERNEL, STEP, PADDING, HEIGHT, WIDTH,
            CHUNK, GROUP, INDEX, ACC,
        )  # fmt: skip

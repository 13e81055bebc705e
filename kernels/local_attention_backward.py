"""Local attention backward, by queries: the gradient of q, and of the bias in two stages of fixed order."""

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
def store_cells(
    dq, values, i, j, there, height, width, stride, d_d, d_y, d_x, first, D: tl.constexpr, CHUNK: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """values [G, M, CHUNK] where the queries sit, and 0 at the pixels to the next ones."""
    for cell in range(stride * stride):
        y = i * stride + cell // stride
        x = j * stride + cell % stride
        inside = there & (y < height) & (x < width)
        store_rows(dq, tl.where(cell == 0, values, 0.0), y * d_y + x * d_x, inside, d_d, first, D, CHUNK, GROUP)


@triton.jit
def store_key_by_key(
    q, k, v, grad, bias, dq, channel, head, scale, dilation, q_at, grad_at, i, j, there, windows_y, windows_x, lse,
    delta, height, width, stride, q_d, k_d, k_y, k_x, v_d, v_y, v_x, grad_d, d_d, d_y, d_x, channels, D: tl.constexpr,
    KERNEL: tl.constexpr, STEP: tl.constexpr, PADDING: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    CHUNK: tl.constexpr, GROUP: tl.constexpr, INDEX: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The gradient of q without products of matrices, as the forward pass."""
    LATTICE: tl.constexpr = ((HEIGHT - 1) * STEP + KERNEL) * ((WIDTH - 1) * STEP + KERNEL)
    for first in range(channel, channel + GROUP, CHUNK):
        total = tl.zeros([there.shape[0], there.shape[1], CHUNK], ACC)
        for number in range(LATTICE):
            y, x, exists, a, b, valid = keys_of(
                tl.zeros([1], tl.int32) + number, windows_y, windows_x, dilation, STEP, KERNEL, PADDING, HEIGHT, WIDTH
            )
            logit = tl.zeros([there.shape[0], there.shape[1], 1], ACC)
            change = tl.zeros([there.shape[0], there.shape[1], 1], ACC)
            k_at = y.to(INDEX) * k_y + x.to(INDEX) * k_x
            v_at = y.to(INDEX) * v_y + x.to(INDEX) * v_x
            for other in range(0, channels, CHUNK):
                keys = load_rows(k, k_at, exists, k_d, other, D, CHUNK, ACC)
                logit += tl.sum(load_rows(q, q_at, there, q_d, other, D, CHUNK, ACC) * keys, axis=2)[:, :, None]
                values = load_rows(v, v_at, exists, v_d, other, D, CHUNK, ACC)
                share = load_rows(grad, grad_at, there, grad_d, other, D, CHUNK, ACC)
                change += tl.sum(share * values, axis=2)[:, :, None]
            logit *= scale
            if bias is not None:
                logit += load_bias(bias, head, a, b, valid, KERNEL, ACC)
            weight = tl.exp(logit - lse[:, :, None])
            keys = load_rows(k, k_at, exists, k_d, first, D, CHUNK, ACC, GROUP)
            total += tl.where(valid, weight * (change - delta[:, :, None]) * keys, 0.0)
        store_cells(dq, total * scale, i, j, there, height, width, stride, d_d, d_y, d_x, first, D, CHUNK, GROUP)


@triton.jit
def block_of_weights(
    queries, shares, q, k, v, grad, bias, head, scale, dilation, q_at, grad_at, there, lse, first, windows_y, windows_x,
    q_d, k_d, k_y, k_x, v_d, v_y, v_x, grad_d, channels, D: tl.constexpr, KERNEL: tl.constexpr, STEP: tl.constexpr,
    PADDING: tl.constexpr, HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr, KEEP: tl.constexpr, INDEX: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Of a block of keys the weights and grad.v, where valid, [G, M, BLOCK]; and whether there is a key, and where."""
    y, x, exists, a, b, valid = keys_of(
        first + tl.arange(0, BLOCK), windows_y, windows_x, dilation, STEP, KERNEL, PADDING, HEIGHT, WIDTH
    )
    k_at = y.to(INDEX) * k_y + x.to(INDEX) * k_x
    v_at = y.to(INDEX) * v_y + x.to(INDEX) * v_x
    logits = scale * products(
        queries, q, q_at, there, q_d, k, k_at, exists, k_d, channels, D, CHUNK, KEEP, OPERAND, PRECISION, ACC
    )
    changes = products(
        shares, grad, grad_at, there, grad_d, v, v_at, exists, v_d, channels, D, CHUNK, KEEP, OPERAND, PRECISION, ACC
    )
    if bias is not None:
        logits += load_bias(bias, head, a, b, valid, KERNEL, ACC)
    return tl.exp(logits - lse[:, :, None]), changes, valid, exists, k_at


@triton.jit
def add_slots(
    slots, dlogits, first, there, after_y, after_x,
    KERNEL: tl.constexpr, LATTICE_X: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """slots, a tuple of [SLOTS], and the sums over a block of dlogits [G, M, BLOCK] by slot; `first` is the block's
    first key."""
    BLOCK: tl.constexpr = dlogits.shape[2]
    sums = ()
    for begin in tl.static_range(0, KERNEL * KERNEL, SLOTS):
        slot = begin + tl.arange(0, SLOTS)
        key = (after_y * LATTICE_X + after_x)[:, :, None] + (slot // KERNEL * LATTICE_X + slot % KERNEL)[None, None, :]
        key = (key - first).to(tl.int32)  # [G, M, SLOTS]
        held = (key >= 0) & (key < BLOCK) & (slot < KERNEL * KERNEL)[None, None, :] & there[:, :, None]
        found = tl.where(held, tl.gather(dlogits, tl.where(held, key, 0), 2), 0.0)
        sums = sums + (slots[begin // SLOTS] + tl.sum(tl.sum(found, axis=1), axis=0),)
    return sums


@triton.jit(
    do_not_specialize=[
        "heads", "channels", "height", "width", "rows", "columns", "stride", "dilation", "classes", "blocks_y",
        "blocks_x",
    ]
)  # fmt: skip
def query_gradient_kernel(
    grad, q, k, v, bias, out, logsumexp, scale, dq, delta, partial, heads, channels, height, width, rows, columns,
    stride, dilation, classes, blocks_y, blocks_x, grad_b, grad_h, grad_d, grad_y, grad_x, q_b, q_h, q_d, q_y, q_x,
    k_b, k_h, k_d, k_y, k_x, v_b, v_h, v_d, v_y, v_x, out_b, out_h, out_d, out_y, out_x, d_b, d_h, d_d, d_y, d_x,
    D: tl.constexpr, KERNEL: tl.constexpr, STEP: tl.constexpr, PADDING: tl.constexpr, HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
    GROUP: tl.constexpr, KEEP: tl.constexpr, SLOTS: tl.constexpr, INDEX: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program: the gradient of GROUP channels of a tile of queries, tiles as in attention_kernel,

        dq = scale sum_ab ds_ab k_ab,  ds_ab = exp(s_ab - lse) (grad.v_ab - delta),  delta = grad.out

    Reads grad, q, k, v, out by their strides, bias, logsumexp; writes dq [B, H, D, height, width] by its strides, 0
    where no query sits, delta [B, H, rows, columns] and, if given, partial [B, H, tiles, KERNEL^2], the sums of ds over
    the tile's queries by slot.
    """
    if D <= CHUNK:
        channels = D  # no loop
    G: tl.constexpr = DOWN * ACROSS
    M: tl.constexpr = HEIGHT * WIDTH
    LATTICE_X: tl.constexpr = (WIDTH - 1) * STEP + KERNEL
    channel, image, batch, head, class_y, class_x, block_y, block_x = program_place(
        heads, classes, blocks_y, blocks_x, D, GROUP, INDEX
    )
    grad += batch * grad_b + head * grad_h
    q += batch * q_b + head * q_h
    k += batch * k_b + head * k_h
    v += batch * v_b + head * v_h
    out += batch * out_b + head * out_h
    dq += batch * d_b + head * d_h
    scale = scalar(scale, ACC)
    i, j, there, windows_y, windows_x = query_tile(
        height, width, rows, columns, stride, dilation, classes, class_y, class_x, block_y, block_x, KERNEL, STEP,
        PADDING, HEIGHT, WIDTH, DOWN, ACROSS,
    )  # fmt: skip
    q_at = i * stride * q_y + j * stride * q_x
    grad_at = i * grad_y + j * grad_x
    queries = ()
    shares = ()
    sums = ()
    mean = tl.zeros([G, M], ACC)
    if KEEP:
        for chunk in tl.static_range(0, D, CHUNK):
            queries = queries + (load_rows(q, q_at, there, q_d, chunk, D, CHUNK, OPERAND),)
            shares = shares + (load_rows(grad, grad_at, there, grad_d, chunk, D, CHUNK, OPERAND),)
    for _chunk in tl.static_range(0, GROUP, CHUNK):
        sums = sums + (tl.zeros([G, M, CHUNK], ACC),)
    if partial is None:
        for other in range(0, channels, CHUNK):
            result = load_rows(out, i * out_y + j * out_x, there, out_d, other, D, CHUNK, ACC)
            mean += tl.sum(load_rows(grad, grad_at, there, grad_d, other, D, CHUNK, ACC) * result, axis=2)
    at = image * rows * columns + (i * columns + j)
    lse = tl.load(logsumexp + at, mask=there, other=0.0)
    lse = tl.where(lse == float("-inf"), 0.0, lse)
    LATTICE: tl.constexpr = ((HEIGHT - 1) * STEP + KERNEL) * LATTICE_X
    slots = ()
    if partial is not None:
        for _begin in tl.static_range(0, KERNEL * KERNEL, SLOTS):
            slots = slots + (tl.zeros([SLOTS], ACC),)
        whole = tl.zeros([G, M], ACC)
        for first in tl.range(0, LATTICE, BLOCK, disable_licm=True):
            weights, changes, valid, _exists, _at = block_of_weights(
                queries, shares, q, k, v, grad, bias, head, scale, dilation, q_at, grad_at, there, lse, first,
                windows_y, windows_x, q_d, k_d, k_y, k_x, v_d, v_y, v_x, grad_d, channels, D, KERNEL, STEP, PADDING,
                HEIGHT, WIDTH, BLOCK, CHUNK, KEEP, INDEX, OPERAND, PRECISION, ACC,
            )  # fmt: skip
            whole += tl.sum(tl.where(valid, weights, 0.0), axis=2)
            mean += tl.sum(tl.where(valid, weights * changes, 0.0), axis=2)
        mean /= tl.where(whole == 0, 1.0, whole)
    if channel == 0:
        tl.store(delta + at, mean, mask=there)
    for first in tl.range(0, LATTICE, BLOCK, disable_licm=True):
        weights, changes, valid, exists, k_at = block_of_weights(
            queries, shares, q, k, v, grad, bias, head, scale, dilation, q_at, grad_at, there, lse, first, windows_y,
            windows_x, q_d, k_d, k_y, k_x, v_d, v_y, v_x, grad_d, channels, D, KERNEL, STEP, PADDING, HEIGHT, WIDTH,
            BLOCK, CHUNK, KEEP, INDEX, OPERAND, PRECISION, ACC,
        )  # fmt: skip
        dlogits = tl.where(valid, weights * (changes - mean[:, :, None]), 0.0)
        if partial is not None:
            slots = add_slots(slots, dlogits, first, there, windows_y[1], windows_x[1], KERNEL, LATTICE_X, SLOTS)
        sums = add_products(
            sums, dlogits.to(OPERAND), k, k_at, exists, k_d, channel, D, CHUNK, GROUP, OPERAND, PRECISION, ACC
        )

    if partial is not None:
        if channel == 0:
            partial += (tl.program_id(0) // ((D + GROUP - 1) // GROUP)).to(tl.int64) * (KERNEL * KERNEL)
            for begin in tl.static_range(0, KERNEL * KERNEL, SLOTS):
                slot = begin + tl.arange(0, SLOTS)
                tl.store(partial + slot, slots[begin // SLOTS], mask=slot < KERNEL * KERNEL)
    if all_finite(sums, there, GROUP // CHUNK):
        for chunk in tl.static_range(0, GROUP, CHUNK):
            values = sums[chunk // CHUNK] * scale
            store_cells(dq, values, i, j, there, height, width, stride, d_d, d_y, d_x, channel + chunk, D, CHUNK, GROUP)
    else:
        store_key_by_key(
            q, k, v, grad, bias, dq, channel, head, scale, dilation, q_at, grad_at, i, j, there, windows_y, windows_x,
            lse, mean, height, width, stride, q_d, k_d, k_y, k_x, v_d, v_y, v_x, grad_d, d_d, d_y, d_x, channels, D,
            KERNEL, STEP, PADDING, HEIGHT, WIDTH, CHUNK, GROUP, INDEX, ACC,
        )  # fmt: skip


@triton.jit(do_not_specialize=["batches", "heads", "tiles", "slots"])
def bias_sum_kernel(
    partial, dbias, batches, heads, tiles, slots, ROWS: tl.constexpr, SLOTS: tl.constexpr, ACC: tl.constexpr
):
    """One program: dbias of SLOTS slots of a head, the sum of partial [B, H, tiles, slots] over B and tiles."""
    blocks = (slots + SLOTS - 1) // SLOTS
    head = (tl.program_id(0) // blocks).to(tl.int64)
    slot = tl.program_id(0) % blocks * SLOTS + tl.arange(0, SLOTS)
    total = tl.zeros([ROWS, SLOTS], ACC)
    for first in range(0, batches * tiles, ROWS):
        row = first + tl.arange(0, ROWS)
        at = (row // tiles).to(tl.int64) * heads * tiles + head * tiles + row % tiles
        there = (row < batches * tiles)[:, None] & (slot < slots)[None, :]
        total += tl.load(partial + at[:, None] * slots + slot[None, :], mask=there, other=0.0)
    result = tl.sum(total, axis=0)
    tl.store(dbias + head * slots + slot, result.to(dbias.dtype.element_ty), mask=slot < slots)

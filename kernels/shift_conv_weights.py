"""ACmix's convolution path: merging its weights, and their gradients in two stages of fixed order.

The gradient of the merged weights is a product of matrices for each group: rows are (map of the result, dx), columns
(map of x, dy), so that no more than half of a tile is padding, and both are read at shifts of one list of pixels.
"""

import triton
import triton.language as tl

from .arithmetic import widen


@triton.jit
def fc_at(fc, bias, kk, t, maps, inside, BIAS: tl.constexpr, ACC: tl.constexpr):
    """fc [K, maps] at (kk, t); its column number `maps` is the bias."""
    value = widen(tl.load(fc + kk * maps + t, mask=inside & (t < maps), other=0.0), ACC)
    if BIAS:
        value += widen(tl.load(bias + kk, mask=inside & (t == maps), other=0.0), ACC)
    return value


@triton.jit(do_not_specialize=["inputs", "taps", "maps", "blocks"])
def mix_kernel(
    source, fc, bias, target, inputs, taps, maps, blocks,
    BACK: tl.constexpr, BIAS: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK elements of one channel of target[c, t, tap] = sum over kk of fc[kk, t] source[c, kk, tap], or
    BACK, of target[c, kk, tap] = sum over t of fc[kk, t] source[c, t, tap].

    Reads source [C, taps or inputs, taps], fc [taps, maps] and bias [taps] or None; writes target [C, inputs or taps,
    taps]. inputs is maps, with a bias maps + 1.
    """
    program = tl.program_id(0).to(tl.int64)
    channel = program // blocks
    element = program % blocks * BLOCK + tl.arange(0, BLOCK)
    number, tap = element // taps, element % taps
    if BACK:
        count, summed = taps, inputs
    else:
        count, summed = inputs, taps
    inside = number < count
    total = tl.zeros([BLOCK], ACC)
    source += channel * summed * taps + tap
    for s in range(summed):
        value = widen(tl.load(source + s * taps, mask=inside, other=0.0), ACC)
        other = s + element * 0
        if BACK:
            total += fc_at(fc, bias, number, other, maps, inside, BIAS, ACC) * value
        else:
            total += fc_at(fc, bias, other, number, maps, inside, BIAS, ACC) * value
    tl.store(target + (channel * count + number) * taps + tap, total.to(target.dtype.element_ty), mask=inside)


@triton.jit(
    do_not_specialize=[
        "batch", "depth", "maps", "height", "width", "rows", "columns", "before", "steps", "chunks", "row_blocks",
        "column_blocks", "u_count", "v_count",
    ]
)  # fmt: skip
def weight_gradient_kernel(
    grad, x, partial, batch, depth, maps, height, width, rows, columns, before, steps, chunks, row_blocks,
    column_blocks, u_count, v_count, grad_item, grad_group, grad_map, grad_row, grad_column, x_item, x_map, x_group,
    x_row, x_column, S: tl.constexpr, K: tl.constexpr, BU: tl.constexpr, BV: tl.constexpr, BP: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program: a tile of one group's sums over one chunk of pixels, steps * BP of the list of all (item, i, q),
    where i is a row of the result and q a column of x.

    partial[chunk, d, (m, dx), (t, dy)] = sum of grad[m, d, i, (q + before - dx) / S] x[t, d, i * S + dy - before, q],
    the first 0 where S does not divide, and map number `maps` of x 1 inside. Reads grad and x by their strides.
    """
    program = tl.program_id(0).to(tl.int64)
    v = (program % column_blocks).to(tl.int32) * BV + tl.arange(0, BV)
    u = (program // column_blocks % row_blocks).to(tl.int32) * BU + tl.arange(0, BU)
    program = program // column_blocks // row_blocks
    chunk = program % chunks
    d = program // chunks
    m, dx = u // K, u % K
    t, dy = v // K, v % K
    grad += d * grad_group + m.to(tl.int64)[:, None] * grad_map  # [BU, 1]
    x += d * x_group + t.to(tl.int64)[None, :] * x_map  # [1, BV]
    total = tl.zeros([BU, BV], ACC)
    for step in range(steps):
        place = (chunk * steps + step) * BP + tl.arange(0, BP)
        q = (place % width).to(tl.int32)
        i = (place // width % rows).to(tl.int32)
        item = place // width // rows
        there = item < batch
        shifted = q[None, :] + before - dx[:, None]  # [BU, BP]
        j = shifted // S
        reached = there[None, :] & (u < u_count)[:, None] & (shifted >= 0) & (shifted % S == 0) & (j < columns)
        from_grad = grad + (item * grad_item + i.to(tl.int64) * grad_row)[None, :] + j.to(tl.int64) * grad_column
        left = widen(tl.load(from_grad, mask=reached, other=0.0), ACC).to(OPERAND)
        y = i[:, None] * S + dy[None, :] - before  # [BP, BV]
        inside = there[:, None] & (v < v_count)[None, :] & (y >= 0) & (y < height)
        from_x = x + (item * x_item + q.to(tl.int64) * x_column)[:, None] + y.to(tl.int64) * x_row
        right = widen(tl.load(from_x, mask=inside & (t < maps)[None, :], other=0.0), ACC)
        right = tl.where(inside & (t == maps)[None, :], 1.0, right).to(OPERAND)
        total = tl.dot(left, right, total, input_precision=PRECISION, out_dtype=ACC)
    at = partial + ((chunk * depth + d) * u_count + u[:, None]) * v_count + v[None, :]
    tl.store(at, total, mask=(u < u_count)[:, None] & (v < v_count)[None, :])


@triton.jit(do_not_specialize=["chunks", "size", "u_count", "v_count"])
def weight_sum_kernel(
    partial, merged, chunks, size, u_count, v_count, K: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One program: BLOCK elements of the gradient of merged weights, the sum over chunks in their order.

    Reads partial [chunks, D, (m, dx), (t, dy)], size elements a chunk; writes merged [D * m, t, dy, dx].
    """
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], ACC)
    for _ in range(chunks):
        total += tl.load(partial + n, mask=n < size, other=0.0)
        partial += size
    v, channel_dx = n % v_count, n // v_count
    channel, dx = channel_dx // K, channel_dx % K
    tl.store(merged + channel * (v_count * K) + v * K + dx, total, mask=n < size)


@triton.jit(do_not_specialize=["elements", "inputs", "taps", "maps"])
def fc_gradient_kernel(
    conv, merged, dfc, dbias, elements, inputs, taps, maps, BIAS: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One program: one element of dfc[kk, t] = sum over c and taps of conv[c, kk, tap] merged[c, t, tap], of which
    column number `maps` is dbias.

    Reads conv [C, taps, taps] and merged [C, inputs, taps], the gradient of merged weights; elements = C * taps.
    """
    program = tl.program_id(0).to(tl.int64)
    kk, t = program // inputs, program % inputs
    total = tl.zeros([BLOCK], ACC)
    for start in range(0, elements, BLOCK):
        n = start + tl.arange(0, BLOCK).to(tl.int64)
        channel, tap = n // taps, n % taps
        a = widen(tl.load(conv + (channel * taps + kk) * taps + tap, mask=n < elements, other=0.0), ACC)
        total += a * tl.load(merged + (channel * inputs + t) * taps + tap, mask=n < elements, other=0.0)
    value = tl.sum(total, axis=0)
    if BIAS:
        tl.store(dbias + kk, value.to(dbias.dtype.element_ty), mask=t == maps)
    tl.store(dfc + kk * maps + t, value.to(dfc.dtype.element_ty), mask=t < maps)

"""DynOPool backward: the gradient of x is gathered, that of the scale summed in two stages of fixed order.

What a pixel gathers is in the cells whose samples lie less than a pixel from it, a range an axis: two by two cells at r
between 1/2 and 1, one at exactly 1/2. Each is a load of grad and of the choice from the first-level cache, with weights
that the channels of a tile share. The gradient of the scale needs x at the four pixels around the chosen sample alone.
"""

import triton
import triton.language as tl

from .arithmetic import widen
from .dynopool_tiles import along_groups, along_map, between, group_side, map_side, members, of_group, rise


@triton.jit
def weight(firsts, fractions, at, pixel, there):
    """What a sample takes of a pixel; NaN of all pixels if its fraction is NaN."""
    fraction = tl.load(fractions + at, mask=there, other=0.0)
    distance = pixel - tl.load(firsts + at, mask=there, other=-2)
    return tl.where(distance == 0, 1.0 - fraction, fraction * (distance == 1).to(fraction.dtype))


@triton.jit(do_not_specialize=["height", "width", "rows", "columns", "blocks", "channel_blocks"])
def x_gradient_kernel(
    grad, chosen, firsts, fractions, begins, ends, dx, channels, height, width, rows, columns, blocks, channel_blocks,
    MODE: tl.constexpr, LAST: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr, G: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """One program: the gradient of P pixels of one image in G groups of four channels,

        dx[p, q] = sum_{i, j} grad[i, j] sum_{(s, t) taken} w_s(p) w_t(q)

    over the cells (i, j) that `begins` and `ends` give for row p and column q, in their order. Reads grad, chosen
    (modes of pool_kernel) and the tables of axis_kernel, writes dx [B, C, height, width].
    """
    pid = tl.program_id(0)
    cells = tl.cast(rows, tl.int64) * columns
    pixels = tl.cast(height, tl.int64) * width
    groups = (channels + 3) // 4
    image = (pid // blocks // channel_blocks).to(tl.int64)
    pixel = (pid % blocks).to(INDEX) * P + tl.arange(0, P)
    inside = pixel < pixels
    row = pixel // width
    column = pixel % width
    if MODE < 2:
        K: tl.constexpr = 2
    else:
        K: tl.constexpr = 1
    across = K * tl.cast(rows, tl.int64)
    top = tl.load(begins + row, mask=inside, other=0)
    down = tl.load(ends + row, mask=inside, other=0) - top
    left = tl.load(begins + height + column, mask=inside, other=0)
    right = tl.load(ends + height + column, mask=inside, other=0) - left
    most_rows = tl.max(down, axis=0)
    most_columns = tl.max(right, axis=0)

    first_group = (pid // blocks % channel_blocks) * G
    group = tl.arange(0, G)
    channel = along_groups(group * 4, LAST) + members(LAST)
    exists = channel < channels - first_group * 4
    base = tl.cast(first_group, tl.int64) * 4
    if LAST:
        channel_stride = tl.cast(1, INDEX)
        dx_stride = tl.cast(1, INDEX)
        step = tl.cast(channels, INDEX)
        group_stride = tl.cast(1, INDEX)
        byte_step = groups.to(INDEX)
        total = tl.zeros([P, G, 4], ACC)
    else:
        channel_stride = cells.to(INDEX)
        dx_stride = pixels.to(INDEX)
        step = tl.cast(1, INDEX)
        group_stride = cells.to(INDEX)
        byte_step = tl.cast(1, INDEX)
        total = tl.zeros([G, 4, P], ACC)
    grad += image * channels * cells + base * channel_stride
    dx += image * channels * pixels + base * dx_stride
    if MODE == 0:
        chosen += image * groups * cells + tl.cast(first_group, tl.int64) * group_stride
    group_at = group_side(group.to(INDEX) * group_stride, LAST)
    group_exists = group_side(group < groups - first_group, LAST)
    for ahead in range(most_rows):
        in_row = inside & (ahead < down)
        i = top + ahead
        upper = along_map(weight(firsts, fractions, K * i.to(INDEX), row, in_row), LAST)
        if K == 2:
            lower = along_map(weight(firsts, fractions, K * i.to(INDEX) + 1, row, in_row), LAST)
        for beside in range(most_columns):
            there = in_row & (beside < right)
            j = left + beside
            cell = i.to(INDEX) * columns + j
            first = along_map(weight(firsts + across, fractions + across, K * j.to(INDEX), column, there), LAST)
            at = grad + (channel.to(INDEX) * channel_stride + along_map(cell * step, LAST))
            share = widen(tl.load(at, mask=exists & along_map(there, LAST), other=0.0), ACC)
            if K == 1:
                total += share * (upper * first)
            else:
                second = along_map(
                    weight(firsts + across, fractions + across, K * j.to(INDEX) + 1, column, there), LAST
                )
                if MODE == 1:
                    total += (share * 0.25) * ((upper + lower) * (first + second))
                else:
                    byte = chosen + (group_at + map_side(cell * byte_step, LAST))
                    byte = tl.load(byte, mask=group_exists & map_side(there, LAST), other=0)
                    bits = of_group(byte.to(tl.int32), LAST) >> (2 * members(LAST))
                    taken = tl.where((bits & 2) != 0, lower, upper) * tl.where((bits & 1) != 0, second, first)
                    total = tl.fma(share, taken, total)
    at = dx + (channel.to(INDEX) * dx_stride + along_map(pixel * step, LAST))
    tl.store(at, total.to(dx.dtype.element_ty), mask=exists & along_map(inside, LAST))


@triton.jit
def corner(at, there, row, column, height, width, ZEROS: tl.constexpr, ACC: tl.constexpr):
    """One pixel a sample; 0 beyond the map."""
    if ZEROS:
        there = there & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return widen(tl.load(at, mask=there, other=0.0), ACC)


@triton.jit
def rises(
    at, there, row, column, row_fraction, column_fraction, height, width, down, right,
    ZEROS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The derivatives of x at a sample by its row and column."""
    if not ZEROS:  # there is no pixel after the last one
        down = tl.where(row + 1 < height, down, 0)
        right = tl.where(column + 1 < width, right, 0)
    a = corner(at, there, row, column, height, width, ZEROS, ACC)
    b = corner(at + right, there, row, column + 1, height, width, ZEROS, ACC)
    c = corner(at + down, there, row + 1, column, height, width, ZEROS, ACC)
    d = corner(at + down + right, there, row + 1, column + 1, height, width, ZEROS, ACC)
    by_row = rise(between(a, b, column_fraction), between(c, d, column_fraction), row_fraction)
    by_column = rise(between(a, c, row_fraction), between(b, d, row_fraction), column_fraction)
    return by_row, by_column


@triton.jit
def sample(firsts, fractions, steps, at, there, LAST: tl.constexpr):
    """First pixel, fraction and step of one sample of each cell, as a tile's dimension."""
    first = tl.load(firsts + at, mask=there, other=0)
    fraction = tl.load(fractions + at, mask=there, other=0.0)
    step = tl.load(steps + at, mask=there, other=0.0)
    return along_map(first, LAST), along_map(fraction, LAST), along_map(step, LAST)


@triton.jit
def either(second, a, b):
    """Of two samples the second or the first."""
    return tl.where(second, b[0], a[0]), tl.where(second, b[1], a[1]), tl.where(second, b[2], a[2])


@triton.jit(do_not_specialize=["height", "width", "rows", "columns", "blocks", "runs", "run"])
def scale_gradient_kernel(
    grad, chosen, x, firsts, fractions, steps, partial, channels, height, width, rows, columns, blocks, runs, run,
    MODE: tl.constexpr, ZEROS: tl.constexpr, LAST: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    G: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """One program: of P cells of one image, in `run` groups of four channels, the sums over taken samples of

        grad * (dx / d position) * step

    by rows and by columns, to partial [2, programs] in float64. Reads grad, chosen, x and the tables of axis_kernel.
    Where grad is 0, x may be anything.
    """
    pid = tl.program_id(0)
    cells = tl.cast(rows, tl.int64) * columns
    pixels = tl.cast(height, tl.int64) * width
    groups = (channels + 3) // 4
    image = (pid // blocks // runs).to(tl.int64)
    cell = (pid % blocks).to(INDEX) * P + tl.arange(0, P)
    inside = cell < cells
    row = cell // columns
    column = cell % columns
    if MODE < 2:
        K: tl.constexpr = 2
    else:
        K: tl.constexpr = 1
    across = K * tl.cast(rows, tl.int64)
    upper = sample(firsts, fractions, steps, K * row, inside, LAST)
    left = sample(firsts + across, fractions + across, steps + across, K * column, inside, LAST)
    lower = upper
    later = left
    if K == 2:
        lower = sample(firsts, fractions, steps, K * row + 1, inside, LAST)
        later = sample(firsts + across, fractions + across, steps + across, K * column + 1, inside, LAST)
    if LAST:
        right = tl.cast(channels, INDEX)
        channel_stride = tl.cast(1, INDEX)
        grad_stride = tl.cast(1, INDEX)
        group_stride = tl.cast(1, INDEX)
        grad_at = along_map(cell * channels, LAST)
        byte_at = cell * groups
        by_rows = tl.zeros([P, G, 4], ACC)
    else:
        right = tl.cast(1, INDEX)
        channel_stride = pixels.to(INDEX)
        grad_stride = cells.to(INDEX)
        group_stride = cells.to(INDEX)
        grad_at = along_map(cell, LAST)
        byte_at = cell
        by_rows = tl.zeros([G, 4, P], ACC)
    by_columns = by_rows
    down = right * width
    x += image * channels * pixels
    grad += image * channels * cells
    group = tl.arange(0, G)
    channel = along_groups(group * 4, LAST) + members(LAST)
    begin = (pid // blocks % runs) * run
    for first_group in range(begin, tl.minimum(begin + run, groups), G):
        base = tl.cast(first_group, tl.int64) * 4
        there = along_map(inside, LAST) & (channel < channels - first_group * 4)
        at = grad + base * grad_stride + (channel.to(INDEX) * grad_stride + grad_at)
        share = widen(tl.load(at, mask=there, other=0.0), ACC)
        there = there & (share != 0)
        at = x + base * channel_stride + channel.to(INDEX) * channel_stride
        if MODE == 0:
            byte = chosen + image * groups * cells + tl.cast(first_group, tl.int64) * group_stride
            byte += group_side(group.to(INDEX) * group_stride, LAST) + map_side(byte_at, LAST)
            known = group_side(group < groups - first_group, LAST) & map_side(inside, LAST)
            byte = tl.load(byte, mask=known, other=0)
            bits = of_group(byte.to(tl.int32), LAST) >> (2 * members(LAST))
            r, row_fraction, row_step = either((bits & 2) != 0, upper, lower)
            c, column_fraction, column_step = either((bits & 1) != 0, left, later)
            by_row, by_column = rises(
                at + (r.to(INDEX) * down + c.to(INDEX) * right), there, r, c, row_fraction, column_fraction,
                height, width, down, right, ZEROS, ACC,
            )  # fmt: skip
            by_rows += tl.where(there, share * by_row * row_step, 0.0)
            by_columns += tl.where(there, share * by_column * column_step, 0.0)
        else:
            if MODE == 1:
                share *= 0.25
            for number in tl.static_range(K * K):
                r, row_fraction, row_step = upper if number < 2 else lower
                c, column_fraction, column_step = left if number % 2 == 0 else later
                by_row, by_column = rises(
                    at + (r.to(INDEX) * down + c.to(INDEX) * right), there, r, c, row_fraction, column_fraction,
                    height, width, down, right, ZEROS, ACC,
                )  # fmt: skip
                by_rows += tl.where(there, share * by_row * row_step, 0.0)
                by_columns += tl.where(there, share * by_column * column_step, 0.0)
    programs = tl.num_programs(0)
    tl.store(partial + pid, tl.sum(tl.ravel(by_rows.to(tl.float64)), axis=0))
    tl.store(partial + programs + pid, tl.sum(tl.ravel(by_columns.to(tl.float64)), axis=0))


@triton.jit(do_not_specialize=["programs"])
def scale_sum_kernel(partial, scale, dscale, programs, BLOCK: tl.constexpr):
    """One program: dscale = -sum(partial) / r^2 of one axis. Reads partial [2, programs], scale; writes dscale [2]."""
    axis = tl.program_id(0)
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, programs, BLOCK):
        number = start + tl.arange(0, BLOCK)
        total += tl.load(partial + axis * tl.cast(programs, tl.int64) + number, mask=number < programs, other=0.0)
    ratio = widen(tl.load(scale + axis), tl.float64)
    result = -tl.sum(total, axis=0) / ratio / ratio  # a square may be 0
    if dscale.dtype.element_ty != tl.float64:
        result = result.to(tl.float32)
    tl.store(dscale + axis, result.to(dscale.dtype.element_ty))

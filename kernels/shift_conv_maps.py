"""ACmix's convolution path, forward and to x: the same gathering convolution with merged weights, its ends exchanged.

Always merged: a mixed map cannot be shifted in registers, so that mixing on chip would be done again for each of the k
columns of taps and for the rows two programs share, which with 8 heads and k = 3 is as many products as merging.

Counted for T = 12, C / D = 4, k = 3, a program computes 4 rows and 4 maps at a time: of 432 products a position each
element of x that is loaded serves 12, and each weight 4 rows, so that the loads of a step take as long as its products.
"""

import triton
import triton.language as tl

from .arithmetic import widen


@triton.jit
def replaced(values, number: tl.constexpr, value):
    """The tuple with one of its values exchanged."""
    return values[:number] + (value,) + values[number + 1 :]


@triton.jit
def add_map(
    sums, x, weight, there, row, column, height, width, x_row, x_column, left,
    w_out: tl.constexpr, w_row: tl.constexpr, w_column: tl.constexpr, ONES: tl.constexpr,
    S: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr, R: tl.constexpr, MB: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """sums [R, MB] plus what one map adds. `x` and `weight` point to the first tap's, whose pixel is (row, column).
    ONES: the map is 1 inside."""
    for b in tl.static_range(KX):
        weights = ()
        for a in tl.static_range(KY):
            for m in tl.static_range(MB):
                at = weight + m * w_out + a * w_row + b * w_column
                weights = weights + (tl.load(at, mask=m < left, other=0.0),)
        beside = there & (column + b >= 0) & (column + b < width)
        for r in tl.static_range((R - 1) * S + KY):
            inside = beside & (row + r >= 0) & (row + r < height)
            if ONES:
                value = inside.to(ACC)
            else:
                value = widen(tl.load(x + r * x_row + b * x_column, mask=inside, other=0.0), ACC)
            for o in tl.static_range(R):
                if (r - o * S >= 0) and (r - o * S < KY):
                    for m in tl.static_range(MB):
                        total = sums[o * MB + m] + weights[(r - o * S) * MB + m] * value
                        sums = replaced(sums, o * MB + m, total)
    return sums


@triton.jit(
    do_not_specialize=[
        "batch", "depth", "maps", "outs", "height", "width", "rows", "columns", "before_y", "before_x", "row_blocks",
        "out_blocks", "lane_blocks", "weight_start", "out_start",
    ]
)  # fmt: skip
def shift_conv_kernel(
    x, weight, out, batch, depth, maps, outs, height, width, rows, columns, before_y, before_x,
    x_item, x_map, x_group, x_row, x_column, weight_start, w_group, w_in,
    out_start, out_item, out_map, out_group, out_row, out_column, row_blocks, out_blocks, lane_blocks,
    w_out: tl.constexpr, w_row: tl.constexpr, w_column: tl.constexpr,  # else each weight's address is kept
    BIAS: tl.constexpr, S: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr, R: tl.constexpr, MB: tl.constexpr,
    DL: tl.constexpr, P: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program: MB maps of the result, of DL neighbouring groups, at P lanes; a lane is R rows of one column.

    out[o, d, i, j] = sum over t, a, b of weight[d, o, t, a, b] x[t, d, i * S + a - before_y, j * S + b - before_x].

    Reads x and writes out by their strides; x is 0 outside, and map number `maps`, if BIAS, 1 inside.
    """
    program = tl.program_id(0).to(tl.int64)
    first = program % out_blocks * MB
    lane = program // out_blocks % lane_blocks * P + tl.arange(0, P)
    place = lane // DL
    j = place % columns
    i = place // columns % row_blocks * R
    item = place // columns // row_blocks
    there = item < batch
    left = outs - first  # maps of the result
    if DL == 1:
        d = program // out_blocks // lane_blocks
    else:
        d = program // out_blocks // lane_blocks * DL + lane % DL
        there = there & (d < depth)
        d = tl.minimum(d, depth - 1)
        left = left + lane * 0  # each lane has weights of its own
    row, column = i * S - before_y, j * S - before_x
    x += item * x_item + d * x_group + row * x_row + column * x_column
    weight += weight_start + d * w_group + first * w_out
    sums = (tl.zeros([P], ACC),) * (R * MB)
    for _ in range(maps):
        sums = add_map(
            sums, x, weight, there, row, column, height, width, x_row, x_column, left, w_out, w_row, w_column,
            False, S, KY, KX, R, MB, ACC,
        )  # fmt: skip
        x += x_map
        weight += w_in
    if BIAS:
        sums = add_map(
            sums, x, weight, there, row, column, height, width, x_row, x_column, left, w_out, w_row, w_column,
            True, S, KY, KX, R, MB, ACC,
        )  # fmt: skip
    out += out_start + item * out_item + d * out_group + first * out_map + i * out_row + j * out_column
    for o in tl.static_range(R):
        for m in tl.static_range(MB):
            written = there & (i + o < rows) & (lane * 0 + m < left)
            tl.store(out + o * out_row + m * out_map, sums[o * MB + m].to(out.dtype.element_ty), mask=written)

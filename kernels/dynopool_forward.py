"""DynOPool forward: a program pools a tile of cells, and goes over a run of channels with the same positions.

An element of the result costs its loads of x, from the first-level cache but for the first of each pixel. Samples of a
cell lie 1 / (2 r) pixels apart. Where they touch three pixels of an axis at most (every r from 1/2 on) all four share
nine loads instead of making sixteen; pixels whose weight is 0 are not loaded, which at r = 1/2 leaves four.
"""

import triton
import triton.language as tl

from .arithmetic import widen
from .dynopool_tiles import along_groups, along_map, between, group_side, map_side, members


@triton.jit
def two_rows(at, there, down, fraction, ACC: tl.constexpr):
    """x at a row of samples, in one column of pixels. The second pixel is not read where its weight is 0 (or NaN)."""
    first = widen(tl.load(at, mask=there, other=0.0), ACC)
    return between(first, widen(tl.load(at + down, mask=there & (fraction > 0), other=0.0), ACC), fraction)


@triton.jit
def one_sample(at, there, down, right, row_fraction, column_fraction, ACC: tl.constexpr):
    """x at the one sample of a cell. `at` points to its first pixels, `down` and `right` lead to the next ones."""
    left = two_rows(at, there, down, row_fraction, ACC)
    return between(left, two_rows(at + right, there & (column_fraction > 0), down, row_fraction, ACC), column_fraction)


@triton.jit
def bordered_sample(
    at, there, down, right, row_fraction, column_fraction, row, column, height, width, ACC: tl.constexpr
):  # fmt: skip
    """The same among pixels that are 0 beyond the map."""
    above = there & (row >= 0) & (row < height)
    below = there & (row + 1 < height) & (row_fraction > 0)
    left = (column >= 0) & (column < width)
    after = (column + 1 < width) & (column_fraction > 0)
    first = between(
        widen(tl.load(at, mask=above & left, other=0.0), ACC),
        widen(tl.load(at + down, mask=below & left, other=0.0), ACC), row_fraction,
    )  # fmt: skip
    second = between(
        widen(tl.load(at + right, mask=above & after, other=0.0), ACC),
        widen(tl.load(at + (down + right), mask=below & after, other=0.0), ACC), row_fraction,
    )  # fmt: skip
    return between(first, second, column_fraction)


@triton.jit
def near_rows(at, there, down, apart, fraction, next_fraction, ACC: tl.constexpr):
    """x at both rows of samples of a cell, in one column of pixels; the second row begins at the first's pixel or, if
    `apart`, at the one after it."""
    a = widen(tl.load(at, mask=there, other=0.0), ACC)
    b = widen(tl.load(at + down, mask=there & (apart | (fraction > 0) | (next_fraction > 0)), other=0.0), ACC)
    c = widen(tl.load(at + 2 * down, mask=there & apart & (next_fraction > 0), other=0.0), ACC)
    return between(a, b, fraction), between(tl.where(apart, b, a), tl.where(apart, c, b), next_fraction)


@triton.jit
def near_samples(
    at, there, down, right, lower, later, upper_fraction, lower_fraction, fraction, later_fraction, ACC: tl.constexpr
):  # fmt: skip
    """x at the four samples of a cell, by rows; `lower` and `later`, 0 or 1, are how many pixels the second ones are
    behind the first."""
    apart = lower != 0
    wide = later != 0
    a, d = near_rows(at, there, down, apart, upper_fraction, lower_fraction, ACC)
    second = there & (wide | (fraction > 0) | (later_fraction > 0))
    b, e = near_rows(at + right, second, down, apart, upper_fraction, lower_fraction, ACC)
    third = there & wide & (later_fraction > 0)
    c, f = near_rows(at + 2 * right, third, down, apart, upper_fraction, lower_fraction, ACC)
    above = between(a, b, fraction), between(tl.where(wide, b, a), tl.where(wide, c, b), later_fraction)
    below = between(d, e, fraction), between(tl.where(wide, e, d), tl.where(wide, f, e), later_fraction)
    return above + below


@triton.jit
def far_samples(
    at, there, down, right, lower, later, upper_fraction, lower_fraction, fraction, later_fraction, ACC: tl.constexpr
):  # fmt: skip
    """The same for any distance."""
    below = at + lower * down
    return (
        one_sample(at, there, down, right, upper_fraction, fraction, ACC),
        one_sample(at + later * right, there, down, right, upper_fraction, later_fraction, ACC),
        one_sample(below, there, down, right, lower_fraction, fraction, ACC),
        one_sample(below + later * right, there, down, right, lower_fraction, later_fraction, ACC),
    )


@triton.jit
def larger(best, choice, value, NUMBER: tl.constexpr):
    """The maximum and its number: NaN is largest, of equal values the first."""
    better = ~(value <= best) & (best == best)
    return tl.where(better, value, best), tl.where(better, NUMBER, choice)


@triton.jit
def first_and_fraction(firsts, fractions, at, there, LAST: tl.constexpr):
    """Of one sample of each cell, as a tile's dimension."""
    first = tl.load(firsts + at, mask=there, other=0)
    return along_map(first, LAST), along_map(tl.load(fractions + at, mask=there, other=0.0), LAST)


@triton.jit(do_not_specialize=["height", "width", "rows", "columns", "blocks", "runs", "run"])
def pool_kernel(
    x, firsts, fractions, out, chosen, channels, height, width, rows, columns, blocks, runs, run,
    MODE: tl.constexpr, ZEROS: tl.constexpr, LAST: tl.constexpr, ACC: tl.constexpr, INDEX: tl.constexpr,
    G: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """One program: P cells of one image, in `run` groups of four channels, G at a time.

        out = max or mean over a cell's samples (s, t) of sum_{a, b in {0, 1}} w_sa w_tb x[first_s + a, first_t + b],
        w_s0 = 1 - fraction_s, w_s1 = fraction_s

    Reads x [B, C, height, width], and firsts and fractions of axis_kernel; writes out [B, C, rows, columns] and, if
    given, chosen [B, ceil(C / 4), rows, columns], of each channel two bits: the number of the largest sample.
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
    x += image * channels * pixels
    out += image * channels * cells

    if MODE < 2:
        K: tl.constexpr = 2
    else:
        K: tl.constexpr = 1
    across = K * tl.cast(rows, tl.int64)
    top, upper_fraction = first_and_fraction(firsts, fractions, K * row, inside, LAST)
    left, fraction = first_and_fraction(firsts + across, fractions + across, K * column, inside, LAST)
    lower = top
    later = left
    near = True
    if K == 2:
        lower, lower_fraction = first_and_fraction(firsts, fractions, K * row + 1, inside, LAST)
        later, later_fraction = first_and_fraction(firsts + across, fractions + across, K * column + 1, inside, LAST)
        lower -= top
        later -= left
        near = tl.max(tl.ravel(tl.maximum(lower, later)), axis=0) <= 1
    if LAST:
        right = tl.cast(channels, INDEX)
        channel_stride = tl.cast(1, INDEX)
        out_stride = tl.cast(1, INDEX)
        out_at = along_map(cell * channels, LAST)
    else:
        right = tl.cast(1, INDEX)
        channel_stride = pixels.to(INDEX)
        out_stride = cells.to(INDEX)
        out_at = along_map(cell, LAST)
    down = right * width
    pixel = top.to(INDEX) * down + left.to(INDEX) * right
    begin = (pid // blocks % runs) * run
    end = tl.minimum(begin + run, groups)
    for first_group in range(begin, end, G):
        group = tl.arange(0, G)
        channel = along_groups(group * 4, LAST) + members(LAST)
        base = tl.cast(first_group, tl.int64) * 4
        there = along_map(inside, LAST) & (channel < channels - first_group * 4)
        at = x + base * channel_stride + (channel.to(INDEX) * channel_stride + pixel)
        if K == 1:
            if ZEROS:
                best = bordered_sample(
                    at, there, down, right, upper_fraction, fraction, top, left, height, width, ACC
                )  # fmt: skip
            else:
                best = one_sample(at, there, down, right, upper_fraction, fraction, ACC)
        else:
            if near:
                best, second, third, fourth = near_samples(
                    at, there, down, right, lower, later, upper_fraction, lower_fraction, fraction, later_fraction, ACC
                )  # fmt: skip
            else:
                best, second, third, fourth = far_samples(
                    at, there, down, right, lower, later, upper_fraction, lower_fraction, fraction, later_fraction, ACC
                )  # fmt: skip
            if MODE == 1:
                best = (best + second + third + fourth) * 0.25
            else:
                choice = tl.zeros_like(best).to(tl.int32)
                best, choice = larger(best, choice, second, 1)
                best, choice = larger(best, choice, third, 2)
                best, choice = larger(best, choice, fourth, 3)
                if chosen is not None:
                    bits = tl.sum(choice << (2 * members(LAST)), axis=2 if LAST else 1)
                    group_at = group_side(tl.cast(first_group, tl.int64) + group, LAST)
                    if LAST:
                        byte = (image * cells + map_side(cell, LAST)) * groups + group_at
                    else:
                        byte = (image * groups + group_at) * cells + map_side(cell, LAST)
                    known = group_side(group < groups - first_group, LAST) & map_side(inside, LAST)
                    tl.store(chosen + byte, bits.to(tl.uint8), mask=known)
        at = out + base * out_stride + (channel.to(INDEX) * out_stride + out_at)
        tl.store(at, best.to(out.dtype.element_ty), mask=there)

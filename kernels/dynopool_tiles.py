"""Device functions shared by DynOPool's kernels: where samples lie, tiles of both layouts, interpolation.

A tile holds P cells (or pixels) of a map, counted by rows, and G groups of four channels, whose choices share a byte:
[G, 4, P] of contiguous tensors and [P, G, 4] of channels_last ones (`LAST`), so that the last dimension is contiguous
in memory and a thread has the four channels of a group.

Positions decide in float64 which pixels are touched. They are those of a few rows and columns, so `axis_kernel` finds
them once a call; the other kernels read them from its tables and compute in no float64 but sums.
"""

import triton
import triton.language as tl

from .arithmetic import widen


@triton.jit
def position(cell, ratio, PLACE: tl.constexpr, CENTRE: tl.constexpr):
    """Of a sample, in pixels' centres, not clamped; one division and one subtraction in float64."""
    return (cell.to(tl.float64) + PLACE) / ratio - CENTRE


@triton.jit
def first_where(start, ratio, bound, REACHED: tl.constexpr, PLACE: tl.constexpr, CENTRE: tl.constexpr):
    """The first cell whose sample lies beyond `bound` (or at it, if `REACHED`): start, or one of the two after it.

    Positions as computed never decrease with the cell, so what is before that cell is not beyond.
    """
    result = start
    for ahead in tl.static_range(2):
        at = position(start + ahead, ratio, PLACE, CENTRE)
        if REACHED:
            result += (at < bound).to(tl.int64)
        else:
            result += (at <= bound).to(tl.int64)
    return result


@triton.jit
def floor_between(value, cells):
    """The whole part of a float64 as int64, moved into [-1, cells]; 0 for NaN."""
    value = tl.where(value == value, value, 0.0)
    value = tl.where(value < -1.0, -1.0, value)
    return tl.floor(tl.where(value > cells.to(tl.float64), cells.to(tl.float64), value)).to(tl.int64)


@triton.jit(do_not_specialize=["height", "width", "rows", "columns", "blocks"])
def axis_kernel(
    scale, firsts, fractions, steps, begins, ends, height, width, rows, columns, blocks,
    K: tl.constexpr, FIRST: tl.constexpr, CENTRE: tl.constexpr, ZEROS: tl.constexpr, ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: of one axis BLOCK samples and, if `begins` is given, BLOCK pixels.

    Sample s (of K) of cell i lies at u = (i + FIRST + s / 2) / r - CENTRE, clamped to v. Reads scale [2]; writes
    floor(v) to firsts, v - floor(v) to fractions and, if given, (u == v) (i + FIRST + s / 2) to steps, whose product
    with -1 / r^2 is the derivative of v; all [K * (rows + columns)]. To begins and ends [height + width] the cells
    begin <= i < end of which a sample may lie less than a pixel from the pixel: no others have a weight on it.
    """
    pid = tl.program_id(0)
    axis = pid // blocks
    number = (pid % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ratio = widen(tl.load(scale + axis), tl.float64)
    pixels = tl.where(axis == 0, height, width).to(tl.int64)
    cells = tl.where(axis == 0, rows, columns).to(tl.int64)

    cell = number // K
    step = cell.to(tl.float64) + FIRST + (number % K).to(tl.float64) * 0.5
    unclamped = step / ratio - CENTRE
    if ZEROS:
        low = -1.0
        high = pixels.to(tl.float64)
    else:
        low = 0.0
        high = (pixels - 1).to(tl.float64)
    clamped = tl.where(unclamped < low, low, tl.where(unclamped > high, high, unclamped))  # NaN stays
    first = tl.floor(tl.where(clamped == clamped, clamped, 0.0))
    at = axis * (K * tl.cast(rows, tl.int64)) + number
    exists = number < K * cells
    tl.store(firsts + at, first.to(tl.int32), mask=exists)
    tl.store(fractions + at, (clamped - first).to(ACC), mask=exists)
    if steps is not None:
        tl.store(steps + at, tl.where(clamped == unclamped, step, 0.0).to(ACC), mask=exists)

    if begins is not None:
        pixel = number.to(tl.float64)
        # Exact but for roundings of less than 2^-18 cells: `first_where` begins at most two cells early.
        begin = floor_between(ratio * (pixel - 1.0 + CENTRE) - (FIRST + 0.5 * (K - 1)), cells)
        end = floor_between(ratio * (pixel + 1.0 + CENTRE) - FIRST, cells)
        begin = first_where(begin, ratio, pixel - 1.0, False, FIRST + 0.5 * (K - 1), CENTRE)
        end = first_where(end, ratio, pixel + 1.0, True, FIRST, CENTRE)
        if not ZEROS:  # what lies beyond the map is clamped to its first and last pixels
            begin = tl.where(number == 0, 0, begin)
            end = tl.where(number == pixels - 1, cells, end)
        # A ratio that is NaN makes all gradients NaN; one cell does that.
        begin = tl.where(ratio == ratio, tl.minimum(tl.maximum(begin, 0), cells), 0)
        end = tl.where(ratio == ratio, tl.minimum(tl.maximum(end, 0), cells), 1)
        at = axis * tl.cast(height, tl.int64) + number
        tl.store(begins + at, begin.to(tl.int32), mask=number < pixels)
        tl.store(ends + at, end.to(tl.int32), mask=number < pixels)


# --- tiles -----------------------------------------------------------------------------------------------------------


@triton.jit
def along_map(value, LAST: tl.constexpr):
    """[P] as a tile's dimension."""
    return value[:, None, None] if LAST else value[None, None, :]


@triton.jit
def along_groups(value, LAST: tl.constexpr):
    """[G] as a tile's dimension."""
    return value[None, :, None] if LAST else value[:, None, None]


@triton.jit
def of_group(value, LAST: tl.constexpr):
    """[P, G] or [G, P] as a tile whose four channels are the same."""
    return value[:, :, None] if LAST else value[:, None, :]


@triton.jit
def group_side(value, LAST: tl.constexpr):
    """[G] as a dimension of the [P, G] or [G, P] bytes of a tile."""
    return value[None, :] if LAST else value[:, None]


@triton.jit
def map_side(value, LAST: tl.constexpr):
    """[P] likewise."""
    return value[:, None] if LAST else value[None, :]


@triton.jit
def members(LAST: tl.constexpr):
    """0, 1, 2, 3 as a tile's dimension."""
    member = tl.arange(0, 4)
    return member[None, None, :] if LAST else member[None, :, None]


@triton.jit
def between(first, second, fraction):
    """Exactly `first` where both are equal or the fraction is 0, even if the second is infinite."""
    return tl.fma(fraction, tl.where(fraction == 0, 0.0, second - first), first)


@triton.jit
def rise(first, second, fraction):
    """The derivative of `between` by the fraction, from the right: 0 at fraction 0 if that is not finite."""
    difference = second - first
    return tl.where((fraction == 0) & ~(tl.abs(difference) < float("inf")), 0.0, difference)

"""Local attention backward: which queries' windows reach a key, along one axis, as a table.

These are the queries that reach the keys themselves and, where the border reflects, those that reach the keys' images:
in the first pixel, u = -y, and in the last, u = 2 (pixels - 1) - y, outside the map both. The queries of the keys of a
sub-tile are listed one image after the other. An axis has few of them, so the table is made once a call.
"""

import triton
import triton.language as tl

from .local_attention_tiles import window_start


@triton.jit
def image_axis(
    first, last, residue, pixels, queries, stride, dilation, classes, common, inverse, IMAGE: tl.constexpr,
    KERNEL: tl.constexpr, STEP: tl.constexpr, PADDING: tl.constexpr,
):  # fmt: skip
    """The queries that reach an image of the keys from first to last of the coordinates of a residue: how many; and of
    the image (first query, class, its lattice's origin and count, shift), key m being at shift + m or shift - m."""
    if IMAGE == 0:
        own = residue
        shift = residue * 0
        low = first
        high = last
    elif IMAGE == 1:
        own = (dilation - residue) % dilation
        shift = tl.where(residue > 0, -1, 0).to(residue.dtype)
        low = shift - last
        high = tl.minimum(shift - first, -1)
    else:
        own = (2 * (pixels - 1) - residue) % dilation
        shift = (2 * (pixels - 1) - residue) // dilation
        low = shift - last
        high = shift - first
    count = (pixels - own + dilation - 1) // dilation
    if IMAGE == 2:
        low = tl.maximum(low, count)
    class_number = own // common * inverse % classes
    origin = class_number * stride // dilation
    number = tl.where(own % common == 0, tl.maximum(queries - class_number + classes - 1, 0) // classes, 0)
    begin = (tl.maximum(low - KERNEL // 2 - origin, 0) + STEP - 1) // STEP
    beyond = high + KERNEL // 2 - origin
    end = tl.where(beyond >= 0, beyond // STEP + 1, 0)
    if PADDING == 3:
        begin = tl.where(low < KERNEL, 0, begin)
        end = tl.where(high >= count - KERNEL, number, end)
    amount = tl.where(low <= high, tl.maximum(tl.minimum(end, number) - begin, 0), 0)
    return amount, (begin, class_number, origin, count, shift)


@triton.jit
def image_entry(
    entry, first, image, classes, IMAGE: tl.constexpr, KERNEL: tl.constexpr, STEP: tl.constexpr, PADDING: tl.constexpr
):  # fmt: skip
    """Of entries of an image's list: the query; the slot of the first key; the first slot that is the image's, and how
    many."""
    begin, class_number, origin, count, shift = image
    number = begin + entry
    start = window_start(origin + number * STEP, count, KERNEL, PADDING)
    if IMAGE == 1:
        lowest = start * 0
        amount = tl.minimum(tl.maximum(-start, 0), KERNEL)
    elif IMAGE == 2:
        lowest = tl.minimum(tl.maximum(count - start, 0), KERNEL)
        amount = KERNEL - lowest
    else:
        lowest = start * 0
        amount = start * 0 + KERNEL
    if IMAGE == 0:
        slot = shift + first - start
    else:
        slot = shift - first - start
    return class_number + classes * number, slot, lowest, amount


@triton.jit(
    do_not_specialize=[
        "height", "width", "rows", "columns", "stride", "dilation", "classes", "common", "inverse", "cells_y",
        "cells_x", "blocks",
    ]
)  # fmt: skip
def reach_kernel(
    table, counts, height, width, rows, columns, stride, dilation, classes, common, inverse, cells_y, cells_x, blocks,
    KERNEL: tl.constexpr, STEP: tl.constexpr, PADDING: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    REACH: tl.constexpr, CELLS: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """One program: the lists of CELLS cells of an axis, a cell being a residue and a sub-tile of its coordinates.

    Writes counts [axes' cells], how many queries a list has, and table [axes' cells, 4, REACH]: the queries; which slot
    of its window the sub-tile's first key is; the first slot that is the image's; and how many, negative of images,
    along which slots fall from key to key. cells_y of the first axis' cells, and dilation times as many in all, come
    first.
    """
    axis = tl.program_id(0) // blocks
    cells = tl.where(axis == 0, cells_y, cells_x)
    pixels = tl.where(axis == 0, height, width).to(INDEX)
    queries = tl.where(axis == 0, rows, columns).to(INDEX)
    cell = (tl.program_id(0) % blocks * CELLS + tl.arange(0, CELLS))[:, None].to(INDEX)  # [CELLS, 1]
    residue = cell // cells
    first = cell % cells * tl.where(axis == 0, HEIGHT, WIDTH)
    last = tl.minimum(first + tl.where(axis == 0, HEIGHT, WIDTH), (pixels - residue + dilation - 1) // dilation) - 1
    entry = tl.arange(0, REACH)[None, :]
    upto, image = image_axis(
        first, last, residue, pixels, queries, stride, dilation, classes, common, inverse, 0, KERNEL, STEP, PADDING
    )
    query, slot, lowest, amount = image_entry(entry, first, image, classes, 0, KERNEL, STEP, PADDING)
    if PADDING == 0:
        for number in tl.static_range(1, 3):
            more, image = image_axis(
                first, last, residue, pixels, queries, stride, dilation, classes, common, inverse, number, KERNEL, STEP,
                PADDING,
            )  # fmt: skip
            other = image_entry(entry - upto, first, image, classes, number, KERNEL, STEP, PADDING)
            later = entry >= upto
            query = tl.where(later, other[0], query)
            slot = tl.where(later, other[1], slot)
            lowest = tl.where(later, other[2], lowest)
            amount = tl.where(later, -other[3], amount)
            upto += more
    there = residue < dilation
    listed = entry < upto
    at = tl.where(axis == 0, 0, cells_y * dilation) + cell
    tl.store(counts + at, upto.to(tl.int32), mask=there)
    at = table + at * (4 * REACH) + entry
    tl.store(at, tl.where(listed, query, 0).to(tl.int32), mask=there)
    tl.store(at + REACH, tl.where(listed, slot, 0).to(tl.int32), mask=there)
    tl.store(at + 2 * REACH, tl.where(listed, lowest, 0).to(tl.int32), mask=there)
    tl.store(at + 3 * REACH, tl.where(listed, amount, 0).to(tl.int32), mask=there)

"""Device functions that the kernels of local attention share.

Queries i, and with them the keys of their windows, fall into classes that do not meet: i = c + classes * t, where
classes = dilation / g and g = gcd(stride, dilation). Along an axis the keys of a class lie on a *lattice*, at
residue + dilation * m, where m < 0 and m >= count are beyond the map; query t has slot a at m = start(t) + a, and
start(t + 1) = start(t) + STEP, STEP = stride / g. So whatever stride and dilation are, the windows of neighbouring
queries of a class overlap in neighbouring keys. A program takes DOWN x ACROSS sub-tiles of HEIGHT x WIDTH neighbours,
tensors [sub-tile, place, ...]; each multiplies its places with the lattice that their windows cover, block by block.
"""

import triton
import triton.language as tl

from .arithmetic import widen

REFLECT, ZEROS, MASK, SHIFT = range(4)  # the op's padding


# --- geometry --------------------------------------------------------------------------------------------------------


@triton.jit
def program_place(heads, classes, blocks_y, blocks_x, D: tl.constexpr, GROUP: tl.constexpr, INDEX: tl.constexpr):
    """Of this program: the first of the GROUP channels that it sums; image (batch element and head) as int64; batch
    element; head; class and tile by axis."""
    GROUPS: tl.constexpr = (D + GROUP - 1) // GROUP
    channel = tl.program_id(0) % GROUPS * GROUP
    program = tl.program_id(0) // GROUPS
    block_x = (program % blocks_x).to(INDEX)
    block_y = (program // blocks_x % blocks_y).to(INDEX)
    program = program // blocks_x // blocks_y
    class_x = (program % classes).to(INDEX)
    class_y = (program // classes % classes).to(INDEX)
    image = (program // classes // classes).to(tl.int64)
    return channel, image, image // heads, image % heads, class_y, class_x, block_y, block_x


@triton.jit
def places(HEIGHT: tl.constexpr, WIDTH: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr):
    """Row and column, in a program's tile, of each sub-tile [G, 1], and in a sub-tile of each place [1, M]."""
    sub_tile = tl.arange(0, DOWN * ACROSS)[:, None]
    place = tl.arange(0, HEIGHT * WIDTH)[None, :]
    return sub_tile // ACROSS * HEIGHT, sub_tile % ACROSS * WIDTH, place // WIDTH, place % WIDTH


@triton.jit
def window_start(number, count, KERNEL: tl.constexpr, PADDING: tl.constexpr):
    """Where on its lattice of `count` keys the window of the query at `number` begins."""
    start = number - KERNEL // 2
    if PADDING == 3:
        start = tl.minimum(tl.maximum(start, 0), count - KERNEL)
    return start


@triton.jit
def query_axis(
    first, place, class_number, pixels, stride, dilation, classes,
    KERNEL: tl.constexpr, STEP: tl.constexpr, PADDING: tl.constexpr,
):  # fmt: skip
    """Of queries first + place of a class their numbers, and as (base, after, residue, pixels) their windows: on the
    lattice of that residue the window of each sub-tile's first begins at base, and that of each as far after it."""
    residue = class_number * stride % dilation
    origin = class_number * stride // dilation
    count = (pixels - residue + dilation - 1) // dilation
    base = window_start(origin + first * STEP, count, KERNEL, PADDING)
    start = window_start(origin + (first + place) * STEP, count, KERNEL, PADDING)
    return class_number + classes * (first + place), (base, start - base, residue, pixels)


@triton.jit
def query_tile(
    height, width, rows, columns, stride, dilation, classes, class_y, class_x, block_y, block_x,
    KERNEL: tl.constexpr, STEP: tl.constexpr, PADDING: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
    DOWN: tl.constexpr, ACROSS: tl.constexpr,
):  # fmt: skip
    """Row, column [G, M] and whether they are there, and the windows by axis, of a program's queries."""
    top, left, y, x = places(HEIGHT, WIDTH, DOWN, ACROSS)
    i, windows_y = query_axis(
        block_y * (HEIGHT * DOWN) + top, y, class_y, height, stride, dilation, classes, KERNEL, STEP, PADDING
    )
    j, windows_x = query_axis(
        block_x * (WIDTH * ACROSS) + left, x, class_x, width, stride, dilation, classes, KERNEL, STEP, PADDING
    )
    return i, j, (i < rows) & (j < columns), windows_y, windows_x


@triton.jit
def key_axis(number, windows, dilation, PADDING: tl.constexpr):
    """Of keys [N] of the lattices that windows cover, counted from their base: coordinates [G, N] and whether they are
    there, and which slot of each window they are [G, M, N]."""
    base, after, residue, pixels = windows
    at = residue + dilation * (base + number[None, :])
    if PADDING == 0:
        at = tl.abs(at)
        at = tl.where(at < pixels, at, 2 * (pixels - 1) - at)
    UNSIGNED: tl.constexpr = tl.uint64 if at.dtype == tl.int64 else tl.uint32
    there = at.to(UNSIGNED, bitcast=True) < pixels.to(UNSIGNED)  # from 0 to pixels, in one comparison
    return at, there, number[None, None, :] - after[:, :, None]


@triton.jit
def keys_of(
    number, windows_y, windows_x, dilation, STEP: tl.constexpr, KERNEL: tl.constexpr, PADDING: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Of keys [N] of the sub-tiles' lattices, counted by rows: row, column and whether there is one [G, N]; slots
    (a, b) and whether it is one [G, M, N]."""
    LATTICE_Y: tl.constexpr = (HEIGHT - 1) * STEP + KERNEL
    LATTICE_X: tl.constexpr = (WIDTH - 1) * STEP + KERNEL
    y, there_y, a = key_axis(number // LATTICE_X, windows_y, dilation, PADDING)
    x, there_x, b = key_axis(number % LATTICE_X, windows_x, dilation, PADDING)
    there = there_y & there_x & (number < LATTICE_Y * LATTICE_X)[None, :]
    valid = (a >= 0) & (a < KERNEL) & (b >= 0) & (b < KERNEL)
    if PADDING == 2:
        valid = valid & there[:, None, :]
    return y, x, there, a, b, valid


# --- memory ----------------------------------------------------------------------------------------------------------


@triton.jit
def scalar(value, ACC: tl.constexpr):
    """A real parameter; float64 comes as a tensor, for a number reaches a GPU as float32."""
    if ACC == tl.float64:
        return tl.load(value)
    else:
        return value


@triton.jit
def load_rows(
    pointer, offsets, there, step, first, D: tl.constexpr, CHUNK: tl.constexpr, TYPE: tl.constexpr,
    GROUP: tl.constexpr = 1,
):  # fmt: skip
    """CHUNK channels of the pixels at offsets [G, M], `step` from channel to channel: [G, M, CHUNK], 0 where there is
    no pixel."""
    d = first + tl.arange(0, CHUNK)
    mask = there[:, :, None]
    if D % CHUNK != 0 or D % GROUP != 0:
        mask = mask & (d < D)[None, None, :]
    at = pointer + (offsets[:, :, None] + (d.to(offsets.dtype) * step)[None, None, :])
    values = tl.load(at, mask=mask, other=0.0)
    if values.dtype == TYPE:
        return values
    else:
        return widen(values, TYPE)


@triton.jit
def load_columns(
    pointer, offsets, there, step, first, D: tl.constexpr, CHUNK: tl.constexpr, TYPE: tl.constexpr,
    GROUP: tl.constexpr = 1,
):  # fmt: skip
    """The same as [G, CHUNK, M]."""
    d = first + tl.arange(0, CHUNK)
    mask = there[:, None, :]
    if D % CHUNK != 0 or D % GROUP != 0:
        mask = mask & (d < D)[None, :, None]
    at = pointer + (offsets[:, None, :] + (d.to(offsets.dtype) * step)[None, :, None])
    values = tl.load(at, mask=mask, other=0.0)
    if values.dtype == TYPE:
        return values
    else:
        return widen(values, TYPE)


@triton.jit
def store_rows(pointer, values, offsets, there, step, first, D: tl.constexpr, CHUNK: tl.constexpr, GROUP: tl.constexpr):
    """values [G, M, CHUNK] into the places of load_rows."""
    d = first + tl.arange(0, CHUNK)
    mask = there[:, :, None]
    if D % CHUNK != 0 or D % GROUP != 0:
        mask = mask & (d < D)[None, None, :]
    at = pointer + (offsets[:, :, None] + (d.to(offsets.dtype) * step)[None, None, :])
    tl.store(at, values.to(pointer.dtype.element_ty), mask=mask)


# --- values --------------------------------------------------------------------------------------------------------


@triton.jit
def products(
    kept, x, x_at, x_there, x_d, y, y_at, y_there, y_d, channels, D: tl.constexpr, CHUNK: tl.constexpr,
    KEEP: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Of pixels [G, M] of x and [G, N] of y, sums of products over all channels, [G, M, N].

    Those of x are `kept`, or loaded again, chunk by chunk, up to `channels`, which is D: were it known, the compiler
    would unroll the loop and hold the addresses of all chunks at once.
    """
    total = tl.zeros([x_at.shape[0], x_at.shape[1], y_at.shape[1]], ACC)
    if KEEP:
        for chunk in tl.static_range(0, D, CHUNK):
            columns = load_columns(y, y_at, y_there, y_d, chunk, D, CHUNK, OPERAND)
            total = tl.dot(kept[chunk // CHUNK], columns, total, input_precision=PRECISION, out_dtype=ACC)
    else:
        for chunk in tl.range(0, channels, CHUNK, disable_licm=True):
            columns = load_columns(y, y_at, y_there, y_d, chunk, D, CHUNK, OPERAND)
            rows = load_rows(x, x_at, x_there, x_d, chunk, D, CHUNK, OPERAND)
            total = tl.dot(rows, columns, total, input_precision=PRECISION, out_dtype=ACC)
    return total


@triton.jit
def add_products(
    sums, weights, y, y_at, y_there, y_d, first, D: tl.constexpr, CHUNK: tl.constexpr, GROUP: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """To sums, a tuple of [G, M, CHUNK], adds weights [G, M, N] times GROUP channels, from the first, of pixels [G, N]
    of y."""
    changed = ()
    for chunk in tl.static_range(0, GROUP, CHUNK):
        values = tl.permute(load_columns(y, y_at, y_there, y_d, first + chunk, D, CHUNK, OPERAND, GROUP), (0, 2, 1))
        changed = changed + (tl.dot(weights, values, sums[chunk // CHUNK], input_precision=PRECISION, out_dtype=ACC),)
    return changed


@triton.jit
def all_finite(sums, there, COUNT: tl.constexpr):
    """Whether the first COUNT of the tensors [G, M, CHUNK] are finite wherever [G, M] are there."""
    total = tl.zeros_like(sums[0])
    for chunk in tl.static_range(COUNT):
        total += sums[chunk] * 0.0  # NaN of what is not finite
    total = tl.where(there[:, :, None], total, 0.0)
    return tl.sum(tl.sum(tl.sum(total, axis=2), axis=1), axis=0) == 0


@triton.jit
def load_bias(bias, head, a, b, valid, KERNEL: tl.constexpr, ACC: tl.constexpr):
    """The bias [H, KERNEL, KERNEL] of slots (a, b)."""
    at = bias + head * (KERNEL * KERNEL) + (a * KERNEL + b)
    return widen(tl.load(at, mask=valid, other=0.0), ACC)

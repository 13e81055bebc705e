"""Device functions that the kernels of invariant point attention share, forward and backward.

A tile has BI queries i and BJ keys j, and its values come in two orders: [H, j, i] where products run over a head's own
channels and points, and [i, H, j] where they run over the pairs' channels, which all heads of a query share. Heads,
channels and points are padded to powers of two, with zeros. `exists` arrays say which queries and keys are there.
"""

import triton
import triton.language as tl

from .arithmetic import widen


@triton.jit
def product(left, right, total, PRECISION: tl.constexpr, ACC: tl.constexpr):
    """total + left right, of a batch of matrices."""
    return tl.dot(left, right, total, input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def product_of_parts(
    left, right, total, PARTS: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """total + left right, with left as a sum of PARTS operands of TYPE, or with right, if left is of TYPE already."""
    for part in tl.static_range(PARTS):
        if left.dtype == TYPE:
            piece = right.to(TYPE)
            total = product(left, piece, total, PRECISION, ACC)
            if part + 1 < PARTS:
                right -= piece.to(ACC)
        else:
            piece = left.to(TYPE)
            total = product(piece, right, total, PRECISION, ACC)
            if part + 1 < PARTS:
                left -= piece.to(ACC)
    return total


@triton.jit
def turned(values):
    """The transposes of a batch of matrices."""
    return tl.permute(values, (0, 2, 1))


@triton.jit
def heads_first(values):
    """[i, H, j] as [H, j, i]."""
    return tl.permute(values, (1, 2, 0))


@triton.jit
def queries_first(values):
    """[H, j, i] as [i, H, j]."""
    return tl.permute(values, (2, 0, 1))


@triton.jit
def load_rows(
    pointer, rows, exists, heads, H: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, TYPE: tl.constexpr
):  # fmt: skip
    """[H, rows, WIDTH] of a tensor [N, H, WIDTH]."""
    columns = tl.arange(0, BLOCK)
    inside = (heads < H)[:, None, None] & exists[None, :, None] & (columns < WIDTH)[None, None, :]
    offsets = rows[None, :, None] * (H * WIDTH) + heads[:, None, None] * WIDTH + columns[None, None, :]
    return widen_other(tl.load(pointer + offsets, mask=inside, other=0.0), TYPE)


@triton.jit
def store_rows(
    pointer, values, rows, exists, heads, H: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """[H, rows, WIDTH] into a tensor [N, H, WIDTH]."""
    columns = tl.arange(0, BLOCK)
    inside = (heads < H)[:, None, None] & exists[None, :, None] & (columns < WIDTH)[None, None, :]
    offsets = rows[None, :, None] * (H * WIDTH) + heads[:, None, None] * WIDTH + columns[None, None, :]
    tl.store(pointer + offsets, values, mask=inside)


@triton.jit
def widen_other(values, TYPE: tl.constexpr):
    """Values in TYPE; the interpreter's own conversion from bfloat16 is not exact."""
    if values.dtype == TYPE:
        return values
    else:
        return widen(values, TYPE)


@triton.jit
def load_head_values(pointer, rows, exists, heads, N, H: tl.constexpr, OTHER: tl.constexpr):
    """[H, rows] of a tensor [H, N]."""
    inside = (heads < H)[:, None] & exists[None, :]
    return tl.load(pointer + heads[:, None].to(tl.int64) * N + rows[None, :], mask=inside, other=OTHER)


@triton.jit
def point_offsets(
    rows, exists, heads, X: tl.constexpr, STEP: tl.constexpr, H: tl.constexpr, POINTS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Where coordinates of points [N, H, 3 POINTS] are, the next X further and the next point STEP further, as
    [H, rows, POINTS]; and which are there."""
    points = tl.arange(0, BLOCK)
    inside = (heads < H)[:, None, None] & exists[None, :, None] & (points < POINTS)[None, None, :]
    return (rows[None, :, None] * H + heads[:, None, None]) * (3 * POINTS) + X + STEP * points[None, None, :], inside


@triton.jit
def load_points(pointer, rows, exists, heads, H: tl.constexpr, POINTS: tl.constexpr, BLOCK: tl.constexpr):
    """Points [N, H, 3, POINTS], their x, y and z each [H, rows, POINTS]."""
    values = ()
    for x in tl.static_range(3):
        offsets, inside = point_offsets(rows, exists, heads, x * POINTS, 1, H, POINTS, BLOCK)
        values = values + (tl.load(pointer + offsets, mask=inside, other=0.0),)
    return values


@triton.jit
def load_near(
    pointer, rows, exists, heads, origin, H: tl.constexpr, POINTS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The same less the coordinates of the origin [3]; zeros beyond the points that there are."""
    values = ()
    for x in tl.static_range(3):
        offsets, inside = point_offsets(rows, exists, heads, x * POINTS, 1, H, POINTS, BLOCK)
        value = tl.load(pointer + offsets, mask=inside, other=0.0)
        values = values + (tl.where(inside, value - tl.load(origin + x), 0.0),)
    return values


@triton.jit
def store_points(
    pointer, values, rows, exists, heads, H: tl.constexpr, POINTS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Into points [N, H, POINTS, 3]."""
    for x in tl.static_range(3):
        offsets, inside = point_offsets(rows, exists, heads, x, 3, H, POINTS, BLOCK)
        tl.store(pointer + offsets, values[x], mask=inside)


@triton.jit
def point_sums(SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr):
    """Three sums [SIZE, ROWS, COLUMNS], of a coordinate each, of nothing yet."""
    values = ()
    for _ in tl.static_range(3):
        values = values + (tl.zeros([SIZE, ROWS, COLUMNS], ACC),)
    return values


@triton.jit
def add_points(sums, points, values, scale, ACC: tl.constexpr):
    """scale sums + sum_j points_j values_j for each coordinate, [H, POINTS, i], of points [H, j, POINTS] and values
    [H, j, i]; scale is [H, 1, i]."""
    added = ()
    for x in tl.static_range(3):
        added = added + (product(turned(points[x]), values, sums[x] * scale, "ieee", ACC),)
    return added


@triton.jit
def add_key_points(sums, values, points, ACC: tl.constexpr):
    """sums + sum_i values_i points_i by coordinate, [H, j, POINTS], of values [H, j, i], points [H, i, POINTS]."""
    added = ()
    for x in tl.static_range(3):
        added = added + (product(values, points[x], sums[x], "ieee", ACC),)
    return added


@triton.jit
def moved_sums(gradients, origin, centres, rows, exists):
    """sum_p gradients_p.(origin - centre), [H, rows], of gradients [H, rows, POINTS] by coordinate."""
    total = tl.zeros([gradients[0].shape[0], gradients[0].shape[1]], gradients[0].dtype)
    for x in tl.static_range(3):
        moved = tl.load(origin + x) - tl.load(centres + rows * 3 + x, mask=exists, other=0.0)
        total += tl.sum(gradients[x], axis=2) * moved[None, :]
    return total


@triton.jit
def load_pair_block(
    pointer, i, j, i_exists, j_exists, i_stride, j_stride, start, CZ: tl.constexpr, BLOCK: tl.constexpr,
    TYPE: tl.constexpr,
):  # fmt: skip
    """A block of channels of pairs, [i, j, BLOCK]."""
    channels = start + tl.arange(0, BLOCK)
    rows = i[:, None] * tl.cast(i_stride, tl.int64) + j[None, :] * tl.cast(j_stride, tl.int64)
    inside = (i_exists[:, None] & j_exists[None, :])[:, :, None]
    if CZ % BLOCK != 0:
        inside &= (channels < CZ)[None, None, :]
    return widen_other(tl.load(pointer + rows[:, :, None] + channels[None, None, :], mask=inside, other=0.0), TYPE)


@triton.jit
def load_pairs(
    pointer, i, j, i_exists, j_exists, i_stride, j_stride, CZ: tl.constexpr, BLOCK: tl.constexpr, TYPE: tl.constexpr
):  # fmt: skip
    """All channels of pairs, in as many blocks as it takes."""
    blocks = ()
    for start in tl.static_range(0, CZ, BLOCK):
        block = load_pair_block(pointer, i, j, i_exists, j_exists, i_stride, j_stride, start, CZ, BLOCK, TYPE)
        blocks = blocks + (block,)
    return blocks


@triton.jit
def load_heads(
    pointer, i, exists, heads, start, H: tl.constexpr, CZ: tl.constexpr, BLOCK: tl.constexpr,
    TYPE: tl.constexpr,
):  # fmt: skip
    """A block of channels of a tensor [N, H, CZ]: [i, H, BLOCK]."""
    channels = start + tl.arange(0, BLOCK)
    inside = exists[:, None, None] & (heads < H)[None, :, None] & (channels < CZ)[None, None, :]
    offsets = i[:, None, None] * (H * CZ) + heads[None, :, None] * CZ + channels[None, None, :]
    return widen_other(tl.load(pointer + offsets, mask=inside, other=0.0), TYPE)


@triton.jit
def load_weight(
    pointer, heads, start, BI: tl.constexpr, H: tl.constexpr, CZ: tl.constexpr, BLOCK: tl.constexpr,
    TYPE: tl.constexpr,
):  # fmt: skip
    """A block of channels of a matrix [H, CZ], for each query: [i, H, BLOCK]."""
    channels = start + tl.arange(0, BLOCK)
    inside = (heads < H)[:, None] & (channels < CZ)[None, :]
    values = tl.load(pointer + heads[:, None] * CZ + channels[None, :], mask=inside, other=0.0)
    return tl.broadcast_to(widen_other(values, TYPE)[None, :, :], (BI, heads.shape[0], BLOCK))


@triton.jit
def squared_distances(
    q_points, k_points, i, j, i_exists, j_exists, heads, N, H: tl.constexpr, POINTS: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """sum_p |q_ip - k_jp|^2 as [H, j, i], by differences; the points are [H, POINTS, 3, N]."""
    total = tl.zeros([heads.shape[0], j.shape[0], i.shape[0]], ACC)
    rows = heads.to(tl.int64) * (3 * POINTS) * N
    inside_i = (heads < H)[:, None] & i_exists[None, :]
    inside_j = (heads < H)[:, None] & j_exists[None, :]
    q_at = q_points + rows[:, None] + i[None, :]
    k_at = k_points + rows[:, None] + j[None, :]
    for _ in range(0, 3 * POINTS):  # a loop: unrolled, its addresses would take a hundred registers
        q_x = tl.load(q_at, mask=inside_i, other=0.0)
        k_x = tl.load(k_at, mask=inside_j, other=0.0)
        difference = q_x[:, None, :] - k_x[:, :, None]
        total = tl.fma(difference, difference, total)
        q_at += N
        k_at += N
    return total


@triton.jit
def add_pair_bias(
    total, block, weight, heads, start, BI: tl.constexpr, H: tl.constexpr, CZ: tl.constexpr,
    BLOCK: tl.constexpr, PARTS: tl.constexpr, TYPE: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """total [i, H, j] + what a block of the pairs' channels gives of the bias; the weight [PARTS, H, CZ] is the sum of
    its parts."""
    for part in tl.static_range(PARTS):
        rows = load_weight(weight + part * H * CZ, heads, start, BI, H, CZ, BLOCK, TYPE)
        total = product(rows, turned(block), total, PRECISION, ACC)
    return total


@triton.jit
def no_bias(constant, heads, BI: tl.constexpr, BJ: tl.constexpr, H: tl.constexpr, ACC: tl.constexpr):
    """What the bias [i, H, j] is without the pairs: the constant, unless None."""
    total = tl.zeros([BI, heads.shape[0], BJ], ACC)
    if constant is not None:
        total += widen(tl.load(constant + heads, mask=heads < H, other=0.0), ACC)[None, :, None]
    return total


@triton.jit
def load_bias(
    pointer, i, j, i_exists, j_exists, heads, i_stride, j_stride, h_stride, H: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """The bias [i, H, j] of a tensor [i, j, H] of any strides."""
    rows = i[:, None] * tl.cast(i_stride, tl.int64) + j[None, :] * tl.cast(j_stride, tl.int64)
    inside = (i_exists[:, None] & j_exists[None, :])[:, :, None] & (heads < H)[None, None, :]
    offsets = rows[:, :, None] + (heads * tl.cast(h_stride, tl.int64))[None, None, :]
    return turned(widen(tl.load(pointer + offsets, mask=inside, other=0.0), ACC))


@triton.jit
def without_masked(logits, mask, infinity, i, j, i_exists, j_exists, KNOWN: tl.constexpr):
    """Logits [i, H, j] less infinity for pairs with a masked residue, or -inf (infinity None: they do not exist); if
    the logsumexp of queries that are masked is KNOWN to be inf, only where keys are."""
    if mask is not None:
        valid = (tl.load(mask + j, mask=j_exists, other=0) != 0)[None, :]
        if (infinity is not None) or not KNOWN:
            valid = valid & (tl.load(mask + i, mask=i_exists, other=0) != 0)[:, None]
        if infinity is not None:
            logits = tl.where(valid[:, None, :], logits, logits - tl.load(infinity))
        else:
            logits = tl.where(valid[:, None, :], logits, float("-inf"))
    return tl.where(j_exists[None, None, :], logits, float("-inf"))


@triton.jit
def tile_logits(
    q, k, bias, distances, weights, mask, infinity, i, j, i_exists, j_exists, KNOWN: tl.constexpr, W_L: tl.constexpr,
    SCALE: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """w_L (SCALE q.k + bias) - weights distances as [i, H, j], from q [H, i, C], k [H, j, C], distances [H, j, i]."""
    content = tl.zeros([q.shape[0], k.shape[1], q.shape[1]], ACC)
    content = product(k, turned(q), content, PRECISION, ACC) * tl.full([1], SCALE, ACC)
    content = tl.fma(-weights[:, None, None] + tl.zeros_like(distances), distances, content)
    w_l = tl.full([1], W_L, ACC)
    logits = tl.fma(w_l + tl.zeros_like(bias), bias, queries_first(content))
    return without_masked(logits, mask, infinity, i, j, i_exists, j_exists, KNOWN)


@triton.jit
def tile_gradients(
    s, da, v, near, do, do_points, shift, delta, lse, BI: tl.constexpr, BLOCK_H: tl.constexpr, BJ: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The weights a = exp(s - lse) and ds = a (da + do.v + do_points.near + shift - delta), both [i, H, j].

    From s, da [i, H, j], v [H, j, C], value points near [H, j, PV] by coordinate, and the gradients do [H, i, C],
    do_points [H, i, PV] by coordinate; shift, delta and lse are [H, i].
    """
    a = tl.exp(s - tl.trans(lse)[:, :, None])
    by_head = product(v, turned(do), tl.zeros([BLOCK_H, BJ, BI], ACC), PRECISION, ACC)
    for x in tl.static_range(3):
        by_head = product(near[x], turned(do_points[x]), by_head, "ieee", ACC)
    return a, a * (da + queries_first(by_head + (shift - delta)[:, None, :]))

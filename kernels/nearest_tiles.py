"""Device functions shared by the nearest-neighbour kernels: distances of a tile of pairs, and their order.

A tile is `[targets, queries]`. Queries lie along the last axis because Triton then gives every thread whole
columns, so a minimum over targets stays inside a thread.

Order of neighbours. A distance is a float64 that is never negative, so its bits, read as an int64, sort as the
distance does; NaN is mapped to one value above infinity, and `EMPTY` (no neighbour) lies above that. Neighbours
are ordered by (key, index), which is (isnan(d), d, index).

Points are read as `[B, count, D]` where `SMALL` (D unrolled, the query's coordinates stay in registers), and as
`[B, D, count]` otherwise, so that a load for one dimension is contiguous.
"""

import triton
import triton.language as tl

EMPTY = tl.constexpr(0x7FFFFFFFFFFFFFFF)  # key of a slot without a neighbour
NAN_KEY = tl.constexpr(0x7FF8000000000000)  # bits of the quiet NaN: above those of +inf
NO_ROW = tl.constexpr(0x7FFFFFFFFFFFFFFF)


@triton.jit
def load_coordinate(
    points, rows, inside, count, d, other, D: tl.constexpr, SMALL: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """Coordinate `d`, as ACC, of the points `rows` of one cloud (int64, or int32 where they count from a tile's first).

    All are read if `inside` is None, otherwise `other` stands for those that are not inside.
    """
    if SMALL:
        pointers = points + rows * D + d
    else:
        pointers = points + tl.cast(d, tl.int64) * count + rows
    if inside is None:
        value = tl.load(pointers)
    else:
        value = tl.load(pointers, mask=inside, other=other)
    if value.dtype == tl.bfloat16:
        # The upper half of a float32. Triton's interpreter takes subnormal numbers for zero when it converts them.
        value = (value.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return value.to(ACC)


@triton.jit
def skip_points(points, rows, D: tl.constexpr, SMALL: tl.constexpr):
    """The pointer to a cloud whose first point is point `rows` (a scalar) of this one."""
    if SMALL:
        return points + rows * D
    else:
        return points + rows


@triton.jit
def load_queries(points, rows, inside, count, D: tl.constexpr, SMALL: tl.constexpr, ACC: tl.constexpr):
    """The coordinates (a tuple of D vectors where `SMALL`, else empty) and which queries hold a NaN."""
    coordinates = ()
    has_nan = rows < 0
    if SMALL:
        for d in tl.static_range(D):
            x = load_coordinate(points, rows, inside, count, d, 0.0, D, SMALL, ACC)
            has_nan = has_nan | (x != x)
            coordinates = coordinates + (x,)
    else:
        for d in range(D):
            x = load_coordinate(points, rows, inside, count, d, 0.0, D, SMALL, ACC)
            has_nan = has_nan | (x != x)
    return coordinates, has_nan


@triton.jit
def add_term(total, x, y, NORM: tl.constexpr, ACC: tl.constexpr):
    difference = x - y
    if NORM == 1:
        return total + tl.abs(difference)
    elif ACC == tl.float64:
        # Not fused: the sum is then that of a float64 brute force to the last bit, near ties included.
        return total + difference * difference
    else:
        return tl.fma(difference, difference, total)


@triton.jit
def pair_distances(
    coordinates, queries, query_rows, query_inside, query_count, targets, target_rows, target_inside, target_count,
    D: tl.constexpr, NORM: tl.constexpr, SMALL: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Distances `[T, Q]` in `ACC`. `target_rows` is `[T, 1]` (one tile for all queries) or `[T, Q]` (gathered).

    A target outside its cloud is read as +inf: its distance is inf or NaN and can win nowhere.
    """
    total = tl.zeros([target_rows.shape[0], query_rows.shape[0]], ACC)
    if SMALL:
        for d in tl.static_range(D):
            y = load_coordinate(targets, target_rows, target_inside, target_count, d, float("inf"), D, SMALL, ACC)
            total = add_term(total, coordinates[d].to(ACC)[None, :], y, NORM, ACC)
    else:
        for d in range(D):
            x = load_coordinate(queries, query_rows, query_inside, query_count, d, 0.0, D, SMALL, ACC)
            y = load_coordinate(targets, target_rows, target_inside, target_count, d, float("inf"), D, SMALL, ACC)
            total = add_term(total, x[None, :], y, NORM, ACC)
    return total


@triton.jit
def distance_keys(distances):
    """float64 distances to int64 keys that sort as they do, NaN last."""
    return tl.where(distances != distances, NAN_KEY, distances.to(tl.int64, bitcast=True))


@triton.jit
def key_distances(keys, ACC: tl.constexpr):
    """The float64 distance of a key, rounded once to `ACC`; +inf where there is no neighbour."""
    return tl.where(keys == EMPTY, float("inf"), keys.to(tl.float64, bitcast=True)).to(ACC)


@triton.jit
def precedes(key, row, other_key, other_row):
    return (key < other_key) | ((key == other_key) & (row < other_row))


@triton.jit
def cloud_length(lengths, batch, count):
    """The valid points of a cloud, int64; a length on the device is clamped, not trusted."""
    if lengths is None:
        return tl.cast(count, tl.int64)
    else:
        return tl.minimum(tl.maximum(tl.load(lengths + batch), 0), tl.cast(count, tl.int64))

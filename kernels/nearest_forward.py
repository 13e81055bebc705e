"""Kernels for the one nearest neighbour of every point, in one or both directions."""

import triton
import triton.language as tl

from .nearest_tiles import (
    EMPTY,
    NAN_KEY,
    NO_ROW,
    cloud_length,
    distance_keys,
    key_distances,
    load_queries,
    pair_distances,
    precedes,
    skip_points,
)


@triton.jit
def exact_minimum(
    key, row, coordinates, queries, query_rows, query_inside, query_count,
    targets, tile_start, target_limit, target_count,
    D: tl.constexpr, NORM: tl.constexpr, SMALL: tl.constexpr, BLOCK_T: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """(key, row) improved by the float64 distances of the tile at `tile_start`: `[1, 1]`, or `[1, Q]` one a query.

    In chunks of a few targets: a whole tile of float64 values and 64-bit pointers does not fit the registers.
    """
    lane = tl.arange(0, CHUNK)[:, None]
    for chunk in range(0, BLOCK_T, CHUNK):
        rows = tile_start + (chunk + lane)
        inside = rows < target_limit
        distances = pair_distances(
            coordinates, queries, query_rows, query_inside, query_count, targets, rows, inside, target_count,
            D, NORM, SMALL, tl.float64,
        )  # fmt: skip
        keys = tl.where(inside, distance_keys(distances), EMPTY)
        chunk_key = tl.min(keys, axis=0)
        chunk_row = tl.min(tl.where((keys == chunk_key[None, :]) & inside, rows, NO_ROW), axis=0)
        better = precedes(chunk_key, chunk_row, key, row)
        key = tl.where(better, chunk_key, key)
        row = tl.where(better, chunk_row, row)
    return key, row


@triton.jit(do_not_specialize=["N", "M", "B", "x_blocks", "y_blocks", "splits", "part_stride"])
def nearest_kernel(
    x, y, x_lengths, y_lengths, x_distances, x_indices, y_distances, y_indices, part_keys, part_rows,
    B, N, M, x_blocks, y_blocks, splits, part_stride,
    SLACK: tl.constexpr, TINY: tl.constexpr, D: tl.constexpr, NORM: tl.constexpr, SMALL: tl.constexpr,
    ACC: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_T: tl.constexpr, CHUNK: tl.constexpr, SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """One program: the nearest targets of BLOCK_Q queries, among one of `splits` ranges of targets.

    Reads x [B, N, D] and y [B, M, D] (or their transposes, see nearest_tiles); writes distance and index of its
    queries, or with SPLIT their (key, row) to part_keys, part_rows [splits, part_stride] (rows of x, then of y) for
    `merge_kernel`.
    The first x_blocks programs of a batch element have queries in x and targets in y, the next y_blocks the reverse.

        index = argmin_j (d(q, t_j), j),  d = sum_d (q_d - t_jd)^2  or  sum_d |q_d - t_jd|,  in float64

    1. Filter, in ACC (float32 unless the points are float64): the smallest tile minimum, its tile, and the second
       smallest. Every float32 distance is within a factor 1 +- gamma of the true one (and TINY, for underflow), so the
       true nearest has a float32 distance of at most limit = smallest * (1 + SLACK) + TINY.
    2. The winning tile again, in float64.
    3. Only where the second smallest does not exceed limit (about one query in a million, but all queries of a
       lattice): the filter again, and every tile with a distance within the limit in float64. Overflow and NaN make
       the limit inf or the comparison false, and so end here with every target.
    """
    pid = tl.program_id(0)
    blocks = x_blocks + y_blocks
    block = pid % blocks
    split = (pid // blocks) % splits
    batch = (pid // blocks // splits).to(tl.int64)
    forward = block < x_blocks

    x_count = tl.cast(N, tl.int64)
    y_count = tl.cast(M, tl.int64)
    x_limit = cloud_length(x_lengths, batch, x_count)
    y_limit = cloud_length(y_lengths, batch, y_count)
    x_base = x + batch * x_count * D
    y_base = y + batch * y_count * D
    query_count = tl.where(forward, x_count, y_count)
    query_limit = tl.where(forward, x_limit, y_limit)
    target_count = tl.where(forward, y_count, x_count)
    target_limit = tl.where(forward, y_limit, x_limit)
    queries = tl.where(forward, x_base, y_base)
    targets = tl.where(forward, y_base, x_base)

    query_start = tl.where(forward, block, block - x_blocks).to(tl.int64) * BLOCK_Q
    query_rows = query_start + tl.arange(0, BLOCK_Q)  # [Q]
    query_inside = query_rows < query_limit
    coordinates, has_nan = load_queries(queries, query_rows, query_inside, query_count, D, SMALL, ACC)

    split_tiles = tl.cdiv(tl.cdiv(target_count, BLOCK_T), splits).to(tl.int32)
    first = split * split_tiles
    last = tl.minimum(first + split_tiles, tl.cdiv(target_limit, BLOCK_T).to(tl.int32))
    # A block of padding has nothing to do, and where one tile holds all targets step 2 alone decides.
    last = tl.where((query_start < query_limit) & (target_limit > BLOCK_T), last, first)
    # The last tile is moved back to end with the cloud, so that no load needs a mask; a target seen twice does no harm.
    last_start = tl.maximum(target_limit - BLOCK_T, 0)

    lane = tl.arange(0, BLOCK_T)[:, None]  # [T, 1]
    best = tl.full([BLOCK_Q], float("inf"), ACC)
    second = tl.full([BLOCK_Q], float("inf"), ACC)
    best_tile = tl.zeros([BLOCK_Q], tl.int32) + first
    for tile in tl.range(first, last, num_stages=STAGES):
        tile_targets = skip_points(targets, tl.minimum(tl.cast(tile, tl.int64) * BLOCK_T, last_start), D, SMALL)
        distances = pair_distances(
            coordinates, queries, query_rows, query_inside, query_count, tile_targets, lane, None, target_count,
            D, NORM, SMALL, ACC,
        )  # fmt: skip
        smallest = tl.min(distances, axis=0)  # a NaN counts only where all are NaN, and then compares false
        better = smallest < best
        second = tl.where(better, best, tl.minimum(second, smallest))
        best_tile = tl.where(better, tile, best_tile)
        best = tl.where(better, smallest, best)

    key = tl.full([BLOCK_Q], EMPTY, tl.int64)
    row = tl.full([BLOCK_Q], NO_ROW, tl.int64)
    key, row = exact_minimum(
        key, row, coordinates, queries, query_rows, query_inside, query_count,
        targets, tl.minimum(best_tile.to(tl.int64) * BLOCK_T, last_start)[None, :], target_limit, target_count,
        D, NORM, SMALL, BLOCK_T, CHUNK,
    )  # fmt: skip

    active = query_inside & (has_nan == 0)
    limit = best * (1.0 + SLACK) + TINY
    if ACC == tl.float64:  # the filter was exact, unless it found no number
        ambiguous = active & (best == float("inf"))
    else:
        ambiguous = active & ((second > limit) == 0)
    if tl.max(ambiguous.to(tl.int32), axis=0) > 0:
        for tile in range(first, last):
            tile_start = tl.minimum(tl.cast(tile, tl.int64) * BLOCK_T, last_start)
            distances = pair_distances(
                coordinates, queries, query_rows, query_inside, query_count,
                skip_points(targets, tile_start, D, SMALL), lane, None, target_count, D, NORM, SMALL, ACC,
            )  # fmt: skip
            hit = ambiguous & ((tl.min(distances, axis=0) > limit) == 0)
            if tl.max(hit.to(tl.int32), axis=0) > 0:
                key, row = exact_minimum(
                    key, row, coordinates, queries, query_rows, query_inside, query_count, targets,
                    tile_start, target_limit, target_count, D, NORM, SMALL, BLOCK_T, CHUNK,
                )  # fmt: skip

    key = tl.where(has_nan & (target_limit > 0), NAN_KEY, key)
    row = tl.where(has_nan | (key == EMPTY), -1, row)
    key = tl.where(query_inside, key, 0)  # a row of padding: distance 0, index -1
    row = tl.where(query_inside, row, -1)

    exists = query_rows < query_count
    if SPLIT:
        part = split.to(tl.int64) * part_stride
        part += tl.where(forward, batch * x_count, B * x_count + batch * y_count)
        tl.store(part_keys + part + query_rows, key, mask=exists)
        tl.store(part_rows + part + query_rows, row, mask=exists)
    else:
        out_distances = tl.where(forward, x_distances, y_distances) + batch * query_count
        out_indices = tl.where(forward, x_indices, y_indices) + batch * query_count
        tl.store(out_distances + query_rows, key_distances(key, ACC), mask=exists)
        tl.store(out_indices + query_rows, row, mask=exists)


@triton.jit(do_not_specialize=["x_rows", "y_rows", "splits"])
def merge_kernel(
    part_keys, part_rows, x_distances, x_indices, y_distances, y_indices, x_rows, y_rows, splits,
    ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: the least (key, row) over the splits of BLOCK rows out of x_rows + y_rows, decoded.

    Reads part_keys, part_rows [splits, x_rows + y_rows]; writes the distances and indices of both directions.
    """
    x_rows = tl.cast(x_rows, tl.int64)
    total = x_rows + y_rows
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = rows < total
    key = tl.full([BLOCK], EMPTY, tl.int64)
    row = tl.full([BLOCK], NO_ROW, tl.int64)
    for split in range(splits):
        offsets = tl.cast(split, tl.int64) * total + rows
        part_key = tl.load(part_keys + offsets, mask=inside, other=EMPTY)
        part_row = tl.load(part_rows + offsets, mask=inside, other=NO_ROW)
        better = precedes(part_key, part_row, key, row)
        key = tl.where(better, part_key, key)
        row = tl.where(better, part_row, row)
    distances = key_distances(key, ACC)
    forward = rows < x_rows
    tl.store(x_distances + rows, distances, mask=forward)
    tl.store(x_indices + rows, row, mask=forward)
    tl.store(y_distances + (rows - x_rows), distances, mask=inside & (rows >= x_rows))
    tl.store(y_indices + (rows - x_rows), row, mask=inside & (rows >= x_rows))

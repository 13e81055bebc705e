"""Kernels for the k nearest neighbours of every query."""

import triton
import triton.language as tl

from .nearest_tiles import (
    EMPTY,
    NAN_KEY,
    cloud_length,
    distance_keys,
    key_distances,
    load_queries,
    pair_distances,
    precedes,
    skip_points,
)

LARGEST = tl.constexpr(3.4028234663852886e38)


@triton.jit
def empty_list(wanted, SLOTS: tl.constexpr, BLOCK_Q: tl.constexpr, ROW: tl.constexpr):
    """An unsorted list [SLOTS, Q] of `wanted` empty slots; the others hold -1, below every key, and are never replaced.

    The rows of empty slots are negative and distinct, so that (key, row) always names one slot.
    """
    slot = tl.arange(0, SLOTS)[:, None] + tl.zeros([1, BLOCK_Q], tl.int32)
    return tl.where(slot < wanted, EMPTY, -1).to(tl.int64), (-1 - slot).to(ROW)


@triton.jit
def insert_candidates(list_keys, list_rows, keys, rows, ROW: tl.constexpr):
    """Put into each query's list those candidates of the tile [T, Q] that belong there.

    The least candidate of every query at a time, for as many turns as the busiest query needs. Tiles come in order of
    row, so a candidate as far as the list's last is behind it and the strict comparison is enough.
    """
    worst = tl.max(list_keys, axis=0)
    turns = tl.max(tl.sum((keys < worst[None, :]).to(tl.int32), axis=0), axis=0)
    highest: tl.constexpr = 0x7FFFFFFF if ROW == tl.int32 else 0x7FFFFFFFFFFFFFFF
    for _ in range(turns):
        key = tl.min(keys, axis=0)
        row = tl.min(tl.where(keys == key[None, :], rows, highest), axis=0)
        keys = tl.where((keys == key[None, :]) & (rows == row[None, :]), EMPTY, keys)
        worst = tl.max(list_keys, axis=0)
        worst_row = tl.max(tl.where(list_keys == worst[None, :], list_rows, -highest), axis=0)
        replaced = (list_keys == worst[None, :]) & (list_rows == worst_row[None, :]) & (key < worst)[None, :]
        list_keys = tl.where(replaced, key[None, :], list_keys)
        list_rows = tl.where(replaced, row[None, :], list_rows)
    return list_keys, list_rows


@triton.jit
def take_first(keys, rows, ROW: tl.constexpr):
    """The least (key, row) of every query's list, and the list without it."""
    highest: tl.constexpr = 0x7FFFFFFF if ROW == tl.int32 else 0x7FFFFFFFFFFFFFFF
    key = tl.min(keys, axis=0)
    row = tl.min(tl.where(keys == key[None, :], rows, highest), axis=0)
    keys = tl.where((keys == key[None, :]) & (rows == row[None, :]), EMPTY, keys)
    return key, row, keys


@triton.jit(do_not_specialize=["B", "N", "M", "k", "x_blocks", "splits", "passes"])
def knn_kernel(
    x, y, x_lengths, y_lengths, out_distances, out_indices, part_keys, part_rows, B, N, M, k, x_blocks, splits, passes,
    SLACK: tl.constexpr, TINY: tl.constexpr, D: tl.constexpr, NORM: tl.constexpr, SMALL: tl.constexpr,
    ACC: tl.constexpr, ROW: tl.constexpr, SLOTS: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_T: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """One program: the k nearest targets of BLOCK_Q queries, among one of `splits` ranges of targets.

    Reads x [B, N, D] and y [B, M, D] (or their transposes, see nearest_tiles); writes distances and indices
    [B, N, k], or with SPLIT (then k <= SLOTS) the sorted (key, row) to part_keys, part_rows [splits, B * N, k].

    Each query keeps SLOTS neighbours in registers. A tile's distances in ACC are the filter: those beyond the list's
    last by more than the rounding error allows are dropped, the rest are computed in float64 and inserted by
    (distance, index). A k beyond SLOTS takes `passes` rounds over the targets, each finding the next SLOTS neighbours
    after the last (distance, index) of the round before.
    """
    pid = tl.program_id(0)
    block = pid % x_blocks
    split = (pid // x_blocks) % splits
    batch = (pid // x_blocks // splits).to(tl.int64)

    query_count = tl.cast(N, tl.int64)
    target_count = tl.cast(M, tl.int64)
    query_limit = cloud_length(x_lengths, batch, query_count)
    target_limit = cloud_length(y_lengths, batch, target_count)
    queries = x + batch * query_count * D
    targets = y + batch * target_count * D

    query_start = block.to(tl.int64) * BLOCK_Q
    query_rows = query_start + tl.arange(0, BLOCK_Q)  # [Q]
    query_inside = query_rows < query_limit
    exists = query_rows < query_count
    coordinates, has_nan = load_queries(queries, query_rows, query_inside, query_count, D, SMALL, ACC)
    active = query_inside & (has_nan == 0)

    split_tiles = tl.cdiv(tl.cdiv(target_count, BLOCK_T), splits).to(tl.int32)
    first = split * split_tiles
    last = tl.minimum(first + split_tiles, tl.cdiv(target_limit, BLOCK_T).to(tl.int32))
    last = tl.where(query_start < query_limit, last, first)  # a block of padding has nothing to do
    first_target = first.to(tl.int64) * BLOCK_T
    split_targets = tl.minimum(target_limit - first_target, split_tiles.to(tl.int64) * BLOCK_T)

    lane = tl.arange(0, BLOCK_T)[:, None]  # [T, 1]
    output = (batch * query_count + query_rows) * k
    part = (split * (B * query_count) + batch * query_count + query_rows) * k
    floor_key = tl.full([BLOCK_Q], -1, tl.int64)  # the last neighbour of the round before
    floor_row = tl.full([BLOCK_Q], -1, ROW)
    for turn in range(passes):
        wanted = tl.minimum(k - turn * SLOTS, SLOTS)
        list_keys, list_rows = empty_list(wanted, SLOTS, BLOCK_Q, ROW)
        limit = tl.full([BLOCK_Q], float("inf"), ACC)
        floor = floor_key.to(tl.float64, bitcast=True).to(ACC)  # NaN, which drops nothing, in the first round
        # Not above the largest float32, which may be the rounding of a distance that lies behind the floor.
        floor = tl.where(floor > LARGEST, LARGEST, floor) * (1.0 - SLACK) - TINY
        for tile in range(first, last):
            start = tl.cast(tile, tl.int64) * BLOCK_T
            tile_targets = skip_points(targets, start, D, SMALL)
            inside = lane < tl.minimum(target_limit - start, BLOCK_T).to(tl.int32)
            distances = pair_distances(
                coordinates, queries, query_rows, query_inside, query_count, tile_targets, lane, inside, target_count,
                D, NORM, SMALL, ACC,
            )  # fmt: skip
            # Comparisons that are false for NaN: it is never dropped here.
            dropped = (distances > limit[None, :]) | (distances < floor[None, :])
            hits = (dropped == 0) & inside & active[None, :]
            if tl.max(tl.max(hits.to(tl.int32), axis=0), axis=0) > 0:
                rows = (start + lane).to(ROW) + tl.zeros([1, BLOCK_Q], ROW)
                exact = pair_distances(
                    coordinates, queries, query_rows, query_inside, query_count, tile_targets, lane, inside,
                    target_count, D, NORM, SMALL, tl.float64,
                )  # fmt: skip
                keys = distance_keys(exact)
                keys = tl.where(hits & precedes(floor_key[None, :], floor_row[None, :], keys, rows), keys, EMPTY)
                list_keys, list_rows = insert_candidates(list_keys, list_rows, keys, rows, ROW)
                worst = tl.max(list_keys, axis=0).to(tl.float64, bitcast=True).to(ACC)  # NaN while a slot is empty
                limit = worst * (1.0 + SLACK) + TINY

        list_keys = tl.where(list_keys < 0, EMPTY, list_keys)
        for slot in range(wanted):
            key, row, list_keys = take_first(list_keys, list_rows, ROW)
            floor_key = key
            floor_row = row
            place = turn * SLOTS + slot
            key = tl.where(has_nan, tl.where(place < split_targets, NAN_KEY, EMPTY), key)
            key = tl.where(query_inside, key, 0)  # a row of padding: distance 0, index -1
            hidden = has_nan | (query_inside == 0) | (key == EMPTY)
            if SPLIT:
                # Negative rows stand for index -1, and stay distinct for `merge_lists_kernel`.
                hidden_row = -1 - (split.to(tl.int64) * k + place)
                tl.store(part_keys + part + place, key, mask=exists)
                tl.store(part_rows + part + place, tl.where(hidden, hidden_row, row.to(tl.int64)), mask=exists)
            else:
                tl.store(out_distances + output + place, key_distances(key, ACC), mask=exists)
                tl.store(out_indices + output + place, tl.where(hidden, -1, row.to(tl.int64)), mask=exists)

    # Slots for which there cannot be a target: k > M.
    for place in range(passes * SLOTS, k):
        tl.store(out_distances + output + place, tl.where(query_inside, float("inf"), 0.0).to(ACC), mask=exists)
        tl.store(out_indices + output + place, tl.full([BLOCK_Q], -1, tl.int64), mask=exists)


@triton.jit(do_not_specialize=["rows_total", "k", "splits"])
def merge_lists_kernel(
    part_keys, part_rows, out_distances, out_indices, rows_total, k, splits,
    ACC: tl.constexpr, SLOTS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One program: the k least (key, row) over the splits' lists of BLOCK queries, sorted and decoded.

    Reads part_keys, part_rows [splits, rows_total, k]; writes distances and indices [rows_total, k].
    """
    total = tl.cast(rows_total, tl.int64)
    queries = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [Q]
    inside = queries < total
    list_keys, list_rows = empty_list(k, SLOTS, BLOCK, tl.int64)
    for split in range(splits):
        for start in range(0, k, CHUNK):
            slot = start + tl.arange(0, CHUNK)[:, None]
            offsets = (tl.cast(split, tl.int64) * total + queries[None, :]) * k + slot
            mask = inside[None, :] & (slot < k)
            keys = tl.load(part_keys + offsets, mask=mask, other=EMPTY)
            rows = tl.load(part_rows + offsets, mask=mask, other=-1)
            list_keys, list_rows = insert_candidates(list_keys, list_rows, keys, rows, tl.int64)
    list_keys = tl.where(list_keys < 0, EMPTY, list_keys)
    for place in range(k):
        key, row, list_keys = take_first(list_keys, list_rows, tl.int64)
        hidden = (key == EMPTY) | (row < 0)
        tl.store(out_distances + queries * k + place, key_distances(key, ACC), mask=inside)
        tl.store(out_indices + queries * k + place, tl.where(hidden, -1, row), mask=inside)

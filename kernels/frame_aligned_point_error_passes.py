"""The passes over pairs of a frame and a point, and the sums that end them.

All vectors run over points; a frame is numbers, which every thread holds. Points come by coordinate, [B, 6, P]: x, y
and z of the prediction, then of the target. What has weight 0 may hold anything: it is taken as 0.
"""

import triton
import triton.language as tl


@triton.jit
def load_frame(pred_rotations, pred_translations, target_rotations, target_translations, frame_weights, row, exists):
    """A frame's two rotations, two translations and weight."""
    weight = tl.load(frame_weights + row, mask=exists, other=0.0)
    there = weight != 0
    pred_rotation = ()
    target_rotation = ()
    for number in tl.static_range(9):
        pred_rotation = pred_rotation + (tl.load(pred_rotations + row * 9 + number, mask=there, other=0.0),)
        target_rotation = target_rotation + (tl.load(target_rotations + row * 9 + number, mask=there, other=0.0),)
    pred_translation = ()
    target_translation = ()
    for number in tl.static_range(3):
        pred_translation = pred_translation + (tl.load(pred_translations + row * 3 + number, mask=there, other=0.0),)
        other = tl.load(target_translations + row * 3 + number, mask=there, other=0.0)
        target_translation = target_translation + (other,)
    return pred_rotation, pred_translation, target_rotation, target_translation, weight


@triton.jit
def load_points(points, position_weights, p, there, P):
    """The six coordinates of points, and their weights."""
    weight = tl.load(position_weights + p, mask=there, other=0.0)
    found = ()
    for number in tl.static_range(6):
        found = found + (tl.load(points + tl.cast(P, tl.int64) * number + p, mask=weight != 0, other=0.0),)
    return found, weight


@triton.jit
def load_limits(coefficients, limits):
    """Clamps within and between chains; slopes below and above each; eps."""
    a, b = tl.load(coefficients), tl.load(coefficients + 1)
    c, d = tl.load(coefficients + 2), tl.load(coefficients + 3)
    return tl.load(limits), tl.load(limits + 1), a + b, b, c + d, d, tl.load(limits + 2)


@triton.jit
def pair_errors(frame, points, eps):
    """x - t of the prediction, the errors e in the frame, 1 / d and d = sqrt(|e|^2 + eps)."""
    r, s = frame[0], frame[2]
    pred = (points[0] - frame[1][0], points[1] - frame[1][1], points[2] - frame[1][2])
    target = (points[3] - frame[3][0], points[4] - frame[3][1], points[5] - frame[3][2])
    e = ()
    squared = eps
    for j in tl.static_range(3):
        # R^T (x - t) and S^T (y - s) take the same steps: where they are alike, their difference is 0.
        here = tl.fma(r[6 + j], pred[2], tl.fma(r[3 + j], pred[1], r[j] * pred[0]))
        there = tl.fma(s[6 + j], target[2], tl.fma(s[3 + j], target[1], s[j] * target[0]))
        difference = here - there
        e = e + (difference,)
        squared = tl.fma(difference, difference, squared)
    inverse = tl.rsqrt(squared)
    return pred, e, inverse, squared * inverse


@triton.jit
def pair_slopes(distance, between, limits, CHAINS: tl.constexpr):
    """The clamped distance, and the derivative of the loss by the distance, before it is weighted."""
    limit, below, above = limits[0], limits[2], limits[3]
    if CHAINS:
        limit = tl.where(between, limits[1], limit)
        below, above = tl.where(between, limits[4], below), tl.where(between, limits[5], above)
    over = distance > limit  # NaN is not: it passes
    return tl.where(over, limit, distance), tl.where(over, above, below)


@triton.jit(do_not_specialize=["F", "blocks"])
def frames_kernel(
    pred_rotations, pred_translations, target_rotations, target_translations, points, frame_weights, position_weights,
    coefficients, pair_weights, frame_chains, position_chains, limits, partial, d_rotations, d_translations, F, P,
    blocks, GRADIENTS: tl.constexpr, BF: tl.constexpr, BP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program: BF frames f of an item, with all its points p, BP at a time.

        e = R_f^T (x_p - t_f) - S_f^T (y_p - s_f),  d = sqrt(|e|^2 + eps),  w = frame_weights_f position_weights_p
        sums_k = sum over pairs of kind k of (w min(d, clamp_k), w d, w), k = 0 within a chain, 1 between chains
        dR_f = sum_p (x_p - t_f) g^T,  dt_f = - R_f sum_p g
        g = w (coefficients_k0 [d <= clamp_k] + coefficients_k1) e / d

    w is also times pair_weights [B, F, P], unless that is None. Reads R, t (pred) and S, s (target) [B, F, ...], points
    (x, y) [B, 6, P], the weights, coefficients [B, 2, 2], chains [B, F] and [B, P] (None: all pairs are of kind 0),
    limits [3]: both clamps, eps. Writes partial [B, blocks, 6]: the program's sums, and where GRADIENTS are wanted dR
    and dt.
    """
    CHAINS: tl.constexpr = frame_chains is not None
    program = tl.program_id(0).to(tl.int64)
    batch = program // blocks
    first = (program % blocks).to(tl.int32) * BF
    points += batch * 6 * P
    position_weights += batch * P
    bounds = load_limits(coefficients + batch * 4, limits)
    frames = ()
    for f in tl.static_range(BF):
        row = batch * F + first + f
        frame = load_frame(
            pred_rotations, pred_translations, target_rotations, target_translations, frame_weights, row, first + f < F
        )
        frames = frames + (frame,)
    sums = ()
    for _ in tl.static_range(6 if CHAINS else 3):
        sums = sums + (tl.zeros([BP], ACC),)
    moments = ()
    for _ in tl.static_range(12 * BF if GRADIENTS else 0):
        moments = moments + (tl.zeros([BP], ACC),)
    some = frames[0][4] != 0
    for f in tl.static_range(1, BF):
        some = some | (frames[f][4] != 0)
    for start in range(0, tl.where(some, P, 0), BP):
        p = start + tl.arange(0, BP)
        there = p < P
        x, point_weight = load_points(points, position_weights, p, there, P)
        new_moments = ()
        for f in tl.static_range(BF):
            exists = first + f < F
            pred, e, inverse, distance = pair_errors(frames[f], x, bounds[6])
            weight = point_weight * frames[f][4]
            if pair_weights is not None:
                own = pair_weights + (batch * F + first + f) * P
                weight *= tl.load(own + p, mask=p < tl.where(exists, P, 0), other=0.0)
            between = there
            if CHAINS:
                chain = tl.load(frame_chains + batch * F + first + f, mask=exists, other=0)
                between = tl.load(position_chains + batch * P + p, mask=there, other=0) != chain
            clamped, slope = pair_slopes(distance, between, bounds, CHAINS)
            if CHAINS:
                inside, outside = tl.where(between, 0.0, weight), tl.where(between, weight, 0.0)
                sums = (
                    tl.fma(inside, clamped, sums[0]), tl.fma(inside, distance, sums[1]), sums[2] + inside,
                    tl.fma(outside, clamped, sums[3]), tl.fma(outside, distance, sums[4]), sums[5] + outside,
                )  # fmt: skip
            else:
                sums = (tl.fma(weight, clamped, sums[0]), tl.fma(weight, distance, sums[1]), sums[2] + weight)
            if GRADIENTS:
                share = weight * slope * inverse
                g = (share * e[0], share * e[1], share * e[2])
                for i in tl.static_range(3):
                    for j in tl.static_range(3):
                        new_moments = new_moments + (tl.fma(pred[i], g[j], moments[12 * f + 3 * i + j]),)
                for j in tl.static_range(3):
                    new_moments = new_moments + (moments[12 * f + 9 + j] + g[j],)
        if GRADIENTS:
            moments = new_moments

    for number in tl.static_range(6):
        if CHAINS or number < 3:
            tl.store(partial + program * 6 + number, tl.sum(sums[number], axis=0))
        else:
            tl.store(partial + program * 6 + number, 0.0)
    if GRADIENTS:
        for f in tl.static_range(BF):
            row = batch * F + first + f
            exists = first + f < F
            for number in tl.static_range(9):
                tl.store(d_rotations + row * 9 + number, tl.sum(moments[12 * f + number], axis=0), mask=exists)
            g = ()
            for j in tl.static_range(3):
                g = g + (tl.sum(moments[12 * f + 9 + j], axis=0),)
            rotation = frames[f][0]
            for i in tl.static_range(3):
                turned = rotation[3 * i] * g[0] + rotation[3 * i + 1] * g[1] + rotation[3 * i + 2] * g[2]
                tl.store(d_translations + row * 3 + i, -turned, mask=exists)


@triton.jit(do_not_specialize=["F", "blocks", "batches", "share"])
def points_kernel(
    pred_rotations, pred_translations, target_rotations, target_translations, points, frame_weights, position_weights,
    coefficients, pair_weights, frame_chains, position_chains, limits, parts, F, P, blocks, batches, share,
    BP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program: BP points p of an item, with a share of its frames f.

        dx_p = sum_f R_f g

    with g as in the pass over frames, whose inputs it reads. Writes the part of its share, of parts [splits, B, P, 3].
    """
    CHAINS: tl.constexpr = frame_chains is not None
    program = tl.program_id(0).to(tl.int64)
    batch = program // blocks % batches
    split = program // blocks // batches
    p = (program % blocks).to(tl.int32) * BP + tl.arange(0, BP)
    there = p < P
    x, point_weight = load_points(points + batch * 6 * P, position_weights + batch * P, p, there, P)
    bounds = load_limits(coefficients + batch * 4, limits)
    between = there
    if CHAINS:
        own_chain = tl.load(position_chains + batch * P + p, mask=there, other=0)
    found = (tl.zeros([BP], ACC), tl.zeros([BP], ACC), tl.zeros([BP], ACC))
    begin = (split * share).to(tl.int32)
    for f in range(begin, tl.minimum(begin + share, F)):
        row = batch * F + f
        if tl.load(frame_weights + row) != 0:
            frame = load_frame(
                pred_rotations, pred_translations, target_rotations, target_translations, frame_weights, row, f < F
            )
            _, e, inverse, distance = pair_errors(frame, x, bounds[6])
            weight = point_weight * frame[4]
            if pair_weights is not None:
                weight *= tl.load(pair_weights + row * P + p, mask=there, other=0.0)
            if CHAINS:
                between = own_chain != tl.load(frame_chains + row)
            _, slope = pair_slopes(distance, between, bounds, CHAINS)
            factor = weight * slope * inverse
            g = (factor * e[0], factor * e[1], factor * e[2])
            sums = ()
            for i in tl.static_range(3):
                total = tl.fma(frame[0][3 * i], g[0], found[i])
                sums = sums + (tl.fma(frame[0][3 * i + 2], g[2], tl.fma(frame[0][3 * i + 1], g[1], total)),)
            found = sums
    parts += (split * batches + batch) * P * 3
    for i in tl.static_range(3):
        tl.store(parts + p * 3 + i, found[i], mask=there)


@triton.jit(do_not_specialize=["count"])
def finish_kernel(partial, coefficients, sums, loss, count, BLOCK: tl.constexpr):
    """One program: an item's sums [B, 2, 3] of all partial [B, count, 6], in float64, and its loss [B],

    sum_k coefficients_k0 sums_k0 + coefficients_k1 sums_k1.
    """
    batch = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, 8)
    total = tl.zeros([8], tl.float64)
    for start in range(0, count, BLOCK):
        row = start + tl.arange(0, BLOCK)
        inside = (row < count)[:, None] & (lane < 6)[None, :]
        values = tl.load(partial + (batch * count + row[:, None]) * 6 + lane[None, :], mask=inside, other=0.0)
        total += tl.sum(values.to(tl.float64), axis=0)
    tl.store(sums + batch * 6 + lane, total, mask=lane < 6)
    term = lane % 3
    factor = tl.load(coefficients + batch * 4 + lane // 3 * 2 + term, mask=(lane < 6) & (term < 2), other=0.0)
    weighed = tl.where(factor == 0, 0.0, factor.to(tl.float64) * total)  # what does not count may be infinite
    tl.store(loss + batch, tl.sum(weighed, axis=0))


@triton.jit(do_not_specialize=["splits"])
def fold_kernel(parts, out, size, splits, BLOCK: tl.constexpr):
    """One program: BLOCK sums over the splits of parts [splits, size], in their order, written to out [size]."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    total = tl.load(parts + at, mask=inside, other=0.0)
    for split in range(1, splits):
        total += tl.load(parts + tl.cast(split, tl.int64) * size + at, mask=inside, other=0.0)
    tl.store(out + at, total, mask=inside)

"""The kernels of structural violations. Atoms of a residue are padded to 16, those that are not there with radius -inf.

The atoms of an item stand in planes [4, N, 16]: x, y, z and radius; spheres [4, N] are the residues' centres and how
far their atoms reach. `contents` [N] has the number of a residue's atoms, and bits that tell which are there.
"""

import triton
import triton.language as tl

# Places of atoms: backbone N and C, and SG of a cysteine.
N_PLACE = tl.constexpr(0)
C_PLACE = tl.constexpr(2)
SG_PLACE = tl.constexpr(5)
CYSTEINE = tl.constexpr(4)

HAS_N = tl.constexpr(256)
HAS_C = tl.constexpr(512)
HAS_SG = tl.constexpr(1024)
COUNT = tl.constexpr(255)

MARGIN = tl.constexpr(1.00002)  # of what is compared to tell that residues are apart: more than its rounding


@triton.jit(do_not_specialize=["N", "residues"])
def spheres_kernel(
    positions, atoms, aatype, radii, planes, spheres, contents, N, residues, BLOCK: tl.constexpr, ACC: tl.constexpr
):
    """One program: packs BLOCK residues of all items.

    Reads positions [B, N, 14, 3], atoms [B, N, 14], aatype [B, N], radii [21, 14]; writes planes [B, 4, N, 16],
    spheres [B, 4, N]: the mean of the atoms that are there, and the largest distance from it plus the largest radius
    (-inf where there is none); contents [B, N].
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = row < residues
    batch, n = row // N, row % N
    a = tl.arange(0, 16)
    inside = exists[:, None] & (a < 14)[None, :]
    there = inside & (tl.load(atoms + row[:, None] * 14 + a[None, :], mask=inside, other=0) != 0)
    kind = tl.load(aatype + row, mask=exists, other=0)
    radius = tl.load(radii + kind[:, None] * 14 + a[None, :], mask=there, other=float("-inf"))  # [R, 16]
    ones = tl.where(there, 1, 0)
    count = tl.sum(ones, axis=1)
    divisor = tl.where(count == 0, 1, count).to(ACC)
    squared = tl.zeros([BLOCK, 16], ACC)
    out = planes + (batch[:, None] * 4 * N + n[:, None]) * 16 + a[None, :]
    step = tl.cast(N, tl.int64)
    for number in tl.static_range(3):
        x = tl.load(positions + (row[:, None] * 14 + a[None, :]) * 3 + number, mask=there, other=0.0)
        tl.store(out + step * (16 * number), x, mask=exists[:, None] & (a < 16)[None, :])
        centre = tl.sum(x, axis=1) / divisor
        tl.store(spheres + (batch * 4 + number) * N + n, centre, mask=exists)
        squared += (x - centre[:, None]) * (x - centre[:, None])
    tl.store(out + step * 48, radius, mask=exists[:, None] & (a < 16)[None, :])
    # An atom at infinity has no distance from the centre; its residue reaches everywhere.
    spread = tl.where(squared == squared, tl.sqrt(squared), float("inf"))
    reach = tl.max(tl.where(there, spread, float("-inf")), axis=1) + tl.max(radius, axis=1)
    tl.store(spheres + (batch * 4 + 3) * N + n, reach * MARGIN, mask=exists)
    bits = tl.where(a == N_PLACE, HAS_N, 0) + tl.where(a == C_PLACE, HAS_C, 0)
    bits = bits[None, :] + tl.where((a == SG_PLACE)[None, :] & (kind == CYSTEINE)[:, None], HAS_SG, 0)
    tl.store(contents + row, count + tl.sum(tl.where(there, bits, 0), axis=1), mask=exists)


@triton.jit
def own_residue(planes, spheres, contents, residue_index, asym_id, i, a, N):
    """What a program keeps of its residue: x, y, z and radius [16]; the sphere; contents, number and chain."""
    atoms = ()
    sphere = ()
    for number in tl.static_range(4):
        atoms = atoms + (tl.load(planes + (tl.cast(N, tl.int64) * number + i) * 16 + a),)
        sphere = sphere + (tl.load(spheres + tl.cast(N, tl.int64) * number + i),)
    chain = tl.load(residue_index + i)
    if asym_id is not None:
        chain = tl.load(asym_id + i)
    return atoms, sphere, tl.load(contents + i), tl.load(residue_index + i), chain


@triton.jit
def may_clash(spheres, own, i, j, N, tolerance):
    """Whether residues j are not surely too far away for a clash with residue i. NaN is not far away."""
    exists = j < N
    squared = 0.0
    for number in tl.static_range(3):
        x = tl.load(spheres + tl.cast(N, tl.int64) * number + j, mask=exists, other=0.0)
        squared += (x - own[1][number]) * (x - own[1][number])
    reach = tl.load(spheres + tl.cast(N, tl.int64) * 3 + j, mask=exists, other=float("-inf"))
    far = tl.sqrt(squared) > own[1][3] + reach - tolerance / MARGIN
    return exists & (j != i) & (far == 0)


@triton.jit
def sequence_steps(residue_index, asym_id, own, j, exists):
    """How many numbers residues j come after residue i in its chain; 0 in other chains."""
    steps = tl.load(residue_index + j, mask=exists, other=0) - own[3]
    if asym_id is not None:
        steps = tl.where(tl.load(asym_id + j, mask=exists, other=0) == own[4], steps, 0)
    return steps


@triton.jit
def clash_tile(planes, contents, residue_index, asym_id, own, limits, i, first, a, N, BJ: tl.constexpr):
    """The atoms of residue i with those of BJ residues from `first` on: differences, distances, overlaps [16, BJ 16],
    and which pairs can clash."""
    c = tl.arange(0, BJ * 16)
    j, b = first + c // 16, c % 16
    exists = j < N
    differences = ()
    squared = tl.load(limits + 1)
    for number in tl.static_range(3):
        plane = planes + (tl.cast(N, tl.int64) * number + first) * 16
        difference = own[0][number][:, None] - tl.load(plane + c, mask=exists, other=0.0)[None, :]
        differences = differences + (difference,)
        squared = tl.fma(difference, difference, squared)
    radius = tl.load(planes + (tl.cast(N, tl.int64) * 3 + first) * 16 + c, mask=exists, other=float("-inf"))
    distance = tl.sqrt(squared)
    overlap = own[0][3][:, None] + radius[None, :] - tl.load(limits) - distance
    steps = sequence_steps(residue_index, asym_id, own, j, exists)
    bridge = (tl.load(contents + j, mask=exists, other=0) & own[2] & HAS_SG) != 0
    # An atom of another residue can be bound to one atom of this residue at most.
    bound = tl.where((b == N_PLACE) & (steps == 1), C_PLACE, -1)
    bound = tl.where((b == C_PLACE) & (steps == -1), N_PLACE, bound)
    bound = tl.where((b == SG_PLACE) & bridge, SG_PLACE, bound)
    pairs = ((radius > float("-inf")) & (j != i))[None, :] & (own[0][3] > float("-inf"))[:, None]
    return differences, distance, overlap, pairs & (a[:, None] != bound[None, :])


@triton.jit
def within_tile(planes, aatype, lower, upper, own, limits, i, a, N):
    """The atoms of residue i among themselves: differences, distances, how far these lie below and above their bounds
    [16, 16], and which pairs there are."""
    b = tl.arange(0, 16)
    differences = ()
    squared = tl.load(limits + 1)
    for number in tl.static_range(3):
        other = tl.load(planes + (tl.cast(N, tl.int64) * number + i) * 16 + b)
        difference = own[0][number][:, None] - other[None, :]
        differences = differences + (difference,)
        squared = tl.fma(difference, difference, squared)
    radius = tl.load(planes + (tl.cast(N, tl.int64) * 3 + i) * 16 + b)
    pairs = (own[0][3] > float("-inf"))[:, None] & (radius > float("-inf"))[None, :] & (a[:, None] != b[None, :])
    distance = tl.sqrt(squared)
    at = tl.load(aatype + i) * 196 + a[:, None] * 14 + b[None, :]
    below = tl.load(lower + at, mask=pairs, other=0.0) - distance
    above = distance - tl.load(upper + at, mask=pairs, other=0.0)
    return differences, distance, below, above, pairs


@triton.jit(do_not_specialize=["N"])
def violations_kernel(
    planes, spheres, contents, aatype, residue_index, asym_id, lower, upper, limits, clash_loss, clashes, pairs,
    within_loss, within_violations, N, CHUNK: tl.constexpr, BJ: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program: residue i of an item, with all others j.

        clash_loss_ia = sum_jb max(o_ab, 0),  o_ab = r_a + r_b - tolerance - d_ab,  clashes_ia = sum_jb [o_ab > 0]
        within_loss_ia = 2 sum_b (max(l_ab - d_ab, 0) + max(d_ab - u_ab, 0)),  within_violations_ia: how many are not 0
        d_ab = sqrt(|x_a - x_b|^2 + eps),  pairs_i: how many pairs of atoms a of i and b of any j can clash

    Reads planes, spheres, contents, aatype, residue_index, asym_id (None: one chain), lower and upper [21, 14, 14],
    limits: tolerance and eps. Writes clash_loss, clashes, within_loss, within_violations [B, N, 14], pairs [B, N].
    """
    row = tl.program_id(0).to(tl.int64)
    batch, i = row // N, (row % N).to(tl.int32)
    base = batch * N
    planes += base * 64
    spheres += base * 4
    contents += base
    aatype += base
    residue_index += base
    if asym_id is not None:
        asym_id += base
    a = tl.arange(0, 16)
    own = own_residue(planes, spheres, contents, residue_index, asym_id, i, a, N)
    tolerance = tl.load(limits)
    loss = tl.zeros([16, BJ * 16], ACC)
    count = tl.zeros([16, BJ * 16], tl.int32)
    others = tl.zeros([CHUNK], tl.int64)
    bound = tl.zeros([CHUNK], tl.int32)
    for start in range(0, N, CHUNK):
        j = start + tl.arange(0, CHUNK)
        exists = (j < N) & (j != i)
        content = tl.load(contents + j, mask=exists, other=0)
        steps = sequence_steps(residue_index, asym_id, own, j, exists)
        others += content & COUNT
        after = (steps == 1) & ((own[2] & HAS_C) != 0) & ((content & HAS_N) != 0)
        before = (steps == -1) & ((own[2] & HAS_N) != 0) & ((content & HAS_C) != 0)
        bridge = (own[2] & content & HAS_SG) != 0
        bound += after.to(tl.int32) + before.to(tl.int32) + bridge.to(tl.int32)
        if tl.max(may_clash(spheres, own, i, j, N, tolerance).to(tl.int32), axis=0) > 0:
            for first in range(start, tl.minimum(start + CHUNK, N), BJ):
                near = may_clash(spheres, own, i, first + tl.arange(0, BJ), N, tolerance)
                if tl.max(near.to(tl.int32), axis=0) > 0:
                    _, _, overlap, valid = clash_tile(
                        planes, contents, residue_index, asym_id, own, limits, i, first, a, N, BJ
                    )
                    loss += tl.where(valid & ((overlap <= 0) == 0), overlap, 0.0)  # NaN is added
                    count += (valid & (overlap > 0)).to(tl.int32)
    places = row * 14 + a
    tl.store(clash_loss + places, tl.sum(loss, axis=1), mask=a < 14)
    tl.store(clashes + places, tl.sum(count, axis=1).to(tl.int64), mask=a < 14)
    found = (own[2] & COUNT).to(tl.int64) * tl.sum(others, axis=0) - tl.sum(bound, axis=0).to(tl.int64)
    tl.store(pairs + row, found)

    _, _, below, above, valid = within_tile(planes, aatype, lower, upper, own, limits, i, a, N)
    error = tl.where(below <= 0, 0.0, below) + tl.where(above <= 0, 0.0, above)
    error = tl.where(valid, error, 0.0)
    tl.store(within_loss + places, 2.0 * tl.sum(error, axis=1), mask=a < 14)
    violated = tl.sum((error > 0).to(tl.int32), axis=1)
    tl.store(within_violations + places, violated.to(tl.int64), mask=a < 14)


@triton.jit(do_not_specialize=["N"])
def violations_gradient_kernel(
    planes, spheres, contents, aatype, residue_index, asym_id, lower, upper, limits, grad_clash, grad_within, found, N,
    CHUNK: tl.constexpr, BJ: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program: the gradient of the atoms of residue i of an item,

        - sum_jb (gc_ia + gc_jb) [o_ab > 0] (x_a - x_b) / d_ab
        + 2 sum_b (gw_ia + gw_ib) ([d_ab > u_ab] - [d_ab < l_ab]) (x_a - x_b) / d_ab

    with o, l, u and d as in the forward pass, whose inputs it reads, gc = grad_clash and gw = grad_within [B, N, 14].
    Writes found [B, N, 14, 3].
    """
    row = tl.program_id(0).to(tl.int64)
    batch, i = row // N, (row % N).to(tl.int32)
    base = batch * N
    planes += base * 64
    spheres += base * 4
    contents += base
    aatype += base
    residue_index += base
    if asym_id is not None:
        asym_id += base
    a = tl.arange(0, 16)
    own = own_residue(planes, spheres, contents, residue_index, asym_id, i, a, N)
    own_grad = tl.load(grad_clash + row * 14 + a, mask=a < 14, other=0.0)
    tolerance = tl.load(limits)
    sums = (tl.zeros([16, BJ * 16], ACC), tl.zeros([16, BJ * 16], ACC), tl.zeros([16, BJ * 16], ACC))
    for start in range(0, N, CHUNK):
        j = start + tl.arange(0, CHUNK)
        if tl.max(may_clash(spheres, own, i, j, N, tolerance).to(tl.int32), axis=0) > 0:
            for first in range(start, tl.minimum(start + CHUNK, N), BJ):
                near = may_clash(spheres, own, i, first + tl.arange(0, BJ), N, tolerance)
                if tl.max(near.to(tl.int32), axis=0) > 0:
                    differences, distance, overlap, valid = clash_tile(
                        planes, contents, residue_index, asym_id, own, limits, i, first, a, N, BJ
                    )
                    c = tl.arange(0, BJ * 16)
                    at = (base + first + c // 16) * 14 + c % 16
                    inside = (first + c // 16 < N) & (c % 16 < 14)
                    grad = own_grad[:, None] + tl.load(grad_clash + at, mask=inside, other=0.0)[None, :]
                    pull = tl.where(valid & (overlap > 0), -grad / distance, 0.0)
                    sums = (
                        tl.fma(pull, differences[0], sums[0]), tl.fma(pull, differences[1], sums[1]),
                        tl.fma(pull, differences[2], sums[2]),
                    )  # fmt: skip
    differences, distance, below, above, valid = within_tile(planes, aatype, lower, upper, own, limits, i, a, N)
    b = tl.arange(0, 16)
    grad = tl.load(grad_within + row * 14 + a, mask=a < 14, other=0.0)[:, None]
    grad += tl.load(grad_within + row * 14 + b, mask=b < 14, other=0.0)[None, :]
    sign = (above > 0).to(ACC) - (below > 0).to(ACC)
    push = tl.where(valid, 2.0 * sign * grad / distance, 0.0)
    for number in tl.static_range(3):
        total = tl.sum(sums[number], axis=1) + tl.sum(push * differences[number], axis=1)
        tl.store(found + (row * 14 + a) * 3 + number, total, mask=a < 14)

"""Device functions of the backward kernels alone: LayerNorm's gradient, and what is stored.

`rows` is the tuple of `triangle_multiplication_tiles.rows_of`.
"""

import triton
import triton.language as tl

from .arithmetic import widen
from .triangle_multiplication_tiles import load_tile, load_vector, multiply, normed_tile


@triton.jit
def load_matrix(pointer, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, OPERAND: tl.constexpr):
    """Rows and columns of a matrix [ROWS, COLUMNS], zeros beyond it, as an operand of a product."""
    inside = (rows < ROWS)[:, None] & (columns < COLUMNS)[None, :]
    return tl.load(pointer + rows[:, None] * COLUMNS + columns[None, :], mask=inside, other=0.0).to(OPERAND)


@triton.jit
def store_tile(pointer, values, rows, channels, row_stride, channel_stride, exists, WIDTH: tl.constexpr):
    inside = exists[:, None] & (channels < WIDTH)[None, :]
    offsets = rows[:, None] * row_stride + channels[None, :].to(tl.int64) * channel_stride
    tl.store(pointer + offsets, values, mask=inside)


@triton.jit
def store_vector(pointer, offset, values, index, SIZE: tl.constexpr):
    """Nothing where there is nowhere to."""
    if pointer is not None:
        tl.store(pointer + offset + index, values, mask=index < SIZE)


@triton.jit
def normed_operand(
    rows, channels, WIDTH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK: tl.constexpr, OPERAND: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """LN(x) of BLOCK_N channels as an operand: what is kept, if those are all."""
    if (WIDTH <= BLOCK) & (BLOCK_N == BLOCK):
        return rows[9]
    else:
        return normed_tile(rows, channels, WIDTH, ACC).to(OPERAND)


@triton.jit
def project_transposed(
    rows, weight, bias, out, OUT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """W LN(x)^T + b of the channels `out` of OUT, [out, pairs]; W is [OUT, WIDTH]."""
    total = tl.zeros([out.shape[0], rows[1].shape[0]], ACC)
    for start in range(0, WIDTH, BLOCK):
        channels = start + tl.arange(0, BLOCK)
        normed = normed_operand(rows, channels, WIDTH, BLOCK, BLOCK, OPERAND, ACC)
        w = load_matrix(weight, out, channels, OUT, WIDTH, OPERAND)
        total = multiply(w, tl.trans(normed), total, PRECISION, ACC)
    if bias is not None:
        total += load_vector(bias, out, OUT, ACC)[:, None]
    return total


@triton.jit
def normal_tile(rows, channels, WIDTH: tl.constexpr, ACC: tl.constexpr):
    """(x - mean) scale. A load unlike those before it, or the compiler would hold on to what it read first."""
    inside = rows[4][:, None] & (channels < WIDTH)[None, :]
    offsets = rows[1][:, None] * rows[2] + channels[None, :].to(tl.int64) * rows[3]
    values = widen(tl.load(rows[0] + offsets, mask=inside, other=0.0, eviction_policy="evict_first"), ACC)
    return (values - rows[5][:, None]) * rows[6][:, None]


@triton.jit
def weighted(values, weight, channels, WIDTH: tl.constexpr, ACC: tl.constexpr):
    if weight is None:
        return values
    else:
        return values * load_vector(weight, channels, WIDTH, ACC)[None, :]


@triton.jit
def row_sums(gradient, rows, channels, WIDTH: tl.constexpr, ACC: tl.constexpr):
    """For LayerNorm's gradient: the sums over these channels of w and w n', w the gradient times the norm's weight."""
    values = weighted(gradient, rows[7], channels, WIDTH, ACC)
    return tl.sum(values, axis=1), tl.sum(values * normal_tile(rows, channels, WIDTH, ACC), axis=1)


@triton.jit
def norm_gradient(gradient, rows, channels, mean_1, mean_2, WIDTH: tl.constexpr, ACC: tl.constexpr):
    """LayerNorm's gradient from that of its result and the means over all channels of w and w n'."""
    values = weighted(gradient, rows[7], channels, WIDTH, ACC)
    normal = normal_tile(rows, channels, WIDTH, ACC)
    return (values - mean_1[:, None] - normal * mean_2[:, None]) * rows[6][:, None]


@triton.jit
def normalised_transposed(rows, channels, pairs, WIDTH: tl.constexpr, ACC: tl.constexpr):
    """LN(x)^T of a block of channels, read again: [channels, pairs]."""
    values = load_tile(rows[0], channels, rows[1], rows[3], rows[2], channels < WIDTH, pairs, ACC)
    values = (values - rows[5][None, :]) * rows[6][None, :]
    if rows[7] is not None:
        values *= load_vector(rows[7], channels, WIDTH, ACC)[:, None]
    if rows[8] is not None:
        values += load_vector(rows[8], channels, WIDTH, ACC)[:, None]
    return values

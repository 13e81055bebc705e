"""Device functions of the triangle multiplication's kernels, and the short table of their launch parameters.

A tile is [pairs, channels]. Tensors over pairs come channel-last, [.., pairs, channels], and channel-major,
[.., channels, pairs], told apart by the strides of a pair and of a channel. Rows that are to be normalised go about as
`rows`, the tuple that `rows_of` makes. Channels that fit so many blocks are normalised once and kept as operands of
products; others are read again, block by block, wherever they are multiplied.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import widen
from .launch import Architecture, compiler_options


def as_operands(parameters: tuple[Tensor | None, ...], dtype: torch.dtype) -> tuple[Tensor | None, ...]:
    """Parameters as kernels take them: contiguous, the projections in the dtype of products."""
    return tuple(
        None if value is None else (value.to(dtype) if value.dim() == 2 else value).contiguous() for value in parameters
    )


@dataclass(frozen=True)
class Tiles:
    """Launch parameters: pairs a tile, the most channels that are read as one block, channels of the result a step,
    warps, stages of the pipeline of weight loads, and the most registers of a thread (NVIDIA)."""

    pairs: int
    channels: int
    step: int
    warps: int
    stages: int = 2
    registers: int = 255
    keep: int = 1  # blocks of channels that are normalised once and kept

    def block(self, width: int) -> int:
        """The block in which `width` channels are read."""
        return min(channel_block(width), self.channels)

    def options(self, arch: Architecture) -> dict[str, Any]:
        return compiler_options(arch, self.warps, self.registers) | {"num_stages": self.stages}


def channel_block(width: int) -> int:
    """The block that holds `width` channels: tl.dot wants 16 at least."""
    return max(triton.next_power_of_2(width), 16)


def tiles(arch: Architecture, dtype: torch.dtype, precision: str, width: int, pairs: int, kernel: str) -> Tiles:
    """Of the kernel "input", "output", or "gated" (output with the gate first, which needs each block of x only once).

    `width` is the most channels of a row, `pairs` those of a line of tiles.
    """
    if arch.vendor == "none":  # the interpreter pays by the program
        return Tiles(min(max(triton.next_power_of_2(pairs), 16), 256), 64, 32, 4, keep=2)
    if dtype == torch.float64:
        if kernel == "gated":
            return Tiles(16, 32, 16, 4, stages=1)
        return Tiles(16, 64, 16, 4, stages=1, keep=2) if width <= 128 else Tiles(32, 32, 16, 4, stages=1)
    if dtype == torch.float32 and precision == "ieee":  # no tensor cores: a thread holds all of a block's operands
        return Tiles(64, 32, 32, 8, stages=1)
    if arch.vendor == "amd":
        return Tiles(64, 128, 32, 4, stages=1)
    if width > 128:
        # More registers a pair than on sm_90, whose products read all operands from shared memory.
        few = dtype == torch.float32 and (arch.name == "sm_80" or (arch.name == "sm_100" and kernel == "output"))
        if kernel == "gated":
            return Tiles(32 if few else 64, 128, 16, 8, stages=1)
        if dtype == torch.float32:
            return Tiles(32 if few else 64, 64, 16, 8, stages=1, keep=8)
        return Tiles(64, 128, 32, 8, keep=4)
    if dtype == torch.float32:
        return Tiles(64, 128, 32, 4 if kernel == "input" else 8)
    if kernel == "input":  # two programs a processor: one multiplies while the other loads
        return Tiles(128, 128, 32, 8, registers=128)
    return Tiles(64, 128, 32, 4, registers=(192 if arch.name == "sm_100" else 168) if kernel == "output" else 255)


@triton.jit
def load_vector(pointer, index, SIZE: tl.constexpr, ACC: tl.constexpr):
    return widen(tl.load(pointer + index, mask=index < SIZE, other=0.0), ACC)


@triton.jit
def load_raw(pointer, pairs, channels, pair_stride, channel_stride, exists, WIDTH: tl.constexpr):
    """Zeros beyond the pairs that exist and the WIDTH channels."""
    inside = exists[:, None] & (channels < WIDTH)[None, :]
    offsets = pairs[:, None] * pair_stride + channels[None, :].to(tl.int64) * channel_stride
    return tl.load(pointer + offsets, mask=inside, other=0.0)


@triton.jit
def load_tile(
    pointer, pairs, channels, pair_stride, channel_stride, exists, WIDTH: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    return widen(load_raw(pointer, pairs, channels, pair_stride, channel_stride, exists, WIDTH), ACC)


@triton.jit
def load_transposed(pointer, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, OPERAND: tl.constexpr):
    """The transpose of rows and columns of a matrix [ROWS, COLUMNS], zeros beyond it."""
    inside = (rows < ROWS)[:, None] & (columns < COLUMNS)[None, :]
    value = tl.load(pointer + rows[:, None].to(tl.int64) * COLUMNS + columns[None, :], mask=inside, other=0.0)
    if value.dtype != OPERAND:
        value = widen(value, OPERAND)
    return tl.trans(value)


@triton.jit
def multiply(left, right, total, PRECISION: tl.constexpr, ACC: tl.constexpr):
    """total + left right."""
    return tl.dot(left, right, total, input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def squared_distance(values, mean, channels, WIDTH: tl.constexpr):
    centred = tl.where((channels < WIDTH)[None, :], values - mean[:, None], 0.0)
    return tl.sum(centred * centred, axis=1)


@triton.jit
def normalised(values, mean, scale, weight, bias, channels, WIDTH: tl.constexpr, ACC: tl.constexpr):
    values = (values - mean[:, None]) * scale[:, None]
    if weight is not None:
        values *= load_vector(weight, channels, WIDTH, ACC)[None, :]
    if bias is not None:
        values += load_vector(bias, channels, WIDTH, ACC)[None, :]
    return values


@triton.jit
def rows_of(
    pointer, pairs, pair_stride, channel_stride, exists, weight, bias, epsilon, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, OPERAND: tl.constexpr, ACC: tl.constexpr, KEEP: tl.constexpr = 1,
):  # fmt: skip
    """The rows of a tile: where they are, the mean and scale = 1 / sqrt(variance + epsilon) of each, the norm's weight
    and bias or None; and, where WIDTH fits KEEP blocks, their LayerNorm as operands, the first block and the others."""
    mean = tl.zeros([pairs.shape[0]], ACC)
    squares = tl.zeros([pairs.shape[0]], ACC)
    others = ()
    if WIDTH <= KEEP * BLOCK:
        blocks = ()
        for start in tl.static_range(0, WIDTH, BLOCK):
            channels = start + tl.arange(0, BLOCK)
            values = load_raw(pointer, pairs, channels, pair_stride, channel_stride, exists, WIDTH)
            blocks = blocks + (values,)
            mean += tl.sum(widen(values, ACC), axis=1)
        mean = mean / WIDTH
        for start in tl.static_range(0, WIDTH, BLOCK):
            squares += squared_distance(widen(blocks[start // BLOCK], ACC), mean, start + tl.arange(0, BLOCK), WIDTH)
        scale = 1.0 / tl.sqrt(squares / WIDTH + tl.load(epsilon))
        values = widen(blocks[0], ACC)
        first = normalised(values, mean, scale, weight, bias, tl.arange(0, BLOCK), WIDTH, ACC).to(OPERAND)
        for start in tl.static_range(BLOCK, WIDTH, BLOCK):
            values, channels = widen(blocks[start // BLOCK], ACC), start + tl.arange(0, BLOCK)
            others = others + (normalised(values, mean, scale, weight, bias, channels, WIDTH, ACC).to(OPERAND),)
    else:
        for start in range(0, WIDTH, BLOCK):
            channels = start + tl.arange(0, BLOCK)
            mean += tl.sum(load_tile(pointer, pairs, channels, pair_stride, channel_stride, exists, WIDTH, ACC), axis=1)
        mean = mean / WIDTH
        for start in range(0, WIDTH, BLOCK):
            channels = start + tl.arange(0, BLOCK)
            values = load_tile(pointer, pairs, channels, pair_stride, channel_stride, exists, WIDTH, ACC)
            squares += squared_distance(values, mean, channels, WIDTH)
        scale = 1.0 / tl.sqrt(squares / WIDTH + tl.load(epsilon))
        first = mean
    return pointer, pairs, pair_stride, channel_stride, exists, mean, scale, weight, bias, first, others


@triton.jit
def normed_tile(rows, channels, WIDTH: tl.constexpr, ACC: tl.constexpr):
    """LN(x) of a block of channels, read again."""
    values = load_tile(rows[0], rows[1], channels, rows[2], rows[3], rows[4], WIDTH, ACC)
    return normalised(values, rows[5], rows[6], rows[7], rows[8], channels, WIDTH, ACC)


@triton.jit
def project(
    rows, weight, bias, out, OUT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr, KEEP: tl.constexpr = 1,
):  # fmt: skip
    """LN(x) W^T + b of the channels `out` of OUT; W is [OUT, WIDTH]."""
    if WIDTH <= KEEP * BLOCK:
        total = project_kept(rows[9], rows[10], weight, out, OUT, WIDTH, BLOCK, OPERAND, PRECISION, ACC)
    else:
        total = tl.zeros([rows[1].shape[0], out.shape[0]], ACC)
        for start in range(0, WIDTH, BLOCK):
            channels = start + tl.arange(0, BLOCK)
            transposed = load_transposed(weight, out, channels, OUT, WIDTH, OPERAND)
            total = multiply(normed_tile(rows, channels, WIDTH, ACC).to(OPERAND), transposed, total, PRECISION, ACC)
    if bias is not None:
        total += load_vector(bias, out, OUT, ACC)[None, :]
    return total


@triton.jit
def project_kept(
    first, others, weight, out, OUT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, OPERAND: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The same of rows whose blocks are operands already, without the bias."""
    total = tl.zeros([first.shape[0], out.shape[0]], ACC)
    transposed = load_transposed(weight, out, tl.arange(0, BLOCK), OUT, WIDTH, OPERAND)
    total = multiply(first, transposed, total, PRECISION, ACC)
    for start in tl.static_range(BLOCK, WIDTH, BLOCK):
        transposed = load_transposed(weight, out, start + tl.arange(0, BLOCK), OUT, WIDTH, OPERAND)
        total = multiply(others[start // BLOCK - 1], transposed, total, PRECISION, ACC)
    return total


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def advanced(pointer, offset):
    """None stays None."""
    if pointer is None:
        return None
    else:
        return pointer + offset

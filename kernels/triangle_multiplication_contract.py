"""The contraction of the triangle multiplicative update: a batch of matrix products, one a channel.

torch's library multiplies wherever it does what is asked. A kernel here does what it cannot: float32 in another
precision than torch is set to. And a kernel that transposes between channel-last and channel-major tensors.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import accumulator_type, library_precision, widen
from .launch import Architecture, Call, Launch, compiler_options
from .triangle_multiplication_tiles import channel_block, multiply


@triton.jit(do_not_specialize=["N", "channels", "blocks"])
def product_kernel(
    left, right, out, N, channels, blocks, left_batch, left_channel, left_i, left_k, right_batch, right_channel,
    right_k, right_j, out_batch, out_channel, out_i, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One program: a tile [BLOCK, BLOCK] of out_ij = sum_k left_ik right_kj, of one batch element and channel.

    Reads left and right [B, channels, N, N] by their strides, writes out [B, channels, N, N] by its own, but for j's,
    which is 1. Tiles of one matrix are neighbours: it stays in the L2 cache.
    """
    program = tl.program_id(0).to(tl.int64)
    matrix = program // blocks // blocks
    batch, channel = matrix // channels, matrix % channels
    i = program // blocks % blocks * BLOCK + tl.arange(0, BLOCK)
    j = program % blocks * BLOCK + tl.arange(0, BLOCK)
    k = tl.arange(0, BLOCK_K).to(tl.int64)
    left += batch * left_batch + channel * left_channel
    right += batch * right_batch + channel * right_channel
    left_pointers = left + i[:, None] * left_i + k[None, :] * left_k
    right_pointers = right + k[:, None] * right_k + j[None, :] * right_j
    total = tl.zeros([BLOCK, BLOCK], ACC)
    for start in range(0, N, BLOCK_K):
        inside = start + k < N
        left_tile = tl.load(left_pointers, mask=(i < N)[:, None] & inside[None, :], other=0.0)
        right_tile = tl.load(right_pointers, mask=inside[:, None] & (j < N)[None, :], other=0.0)
        total = multiply(left_tile, right_tile, total, PRECISION, ACC)
        left_pointers += BLOCK_K * left_k
        right_pointers += BLOCK_K * right_k
    out += batch * out_batch + channel * out_channel
    inside = (i < N)[:, None] & (j < N)[None, :]
    tl.store(out + i[:, None] * out_i + j[None, :], total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def place(pair, length, i_stride, j_stride):
    """Offsets of the pairs; i_stride is None where a row follows the other, which the compiler then sees."""
    if i_stride is None:
        return pair * j_stride
    else:
        return pair // length * i_stride + pair % length * j_stride


@triton.jit(do_not_specialize=["length", "pairs", "blocks", "channel_blocks"])
def transpose_kernel(
    source, mask, target, length, pairs, blocks, channel_blocks, source_batch, source_i, source_j, source_channel,
    target_batch, target_i, target_j, target_channel, D: tl.constexpr, P: tl.constexpr, BLOCK_D: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """One program: P pairs (i, j) and BLOCK_D channels of target = mask * source, each by its strides.

    Reads source [B, length, length, D] and mask [B, pairs] or None (1), writes target; pairs = length * length.
    """
    program = tl.program_id(0).to(tl.int64)
    channel_block = program % channel_blocks
    block = program // channel_blocks % blocks
    batch = program // channel_blocks // blocks
    pair = block * P + tl.arange(0, P)
    d = channel_block * BLOCK_D + tl.arange(0, BLOCK_D)
    exists = pair < pairs
    inside = exists[:, None] & (d < D)[None, :]
    source += batch * source_batch
    target += batch * target_batch
    read = source + place(pair, length, source_i, source_j)[:, None] + d[None, :] * source_channel
    value = tl.load(read, mask=inside, other=0.0)
    if mask is not None:
        factor = tl.load(mask + batch * pairs + pair, mask=exists, other=0.0).to(ACC)
        value = widen(value, ACC) * factor[:, None]
    written = target + place(pair, length, target_i, target_j)[:, None] + d[None, :] * target_channel
    tl.store(written, value.to(target.dtype.element_ty), mask=inside)


def plan_transpose(source: Tensor, mask: Tensor | None, target: Tensor, arch: Architecture) -> Launch:
    """target = mask * source, both [B, N, N, D] of any strides, with the mask [B, N, N] contiguous."""
    b, n, _, d = source.shape
    pairs, width = (256, 32) if arch.vendor == "none" else (32, 64 if source.element_size() <= 2 else 32)
    width = min(width, channel_block(d))
    blocks, channel_blocks = triton.cdiv(n * n, pairs), triton.cdiv(d, width)
    arguments = {"source": source, "mask": mask, "target": target, "length": n, "pairs": n * n, "blocks": blocks}
    for name, value in (("source", source), ("target", target)):
        strides = value.stride()
        follows = strides[1] == n * strides[2]
        arguments |= {f"{name}_batch": strides[0], f"{name}_i": None if follows else strides[1]}
        arguments |= {f"{name}_j": strides[2], f"{name}_channel": strides[3]}
    arguments |= {"channel_blocks": channel_blocks, "D": d, "P": pairs, "BLOCK_D": width}
    arguments["ACC"] = accumulator_type(source.dtype)
    return Launch(transpose_kernel, (b * blocks * channel_blocks,), arguments, compiler_options(arch, 4))


def product_tiles(arch: Architecture, precision: str) -> tuple[int, int, int, int]:
    """Width and depth of a tile, warps, and stages of the pipeline of loads."""
    if arch.vendor == "none":
        return 64, 64, 4, 1
    if precision == "tf32":
        return 128, 32, 8, 3
    if precision == "tf32x3":
        return 64, 32, 4, 2
    return 64, 16, 8, 2 if arch.vendor == "nvidia" else 1


def plan_product(left: Tensor, right: Tensor, out: Tensor, precision: str, arch: Architecture) -> Launch | Call:
    """out = left @ right, all [B, D, N, N], out with contiguous rows."""
    if left.dtype == torch.float32 and arch.vendor != "none" and precision != library_precision():
        return product_launch(left, right, out, precision, arch)
    return Call(multiply_planes, (left, right, out))


def multiply_planes(left: Tensor, right: Tensor, out: Tensor) -> None:
    """By torch, without copies where the planes are evenly spaced; otherwise one batch element after the other."""
    try:
        planes = [value.view(-1, *value.shape[2:]) for value in (left, right, out)]
    except RuntimeError:
        for one in zip(left, right, out, strict=True):
            torch.bmm(one[0], one[1], out=one[2])
    else:
        torch.bmm(planes[0], planes[1], out=planes[2])


def product_launch(left: Tensor, right: Tensor, out: Tensor, precision: str, arch: Architecture) -> Launch:
    """The same by the kernel of this file."""
    b, channels, n, _ = out.shape
    width, depth, warps, stages = product_tiles(arch, precision)
    blocks = triton.cdiv(n, width)
    arguments = {
        "left": left, "right": right, "out": out, "N": n, "channels": channels, "blocks": blocks,
        "left_batch": left.stride(0), "left_channel": left.stride(1), "left_i": left.stride(2),
        "left_k": left.stride(3), "right_batch": right.stride(0), "right_channel": right.stride(1),
        "right_k": right.stride(2), "right_j": right.stride(3), "out_batch": out.stride(0),
        "out_channel": out.stride(1), "out_i": out.stride(2), "BLOCK": width, "BLOCK_K": depth,
        "PRECISION": precision, "ACC": accumulator_type(left.dtype),
    }  # fmt: skip
    options = compiler_options(arch, warps) | {"num_stages": stages}
    return Launch(product_kernel, (b * channels * blocks * blocks,), arguments, options)

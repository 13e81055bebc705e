"""ACmix's convolution path in Triton: both layouts, float16 to float64. See shift_conv_maps.py for the products.

Bytes of x [128, 12, 16, 56, 56] in float16, C = 64: forward 154 MB of x and 51 MB of the result, once each, and 5.5
GFLOP twice over; the gradient of x reads as much as the result has and writes as much as x, in as many products. The
gradient of weights reads both. Rows that two programs share come from a cache.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from .arithmetic import accumulator_type, dot_precision, operand_type
from .launch import Architecture, Launch, accumulator, architecture, compiler_options, run
from .shift_conv_maps import shift_conv_kernel
from .shift_conv_weights import fc_gradient_kernel, mix_kernel, weight_gradient_kernel, weight_sum_kernel

PROGRAMS = 8  # a processor, that the gradient of the weights is cut into
MAPS = 4  # of the result a program computes at a time


def empty(like: Tensor, shape: tuple[int, ...], channels_last: bool) -> Tensor:
    """[B, ..., h, w], contiguous or with the channels of a pixel next to each other."""
    if not channels_last:
        return like.new_empty(shape)
    inner = range(1, len(shape) - 2)
    memory = like.new_empty((shape[0], *shape[-2:], *shape[1:-2]))
    return memory.permute(0, *(number + 2 for number in inner), 1, 2)


def by_groups(value: Tensor, depth: int) -> tuple[int, int, int, int, int]:
    """Strides of a tensor [B, D * m, h, w] by item, m, d, row and column."""
    item, channel, row, column = value.stride()
    return item, channel, channel * (value.shape[1] // depth), row, column


def fc_options(fc_weight: Tensor, fc_bias: Tensor | None, dtype: torch.dtype) -> dict[str, Any]:
    taps, maps = fc_weight.shape
    return {
        "fc": fc_weight.contiguous(), "bias": None if fc_bias is None else fc_bias.contiguous(), "taps": taps,
        "maps": maps, "inputs": maps + (fc_bias is not None), "BIAS": fc_bias is not None,
        "ACC": accumulator_type(dtype),
    }  # fmt: skip


def plan_merge(
    conv_weight: Tensor, fc_weight: Tensor, fc_bias: Tensor | None, dtype: torch.dtype, arch: Architecture
) -> tuple[Launch, Tensor]:
    """The merged weights [C, inputs, k, k]; the bias is the last input."""
    shared = fc_options(fc_weight, fc_bias, dtype)
    channels, taps, kernel, _ = conv_weight.shape
    merged = conv_weight.new_empty((channels, shared["inputs"], kernel, kernel), dtype=accumulator(dtype))
    block = 1024 if arch.vendor == "none" else 128
    blocks = triton.cdiv(shared["inputs"] * taps, block)
    arguments = {
        "source": conv_weight.contiguous(),
        "target": merged,
        "blocks": blocks,
        "BACK": False,
        "BLOCK": block,
        **shared,
    }
    return Launch(mix_kernel, (channels * blocks,), arguments, compiler_options(arch)), merged


def plan_maps(
    x: Tensor, x_strides: tuple[int, ...], size: tuple[int, int], maps: int, weight: Tensor, weight_start: int,
    w_strides: tuple[int, ...], bias: bool, out: Tensor, out_start: int, out_strides: tuple[int, ...],
    cells: tuple[int, int], outs: int, depth: int, stride: int, taps: tuple[int, int], before: tuple[int, int],
    channels_last: bool, arch: Architecture,
) -> Launch:  # fmt: skip
    """One launch of the gathering convolution. Strides of x are by (item, map, group, row, column), of out likewise, of
    weights by (group, out, in, row, column) of taps."""
    batch, interpreted = x.shape[0], arch.vendor == "none"
    largest = max(taps)
    wide = x.dtype == torch.float64
    # Taps are unrolled: by rows and maps of the result, as far as a thread's registers hold their sums and weights.
    rows = 1 if largest > 5 else 2 if interpreted or largest > 3 or stride > 2 or (wide and channels_last) else 4
    if channels_last and largest > 3:
        rows = 1
    rows = min(rows, triton.next_power_of_2(cells[0]))
    in_block = min(MAPS if largest <= 3 else MAPS // 2 if largest <= 5 else 1, triton.next_power_of_2(outs))
    groups = min(32, triton.next_power_of_2(depth)) if channels_last else 1
    row_blocks = triton.cdiv(cells[0], rows)
    lanes = batch * row_blocks * cells[1] * groups
    if interpreted:
        block = min(4096, max(32, triton.next_power_of_2(lanes)))
    else:  # two lanes a thread, where its registers hold them: lanes of different groups have weights of their own
        block = 128 if wide or channels_last else 256
    lane_blocks, out_blocks = triton.cdiv(lanes, block), triton.cdiv(outs, in_block)
    names = ("item", "map", "group", "row", "column")
    arguments = {
        "x": x, "weight": weight, "out": out, "batch": batch, "depth": depth, "maps": maps, "outs": outs,
        "height": size[0], "width": size[1], "rows": cells[0], "columns": cells[1],
        "before_y": before[0], "before_x": before[1], "weight_start": weight_start, "out_start": out_start,
        **{f"x_{name}": value for name, value in zip(names, x_strides, strict=True)},
        **{f"out_{name}": value for name, value in zip(names, out_strides, strict=True)},
        **{f"w_{name}": value for name, value in zip(("group", "out", "in", "row", "column"), w_strides, strict=True)},
        "row_blocks": row_blocks, "out_blocks": out_blocks, "lane_blocks": lane_blocks, "BIAS": bias, "S": stride,
        "KY": taps[0], "KX": taps[1], "R": rows, "MB": in_block, "DL": groups, "P": block,
        "ACC": accumulator_type(x.dtype),
    }  # fmt: skip
    options = compiler_options(arch) | {"enable_fp_fusion": True}
    return Launch(shift_conv_kernel, (triton.cdiv(depth, groups) * lane_blocks * out_blocks,), arguments, options)


def plan_forward(
    x: Tensor, fc_weight: Tensor, conv_weight: Tensor, fc_bias: Tensor | None, stride: int, channels_last: bool,
    arch: Architecture,
) -> tuple[list[Launch], Tensor]:  # fmt: skip
    """The launches and what they write. Made of tensors on the device "meta", the plan is compiled without a GPU."""
    batch, maps, depth, height, width = x.shape
    channels, taps, kernel, _ = conv_weight.shape
    cells = triton.cdiv(height, stride), triton.cdiv(width, stride)
    out = empty(x, (batch, channels, *cells), channels_last)
    if batch == 0:
        return [], out
    merge, merged = plan_merge(conv_weight, fc_weight, fc_bias, x.dtype, arch)
    of_channel, many = merged.stride(0), channels // depth
    half = kernel // 2
    convolve = plan_maps(
        x, x.stride(), (height, width), maps, merged, 0, (many * of_channel, of_channel, taps, kernel, 1),
        fc_bias is not None, out, 0, by_groups(out, depth), cells, many, depth, stride, (kernel, kernel), (half, half),
        channels_last, arch,
    )  # fmt: skip
    return [merge, convolve], out


def plan_x_gradient(
    grad: Tensor, merged: Tensor, dx: Tensor, stride: int, channels_last: bool, arch: Architecture
) -> list[Launch]:
    """One launch for each phase of pixels, (y + k // 2) mod stride and x likewise: those have the same taps."""
    maps, depth, height, width = dx.shape[1:]
    channels, inputs, kernel, _ = merged.shape
    half, many, taps = kernel // 2, channels // depth, kernel * kernel
    launches = []
    axes = []
    for size in (height, width):
        phases = []
        for phase in range(min(stride, kernel)):
            count = (kernel - phase + stride - 1) // stride  # taps phase, phase + stride, ...
            first = max(0, -((phase - half) // stride))  # number of the first pixel, first * stride + phase - half
            pixel = first * stride + phase - half
            if pixel < size:
                phases.append((phase, count, pixel, triton.cdiv(size - pixel, stride), count - 1 - first))
        axes.append(phases)
    item, map_, group, row, column = dx.stride()
    for phase_y, taps_y, y, rows, before_y in axes[0]:
        for phase_x, taps_x, x, columns, before_x in axes[1]:
            last = (phase_y + (taps_y - 1) * stride) * kernel + phase_x + (taps_x - 1) * stride
            launches.append(
                plan_maps(
                    grad,
                    by_groups(grad, depth),
                    (grad.shape[2], grad.shape[3]),
                    many,
                    merged,
                    last,
                    (many * inputs * taps, taps, inputs * taps, -stride * kernel, -stride),
                    False,
                    dx,
                    y * row + x * column,
                    (item, map_, group, row * stride, column * stride),
                    (rows, columns),
                    maps,
                    depth,
                    1,
                    (taps_y, taps_x),
                    (before_y, before_x),
                    channels_last,
                    arch,
                )  # fmt: skip
            )
    return launches


def plan_weight_gradient(
    grad: Tensor, x: Tensor, fc_weight: Tensor, conv_weight: Tensor, fc_bias: Tensor | None, stride: int,
    arch: Architecture,
) -> tuple[list[Launch], tuple[Tensor, Tensor, Tensor]]:  # fmt: skip
    batch, maps, depth, height, width = x.shape
    channels, taps, kernel, _ = conv_weight.shape
    shared = fc_options(fc_weight, fc_bias, x.dtype)
    inputs, interpreted, wide = shared["inputs"], arch.vendor == "none", x.dtype == torch.float64
    u_count, v_count = channels // depth * kernel, inputs * kernel
    tile_u = min(32, max(16, triton.next_power_of_2(u_count)))
    tile_v = min(32 if wide else 64, max(16, triton.next_power_of_2(v_count)))
    precision = dot_precision(x.dtype, 0, arch)
    # Where no matrix unit multiplies, a thread holds operands in registers.
    depth_of_step = 16 if precision == "ieee" and x.dtype == torch.float32 else 32
    places = batch * grad.shape[2] * width
    block = min(1024, max(16, triton.next_power_of_2(places))) if interpreted else depth_of_step
    row_blocks, column_blocks = triton.cdiv(u_count, tile_u), triton.cdiv(v_count, tile_v)
    tiles = depth * row_blocks * column_blocks
    steps = triton.cdiv(places, block)
    chunks = min(steps, max(2 if interpreted else 1, triton.cdiv(PROGRAMS * arch.processors, tiles)))
    steps = triton.cdiv(steps, chunks)
    chunks = triton.cdiv(places, steps * block)
    working = accumulator(x.dtype)
    partial = grad.new_empty((chunks, depth, u_count, v_count), dtype=working)
    merged = grad.new_empty((channels, inputs, kernel, kernel), dtype=working)
    names = ("item", "map", "group", "row", "column")
    arguments = {
        "grad": grad, "x": x, "partial": partial, "batch": batch, "depth": depth, "maps": maps, "height": height,
        "width": width, "rows": grad.shape[2], "columns": grad.shape[3], "before": kernel // 2, "steps": steps,
        "chunks": chunks, "row_blocks": row_blocks, "column_blocks": column_blocks, "u_count": u_count,
        "v_count": v_count,
        **{f"grad_{name}": value for name, value in zip(names, by_groups(grad, depth), strict=True)},
        **{f"x_{name}": value for name, value in zip(names, x.stride(), strict=True)},
        "S": stride, "K": kernel, "BU": tile_u, "BV": tile_v, "BP": block, "OPERAND": operand_type(x.dtype, arch),
        "PRECISION": precision, "ACC": accumulator_type(x.dtype),
    }  # fmt: skip
    launches = [Launch(weight_gradient_kernel, (tiles * chunks,), arguments, compiler_options(arch))]
    size, summed = depth * u_count * v_count, 1024 if interpreted else 256
    arguments = {
        "partial": partial, "merged": merged, "chunks": chunks, "size": size, "u_count": u_count, "v_count": v_count,
        "K": kernel, "ACC": shared["ACC"], "BLOCK": summed,
    }  # fmt: skip
    launches.append(Launch(weight_sum_kernel, (triton.cdiv(size, summed),), arguments, compiler_options(arch)))
    dconv = conv_weight.new_empty(conv_weight.shape)
    dfc = fc_weight.new_empty(fc_weight.shape)
    dbias = grad.new_empty(0) if fc_bias is None else fc_bias.new_empty(fc_bias.shape)
    block = 1024 if interpreted else 128
    blocks = triton.cdiv(taps * taps, block)
    arguments = {"source": merged, "target": dconv, "blocks": blocks, "BACK": True, "BLOCK": block, **shared}
    launches.append(Launch(mix_kernel, (channels * blocks,), arguments, compiler_options(arch)))
    arguments = {
        "conv": conv_weight.contiguous(), "merged": merged, "dfc": dfc, "dbias": dbias if shared["BIAS"] else None,
        "elements": channels * taps, "BLOCK": 1024,
        **{name: shared[name] for name in ("inputs", "taps", "maps", "BIAS", "ACC")},
    }  # fmt: skip
    launches.append(Launch(fc_gradient_kernel, (taps * inputs,), arguments, compiler_options(arch)))
    return launches, (dfc, dconv, dbias)


def plan_backward(
    grad: Tensor, x: Tensor | None, fc_weight: Tensor, conv_weight: Tensor, fc_bias: Tensor | None, depth: int,
    height: int, width: int, stride: int, wants_x: bool, channels_last: bool, arch: Architecture,
) -> tuple[list[Launch], tuple[Tensor, ...]]:  # fmt: skip
    launches: list[Launch] = []
    batch, dtype = grad.shape[0], grad.dtype
    dx = grad.new_empty(0)
    if wants_x:
        dx = empty(grad, (batch, fc_weight.shape[1], depth, height, width), channels_last)
        if stride > conv_weight.shape[2] or batch == 0:
            dx.zero_()  # no tap reaches all pixels
        if batch:
            merge, merged = plan_merge(conv_weight, fc_weight, fc_bias, dtype, arch)
            launches += [merge, *plan_x_gradient(grad, merged, dx, stride, channels_last, arch)]
    nothing = tuple(value.new_empty(0) for value in (fc_weight, conv_weight, grad if fc_bias is None else fc_bias))
    if x is None:
        return launches, (dx, *nothing)
    if batch == 0:
        zeros = torch.zeros_like(fc_weight), torch.zeros_like(conv_weight)
        return launches, (dx, *zeros, nothing[2] if fc_bias is None else torch.zeros_like(fc_bias))
    # Lanes are pixels: neighbouring channels would be read by other programs, so that planes are copied once instead.
    of_weights, found = plan_weight_gradient(
        grad.contiguous(), x.contiguous() if channels_last else x, fc_weight, conv_weight, fc_bias, stride, arch
    )
    return launches + of_weights, (dx, *found)


def shift_conv(
    x: Tensor, fc_weight: Tensor, conv_weight: Tensor, fc_bias: Tensor | None, stride: int, channels_last: bool
) -> Tensor:
    """The dispatcher's op of this name."""
    launches, out = plan_forward(x, fc_weight, conv_weight, fc_bias, stride, channels_last, architecture(x.device))
    run(x.device, launches)
    return out


def shift_conv_backward(
    grad: Tensor, x: Tensor | None, fc_weight: Tensor, conv_weight: Tensor, fc_bias: Tensor | None, depth: int,
    height: int, width: int, stride: int, wants_x: bool, channels_last: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The dispatcher's op of this name: the gradients of x, of both weights and of the bias."""
    launches, results = plan_backward(
        grad, x, fc_weight, conv_weight, fc_bias, depth, height, width, stride, wants_x, channels_last,
        architecture(grad.device),
    )  # fmt: skip
    run(grad.device, launches)
    return results


def aot_cases(arch: Architecture) -> Iterator[tuple[str, Launch]]:
    """Typical calls, to compile ahead of time: layouts, dtypes, strides and kernels."""
    names = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32", torch.float64: "f64"}
    cases = [
        *((dtype, (128, 12, 16, 56, 56), 64, 3, 1, False, False) for dtype in names),
        *((dtype, (128, 12, 16, 56, 56), 64, 3, 1, False, True) for dtype in names if dtype != torch.bfloat16),
        (torch.float32, (128, 24, 16, 28, 28), 128, 3, 2, True, False),
        (torch.float16, (128, 12, 64, 14, 14), 256, 5, 1, True, True),
        (torch.float32, (128, 6, 16, 28, 28), 32, 7, 1, False, False),
    ]
    for dtype, shape, channels, kernel, stride, biased, last in cases:
        x = empty(torch.empty(0, dtype=dtype, device="meta"), shape, last)
        taps = kernel * kernel
        fc, conv = x.new_empty((taps, shape[1])), x.new_empty((channels, taps, kernel, kernel))
        bias = x.new_empty(taps) if biased else None
        launches, out = plan_forward(x, fc, conv, bias, stride, last, arch)
        # Gradients of weights are taken from planes in either layout, and weights are merged as forward.
        launches += plan_backward(out, None if last else x, fc, conv, bias, *shape[2:], stride, True, last, arch)[0][1:]
        layout = "last" if last else "first"
        for launch in launches:
            yield f"shift-conv-{names[dtype]}-{layout}-k{kernel}-s{stride}-c{channels}", launch

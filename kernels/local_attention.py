"""Local attention in Triton: any border, stride, dilation and layout, float16 to float64.

Of a 7 x 7 window a program's sub-tile of 2 x 8 queries multiplies with all of the 8 x 14 keys that their windows cover,
44 % of which a query needs: each key is loaded once a sub-tile, not once a slot, and comes from the first-level cache
where the four sub-tiles of a program share it. Nothing is saved but the result and a logsumexp. The backward pass is
three launches: gradients of queries by the same tiles; a table of the queries that reach each sub-tile of keys; and
gradients of keys and values, gathered. A gradient of the bias is summed in one more, from sums of each tile.

Where a result is not finite, the tile is computed again, key by key: in a product of matrices a weight of 0, of a key
beyond the window, and a NaN make a NaN.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import accumulator_type, dot_precision, operand_type
from .launch import Architecture, Launch, accumulator, architecture, compiler_options, real_numbers, run
from .local_attention_backward import bias_sum_kernel, query_gradient_kernel
from .local_attention_backward_keys import key_gradient_kernel
from .local_attention_forward import attention_kernel
from .local_attention_parameters import Tiles, tiles
from .local_attention_reach import reach_kernel
from .local_attention_tiles import MASK, REFLECT, SHIFT, ZEROS


def empty_like(q: Tensor, height: int, width: int) -> Tensor:
    """An empty [B, H, D, height, width] in the layout of q: by planes, or by pixels with the heads side by side."""
    b, heads, d = q.shape[:3]
    if d > 1 and q.stride(2) == 1 and q.stride(4) != 1:
        return q.new_empty((b, height, width, heads, d)).permute(0, 3, 4, 1, 2)
    return q.new_empty((b, heads, d, height, width))


def strides(name: str, value: Tensor) -> dict[str, int]:
    return {f"{name}_{dim}": step for dim, step in zip("bhdyx", value.stride(), strict=True)}


def index_type(*maps: Tensor, reach: int) -> Any:
    """Of offsets inside an image's head, and of numbers up to `reach`."""
    most = max(
        sum((size - 1) * abs(step) for size, step in zip(x.shape[2:], x.stride()[2:], strict=True)) for x in maps
    )
    return tl.int32 if max(most, reach) < 2**31 - 2**16 else tl.int64


def common(
    q: Tensor, bias: Tensor | None, rows: int, columns: int, kernel_size: int, stride: int, dilation: int,
    padding: int, scale: float, used: Tiles, arch: Architecture, precision: str, maps: tuple[Tensor, ...],
) -> dict[str, Any]:  # fmt: skip
    """What the kernels over tiles have in common."""
    _, heads, d, height, width = q.shape
    shared = math.gcd(stride, dilation)
    wide = accumulator(q.dtype)
    # What coordinates may come to: of a tile beyond the map, and of its windows.
    tile = max(used.height * used.down, used.width * used.across)
    reach = 2 * max(height, width) + dilation * (tile * stride + 2 * kernel_size) + dilation * max(stride, dilation)
    return {
        "q": q, "bias": bias, "scale": real_numbers(q, scale) if wide == torch.float64 else float(scale), "heads":
        heads, "channels": d, "height": height, "width": width, "rows": rows, "columns": columns, "stride": stride,
        "dilation": dilation, "classes": dilation // shared, "KERNEL": kernel_size, "STEP": stride // shared,
        "PADDING": padding, **used.constants(d), "INDEX": index_type(*maps, reach=reach), "OPERAND":
        operand_type(q.dtype, arch), "PRECISION": precision, "ACC": accumulator_type(q.dtype),
    }  # fmt: skip


def launch(kernel: Any, programs: int, arguments: dict[str, Any], used: Tiles, arch: Architecture) -> Launch:
    taken = {name: arguments[name] for name in kernel.arg_names}
    return Launch(kernel, (programs,), taken, used.options(arch))


def blocks(used: Tiles, rows: int, columns: int, classes: int) -> dict[str, int]:
    """Tiles of a class down and across."""
    return {
        "blocks_y": triton.cdiv(triton.cdiv(rows, classes), used.height * used.down),
        "blocks_x": triton.cdiv(triton.cdiv(columns, classes), used.width * used.across),
    }


def plan_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, kernel_size: int, stride: int, dilation: int, padding: int,
    scale: float, arch: Architecture, precision: str,
) -> tuple[list[Launch], tuple[Tensor, Tensor]]:  # fmt: skip
    """The launches and what they write. Made of tensors on the device "meta", the plan is compiled without a GPU."""
    b, heads, d, height, width = q.shape
    rows, columns = triton.cdiv(height, stride), triton.cdiv(width, stride)
    out = empty_like(q, rows, columns)
    logsumexp = q.new_empty((b, heads, rows, columns), dtype=accumulator(q.dtype))
    bias = None if bias is None else bias.contiguous()
    used = tiles(arch, q.dtype, precision, d, "forward", bias is not None)
    arguments = common(
        q, bias, rows, columns, kernel_size, stride, dilation, padding, scale, used, arch, precision, (q, k, v, out)
    )
    classes = arguments["classes"]
    counts = blocks(used, rows, columns, classes)
    arguments |= {"k": k, "v": v, "out": out, "logsumexp": logsumexp, **counts}
    arguments |= strides("q", q) | strides("k", k) | strides("v", v) | strides("out", out)
    grid = groups(arguments) * b * heads * classes**2 * math.prod(counts.values())
    return [launch(attention_kernel, grid, arguments, used, arch)], (out, logsumexp)


def groups(arguments: dict[str, Any]) -> int:
    """Programs of a tile, for some of the channels each."""
    return int(triton.cdiv(arguments["D"], arguments["GROUP"]))


@functools.lru_cache(256)
def longest_list(pixels: int, kernel_size: int, stride: int, dilation: int, padding: int, length: int) -> int:
    """The most queries whose windows reach `length` neighbouring keys of a residue, each as often as it does by
    another image."""
    step = stride // math.gcd(stride, dilation)
    most = (length + kernel_size - 2) // step + 1  # of the keys themselves, far from the border
    if padding == REFLECT:
        # Queries that are missing beyond the border are there again by the image; where the tile does not begin at
        # the border, one more each.
        most += 2
    elif padding == SHIFT:  # the first and last windows have up to kernel_size // 2 more queries
        most += 2 * (kernel_size // 2 // step + 1)
    return min(most, 3 * triton.cdiv(pixels, stride) if padding == REFLECT else triton.cdiv(pixels, stride))


def plan_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, out: Tensor, logsumexp: Tensor,
    kernel_size: int, stride: int, dilation: int, padding: int, scale: float, wants_bias: bool, arch: Architecture,
    precision: str,
) -> tuple[list[Launch], tuple[Tensor, ...]]:  # fmt: skip
    b, heads, d, height, width = q.shape
    rows, columns = out.shape[3:]
    dq, dk, dv = (empty_like(q, height, width) for _ in range(3))
    dbias = (
        torch.empty_like(bias, memory_format=torch.contiguous_format)
        if wants_bias
        else (q if bias is None else bias).new_empty(0)
    )
    bias = None if bias is None else bias.contiguous()
    logsumexp = logsumexp.contiguous()
    delta = torch.empty_like(logsumexp)
    window = (kernel_size, stride, dilation, padding, scale)
    maps = (grad, q, k, v, out, dq)
    used = tiles(arch, q.dtype, precision, d, "queries", bias is not None)
    arguments = common(q, bias, rows, columns, *window, used, arch, precision, maps)
    classes = arguments["classes"]
    counts = blocks(used, rows, columns, classes)
    programs = classes**2 * math.prod(counts.values())
    shared = {"grad": grad, "k": k, "v": v, "logsumexp": logsumexp, "delta": delta}
    shared |= strides("grad", grad) | strides("q", q) | strides("k", k) | strides("v", v) | strides("d", dq)
    slots = kernel_size**2
    partial = logsumexp.new_empty((b, heads, programs, slots)) if wants_bias else None
    arguments |= {
        **shared, **counts, **strides("out", out), "out": out, "dq": dq, "partial": partial,
        "SLOTS": min(triton.next_power_of_2(slots), 64),
    }  # fmt: skip
    grid = groups(arguments) * b * heads * programs
    launches = [launch(query_gradient_kernel, grid, arguments, used, arch)]
    if partial is not None:
        group = 16
        total = {
            "partial": partial, "dbias": dbias, "batches": b, "heads": heads, "tiles": programs, "slots": slots,
            "ROWS": 128, "SLOTS": group, "ACC": accumulator_type(q.dtype),
        }  # fmt: skip
        launches.append(Launch(bias_sum_kernel, (heads * triton.cdiv(slots, group),), total, compiler_options(arch)))

    used = tiles(arch, q.dtype, precision, d, "keys", bias is not None)
    arguments = common(q, bias, rows, columns, *window, used, arch, precision, maps)
    counts = blocks(used, height, width, dilation)
    lists = [
        longest_list(pixels, kernel_size, stride, dilation, padding, length)
        for pixels, length in ((height, used.height), (width, used.width))
    ]
    reach = triton.next_power_of_2(max(lists))
    cells_y, cells_x = counts["blocks_y"] * used.down, counts["blocks_x"] * used.across
    cells = dilation * (cells_y + cells_x)
    step = 256 if arch.vendor == "none" else 16  # the interpreter pays by the program
    table = q.new_empty((cells, 4, reach), dtype=torch.int32)
    arguments |= {
        **shared, **counts, "dk": dk, "dv": dv, "table": table, "counts": q.new_empty(cells, dtype=torch.int32),
        "common": dilation // classes, "inverse": pow(stride * classes // dilation, -1, classes) if classes > 1 else 0,
        "COLUMNS": lists[1], "REACH": reach, "cells_y": cells_y, "cells_x": cells_x, "CELLS": step,
        "blocks": triton.cdiv(dilation * max(cells_y, cells_x), step),
    }  # fmt: skip
    launches.append(launch(reach_kernel, 2 * arguments["blocks"], arguments, used, arch))
    grid = groups(arguments) * b * heads * dilation**2 * math.prod(counts.values())
    launches.append(launch(key_gradient_kernel, grid, arguments, used, arch))
    return launches, (dq, dk, dv, dbias)


def local_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, kernel_size: int, stride: int, dilation: int, padding: int,
    scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The dispatcher's op of this name: the result, and the logits' logsumexp."""
    arch = architecture(q.device)
    launches, results = plan_attention(
        q, k, v, bias, kernel_size, stride, dilation, padding, scale, arch, dot_precision(q.dtype, 0, arch)
    )
    run(q.device, launches)
    return results


def local_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, out: Tensor, logsumexp: Tensor,
    kernel_size: int, stride: int, dilation: int, padding: int, scale: float, wants_bias: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The dispatcher's op of this name: the gradients of q, k, v and bias."""
    arch = architecture(q.device)
    launches, results = plan_backward(
        grad, q, k, v, bias, out, logsumexp, kernel_size, stride, dilation, padding, scale, wants_bias, arch,
        dot_precision(q.dtype, 0, arch),
    )  # fmt: skip
    run(q.device, launches)
    return results


def aot_cases(arch: Architecture) -> Iterator[tuple[str, Launch]]:
    """Typical calls, to compile ahead of time: dtypes, layouts, head widths, borders."""
    # dtype, channels, channels_last, side, kernel size, stride, dilation, padding, whether there is a bias
    cases = [
        ("f16", torch.float16, 16, False, 56, 7, 1, 1, REFLECT, False),
        ("bf16", torch.bfloat16, 64, True, 14, 7, 1, 1, REFLECT, False),
        ("f16", torch.float16, 128, False, 28, 7, 1, 1, SHIFT, True),
        ("f32", torch.float32, 16, False, 56, 7, 1, 1, REFLECT, False),
        ("f32", torch.float32, 16, True, 28, 5, 2, 1, ZEROS, True),
        ("f32", torch.float32, 64, True, 14, 7, 1, 1, REFLECT, False),
        ("f32", torch.float32, 128, False, 7, 7, 1, 1, REFLECT, False),
        ("f64", torch.float64, 64, False, 28, 5, 1, 2, MASK, True),
    ]
    tables = set()  # of no dtype and layout, so that cases have them in common
    for name, dtype, d, last, side, kernel_size, stride, dilation, padding, biased in cases:
        heads = 4
        layout = torch.channels_last if last else torch.contiguous_format
        maps = torch.empty((64, 3 * heads * d, side, side), dtype=dtype, device="meta", memory_format=layout)
        q, k, v = (part.unflatten(1, (heads, d)) for part in maps.chunk(3, 1))
        bias = torch.empty((heads, kernel_size, kernel_size), dtype=dtype, device="meta") if biased else None
        window = (kernel_size, stride, dilation, padding, d**-0.5)
        precisions = ["ieee", "tf32"] if name == "f32" and arch.vendor == "nvidia" and not biased else ["ieee"]
        for precision in precisions:
            launches, (out, logsumexp) = plan_attention(q, k, v, bias, *window, arch, precision)
            inputs = (out, q, k, v, bias, out, logsumexp)
            launches += plan_backward(*inputs, *window, biased, arch, precision)[0]
            border = ("reflect", "zeros", "mask", "shift")[padding]
            label = f"{name}-{'tf32-' if precision == 'tf32' else ''}d{d}-{'last' if last else 'first'}"
            for found in launches:
                if found.kernel is reach_kernel:
                    table = (kernel_size, stride, dilation, padding)
                    if table in tables:
                        continue
                    tables.add(table)
                yield f"{label}-k{kernel_size}-s{stride}-{dilation}-{border}", found

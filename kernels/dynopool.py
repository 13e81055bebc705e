"""DynOPool's pooling and resampling in Triton: both layouts, float16 to float64.

Bytes of x [64, 256, 56, 56] in float32 at r = (0.7, 0.55), whose result is [64, 256, 39, 31]: forward 206 MB of x once,
79 MB of the result and 5 MB of choices, 1.02 times the copy; backward grad, choices and dx for one gradient and grad,
choices and x for the other, 579 MB, 1.17 times what both need together. What is read more than once (a pixel by the
cells around it, a cell by the pixels around it) is a neighbour's in the same program, or in one that runs beside it.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import accumulator_type
from .dynopool_backward import scale_gradient_kernel, scale_sum_kernel, x_gradient_kernel
from .dynopool_forward import pool_kernel
from .dynopool_tiles import axis_kernel
from .launch import Architecture, Launch, accumulator, architecture, compiler_options, run

MAX, MEAN, CENTRES, CORNERS = range(4)  # the op's modes
PLACES = {MAX: (0.25, 0.5), MEAN: (0.25, 0.5), CENTRES: (0.5, 0.5), CORNERS: (0.0, 0.0)}  # of the first sample; centre
PROGRAMS = 16  # a processor, that a run of channels should leave
SUMMED = 2048  # partial sums a step


def laid_out(value: Tensor, channels_last: bool) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def empty(like: Tensor, shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype | None = None) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=layout)


def tile(
    arch: Architecture, dtype: torch.dtype, places: int, channels: int, channels_last: bool, elements: int
) -> tuple[int, int]:  # fmt: skip
    """Groups of four channels and places of the map in a tile of about `elements`."""
    groups = triton.next_power_of_2(max(1, triton.cdiv(channels, 4)))
    if arch.vendor == "none":  # the interpreter pays by the program
        return min(groups, 8), min(triton.next_power_of_2(places), 512)
    if channels_last:
        if channels % 16:  # loads of one channel each: a thread has many cells, not many channels
            elements //= 4
        if dtype == torch.float64:
            elements //= 2
        groups = min(groups, 64)
        return groups, max(1, elements // (4 * groups))
    return max(1, elements // 512), 128


def index_type(*counts: int) -> Any:
    """Of offsets inside a tile: int32 where they fit, a block of places beyond the last included."""
    return tl.int32 if max(counts) < 2**31 - 2**16 else tl.int64


def channel_run(arch: Architecture, programs: int, groups: int, step: int) -> int:
    """Groups a program goes over, so that positions are found seldom and no processor waits for work."""
    if arch.vendor == "none":
        return groups
    longest = max(1, programs * groups // (PROGRAMS * arch.processors))
    return max(step, min(16, 1 << (longest.bit_length() - 1)))


def common(
    dtype: torch.dtype, shape: torch.Size, size: tuple[int, int], mode: int, channels_last: bool, groups: int,
    places: int,
) -> dict[str, Any]:  # fmt: skip
    """What the kernels over tiles have in common; shape [B, C, height, width] of x and size of the result."""
    b, c, height, width = shape
    pixels, cells = height * width, size[0] * size[1]
    in_tile = max(pixels, cells) * (c if channels_last else 4 * groups)
    return {
        "channels": c, "height": height, "width": width, "rows": size[0], "columns": size[1],
        "MODE": mode, "LAST": channels_last, "ACC": accumulator_type(dtype),
        "INDEX": index_type(in_tile, 2 * max(size)), "G": groups, "P": places,
    }  # fmt: skip


def plan_axes(
    scale: Tensor, dtype: torch.dtype, height: int, width: int, size: tuple[int, int], mode: int, zeros: bool,
    slopes: bool, ranges: bool, arch: Architecture,
) -> tuple[Launch, dict[str, Tensor]]:  # fmt: skip
    """The tables of both axes: of samples always their pixels, `slopes` for the scale, `ranges` of cells for dx."""
    k = 2 if mode in (MAX, MEAN) else 1
    samples = k * (size[0] + size[1])
    wide = accumulator(dtype)
    tables = {
        "firsts": scale.new_empty(samples, dtype=torch.int32), "fractions": scale.new_empty(samples, dtype=wide),
    }  # fmt: skip
    if slopes:
        tables["steps"] = scale.new_empty(samples, dtype=wide)
    if ranges:
        tables |= {name: scale.new_empty(height + width, dtype=torch.int32) for name in ("begins", "ends")}
    entries = max(k * max(size), max(height, width) if ranges else 0)
    block = min(triton.next_power_of_2(entries), 512) if arch.vendor == "none" else 128
    blocks = triton.cdiv(entries, block)
    first, centre = PLACES[mode]
    arguments = {
        "scale": scale, "steps": None, "begins": None, "ends": None, **tables,
        "height": height, "width": width, "rows": size[0], "columns": size[1], "blocks": blocks,
        "K": k, "FIRST": first, "CENTRE": centre, "ZEROS": zeros, "ACC": accumulator_type(dtype), "BLOCK": block,
    }  # fmt: skip
    return Launch(axis_kernel, (2 * blocks,), arguments, compiler_options(arch)), tables


def plan_pool(
    x: Tensor, scale: Tensor, height: int, width: int, mode: int, zeros: bool, keep: bool, channels_last: bool,
    arch: Architecture,
) -> tuple[list[Launch], tuple[Tensor, Tensor]]:  # fmt: skip
    """The launches and what they write. Made of tensors on the device "meta", the plan is compiled without a GPU."""
    b, c, cells = *x.shape[:2], height * width
    groups = triton.cdiv(c, 4)
    out = empty(x, (b, c, height, width), channels_last)
    kept = keep and mode == MAX
    chosen = (
        empty(x, (b, groups, height, width), channels_last, torch.uint8)
        if kept
        else out.new_empty(0, dtype=torch.uint8)
    )
    if out.numel() == 0:
        return [], (out, chosen)
    axes, tables = plan_axes(
        scale.contiguous(), x.dtype, *x.shape[2:], (height, width), mode, zeros, False, False, arch
    )
    step, places = tile(arch, x.dtype, cells, c, channels_last, 512)
    blocks = triton.cdiv(cells, places)
    run_length = channel_run(arch, b * blocks, groups, step)
    runs = triton.cdiv(groups, run_length)
    arguments = {
        "x": laid_out(x, channels_last), "out": out, "chosen": chosen if kept else None, **tables,
        "blocks": blocks, "runs": runs, "run": run_length, "ZEROS": zeros,
        **common(x.dtype, x.shape, (height, width), mode, channels_last, step, places),
    }  # fmt: skip
    # 168 registers: three programs a processor, each with 36 loads a thread in flight. Others than these spill so.
    fits = arch.name in ("sm_80", "sm_90") and x.dtype != torch.float64
    options = compiler_options(arch, registers=168 if fits else 255)
    return [axes, Launch(pool_kernel, (b * runs * blocks,), arguments, options)], (out, chosen)


def plan_backward(
    grad: Tensor, chosen: Tensor, scale: Tensor, x: Tensor | None, height: int, width: int, mode: int, zeros: bool,
    wants_x: bool, channels_last: bool, arch: Architecture,
) -> tuple[list[Launch], tuple[Tensor, Tensor]]:  # fmt: skip
    b, c, *size = grad.shape
    rows, columns = size
    groups, cells, pixels = triton.cdiv(c, 4), rows * columns, height * width
    shape = torch.Size((b, c, height, width))
    dx = empty(grad, shape, channels_last) if wants_x else grad.new_empty(0)
    dscale = scale.new_empty(0 if x is None else 2)
    if b * c == 0:
        return [], (dx, dscale.zero_())
    scale = scale.contiguous()
    axes, tables = plan_axes(
        scale, grad.dtype, height, width, (rows, columns), mode, zeros, x is not None, wants_x, arch
    )  # fmt: skip
    given = {
        "grad": laid_out(grad, channels_last), "chosen": laid_out(chosen, channels_last) if mode == MAX else None,
        "firsts": tables["firsts"], "fractions": tables["fractions"],
    }  # fmt: skip
    launches = [axes]
    if wants_x:
        step, places = tile(arch, grad.dtype, pixels, c, channels_last, 1024 if channels_last else 2048)
        blocks, channel_blocks = triton.cdiv(pixels, places), triton.cdiv(groups, step)
        arguments = {
            **given, "begins": tables["begins"], "ends": tables["ends"], "dx": dx,
            "blocks": blocks, "channel_blocks": channel_blocks,
            **common(grad.dtype, shape, (rows, columns), mode, channels_last, step, places),
        }  # fmt: skip
        launches.append(
            Launch(x_gradient_kernel, (b * channel_blocks * blocks,), arguments, compiler_options(arch))
        )  # fmt: skip
    if x is not None:
        step, places = tile(arch, grad.dtype, cells, c, channels_last, 2048 if channels_last else 512)
        blocks = triton.cdiv(cells, places)
        run_length = channel_run(arch, b * blocks, groups, step)
        runs = triton.cdiv(groups, run_length)
        programs = b * runs * blocks
        partial = grad.new_empty((2, programs), dtype=torch.float64)
        arguments = {
            **given, "x": laid_out(x, channels_last), "steps": tables["steps"], "partial": partial,
            "blocks": blocks, "runs": runs, "run": run_length, "ZEROS": zeros,
            **common(grad.dtype, shape, (rows, columns), mode, channels_last, step, places),
        }  # fmt: skip
        launches.append(
            Launch(scale_gradient_kernel, (programs,), arguments, compiler_options(arch, 8 if channels_last else 4))
        )
        total = {"partial": partial, "scale": scale, "dscale": dscale, "programs": programs, "BLOCK": SUMMED}
        launches.append(Launch(scale_sum_kernel, (2,), total, compiler_options(arch)))
    return launches, (dx, dscale)


def dynopool(
    x: Tensor, scale: Tensor, height: int, width: int, mode: int, zeros: bool, keep: bool, channels_last: bool
) -> tuple[Tensor, Tensor]:
    """The dispatcher's op of this name: the resampled map, and which sample each maximum was."""
    launches, results = plan_pool(
        x, scale, height, width, mode, zeros, keep, channels_last, architecture(x.device)
    )  # fmt: skip
    run(x.device, launches)
    return results


def dynopool_backward(
    grad: Tensor, chosen: Tensor, scale: Tensor, x: Tensor | None, height: int, width: int, mode: int, zeros: bool,
    wants_x: bool, channels_last: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The dispatcher's op of this name: the gradients of x and scale."""
    launches, results = plan_backward(
        grad, chosen, scale, x, height, width, mode, zeros, wants_x, channels_last, architecture(grad.device)
    )
    run(grad.device, launches)
    return results


def aot_cases(arch: Architecture) -> Iterator[tuple[str, Launch]]:
    """Typical calls, to compile ahead of time: layouts, dtypes and modes."""
    names = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32", torch.float64: "f64"}
    cases = [
        *((dtype, MAX, False, last, 256) for dtype in names for last in (False, True)),
        *((torch.float32, MEAN, False, last, 256) for last in (False, True)),
        *((torch.float32, mode, zeros, False, 256) for mode, zeros in ((CENTRES, False), (CORNERS, True))),
        (torch.float32, CENTRES, True, True, 256),
        (torch.float32, MAX, False, True, 19),
    ]
    for dtype, mode, zeros, last, channels in cases:
        x = torch.empty((64, channels, 56, 56), dtype=dtype, device="meta")
        x = laid_out(x, last)
        scale = torch.empty(2, dtype=torch.promote_types(dtype, torch.float32), device="meta")
        launches, (out, chosen) = plan_pool(x, scale, 39, 31, mode, zeros, True, last, arch)
        launches += plan_backward(out, chosen, scale, x, 56, 56, mode, zeros, True, last, arch)[0]
        border = "zeros" if zeros else "border"
        layout = "last" if last else "first"
        for launch in launches:
            yield (
                f"dynopool-{names[dtype]}-{('max', 'mean', 'centre', 'corner')[mode]}-{border}-{layout}-c{channels}",
                launch,
            )

"""The triangle multiplicative update in Triton: any N, any C and D, float16 to float64.

The functions have the meaning of the dispatcher's ops of the same names. Each plans its launches, with all memory
allocated by torch, and runs them on the device of its arguments; nothing is read back.

Forward, in units U of one [B, N, N, 128] tensor of x's dtype, for C = D = 128: the input kernel reads x and writes a
and b (3 U), the contraction reads those and writes t (3 U), the output kernel reads x and t and writes y (3 U). The
memory beyond x and y is a, b and t. With `low_memory` the first two go by groups of channels, and each group's t is put
into y's own memory, where the output kernel finds it: x is then read once a group.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .arithmetic import dot_precision
from .launch import Architecture, Call, Launch, accumulator, architecture, run
from .triangle_multiplication_backward import backward_cases, run_backward
from .triangle_multiplication_contract import plan_product, plan_transpose, product_launch
from .triangle_multiplication_forward import plan_input, plan_output
from .triangle_multiplication_tiles import as_operands


def plan_contraction(ab: Tensor, t: Tensor, outgoing: bool, precision: str, arch: Architecture) -> Launch | Call:
    """t [B, D, N, N] from ab [2, B, D, N, N]."""
    a, b = ab[0], ab[1]
    if outgoing:
        return plan_product(a, b.transpose(2, 3), t, precision, arch)
    return plan_product(a.transpose(2, 3), b, t, precision, arch)


def plan_update(
    x: Tensor,
    mask: Tensor | None,
    parameters: tuple[Tensor | None, ...],
    outgoing: bool,
    gate_first: bool,
    eps: float,
    precision: str,
    low_memory: bool,
    arch: Architecture,
) -> tuple[tuple[Tensor, Tensor], list[Launch | Call]]:
    """The result and t [B, D, N, N], and the steps that make them; with low_memory t does not outlast them."""
    x, mask = x.contiguous(), None if mask is None else mask.contiguous()
    w_o = parameters[8]
    assert w_o is not None
    (b, n, _, c), d = x.shape, w_o.shape[1]
    parameters = as_operands(parameters, x.dtype)
    epsilon = torch.full((1,), eps, dtype=accumulator(x.dtype), device=x.device)
    out = torch.empty_like(x)  # [B, N, N, C]
    group = group_width(c, d) if low_memory else d
    ab = x.new_empty((2, b, group, n, n))
    in_place = low_memory and d <= c
    t = out[..., :d].permute(0, 3, 1, 2) if in_place else x.new_empty((b, d, n, n))
    part = x.new_empty((b, group, n, n)) if in_place else t
    steps: list[Launch | Call] = []
    for first in range(0, d, group):
        width = min(group, d - first)
        factors = ab.view(-1)[: 2 * b * width * n * n].view(2, b, width, n, n)
        made = part.view(-1)[: b * width * n * n].view(b, width, n, n) if in_place else t[:, first : first + width]
        steps.append(plan_input(x, mask, parameters, epsilon, precision, arch, factors, first))
        steps.append(plan_contraction(factors, made, outgoing, precision, arch))
        if in_place:
            place = t[:, first : first + width].permute(0, 2, 3, 1)
            steps.append(plan_transpose(made.permute(0, 2, 3, 1), None, place, arch))
    steps.append(plan_output(x, t, parameters, gate_first, epsilon, precision, arch, out, in_place))
    return (out, t), steps


def group_width(channels: int, hidden: int) -> int:
    """Channels of a, b and t at a time, so that the three take at most half of x; in sixteens, if there are so many."""
    width = max(channels // 6, 1)
    return min(width // 16 * 16 if width >= 16 else width, hidden)


def triangle_multiplication(x: Tensor, mask: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    """y [B, N, N, C], and t [B, D, N, N] where it is to be kept, else an empty tensor."""
    *parameters, outgoing, gate_first, eps, precision, keep, low_memory = rest
    arch = architecture(x.device)
    chosen = dot_precision(x.dtype, precision, arch)
    (out, t), steps = plan_update(x, mask, tuple(parameters), outgoing, gate_first, eps, chosen, low_memory, arch)
    run(x.device, steps)
    return out, t if keep else x.new_empty(0)


def triangle_multiplication_backward(
    grad: Tensor, t: Tensor, x: Tensor, mask: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    """The gradients of x and of the parameters, an empty tensor for each that is None."""
    return run_backward(grad, t, x, mask, *rest)


def plan_contract(
    a: Tensor, b: Tensor, mask: Tensor | None, outgoing: bool, precision: str, arch: Architecture
) -> tuple[Tensor, list[Launch | Call]]:
    """t [B, N, N, D] of the factors a and b, which are first put channel by channel."""
    batch, n, _, d = a.shape
    mask = None if mask is None else mask.contiguous()
    ab, t = a.new_empty((2, batch, d, n, n)), a.new_empty((batch, d, n, n))
    out = a.new_empty((batch, n, n, d))
    steps: list[Launch | Call] = [
        plan_transpose(source, mask, target.permute(0, 2, 3, 1), arch) for source, target in ((a, ab[0]), (b, ab[1]))
    ]
    steps.append(plan_contraction(ab, t, outgoing, precision, arch))
    steps.append(plan_transpose(t.permute(0, 2, 3, 1), None, out, arch))
    return out, steps


def triangle_contract(a: Tensor, b: Tensor, mask: Tensor | None, outgoing: bool) -> Tensor:
    """t_ij = sum_k a_ik b_jk (outgoing) or sum_k a_ki b_kj of [B, N, N, D], the mask [B, N, N] on both."""
    arch = architecture(a.device)
    out, steps = plan_contract(a, b, mask, outgoing, dot_precision(a.dtype, 0, arch), arch)
    run(a.device, steps)
    return out


def meta_arguments(
    n: int, c: int, d: int, gate_first: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """x, a mask and parameters without data."""
    gate = d if gate_first else c
    shapes = ((c,), (c,), (2 * d, c), (2 * d,), (2 * d, c), (2 * d,), (d,), (d,), (c, d), (c,), (gate, c), (gate,))
    x = torch.empty((1, n, n, c), dtype=dtype, device="meta")
    mask = torch.empty((1, n, n), dtype=accumulator(dtype), device="meta")
    return x, mask, tuple(torch.empty(shape, dtype=dtype, device="meta") for shape in shapes)


def aot_cases(arch: Architecture) -> Iterator[tuple[str, Launch]]:
    """The launches to compile ahead of time: every kernel, each with the parameters of typical calls."""
    names = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32", torch.float64: "f64"}
    ieee = tuple((dtype, "ieee") for dtype in names)
    tensor_cores = ((torch.float32, "tf32"),) if arch.vendor == "nvidia" else ()
    for dtype, precision in (*ieee, *tensor_cores):
        for c, d, gate_first, low_memory in (
            (128, 128, False, False),
            (128, 128, True, True),
            (384, 128, False, True),
            (384, 128, True, False),
            (64, 32, False, False),
        ):
            if c != 128 and dtype in (torch.float16, torch.float64):
                continue
            x, mask, parameters = meta_arguments(256, c, d, gate_first, dtype)
            _, steps = plan_update(x, mask, parameters, True, gate_first, 1e-5, precision, low_memory, arch)
            name = f"c{c}-d{d}-{'before' if gate_first else 'after'}{'-low_memory' if low_memory else ''}"
            for launch in {step.kernel: step for step in steps if isinstance(step, Launch)}.values():
                yield f"{names[dtype]}-{precision}-{name}", launch
    for precision in ("tf32", "tf32x3", "ieee") if tensor_cores else ("ieee",):
        for n in (256, 300):
            planes = torch.empty((1, 128, n, n), device="meta")
            for name, left, right in (("outgoing", planes, planes.mT), ("incoming", planes.mT, planes)):
                yield f"f32-{precision}-n{n}-{name}", product_launch(left, right, planes, precision, arch)
    for dtype in names:
        x, mask, _ = meta_arguments(300, 128, 128, False, dtype)
        yield f"{names[dtype]}-contract", plan_transpose(x, mask, torch.empty_like(x).permute(0, 2, 3, 1), arch)
    yield from backward_cases(arch)

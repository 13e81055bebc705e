"""Backward of the triangle multiplicative update in Triton: the steps, in order, and what they write.

 1. output side: from grad, x, t come dt [B, D, N, N] and the gradient dq of the gate's logits, then the weights';
 2. a and b again, from x, and the two products of dt with them, da and db;
 3. input side: from x, da, db, dq comes dx, then that side's weights'.

Weight gradients have kernels of their own, which compute again what they need. A weight's sum [128, 128] fills a
quarter of a processor's registers, so no program can make them all beside the rest; and to store do or q n (1 U), dp
and dg (4 U), h and n (2 U) for matrix products takes more bytes, written and read, than to read grad, x, t (3 U) and
x, da, db (3 U) once more. dq alone is stored, of which dq W_q goes into dh: to make it again for dx would also take two
reads, and in x's dtype it is what that product takes anyway. Sums over all pairs: each of a number of programs, which
depends on the shapes alone, sums a run of tiles and writes a part, and the parts are summed in order.

Bytes in units U of one [B, N, N, 128] tensor of x's dtype, for C = D = 128, read + written: output gradient 3 + 2, its
weights 3, a and b 1 + 2, two products 4 + 2, input gradient 4 + 1, its weights 3: 25 U.
Memory beyond inputs and results: 5 U (dt, dq, a, b and da; db takes the place of b).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from torch import Tensor

from .arithmetic import accumulator_type, dot_precision, operand_type
from .launch import Architecture, Call, Launch, accumulator, architecture, compiler_options, run
from .triangle_multiplication_backward_input import input_gradient_kernel, input_weights_kernel
from .triangle_multiplication_backward_output import output_gradient_kernel, output_weights_kernel
from .triangle_multiplication_backward_plans import GradientTiles, gradient_tiles
from .triangle_multiplication_contract import plan_product, product_kernel
from .triangle_multiplication_forward import input_kernel, plan_input
from .triangle_multiplication_tiles import as_operands

PROGRAMS = 256  # that share the pairs of a weight gradient, about; the same on every device, and so are the sums


@dataclass(frozen=True)
class Problem:
    """What the launches of one call have in common."""

    x: Tensor  # [B, N, N, C] contiguous
    mask: Tensor | None  # [B, N, N] contiguous
    parameters: tuple[Tensor | None, ...]  # as kernels take them: contiguous, the projections in x's dtype
    gate_first: bool
    epsilon: Tensor  # [1]
    precision: str
    arch: Architecture
    parts: dict[str, Tensor] = field(default_factory=dict)  # of the gradients of the parameters that there are

    @property
    def widths(self) -> tuple[int, int, int]:
        """C, D, and the width of the gate."""
        c, d = self.parameters[8].shape  # type: ignore[union-attr]
        return c, d, d if self.gate_first else c

    def tiles(self, kernel: str) -> GradientTiles:
        widest = max(self.widths)
        return gradient_tiles(self.arch, self.x.dtype, self.precision, widest, self.gate_first, kernel)

    def blocks(self, tiles: GradientTiles) -> tuple[int, int]:
        """Tiles of one batch element, and of all."""
        blocks = triton.cdiv(self.x.shape[1] * self.x.shape[2], tiles.pairs)
        return blocks, blocks * self.x.shape[0]

    def arguments(self, tiles: GradientTiles) -> dict[str, Any]:
        """Those of every kernel."""
        (c, d, _), dtype = self.widths, self.x.dtype
        gamma_1, beta_1, w_p, b_p, w_g, b_g, gamma_2, beta_2, w_o, b_o, w_q, b_q = self.parameters
        return {
            "x": self.x, "mask": self.mask, "gamma_1": gamma_1, "beta_1": beta_1, "w_p": w_p, "b_p": b_p, "w_g": w_g,
            "b_g": b_g, "gamma_2": gamma_2, "beta_2": beta_2, "w_o": w_o, "b_o": b_o, "w_q": w_q, "b_q": b_q,
            "epsilon": self.epsilon, "pairs": self.x.shape[1] * self.x.shape[2], "blocks": self.blocks(tiles)[0],
            "C": c, "D": d, "P": tiles.pairs, "BLOCK_C": tiles.block(c), "BLOCK_D": tiles.block(d),
            "GATE_FIRST": self.gate_first, "PRECISION": self.precision, "OPERAND": operand_type(dtype, self.arch),
            "ACC": accumulator_type(dtype),
        }  # fmt: skip

    def part(self, name: str, parameter: int, programs: int, *shape: int) -> dict[str, Tensor | None]:
        """One [*shape] for each program, for the gradient of a parameter; None for the parameter None."""
        if self.parameters[parameter] is None:
            return {name: None}
        self.parts[name] = self.x.new_empty((programs, *shape), dtype=accumulator(self.x.dtype))
        return {name: self.parts[name]}

    def splits(self, tiles: GradientTiles, programs: int) -> tuple[int, int]:
        """In how many runs to share the tiles of a sum that takes `programs`, and the tiles of a run."""
        run_length = max(triton.cdiv(self.blocks(tiles)[1], max(PROGRAMS // programs, 1)), 2)
        return triton.cdiv(self.blocks(tiles)[1], run_length), run_length

    def launch(self, kernel: Any, programs: int, tiles: GradientTiles, arguments: dict[str, Any]) -> Launch:
        options = compiler_options(self.arch, tiles.warps, tiles.registers) | {"num_stages": tiles.stages}
        taken = {name: arguments[name] for name in kernel.arg_names}
        return Launch(kernel, (programs,), taken, options)


def plan_output_gradient(problem: Problem, grad: Tensor, t: Tensor, dt: Tensor, dq: Tensor) -> Launch:
    tiles, (c, d, _) = problem.tiles("output"), problem.widths
    count = problem.blocks(tiles)[1]
    arguments = problem.arguments(tiles) | {"grad": grad, "t": t, "dt": dt, "dq": dq, "BLOCK_G": tiles.step_of(c)}
    arguments |= problem.part("dgamma_2", 6, count, d) | problem.part("dbeta_2", 7, count, d)
    return problem.launch(output_gradient_kernel, count, tiles, arguments)


def plan_output_weights(problem: Problem, grad: Tensor, t: Tensor) -> Launch:
    tiles, (c, d, g) = problem.tiles("output_weights"), problem.widths
    other = c if problem.gate_first else d
    rows, columns = tiles.step_of(g), tiles.columns_of(max(c, other))
    blocks = {"gate_blocks": triton.cdiv(g, rows), "column_blocks": triton.cdiv(max(c, other), columns)}
    programs = blocks["gate_blocks"] * blocks["column_blocks"]
    splits, run_length = problem.splits(tiles, programs)
    arguments = problem.arguments(tiles) | {"grad": grad, "t": t, "BLOCK_G": rows, "BLOCK_N": columns, **blocks}
    arguments |= {"tiles": problem.blocks(tiles)[1], "run": run_length}
    arguments |= problem.part("dw_o", 8, splits, c, d) | problem.part("db_o", 9, splits, c)
    arguments |= problem.part("dw_q", 10, splits, g, c) | problem.part("db_q", 11, splits, g)
    return problem.launch(output_weights_kernel, splits * programs, tiles, arguments)


def plan_input_gradient(problem: Problem, da: Tensor, db: Tensor, dq: Tensor, dx: Tensor) -> Launch:
    tiles, (c, d, g) = problem.tiles("input"), problem.widths
    count = problem.blocks(tiles)[1]
    arguments = problem.arguments(tiles) | {"da": da, "db": db, "dq": dq, "dx": dx, "G": g}
    arguments["BLOCK_E"] = tiles.step_of(max(d, g))
    arguments |= problem.part("dgamma_1", 0, count, c) | problem.part("dbeta_1", 1, count, c)
    return problem.launch(input_gradient_kernel, count, tiles, arguments)


def plan_input_weights(problem: Problem, da: Tensor, db: Tensor) -> Launch:
    tiles, (c, d, _) = problem.tiles("input_weights"), problem.widths
    rows, columns = tiles.step_of(d), tiles.columns_of(c)
    blocks = {"hidden_blocks": triton.cdiv(d, rows), "column_blocks": triton.cdiv(c, columns)}
    programs = 2 * blocks["hidden_blocks"] * blocks["column_blocks"]
    splits, run_length = problem.splits(tiles, programs)
    arguments = problem.arguments(tiles) | {"da": da, "db": db, "BLOCK_E": rows, "BLOCK_N": columns, **blocks}
    arguments |= {"tiles": problem.blocks(tiles)[1], "run": run_length}
    arguments |= problem.part("dw_p", 2, splits, 2 * d, c) | problem.part("db_p", 3, splits, 2 * d)
    arguments |= problem.part("dw_g", 4, splits, 2 * d, c) | problem.part("db_g", 5, splits, 2 * d)
    return problem.launch(input_weights_kernel, splits * programs, tiles, arguments)


def plan_products(
    dt: Tensor, ab: Tensor, da: Tensor, outgoing: bool, precision: str, arch: Architecture
) -> list[Launch | Call]:
    """da, and db in the place of b, of ab = [a, b]; all [B, D, N, N]."""
    a, b = ab[0], ab[1]
    if outgoing:  # t = a b^T
        return [plan_product(dt, b, da, precision, arch), plan_product(dt.transpose(2, 3), a, b, precision, arch)]
    # t = a^T b
    return [plan_product(b, dt.transpose(2, 3), da, precision, arch), plan_product(a, dt, b, precision, arch)]


def plan_backward(
    grad: Tensor,
    t: Tensor,
    x: Tensor,
    mask: Tensor | None,
    parameters: tuple[Tensor | None, ...],
    outgoing: bool,
    gate_first: bool,
    eps: float,
    precision: str,
    arch: Architecture,
) -> tuple[Tensor, dict[str, Tensor], list[Launch | Call]]:
    """dx, the parts of the gradients of the parameters by name, and the steps that make them."""
    x, mask = x.contiguous(), None if mask is None else mask.contiguous()
    ready = as_operands(parameters, x.dtype)
    epsilon = torch.full((1,), eps, dtype=accumulator(x.dtype), device=x.device)
    problem = Problem(x, mask, ready, gate_first, epsilon, precision, arch)
    grad, t = grad.contiguous(), t.contiguous()
    dt, dq = torch.empty_like(t), x.new_empty((*x.shape[:3], problem.widths[2]))
    ab, da, dx = t.new_empty((2, *t.shape)), torch.empty_like(t), torch.empty_like(x)
    steps = [
        plan_output_gradient(problem, grad, t, dt, dq),
        plan_output_weights(problem, grad, t),
        plan_input(x, mask, ready, epsilon, precision, arch, ab),
        *plan_products(dt, ab, da, outgoing, precision, arch),
        plan_input_gradient(problem, da, ab[1], dq, dx),
        plan_input_weights(problem, da, ab[1]),
    ]
    return dx, problem.parts, steps


def run_backward(grad: Tensor, t: Tensor, x: Tensor, mask: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    """The dispatcher's op triangle_multiplication_backward."""
    *parameters, outgoing, gate_first, eps, precision = rest
    arch = architecture(x.device)
    chosen = dot_precision(x.dtype, precision, arch)
    dx, parts, steps = plan_backward(grad, t, x, mask, tuple(parameters), outgoing, gate_first, eps, chosen, arch)
    run(x.device, steps)
    del steps  # and with them what is neither a part nor dx
    names = (
        "dgamma_1", "dbeta_1", "dw_p", "db_p", "dw_g", "db_g", "dgamma_2", "dbeta_2", "dw_o", "db_o", "dw_q", "db_q",
    )  # fmt: skip
    return dx, *(
        x.new_empty(0) if parameter is None else parts[name].sum(0).to(parameter.dtype).contiguous()
        for name, parameter in zip(names, parameters, strict=True)
    )


def backward_cases(arch: Architecture) -> Iterator[tuple[str, Launch]]:
    """The launches to compile ahead of time, of typical calls; the forward pass's kernels are compiled with it."""
    names = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32", torch.float64: "f64"}

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    for dtype, c, d, gate_first, precision in (
        *((dtype, 128, 128, False, "ieee") for dtype in names),
        *((dtype, 128, 128, True, "ieee") for dtype in (torch.bfloat16, torch.float32)),
        *((torch.float32, 128, 128, gate_first, "tf32") for gate_first in (False, True)),
        (torch.bfloat16, 384, 128, False, "ieee"),
        (torch.bfloat16, 64, 32, True, "ieee"),
    ):
        if precision == "tf32" and arch.vendor != "nvidia":
            continue
        g = d if gate_first else c
        shapes = ((c,), (c,), (2 * d, c), (2 * d,), (2 * d, c), (2 * d,), (d,), (d,), (c, d), (c,), (g, c), (g,))
        parameters = tuple(empty(*shape, dtype=dtype) for shape in shapes)
        x, t = empty(1, 256, 256, c, dtype=dtype), empty(1, d, 256, 256, dtype=dtype)
        mask = empty(1, 256, 256, dtype=accumulator(dtype))
        steps = plan_backward(x, t, x, mask, parameters, True, gate_first, 1e-5, precision, arch)[2]
        name = f"backward-{names[dtype]}-c{c}-d{d}-{precision}{'-gate_first' if gate_first else ''}"
        launches = [step for step in steps if isinstance(step, Launch)]
        products = [step for step in launches if step.kernel is product_kernel]
        yield from ((f"{name}-{which}", step) for which, step in zip(("da", "db"), products, strict=False))
        yield from ((name, step) for step in launches if step.kernel not in (input_kernel, product_kernel))

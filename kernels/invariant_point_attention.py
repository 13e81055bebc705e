"""Invariant point attention in Triton (AlphaFold2 supplement, Algorithm 22): any N, float16 to float64.

The functions have the meaning of the dispatcher's ops of the same names. Each plans its launches, with all memory
allocated by torch, and runs them on the device of its arguments; nothing is read back.

Forward: z is read once for all heads. Where there are fewer tiles of queries than the device wants, the keys are shared
among programs, and another kernel merges their results by logsumexp. Backward: z is read three times and the gradient
of z written once, by passes over pairs, queries and keys. Memory beyond results: points by coordinate, O(N H P), and
while the keys are shared, the parts of at most two programs a processor; backward O(N H (C + P + Cz)).

The limits of heads and channels of z, which a program holds for its queries, are in `Problem.tiles`.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .arithmetic import dot_precision
from .invariant_point_attention_backward import collect, plan_backward
from .invariant_point_attention_forward import plan_attention
from .invariant_point_attention_plans import Problem, float64_is_missing, prepare
from .launch import Architecture, Launch, accumulator, architecture, run


def invariant_point_attention(q: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """o [B, N, H, C], o_points [B, N, H, Pv, 3], o_pair [B, N, H, Cz] and lse [B, H, N]."""
    arch = architecture(q.device)
    problem = prepare(arch, dot_precision(q.dtype, 0, arch), q, *rest)
    out, launches = plan_attention(problem)
    run(q.device, launches)
    return out


def invariant_point_attention_backward(
    grad_o: Tensor, grad_o_points: Tensor, grad_o_pair: Tensor, delta: Tensor, lse: Tensor, *inputs: Any
) -> tuple[Tensor, ...]:
    """The gradients of the forward's tensors but centres and mask, an empty tensor for each that is None."""
    arch = architecture(lse.device)
    q, k, v, q_points, k_points, v_points, z, _, point_weights, bias, bias_weight, bias_bias, *_ = inputs
    problem = prepare(arch, dot_precision(q.dtype, 0, arch), *inputs)
    parts, launches = plan_backward(problem, (grad_o, grad_o_points, grad_o_pair, delta, lse), bias_bias)
    run(lse.device, launches)
    del launches
    given = (q, k, v, q_points, k_points, v_points, z, bias, bias_weight, bias_bias, point_weights)
    return collect(parts, given)


def meta_problem(n: int, dtype: torch.dtype, precision: str, bias: bool, arch: Architecture) -> Problem:
    """AlphaFold2's sizes without data: 12 heads of 16 channels, 4 query and 8 value points, 128 channels of z."""
    h, c, pq, pv, cz = 12, 16, 4, 8, 128

    def empty(*shape: int, of: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    wide = accumulator(dtype)
    q, points = empty(1, n, h, c), empty(1, n, h, pq, 3, of=wide)
    weight, constant = (None, None) if bias else (empty(h, cz), empty(h))
    return prepare(
        arch, precision, q, q, q, points, points, empty(1, n, h, pv, 3, of=wide), empty(1, n, n, cz),
        empty(1, n, 3, of=wide), empty(h, of=wide),
        empty(1, n, n, h) if bias else None, weight, constant, empty(1, n, of=torch.bool), float("inf"),
    )  # fmt: skip


def aot_cases(arch: Architecture) -> Iterator[tuple[str, Launch]]:
    """The launches to compile ahead of time: every kernel, each with the parameters of typical calls."""
    cases = [
        ("f16", torch.float16, "ieee", False),
        ("bf16", torch.bfloat16, "ieee", False),
        ("bf16-bias", torch.bfloat16, "ieee", True),
        ("f32", torch.float32, "ieee", False),
    ]
    if float64_is_missing() is None:
        cases.append(("f64", torch.float64, "ieee", False))
    if arch.vendor == "nvidia":
        cases.append(("f32-tf32", torch.float32, "tf32", False))
    for name, dtype, precision, bias in cases:
        problem = meta_problem(256, dtype, precision, bias, arch)
        _, n, h, c, _, pv, cz = problem.sizes
        shapes = ((1, n, h, c), (1, n, h, pv, 3), (1, n, h, cz), (1, h, n), (1, h, n))
        gradients = tuple(torch.empty(shape, dtype=problem.wide, device="meta") for shape in shapes)
        launches = plan_attention(problem, 1)[1]
        if name in ("bf16", "f64"):  # with the keys shared
            launches += plan_attention(problem, 4)[1][name == "f64" :]
        launches += plan_backward(problem, gradients, problem.constant)[1]
        yield from ((name, launch) for launch in launches)

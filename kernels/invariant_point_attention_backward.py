"""Backward of invariant point attention: passes over pairs, queries and keys, and sums of their parts in fixed order.

Each pass computes the weights again from the logsumexp, and reads z to do so. The first has all heads of a tile of
queries and writes the gradients of z and of the bias; its registers hold no sums for queries besides, so those over
keys have a pass of their own, and those over queries the third. Sums over all pairs, the gradients of the weights of
points and of the bias, are made by each program for its own pairs, and then summed in order.

Bytes in units of z: 3 read, 1 written. Beyond the results: points by coordinate, gradients in q's dtype and the
programs' parts, O(N H (C + points + Cz)).
"""

from typing import Any

import triton
from torch import Tensor

from .invariant_point_attention_backward_keys import key_gradient_kernel
from .invariant_point_attention_backward_pairs import pair_gradient_kernel
from .invariant_point_attention_backward_queries import query_gradient_kernel
from .invariant_point_attention_plans import Problem, by_planes
from .launch import Launch


def plan_backward(
    problem: Problem, gradients: tuple[Tensor, ...], constant: Tensor | None, splits: int | None = None
) -> tuple[dict[str, Tensor], list[Launch]]:
    """The parts of gradients by name, each to be summed over its first dimension, and the launches that make them.

    `gradients`: of o, o_points, o_pair, then delta and lse. That of o_pair, and of o, is a product's operand, in q's
    dtype: what it comes from are results in that dtype.
    """
    do, do_points, do_pair, delta, lse = gradients
    given = {
        "do": do.to(problem.dtype).contiguous(), "do_points": by_planes(do_points),
        "do_pair": do_pair.to(problem.dtype).contiguous(), "delta": delta.contiguous(), "lse": lse.contiguous(),
    }  # fmt: skip
    given |= problem.planes
    pairs, queries = plan_pairs(problem, given, splits), plan_queries(problem, given, constant, splits)
    steps = (pairs, queries, plan_keys(problem, given, splits))
    found = {name: value for made, _ in steps for name, value in made.items() if value is not None}
    return found, [launch for _, launch in steps]


def plan_pairs(problem: Problem, given: dict[str, Tensor], splits: int | None) -> tuple[dict[str, Any], Launch]:
    tiles = problem.tiles("pairs")
    b, n, h, _, _, _, cz = problem.sizes
    blocks = triton.cdiv(n, tiles.queries)
    run, splits = problem.runs(b * blocks, tiles.keys, splits)
    programs = splits * b * blocks
    made = {
        "dz": problem.q.new_empty((1, b, n, n, cz)),
        "dbias": None if problem.bias is None else problem.bias.new_empty((1, b, n, n, h)),
        "dweight": None if problem.weight is None else problem.q.new_empty((programs, h, cz), dtype=problem.wide),
    }
    arguments = problem.arguments(tiles) | given | made | {"blocks": blocks, "batches": b, "run": run}
    return made, problem.launch(pair_gradient_kernel, programs, tiles, arguments)


def plan_queries(
    problem: Problem, given: dict[str, Tensor], constant: Tensor | None, splits: int | None
) -> tuple[dict[str, Any], Launch]:
    tiles = problem.tiles("queries")
    b, n, h, c, pq, *_ = problem.sizes
    blocks, groups = triton.cdiv(n, tiles.queries), triton.cdiv(h, tiles.heads)
    run, splits = problem.runs(b * blocks * groups, tiles.keys, splits)
    programs = splits * b * blocks
    shapes = {"dq": (splits, b, n, h, c), "dq_points": (splits, b, n, h, pq, 3)}
    shapes |= {"dconstant": (programs, h), "dpoint_weights": (programs, h)}
    made: dict[str, Any] = {name: problem.q.new_empty(shape, dtype=problem.wide) for name, shape in shapes.items()}
    made["dconstant"] = None if constant is None else made["dconstant"]
    arguments = problem.arguments(tiles) | given | made | {"blocks": blocks, "batches": b, "run": run}
    arguments |= {"groups": groups, "BLOCK_H": tiles.heads}
    return made, problem.launch(query_gradient_kernel, programs * groups, tiles, arguments)


def plan_keys(problem: Problem, given: dict[str, Tensor], splits: int | None) -> tuple[dict[str, Any], Launch]:
    tiles = problem.tiles("keys")
    b, n, h, c, pq, pv, _ = problem.sizes
    blocks, groups = triton.cdiv(n, tiles.keys), triton.cdiv(h, tiles.heads)
    run, splits = problem.runs(b * blocks * groups, tiles.queries, splits)
    shapes = {"dk": (c,), "dv": (c,), "dk_points": (pq, 3), "dv_points": (pv, 3)}
    made = {name: problem.q.new_empty((splits, b, n, h, *shape), dtype=problem.wide) for name, shape in shapes.items()}
    arguments = problem.arguments(tiles) | given | made | {"blocks": blocks, "batches": b, "run": run}
    arguments |= {"groups": groups, "BLOCK_H": tiles.heads}
    return made, problem.launch(key_gradient_kernel, splits * b * blocks * groups, tiles, arguments)


NAMES = (
    "dq", "dk", "dv", "dq_points", "dk_points", "dv_points", "dz", "dbias", "dweight", "dconstant", "dpoint_weights"
)  # fmt: skip


def collect(parts: dict[str, Tensor], inputs: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    """The gradients of `inputs`, which are in the order of NAMES; an empty tensor for each that is None."""
    q = inputs[0]
    assert q is not None
    found = []
    for name, value in zip(NAMES, inputs, strict=True):
        if value is None:
            found.append(q.new_empty(0))
            continue
        part = parts.pop(name)
        total = part[0] if part.shape[0] == 1 else part.sum(0)
        found.append(total.to(value.dtype))
    return tuple(found)

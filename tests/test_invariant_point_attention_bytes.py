"""The bytes that invariant point attention moves in Triton: z is read once, and nothing else is of its size."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")

# In the interpreter: what is loaded and stored, counted address by address, is what the plan says.
SCRIPT = """
import math

import numpy
import torch
from triton.runtime import interpreter

from paperops.kernels.invariant_point_attention_forward import attention_bytes, plan_attention
from paperops.kernels.invariant_point_attention_plans import prepare
from paperops.kernels.launch import Architecture, run

moved = []
builder = type(interpreter.interpreter_builder)
load, store = builder.create_masked_load, builder.create_masked_store


def counting_load(self, pointers, mask, *rest):
    moved.append(numpy.asarray(pointers.data)[numpy.asarray(mask.data, dtype=bool)].ravel())
    return load(self, pointers, mask, *rest)


def counting_store(self, pointers, value, mask, *rest):
    moved.append(numpy.asarray(pointers.data)[numpy.asarray(mask.data, dtype=bool)].ravel())
    return store(self, pointers, value, mask, *rest)


builder.create_masked_load, builder.create_masked_store = counting_load, counting_store
torch.manual_seed(0)
for batch, n, given, inf, splits in ((2, 70, False, math.inf, 1), (1, 83, True, 1e5, 2), (1, 40, False, math.inf, 2)):
    h, c, pq, pv, cz = 3, 5, 2, 3, 20
    q, k, v = torch.randn(3, batch, n, h, c)
    q_points, k_points = torch.randn(2, batch, n, h, pq, 3)
    v_points, z = torch.randn(batch, n, h, pv, 3), torch.randn(batch, n, n, cz)
    bias = (torch.randn(batch, n, n, h), None, None) if given else (None, torch.randn(h, cz), torch.randn(h))
    mask = torch.rand(batch, n) < 0.7
    arch = Architecture("interpreter", 1)
    centres, weights = torch.randn(batch, n, 3), torch.rand(h)
    problem = prepare(
        arch, "ieee", q, k, v, q_points, k_points, v_points, z, centres, weights, *bias, mask, inf
    )
    launch = plan_attention(problem, splits)[1][0]
    moved.clear()
    run(z.device, [launch])
    addresses = numpy.concatenate(moved)
    planned = attention_bytes(launch)
    for name, count in planned.items():
        tensor = launch.arguments[name]
        first = tensor.data_ptr()
        own = addresses[(addresses >= first) & (addresses < first + tensor.nbytes)]
        assert own.size * tensor.element_size() == count, (name, own.size * tensor.element_size(), count)
        assert numpy.unique(own).size == tensor.numel(), name  # of all tensors each element is needed
        if name in ("z", "bias", "o", "o_points", "o_pair", "lse"):
            assert own.size == tensor.numel(), name
    assert addresses.size == sum(count // launch.arguments[name].element_size() for name, count in planned.items())
print("agreed")
"""


def test_programs_move_what_is_planned():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment)
    assert result.stdout == "agreed\n", result.stderr


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="of the plan for a device")
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize("bias", ["bias", "bias_weight"])
def test_z_is_read_once(target, bias):
    """At AlphaFold2's sizes, N = 1024, bfloat16: each byte of z once, and all distinct bytes within 1.2 of z and the
    op's other inputs."""
    from paperops.kernels.invariant_point_attention import meta_problem
    from paperops.kernels.invariant_point_attention_forward import attention_bytes, plan_attention
    from paperops.kernels.launch import KNOWN_ARCHITECTURES

    problem = meta_problem(1024, torch.bfloat16, "ieee", bias == "bias", KNOWN_ARCHITECTURES[target])
    _, launches = plan_attention(problem)
    moved = attention_bytes(launches[0])
    assert moved["z"] == problem.z.nbytes
    floor = problem.z.nbytes + sum(
        value.nbytes
        for value in (problem.q, problem.k, problem.v, problem.q_points, problem.k_points, problem.v_points)
    ) + (problem.bias.nbytes if bias == "bias" else 0)  # fmt: skip
    distinct = sum(launches[0].arguments[name].nbytes for name in moved)
    assert distinct <= 1.2 * floor, f"{distinct} bytes, {distinct / floor:.3f} of the floor"

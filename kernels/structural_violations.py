"""Structural violations in Triton (AlphaFold2 supplement, 1.9.11): every pair of atoms where it is, none kept.

One program has one residue: it goes through all others, whose bounding spheres tell which of them could clash, and only
blocks of residues with such a one are looked at atom by atom. Operations: about 15 a pair of residues, 18 a pair of
places for atoms (16 x 16 a pair of residues) in those blocks. Bytes beyond inputs and results: the atoms in planes of
16 a residue, from the L2 cache but for the first time. The backward pass is the same, a sum for each atom: no pair is
written to from two sides.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from .arithmetic import accumulator_type
from .launch import Architecture, Launch, architecture, compiler_options, real_numbers, run
from .structural_violations_residues import spheres_kernel, violations_gradient_kernel, violations_kernel

DISTANCE_EPS = 1e-10  # that of the definition
RESIDUES = 16  # of a program of the pass that packs


def prepare(
    positions: Tensor, atoms: Tensor, aatype: Tensor, residue_index: Tensor, asym_id: Tensor | None, radii: Tensor,
    lower: Tensor, upper: Tensor, tolerance: float, arch: Architecture,
) -> tuple[list[Launch], dict[str, Any]]:  # fmt: skip
    """The launch that packs the atoms, and the arguments of the passes over pairs."""
    batch, n = aatype.shape
    new = positions.new_empty
    packed = {
        "planes": new((batch, 4, n, 16)), "spheres": new((batch, 4, n)),
        "contents": aatype.new_empty((batch, n), dtype=torch.int32), "aatype": aatype.contiguous(), "N": n,
        "ACC": accumulator_type(positions.dtype),
    }  # fmt: skip
    given = {
        **packed, "positions": positions.contiguous(), "atoms": atoms.contiguous(), "radii": radii.contiguous(),
        "residues": batch * n, "BLOCK": RESIDUES,
    }  # fmt: skip
    wide = positions.dtype == torch.float64
    chunk, tile = (32, 16) if arch.vendor == "none" else (128, 2 if wide else 4)
    common = {
        **packed, "residue_index": residue_index.contiguous(),
        "asym_id": None if asym_id is None else asym_id.contiguous(), "lower": lower.contiguous(),
        "upper": upper.contiguous(), "limits": real_numbers(positions, tolerance, DISTANCE_EPS), "CHUNK": chunk,
        "BJ": tile,
    }  # fmt: skip
    return [_launch(spheres_kernel, triton.cdiv(batch * n, RESIDUES), given, arch)], common


def _launch(kernel: Any, programs: int, arguments: dict[str, Any], arch: Architecture, registers: int = 255) -> Launch:
    taken = {name: arguments[name] for name in kernel.arg_names}
    bound = 255 if arguments["planes"].dtype == torch.float64 else registers
    return Launch(kernel, (programs,), taken, compiler_options(arch, registers=bound))


def plan_violations(*inputs: Any) -> tuple[list[Launch], tuple[Tensor, ...]]:
    """The launches and what they write, of the op's arguments and an architecture. Made of tensors on the device
    "meta", the plan is compiled without a GPU."""
    positions, atoms, aatype, *_, arch = inputs
    launches, common = prepare(*inputs)
    counts = aatype.new_empty
    loss, within = (positions.new_empty(atoms.shape) for _ in range(2))
    results = (loss, counts(atoms.shape), counts(aatype.shape), within, counts(atoms.shape))
    names = ("clash_loss", "clashes", "pairs", "within_loss", "within_violations")
    arguments = common | dict(zip(names, results, strict=True))
    return [*launches, _launch(violations_kernel, aatype.numel(), arguments, arch, 128)], results


def plan_gradient(grad_clash: Tensor, grad_within: Tensor, *inputs: Any) -> tuple[list[Launch], Tensor]:
    """Likewise for the backward pass."""
    positions, _, aatype, *_, arch = inputs
    launches, common = prepare(*inputs)
    found = positions.new_empty(positions.shape)
    arguments = common | {
        "grad_clash": grad_clash.contiguous(), "grad_within": grad_within.contiguous(), "found": found,
    }  # fmt: skip
    return [*launches, _launch(violations_gradient_kernel, aatype.numel(), arguments, arch, 168)], found


def structural_violations(*inputs: Any) -> tuple[Tensor, ...]:
    """The dispatcher's op of this name: clash_loss, clashes, pairs, within_loss and within_violations."""
    device = inputs[0].device
    launches, results = plan_violations(*inputs, architecture(device))
    run(device, launches)
    return results


def structural_violations_backward(grad_clash: Tensor, grad_within: Tensor, *inputs: Any) -> Tensor:
    """The dispatcher's op of this name: the gradient of positions [B, N, 14, 3]."""
    launches, found = plan_gradient(grad_clash, grad_within, *inputs, architecture(grad_clash.device))
    run(grad_clash.device, launches)
    return found


def aot_cases(arch: Architecture) -> Iterator[tuple[str, Launch]]:
    """The launches to compile ahead of time: 1024 residues, of one chain and of several."""
    for dtype, name in ((torch.float32, "f32"), (torch.float64, "f64")):

        def empty(*shape: int, of: torch.dtype = dtype) -> Tensor:
            return torch.empty(shape, dtype=of, device="meta")

        number = empty(2, 1024, of=torch.int64)
        for label, chains in ((name, None), (f"{name}-chains", number)):
            inputs = (
                empty(2, 1024, 14, 3), empty(2, 1024, 14, of=torch.bool), number, number, chains, empty(21, 14),
                empty(21, 14, 14), empty(21, 14, 14), 1.5, arch,
            )  # fmt: skip
            gradient = plan_gradient(empty(2, 1024, 14), empty(2, 1024, 14), *inputs)[0]
            yield from ((label, launch) for launch in (*plan_violations(*inputs)[0], gradient[-1]))

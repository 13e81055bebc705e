"""The frame aligned point error in Triton (AlphaFold2 supplement, Algorithm 28): loss and gradients, streamed.

A pass over frames gives the loss and the gradients of frames, a pass over points those of points: each computes a
pair's error from differences, about 55 and 49 float32 instructions a pair, which is less than sums over both from one
pass take, since threads would have to exchange them. Frames of weight 0 are skipped. Bytes beyond inputs and results:
points by coordinate, six sums a program, and parts of the gradient of points, each of a share of the frames, as many as
keep all processors busy.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from .arithmetic import accumulator_type
from .frame_aligned_point_error_passes import finish_kernel, fold_kernel, frames_kernel, points_kernel
from .launch import Architecture, Launch, architecture, compiler_options, real_numbers, run

FOLD_BLOCK, FINISH_BLOCK = 512, 256


def sizes(arch: Architecture, dtype: torch.dtype, frames: int, points: int) -> tuple[int, int, int]:
    """Frames of a program of the pass over frames, and points of a step in this and of a program in the other."""
    if arch.vendor == "none":  # the interpreter pays by the operation
        return 2, 64, 64
    if dtype == torch.float64:
        return 1, 128, 128
    return (2 if frames >= 16 * arch.processors else 1), 256, (1024 if points >= 4096 else 256)


def plan_error(
    pred_rotations: Tensor, pred_translations: Tensor, target_rotations: Tensor, target_translations: Tensor,
    pred_positions: Tensor, target_positions: Tensor, frame_weights: Tensor, position_weights: Tensor,
    coefficients: Tensor, pair_weights: Tensor | None, frame_chains: Tensor | None, position_chains: Tensor | None,
    clamp: float, between_clamp: float, eps: float, gradients: bool, arch: Architecture,
) -> tuple[list[Launch], tuple[Tensor, ...]]:  # fmt: skip
    """The launches and what they write. Made of tensors on the device "meta", the plan is compiled without a GPU."""
    (batch, frames), points = frame_weights.shape, position_weights.shape[1]
    rows, step, columns = sizes(arch, pred_rotations.dtype, batch * frames, points)
    blocks, point_blocks = triton.cdiv(frames, rows), triton.cdiv(points, columns)

    def packed(value: Tensor | None) -> Any:
        return None if value is None else value.contiguous()

    common = {
        "pred_rotations": packed(pred_rotations), "pred_translations": packed(pred_translations),
        "target_rotations": packed(target_rotations), "target_translations": packed(target_translations),
        "points": torch.cat((pred_positions.mT, target_positions.mT), 1),  # [B, 6, P]
        "frame_weights": packed(frame_weights), "position_weights": packed(position_weights),
        "coefficients": packed(coefficients), "pair_weights": packed(pair_weights),
        "frame_chains": packed(frame_chains), "position_chains": packed(position_chains),
        "limits": real_numbers(pred_rotations, clamp, between_clamp, eps), "F": frames, "P": points,
        "ACC": accumulator_type(pred_rotations.dtype),
    }  # fmt: skip
    new = pred_rotations.new_empty
    partial, loss, sums = new((batch, blocks, 6)), new(batch), new((batch, 2, 3))
    shapes = ((batch, frames, 3, 3), (batch, frames, 3), (batch, points, 3))
    found = [new(shape if gradients else 0) for shape in shapes]
    options = compiler_options(arch, registers=168)  # three programs a processor
    launches = [
        Launch(
            frames_kernel,
            (batch * blocks,),
            {**common, "partial": partial, "d_rotations": found[0], "d_translations": found[1], "blocks": blocks,
             "GRADIENTS": gradients, "BF": rows, "BP": step},
            options,
        ),
        Launch(
            finish_kernel,
            (batch,),
            {"partial": partial, "coefficients": common["coefficients"], "sums": sums, "loss": loss,
             "count": blocks, "BLOCK": FINISH_BLOCK},
            options,
        ),
    ]  # fmt: skip
    if gradients:
        # Enough programs for their last wave not to matter, of 32 frames at least.
        splits = triton.cdiv(24 * arch.processors, max(batch * point_blocks, 1))
        share = max(triton.cdiv(frames, splits), 32)
        splits = max(triton.cdiv(frames, share), 1)
        parts = found[2] if splits == 1 else new((splits, batch, points, 3))
        arguments = {
            **common, "parts": parts, "blocks": point_blocks, "batches": batch, "share": share, "BP": columns,
        }  # fmt: skip
        launches.append(Launch(points_kernel, (splits * batch * point_blocks,), arguments, options))
        if splits > 1:
            size = found[2].numel()
            fold = {"parts": parts, "out": found[2], "size": size, "splits": splits, "BLOCK": FOLD_BLOCK}
            launches.append(Launch(fold_kernel, (triton.cdiv(size, FOLD_BLOCK),), fold, options))
    return [_taken(launch) for launch in launches], (loss, sums, *found)


def _taken(launch: Launch) -> Launch:
    """With the arguments that the kernel has."""
    arguments = {name: launch.arguments[name] for name in launch.kernel.arg_names}
    return Launch(launch.kernel, launch.grid, arguments, launch.options)


def frame_aligned_point_error(*arguments: Any) -> tuple[Tensor, ...]:
    """The dispatcher's op of this name: loss [B], sums [B, 2, 3], and the gradients of the prediction's rotations,
    translations and positions, empty where they are not asked for."""
    device = arguments[0].device
    launches, results = plan_error(*arguments, architecture(device))
    run(device, launches)
    return results


def aot_cases(arch: Architecture) -> Iterator[tuple[str, Launch]]:
    """The launches to compile ahead of time: side chains of 2048 residues, and sizes that take smaller programs."""

    def plan(dtype: torch.dtype, frames: int, points: int, kind: str, gradients: bool) -> list[Launch]:
        def empty(*shape: int, of: torch.dtype = dtype) -> Tensor:
            return torch.empty(shape, dtype=of, device="meta")

        rotations, translations, positions = empty(1, frames, 3, 3), empty(1, frames, 3), empty(1, points, 3)
        chains = kind == "chains"
        return plan_error(
            rotations, translations, rotations, translations, positions, positions, empty(1, frames), empty(1, points),
            empty(1, 2, 2), empty(1, frames, points) if kind == "pairs" else None,
            empty(1, frames, of=torch.int64) if chains else None, empty(1, points, of=torch.int64) if chains else None,
            10.0, 30.0, 1e-8, gradients, arch,
        )[0]  # fmt: skip

    for dtype, name in ((torch.float32, "f32"), (torch.float64, "f64")):
        for kind in ("one", "chains", "pairs"):
            for gradients in (True, False) if dtype == torch.float32 else (True,):
                launches = plan(dtype, 16384, 28672, kind, gradients)
                label = f"{name}-{kind}{'' if gradients else '-loss'}"
                passes = [launch for launch in launches if launch.kernel in (frames_kernel, points_kernel)]
                yield from ((label, launch) for launch in (launches if label.endswith("one") else passes))
        few = plan(dtype, 64, 64, "one", True)
        yield from ((f"{name}-few", launch) for launch in (few[0], few[2]))

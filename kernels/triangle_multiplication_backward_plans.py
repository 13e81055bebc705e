"""Launch parameters of the backward kernels."""

from dataclasses import dataclass

import torch
import triton

from .launch import Architecture


@dataclass(frozen=True)
class GradientTiles:
    """Pairs a tile; the most channels read, or summed beside the pairs, as one block; channels of logits a step, or
    rows of a weight's gradient, and its columns; warps, stages of the pipeline of loads, most registers of a thread
    (NVIDIA)."""

    pairs: int
    channels: int
    step: int
    columns: int
    warps: int
    stages: int = 1
    registers: int = 255

    def block(self, width: int) -> int:
        return fitting(width, self.channels)

    def step_of(self, width: int) -> int:
        return fitting(width, self.step)

    def columns_of(self, width: int) -> int:
        return fitting(width, self.columns)


def fitting(width: int, limit: int) -> int:
    """The block that holds `width`, or is `limit`: 16 at least, which tl.dot asks for."""
    return max(16, min(triton.next_power_of_2(width), limit))


def gradient_tiles(
    arch: Architecture, dtype: torch.dtype, precision: str, widest: int, gate_first: bool, kernel: str
) -> GradientTiles:
    """For the kernel "output", "input", "output_weights" or "input_weights"; `widest` is the most channels there are.

    A weight's sums take half of a thread's registers in 16-bit. A product on sm_90 wants 64 rows for each four warps:
    [64 pairs, channels] for the gradients, [128 channels, pairs] for the weights.
    """
    if arch.vendor == "none":  # the interpreter pays by the program
        return GradientTiles(128, 64, 64, 64, 4)
    weights = kernel.endswith("weights")
    if dtype == torch.float64:
        return double_tiles(arch, kernel)
    if dtype == torch.float32 and precision == "ieee":  # no tensor cores: a thread holds all of a block's operands
        if weights:
            return GradientTiles(16, 64, 32, 64, 8)
        channels = 32 if gate_first and kernel == "output" else 64
        return GradientTiles(16 if arch.vendor == "amd" else 32, channels, 16, 0, 8)
    narrow = gate_first and kernel == "output_weights"  # another product of every tile
    if dtype == torch.float32:
        if weights:
            return GradientTiles(16, 128, 32, 64, 8) if narrow else GradientTiles(32, 128, 32, 128, 8)
        return GradientTiles(32, 128, 16, 0, 8)
    if arch.vendor == "amd":
        return GradientTiles(32, 128, 64, 128, 4) if weights else GradientTiles(32, 128, 32, 0, 4)
    if arch.name == "sm_80":
        if weights:
            return GradientTiles(16, 128, 32 if narrow else 64, 64, 8)
        return GradientTiles(32, 128 if widest <= 128 else 64, 16, 0, 8)
    if not weights:
        return GradientTiles(64, 128, 32, 0, 8)
    if widest > 128:
        return GradientTiles(32, 128, 64 if arch.name != "sm_90" else 128, 64, 8)
    return GradientTiles(16 if kernel == "output_weights" else 32, 128, 128, 64 if narrow else 128, 8)


def double_tiles(arch: Architecture, kernel: str) -> GradientTiles:
    if kernel == "output_weights" and arch.vendor == "nvidia":
        return GradientTiles(16, 32, 16, 32, 8)
    if kernel.endswith("weights"):
        return GradientTiles(16, 32, 16 if arch.name == "sm_80" else 32, 32, 4)
    if kernel == "input" and arch.vendor == "nvidia":
        return GradientTiles(16, 64 if arch.name in ("sm_80", "sm_90") else 128, 16, 0, 8)
    return GradientTiles(16, 16, 16, 0, 8) if arch.vendor == "nvidia" else GradientTiles(16, 32, 16, 0, 4)

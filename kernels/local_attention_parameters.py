"""The short table of the launch parameters of local attention's kernels over tiles."""

from dataclasses import dataclass
from typing import Any

import torch
import triton

from .launch import Architecture, compiler_options


@dataclass(frozen=True)
class Tiles:
    """Height and width of a sub-tile, sub-tiles of a program down and across, keys (or queries) of a block, the most
    channels of an operand, warps, whether the operands of a program's own places are kept, or loaded for each block,
    and the most channels of a result that a program sums: where there are more, the programs of each of their groups
    find the weights."""

    height: int
    width: int
    down: int
    across: int
    block: int
    chunk: int
    warps: int
    keep: bool = True
    group: int = 64

    def options(self, arch: Architecture) -> dict[str, Any]:
        return compiler_options(arch, self.warps) | {"num_stages": 1}

    def constants(self, d: int) -> dict[str, Any]:
        chunk = min(max(triton.next_power_of_2(d), 16), self.chunk)
        return {
            "D": d, "CHUNK": chunk, "HEIGHT": self.height, "WIDTH": self.width, "DOWN": self.down,
            "ACROSS": self.across, "BLOCK": self.block, "KEEP": self.keep,
            "GROUP": min(self.group, triton.cdiv(d, chunk) * chunk),
        }  # fmt: skip


def tiles(arch: Architecture, dtype: torch.dtype, precision: str, d: int, kernel: str, biased: bool) -> Tiles:
    """Of the kernel "forward", "queries" or "keys"."""
    if arch.vendor == "none":
        name = "interpreter"
    elif dtype == torch.float64:
        name = "float64"
    else:
        name = precision if dtype == torch.float32 else "16-bit"
    width = "wide" if d > 64 else "middle" if d > 16 else "narrow"
    for key in (f"{name} {width} {arch.name}", f"{name} {arch.name}", f"{name} {width} {arch.vendor}",
                f"{name} {arch.vendor}", f"{name} {width}", name):  # fmt: skip
        known = TILES.get(key, {})
        found = (known.get(f"{kernel} bias") if biased else None) or known.get(kernel)
        if found is not None:
            return found
    raise AssertionError(f"no tiles of {name}, {kernel}")


KERNELS = ("forward", "queries", "keys")

# Sub-tiles of 2 x 8 places are the least that products take; windows of 7 x 7 cover 8 x 14 keys with them. Chosen so
# that nothing spills. The interpreter pays by the program; it takes wider heads as the GPUs do, in groups of channels.
_WIDE = {
    "forward": Tiles(2, 8, 4, 1, 16, 16, 4, keep=False),
    "queries": Tiles(2, 8, 4, 1, 16, 16, 4, keep=False),
    "queries bias": Tiles(2, 8, 2, 1, 16, 16, 4, keep=False),
    "keys": Tiles(2, 8, 4, 1, 16, 16, 4, keep=False, group=32),
}
_IEEE = dict.fromkeys(KERNELS, Tiles(2, 8, 4, 1, 16, 16, 8, keep=False)) | {
    "keys": Tiles(2, 8, 4, 1, 16, 16, 8, keep=False, group=32)
}
TILES = {
    "interpreter": dict.fromkeys(KERNELS, Tiles(4, 4, 2, 2, 128, 64, 4)),
    "interpreter middle": dict.fromkeys(KERNELS, Tiles(4, 4, 2, 2, 128, 16, 4, keep=False, group=16)),
    "16-bit": {
        "forward": Tiles(2, 8, 4, 1, 32, 16, 4),
        "queries": Tiles(2, 8, 4, 1, 64, 16, 4),
        "keys": Tiles(2, 8, 4, 1, 32, 16, 4),
    },
    "16-bit middle": {
        "forward": Tiles(2, 8, 4, 1, 32, 16, 4, keep=False),
        "queries": Tiles(2, 8, 4, 1, 32, 16, 4),
        "keys": Tiles(2, 8, 4, 1, 16, 16, 4, keep=False),
    },
    "16-bit wide": _WIDE,
    "tf32": dict.fromkeys(KERNELS, Tiles(2, 8, 4, 1, 32, 16, 4)),
    "tf32 middle": _WIDE,
    "tf32 wide": _WIDE,
    "ieee": {
        "forward": Tiles(2, 8, 4, 1, 32, 16, 4),
        "queries": Tiles(2, 8, 4, 1, 32, 16, 4),
        "queries bias": Tiles(2, 8, 2, 1, 16, 16, 4, keep=False),
        "keys": Tiles(2, 8, 4, 1, 16, 16, 8),
    },
    "ieee middle": _IEEE,
    "ieee wide": _IEEE,
    "float64": dict.fromkeys(KERNELS, Tiles(2, 8, 2, 1, 16, 16, 8, keep=False, group=32)),
}

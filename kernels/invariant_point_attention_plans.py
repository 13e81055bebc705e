"""What the launches of one call of invariant point attention have in common, and the short table of their tiles."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import triton
from torch import Tensor

from .arithmetic import accumulator_type, operand_type
from .launch import Architecture, Launch, accumulator, compiler_options, interpreted

W_L = math.sqrt(1 / 3)
LIMIT = 16384  # values that a program sums for each query, heads times channels of z, both padded


@dataclass(frozen=True)
class Tiles:
    """Launch parameters: queries and keys a tile, the most channels of z that are one operand, warps, and the heads of
    a program of the passes over queries and keys."""

    queries: int
    keys: int
    channels: int
    warps: int
    heads: int = 16

    def options(self, arch: Architecture) -> dict[str, Any]:
        return compiler_options(arch, self.warps) | {"num_stages": 1}


# Before 3.8 Triton has products over 16 values at least, whatever their type, and does not compile those of batches of
# float64 matrices for all devices.
OLD_PRODUCTS = tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 8)
LEAST_DEPTH = 16 if OLD_PRODUCTS else 8


def float64_is_missing() -> str | None:
    """Why these kernels do not take float64 here, or None."""
    if OLD_PRODUCTS and not interpreted():
        return f"Triton {triton.__version__} lacks batched products of float64: install Triton 3.8 or newer"
    return None


def padded(width: int, least: int = 16) -> int:
    """The block that holds so many heads, channels or points; 16 where products run over them."""
    return max(triton.next_power_of_2(width), least)


def tiles(arch: Architecture, dtype: torch.dtype, precision: str, values: int, kernel: str) -> Tiles:
    """Of the kernel "forward", "pairs", "queries" or "keys", followed by " bias" if that is given; `values` are those
    summed for each query, of which a tile has fewer if they are many."""
    name = table(arch, dtype, precision)
    known = TILES[name] | TILES.get(f"{name} {arch.name}", {})
    used = known.get(kernel) or known[kernel.split()[0]]
    if kernel.split()[0] in ("forward", "pairs") and arch.vendor != "none":
        return replace(used, queries=max(used.queries * 2048 // max(values, 2048), 1))
    return used


def table(arch: Architecture, dtype: torch.dtype, precision: str) -> str:
    if arch.vendor == "none":
        return "interpreter"
    if dtype == torch.float64:
        return "amd float64" if arch.vendor == "amd" else "float64"
    if dtype == torch.float32:
        return "amd ieee" if arch.vendor == "amd" else precision
    return "amd" if arch.vendor == "amd" else "16-bit"


# Chosen so that nothing spills. Products of 16-bit numbers run over 16 of them at least: keys of a tile, or in the pass
# over keys queries. The interpreter pays by the program.
TILES = {
    "interpreter": dict.fromkeys(("forward", "pairs", "queries", "keys"), Tiles(32, 32, 64, 4)),
    "16-bit": {
        "forward": Tiles(4, 16, 128, 8),
        "forward bias": Tiles(2, 16, 128, 8),
        "pairs": Tiles(2, 16, 128, 8),
        "queries": Tiles(8, 16, 128, 8, heads=8),
        "keys": Tiles(16, 16, 64, 8, heads=4),
    },
    "16-bit sm_80": dict.fromkeys(("forward", "forward bias"), Tiles(8, 16, 128, 8)) | {"pairs": Tiles(4, 16, 128, 8)},
    "16-bit sm_100": {"forward": Tiles(4, 16, 64, 8)},
    "tf32": {
        "forward": Tiles(2, 16, 64, 8),
        "pairs": Tiles(4, 16, 64, 8),
        "queries": Tiles(8, 16, 32, 8, heads=4),
        "keys": Tiles(16, 16, 32, 8, heads=4),
    },
    "tf32 sm_80": {"queries": Tiles(4, 16, 64, 8, heads=2), "keys": Tiles(16, 16, 64, 8, heads=4)},
    "ieee": {
        "forward": Tiles(1, 16, 32, 8),
        "pairs": Tiles(2, 8, 64, 8),
        "queries": Tiles(2, 16, 32, 8, heads=4),
        "keys": Tiles(16, 8, 32, 8, heads=4),
    },
    "ieee sm_80": {"forward": Tiles(2, 16, 32, 8), "pairs": Tiles(1, 16, 16, 8)},
    "float64": {
        "forward": Tiles(1, 16, 32, 8),
        "pairs": Tiles(1, 8, 64, 8),
        "queries": Tiles(1, 16, 16, 8, heads=2),
        "keys": Tiles(16, 8, 32, 8, heads=1),
    },
    "float64 sm_80": {"pairs": Tiles(1, 16, 32, 8), "keys": Tiles(16, 4, 32, 8, heads=1)},
    "amd": {
        "forward": Tiles(4, 16, 128, 4),
        "pairs": Tiles(4, 16, 128, 4),
        "queries": Tiles(4, 16, 128, 4, heads=4),
        "keys": Tiles(16, 16, 32, 4, heads=4),
    },
    "amd ieee": {
        "forward": Tiles(2, 16, 32, 4),
        "pairs": Tiles(1, 16, 16, 4),
        "queries": Tiles(2, 16, 32, 4, heads=4),
        "keys": Tiles(16, 8, 32, 4, heads=2),
    },
    "amd float64": {
        "forward": Tiles(1, 16, 32, 4),
        "pairs": Tiles(1, 16, 32, 4),
        "queries": Tiles(4, 16, 16, 4, heads=1),
        "keys": Tiles(16, 4, 16, 4, heads=1),
    },
}


def digits(dtype: torch.dtype) -> int:
    """How many numbers of `dtype` hold, as a sum, what one of its accumulator's dtype does."""
    return {torch.bfloat16: 3, torch.float16: 2}.get(dtype, 1)


def weight_parts(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight [H, Cz] as a sum of as many of `dtype` as hold it, [parts, H, Cz]."""
    parts, rest = [], weight
    for _ in range(1 if weight.dtype == dtype else digits(dtype)):
        parts.append(rest.to(dtype))
        rest = rest - parts[-1].to(rest.dtype)
    return torch.stack(parts)


def by_coordinates(points: Tensor) -> Tensor:
    """Points [B, N, H, P, 3] as [B, H, P, 3, N]: neighbours in the sequence are neighbours in memory."""
    return points.permute(0, 2, 3, 4, 1).contiguous()


def by_planes(points: Tensor) -> Tensor:
    """Points [B, N, H, P, 3] as [B, N, H, 3, P], all x of a residue and head side by side."""
    return points.transpose(3, 4).contiguous()


@dataclass(frozen=True)
class Problem:
    """The tensors as kernels take them, contiguous but z and bias, which go by their strides, and points, which kernels
    take in the copies below."""

    q: Tensor  # [B, N, H, C]
    k: Tensor
    v: Tensor
    q_points: Tensor  # [B, N, H, Pq, 3]
    k_points: Tensor
    v_points: Tensor  # [B, N, H, Pv, 3]
    z: Tensor  # [B, N, N, Cz], its channels side by side
    centres: Tensor  # [B, N, 3]
    point_weights: Tensor  # [H]
    bias: Tensor | None  # [B, N, N, H]
    weight: Tensor | None  # [parts, H, Cz]
    constant: Tensor | None  # [H]
    mask: Tensor | None  # [B, N]
    infinity: Tensor | None  # [1]; None: infinite
    precision: str
    arch: Architecture

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int, int]:
        """B, N, H, C, Pq, Pv, Cz."""
        return *self.q.shape, self.q_points.shape[3], self.v_points.shape[3], self.z.shape[3]

    @property
    def dtype(self) -> torch.dtype:
        return self.q.dtype

    @property
    def wide(self) -> torch.dtype:
        return accumulator(self.q.dtype)

    @cached_property
    def planes(self) -> dict[str, Tensor]:
        """What only the backward pass reads is made only there."""
        return {"q_points": by_planes(self.q_points), "k_points": by_planes(self.k_points)}

    @cached_property
    def value_planes(self) -> Tensor:
        return by_planes(self.v_points)

    @cached_property
    def coordinates(self) -> tuple[Tensor, Tensor]:
        return by_coordinates(self.q_points), by_coordinates(self.k_points)

    def tiles(self, kernel: str) -> Tiles:
        heads, channels = padded(self.sizes[2]), padded(self.sizes[6])
        if heads * channels > LIMIT:
            raise ValueError(
                f"{self.sizes[2]} heads and {self.sizes[6]} channels of z, padded to {heads} and {channels}, are more "
                f"than a Triton kernel holds: their product may be {LIMIT} at most; take the reference backend"
            )
        name = kernel if self.bias is None else f"{kernel} bias"
        return tiles(self.arch, self.dtype, self.precision, heads * channels, name)

    def arguments(self, tiles: Tiles) -> dict[str, Any]:
        """Those that all kernels take."""
        _, n, h, c, pq, pv, cz = self.sizes
        q_coordinates, k_coordinates = self.coordinates
        bias_strides = (0, 0, 0, 0) if self.bias is None else self.bias.stride()
        return {
            "q": self.q, "k": self.k, "v": self.v, "q_coordinates": q_coordinates, "k_coordinates": k_coordinates,
            "v_points": self.value_planes, "z": self.z,
            "centres": self.centres, "point_weights": self.point_weights, "bias": self.bias, "weight": self.weight,
            "constant": self.constant, "mask": self.mask, "infinity": self.infinity, "N": n,
            "z_batch": self.z.stride(0), "z_i": self.z.stride(1), "z_j": self.z.stride(2),
            "bias_batch": bias_strides[0], "bias_i": bias_strides[1], "bias_j": bias_strides[2],
            "bias_h": bias_strides[3], "H": h, "C": c, "PQ": pq, "PV": pv, "CZ": cz, "BI": tiles.queries,
            "BJ": tiles.keys, "BLOCK_H": padded(h), "BLOCK_C": padded(c), "BLOCK_PQ": padded(pq, LEAST_DEPTH),
            "BLOCK_PV": padded(pv, LEAST_DEPTH), "BLOCK_Z": min(padded(cz), tiles.channels),
            "PARTS": 0 if self.weight is None else self.weight.shape[0], "W_L": W_L, "SCALE": W_L / math.sqrt(c),
            "DIGITS": digits(self.dtype), "OPERAND": operand_type(self.dtype, self.arch), "PRECISION": self.precision,
            "ACC": accumulator_type(self.dtype),
        }  # fmt: skip

    def launch(self, kernel: Any, programs: int, tiles: Tiles, arguments: dict[str, Any]) -> Launch:
        taken = {name: arguments[name] for name in kernel.arg_names}
        return Launch(kernel, (programs,), taken, tiles.options(self.arch))

    def runs(self, blocks: int, tile: int, splits: int | None) -> tuple[int, int]:
        """The length of a run of keys (or queries), whole tiles, and how many runs there are: as asked for, or as many
        as give every processor two programs."""
        n = self.sizes[1]
        count = triton.cdiv(n, tile)
        wanted = triton.cdiv(2 * self.arch.processors, max(blocks, 1)) if splits is None else splits
        run = max(triton.cdiv(count, max(wanted, 1)), 1) * tile
        return run, max(triton.cdiv(n, run), 1)


def prepare(
    arch: Architecture, precision: str,
    q: Tensor, k: Tensor, v: Tensor, q_points: Tensor, k_points: Tensor, v_points: Tensor, z: Tensor, centres: Tensor,
    point_weights: Tensor, bias: Tensor | None, bias_weight: Tensor | None, bias_bias: Tensor | None,
    mask: Tensor | None, inf: float,
) -> Problem:  # fmt: skip
    """The problem of the dispatcher's arguments. z is copied only where its channels are not side by side."""

    def packed(value: Tensor | None) -> Any:
        return None if value is None else value.contiguous()

    return Problem(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        q_points,
        k_points,
        v_points,
        z if z.stride(3) == 1 or z.shape[3] == 1 else z.contiguous(),
        centres.contiguous(),
        point_weights.contiguous(),
        bias,
        None if bias_weight is None else weight_parts(bias_weight, q.dtype),
        packed(bias_bias),
        packed(mask),
        None if math.isinf(inf) else torch.full((1,), inf, dtype=accumulator(q.dtype), device=q.device),
        precision,
        arch,
    )

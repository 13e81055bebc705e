"""What every Triton op shares on the host: a launch as a value, and the device's name for tables of launch parameters.

An op's functions first *plan* their launches and then run them. The same plans, made from tensors on the "meta"
device, are compiled ahead of time by `paperops.testing.aot_triton`: so what is tested is what is launched.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from triton import knobs


@dataclass(frozen=True)
class Launch:
    """One kernel launch. `options` are the compiler's (num_warps, ...); floating-point fusion is off unless given:
    its default differs between versions of Triton, and kernels here ask for `tl.fma` where they want one."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, Any]

    @property
    def compiler_options(self) -> dict[str, Any]:
        return {"enable_fp_fusion": False, **self.options}

    def run(self) -> None:
        if all(self.grid):
            self.kernel[self.grid](**self.arguments, **self.compiler_options)


@dataclass(frozen=True)
class Call:
    """A step of a plan that torch takes: a function, and the tensors from which and into which it computes."""

    function: Callable[..., object]
    arguments: tuple[Any, ...]

    def run(self) -> None:
        self.function(*self.arguments)


def run(device: torch.device, launches: Sequence[Launch | Call]) -> None:
    """Run launches in order on the device of their tensors."""
    with contextlib.ExitStack() as stack:
        if device.type == "cuda":  # also HIP
            stack.enter_context(torch.cuda.device(device))
        elif interpreted():  # numpy warns of every NaN and overflow
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore", RuntimeWarning)
        for launch in launches:
            launch.run()


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums over elements of `dtype` are made."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def real_numbers(like: torch.Tensor, *values: float) -> torch.Tensor:
    """Parameters as a tensor of `like`'s dtype, of which a kernel reads all digits, on its device: filled there, so
    that the host does not wait."""
    numbers = like.new_empty(len(values))
    for position, value in enumerate(values):
        numbers[position].fill_(value)
    return numbers


def interpreted() -> bool:
    """Whether kernels of this process run in Triton's interpreter."""
    return bool(knobs.runtime.interpret)


@dataclass(frozen=True)
class Architecture:
    name: str  # sm_90, gfx942, interpreter
    processors: int  # streaming multiprocessors or compute units

    @property
    def vendor(self) -> str:
        return {"sm": "nvidia", "gf": "amd"}.get(self.name[:2], "none")


def compiler_options(arch: Architecture, warps: int = 4, registers: int = 255) -> dict[str, Any]:
    """`num_warps`, and on NVIDIA the most registers of a thread: given a limit, the assembler fits a kernel into it,
    while left alone it spills to reach the occupancy that it thinks best."""
    return {"num_warps": warps, "maxnreg": registers} if arch.vendor == "nvidia" else {"num_warps": warps}


# Of the devices that kernels are compiled for where there is none.
KNOWN_ARCHITECTURES = {
    "sm_80": Architecture("sm_80", 108),
    "sm_90": Architecture("sm_90", 132),
    "sm_100": Architecture("sm_100", 148),
    "gfx942": Architecture("gfx942", 304),
}


def architecture(device: torch.device) -> Architecture:
    if interpreted():
        return Architecture("interpreter", 1)
    if device.type != "cuda":
        raise RuntimeError(
            f"a Triton kernel cannot run on a tensor on {device}: move it to a GPU, or set TRITON_INTERPRET=1 before "
            "starting Python, to interpret kernels"
        )
    return _device_architecture(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _device_architecture(index: int) -> Architecture:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        return Architecture(properties.gcnArchName.split(":")[0], properties.multi_processor_count)
    return Architecture(f"sm_{properties.major}{properties.minor}", properties.multi_processor_count)

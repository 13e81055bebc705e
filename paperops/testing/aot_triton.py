"""Compile Triton kernels ahead of time for devices that are not there, and read what each one takes of a device.

An op's module in `paperops.kernels` declares its launches by a function

    aot_cases(arch: Architecture) -> Iterator[tuple[str, Launch]]

that makes the plans of typical calls from tensors on the "meta" device: the same plans, launch parameters included,
that real calls run. Everything else, from signatures to registers, is here and knows no op.

    from paperops.testing import aot_triton
    for case in aot_triton.cases("paperops.kernels.nearest", "sm_90"):
        print(case.name, aot_triton.resources(case))

`compilers` does the same with all processors.
"""

import contextlib
import functools
import importlib
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from paperops.kernels.launch import Launch

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
# A thread's registers and a block's shared memory in bytes, beyond which a kernel does not launch.
REGISTER_LIMIT = {"sm_80": 255, "sm_90": 255, "sm_100": 255, "gfx942": 512}
SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}

_POINTER_TYPES = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bool: "*i1",
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


@dataclass(frozen=True)
class Case:
    """One kernel as one launch compiles it, for one target."""

    name: str
    target: str
    launch: "Launch"
    module: str
    number: int  # among the module's cases for the target


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes of its device."""

    registers: int  # a thread's; on AMD vector and accumulation registers together
    shared: int  # bytes of a block
    spills: int  # bytes of local memory of a thread
    parked: int = 0  # AMD: scalar registers kept in lanes of vector registers, which costs a move and no memory

    def __str__(self) -> str:
        parked = f", {self.parked} scalars parked" if self.parked else ""
        return f"{self.registers} registers, {self.shared} bytes shared, {self.spills} spilled{parked}"


def cases(module: str, target: str) -> Iterator[Case]:
    """The launches that a kernel module declares, for one target."""
    launch = importlib.import_module(f"{module.rpartition('.')[0]}.launch")
    planned = importlib.import_module(module).aot_cases(launch.KNOWN_ARCHITECTURES[target])
    for number, (name, found) in enumerate(planned):
        yield Case(f"{name}:{found.kernel.__name__}", target, found, module, number)


def specialise(kernel: Any, arguments: dict[str, Any]) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], Any]]:
    """Signature, constants and attributes, as a launch with these arguments would specialise the kernel.

    Pointers are taken as aligned to 16 bytes, as torch's allocations are.
    """
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int], Any] = {}
    for position, parameter in enumerate(kernel.params):
        name, value = parameter.name, arguments[parameter.name]
        free = not (parameter.do_not_specialize or parameter.is_constexpr)
        if parameter.is_constexpr or value is None or (free and isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = _POINTER_TYPES[value.dtype]
            attributes[(position,)] = [["tt.divisibility", 16]]
        elif isinstance(value, bool):
            signature[name] = "i1"
        elif isinstance(value, int):
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if free and value % 16 == 0:
                attributes[(position,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            raise TypeError(
                f"{kernel.__name__}: argument {name} is a {type(value).__name__}: extend aot_triton.specialise"
            )
    return signature, constants, attributes


def compile_case(case: Case) -> Any:
    """Triton's compiled kernel. Needs no device, but a process without TRITON_INTERPRET."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = case.launch.kernel
    if not isinstance(kernel, triton.runtime.JITFunction):
        raise RuntimeError(
            "kernels are interpreted in this process: start one without TRITON_INTERPRET to compile them"
        )
    if case.target.startswith("sm_"):
        target = GPUTarget("cuda", int(case.target[3:]), 32)
    else:
        target = GPUTarget("hip", case.target, 64)
    source = ASTSource(kernel, *specialise(kernel, case.launch.arguments))
    return triton.compile(source, target=target, options=case.launch.compiler_options)


def resources(case: Case) -> Resources:
    """What the compiled kernel takes of its device."""
    compiled = compile_case(case)
    if "cubin" in compiled.asm:
        return _read_cubin(compiled.asm["cubin"], compiled.metadata.shared)
    return _read_amdgcn(compiled.asm["amdgcn"])


@contextlib.contextmanager
def compilers() -> Iterator[Callable[[Case], "Future[Resources]"]]:
    """A process for each processor: what is yielded hands a case to them, and they find its resources."""
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        yield lambda case: pool.submit(_resources, case.module, case.target, case.number)
        pool.shutdown(cancel_futures=True)


_cases = functools.cache(lambda module, target: list(cases(module, target)))


def _resources(module: str, target: str, number: int) -> Resources:
    """Of a case that another process names. Compilers' errors cannot travel; their texts can."""
    try:
        return resources(_cases(module, target)[number])
    except Exception as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from None


def _read_cubin(cubin: bytes, shared: int) -> Resources:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kernel.cubin")
        Path(path).write_bytes(cubin)
        shown = subprocess.run([tool, "--dump-resource-usage", path], capture_output=True, text=True, check=True).stdout
    used = {key: int(value) for key, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", shown)}
    # The kernels have no arrays of their own: whatever is on the stack was spilled.
    return Resources(used["REG"], max(shared, used["SHARED"]), used["STACK"] + used["LOCAL"])


def _read_amdgcn(assembly: str) -> Resources:
    def field(name: str) -> int:
        return int(re.findall(rf"^\s*\.{name}:\s*(\d+)", assembly, re.MULTILINE)[-1])

    spills = field("private_segment_fixed_size") + 4 * field("vgpr_spill_count")
    return Resources(field("vgpr_count"), field("group_segment_fixed_size"), spills, field("sgpr_spill_count"))

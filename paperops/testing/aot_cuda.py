"""Compiles the CUDA sources for every supported architecture, without a GPU, and reads what each kernel uses.

``python -m paperops.testing.aot_cuda`` prints the table; ``compile_sources`` raises ``SpillError`` where a kernel
spills registers to memory.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ARCHITECTURES = ("80", "90a", "100a", "120")
FLAGS = ("-std=c++17", "-O3", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000")
SOURCES = Path(__file__).resolve().parents[2] / "csrc"


class SpillError(RuntimeError):
    """A kernel keeps registers in memory."""


@dataclass(frozen=True)
class Kernel:
    """What one kernel uses on one architecture: registers a thread, bytes of shared memory a block, bytes spilled."""

    source: str
    architecture: str
    name: str
    registers: int
    shared_bytes: int
    stack_bytes: int
    spilled_bytes: int


def find_nvcc() -> str | None:
    """The CUDA compiler: of CUDA_HOME, of the path, or of the usual place; None where there is none."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    places = ([str(Path(home) / "bin")] if home else []) + [os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    return shutil.which("nvcc", path=os.pathsep.join(places))


def architectures_of(nvcc: str) -> tuple[str, ...]:
    """Those of ARCHITECTURES that this compiler knows."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], check=True, capture_output=True, text=True).stdout
    known = set(re.findall(r"compute_(\d+)", listed))
    return tuple(arch for arch in ARCHITECTURES if arch.rstrip("a") in known)


def parse_resources(log: str, source: str, architecture: str) -> list[Kernel]:
    """The kernels that a log of ``ptxas -v`` describes."""
    pattern = re.compile(
        r"Compiling entry function '(?P<name>[^']+)'.*?"
        r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
        r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
        re.DOTALL,
    )
    kernels = []
    for match in pattern.finditer(log):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        kernels.append(
            Kernel(
                source=source,
                architecture=architecture,
                name=match["name"],
                registers=int(match["registers"]),
                shared_bytes=int(shared[1]) if shared else 0,
                stack_bytes=int(match["stack"]),
                spilled_bytes=int(match["stores"]) + int(match["loads"]),
            )
        )
    return kernels


def readable(names: Sequence[str], nvcc: str) -> list[str]:
    """The kernels' C++ names without namespaces and arguments; unchanged where no demangler is found."""
    directories = os.pathsep.join([str(Path(nvcc).resolve().parent), os.environ.get("PATH", "")])
    demangler = shutil.which("cu++filt", path=directories) or shutil.which("c++filt", path=directories)
    if demangler is None or not names:
        return list(names)
    output = subprocess.run([demangler], input="\n".join(names), check=True, capture_output=True, text=True).stdout
    return [
        re.sub(r"^void |\(int\)|\((?!int\)).*$|\w+::", "", line.replace("(anonymous namespace)::", ""))
        for line in output.splitlines()
    ]


def compile_one(nvcc: str, source: Path, architecture: str, directory: Path) -> list[Kernel]:
    """Compiles one source's device code for one architecture."""
    import torch

    command = [
        nvcc,
        *FLAGS,
        f"-gencode=arch=compute_{architecture},code=sm_{architecture}",
        "-Xptxas=-v",
        "-cubin",
        f"-I{Path(torch.__file__).parent / 'include'}",
        "-o",
        str(directory / f"{source.stem}.{architecture}.cubin"),
        str(source),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{source.name} does not compile for sm_{architecture}:\n{result.stderr or result.stdout}")
    return parse_resources(result.stderr + result.stdout, source.name, architecture)


def compile_sources(
    sources: Iterable[Path] | None = None, architectures: Sequence[str] | None = None, allow_spills: bool = False
) -> list[Kernel]:
    """Compiles every .cu file of csrc for every architecture, and returns what each kernel uses.

    Raises:
        FileNotFoundError: there is no nvcc, or no csrc (the package is installed away from its checkout).
        RuntimeError: a source does not compile.
        SpillError: a kernel spills registers; with ``allow_spills`` it is only reported.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise FileNotFoundError("no nvcc: install the CUDA toolkit, or set CUDA_HOME to where it is")
    files = sorted(SOURCES.rglob("*.cu")) if sources is None else list(sources)
    if not files:
        raise FileNotFoundError(f"no CUDA sources under {SOURCES}: run this in a checkout")
    chosen = tuple(architectures) if architectures is not None else architectures_of(nvcc)
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        tasks = [
            pool.submit(compile_one, nvcc, source, architecture, Path(directory))
            for source in files
            for architecture in chosen
        ]
        found = [kernel for task in tasks for kernel in task.result()]
    names = readable([kernel.name for kernel in found], nvcc)
    kernels = [Kernel(**{**vars(kernel), "name": name}) for kernel, name in zip(found, names, strict=True)]
    spilling = [kernel for kernel in kernels if kernel.spilled_bytes > 0]
    if spilling and not allow_spills:
        raise SpillError("these kernels spill registers:\n" + table(spilling))
    return kernels


def table(kernels: Sequence[Kernel]) -> str:
    """One line a kernel, one column an architecture: registers / shared bytes, and the spilled bytes where any."""
    chosen = sorted({kernel.architecture for kernel in kernels}, key=lambda arch: int(arch.rstrip("a")))
    cells: dict[str, dict[str, str]] = {}
    for kernel in kernels:
        spill = f" ({kernel.spilled_bytes} spilled)" if kernel.spilled_bytes else ""
        cells.setdefault(kernel.name, {})[kernel.architecture] = f"{kernel.registers}/{kernel.shared_bytes}{spill}"
    width = max([len(name) for name in cells], default=0)
    header = " ".join([f"{'kernel: registers/shared bytes':{width}}", *(f"{'sm_' + arch:>14}" for arch in chosen)])
    rows = [
        " ".join([f"{name:{width}}", *(f"{columns.get(arch, ''):>14}" for arch in chosen)])
        for name, columns in sorted(cells.items())
    ]
    return "\n".join([header, *rows])


def main() -> int:
    """Prints the table; 1 where a kernel spills."""
    kernels = compile_sources(allow_spills=True)
    print(table(kernels))
    spilling = sum(kernel.spilled_bytes > 0 for kernel in kernels)
    print(f"{len(kernels)} kernels compiled, {spilling} spill registers")
    return int(spilling > 0)


if __name__ == "__main__":
    sys.exit(main())

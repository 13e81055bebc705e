"""Builds the compiled libraries and maps the packages; everything else stands in pyproject.toml.

Three libraries, each optional:

- ``paperops/_native.so``  the C++ implementation for CPUs, on torch's stable ABI: any Python, torch >= 2.11
- ``paperops/_cuda.so``    the CUDA implementation, likewise; built where there are an nvcc and sources, GPU or not
- ``paperops/_C.*.so``     a pybind11 module that tells how the others were built

Variables: ``PAPEROPS_BUILD_NATIVE`` and ``PAPEROPS_BUILD_CUDA`` (0: leave out; 1: fail where it cannot be built; unset:
build it if possible, and say so if not), ``TORCH_CUDA_ARCH_LIST``, ``CXX``, ``CUDA_HOME``, ``MAX_JOBS``.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
CSRC = ROOT / "csrc"
MACOS = sys.platform == "darwin"

# Oldest torch whose stable ABI the libraries use: 2.11.
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"
# -ffp-contract=off: the distances that decide must not be fused (csrc/nearest/nearest.h).
# The warnings switched off are false alarms of GCC 12 inside its own intrinsics.
CXX_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-ffp-contract=off", "-fvisibility=hidden", "-Wall"]
CXX_QUIET = ["-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Wno-psabi", "-Wno-unknown-warning-option"]
NVCC_FLAGS = ["-std=c++17", "-O3", "-DUSE_CUDA", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
# PTX of the oldest and the newest: for the architectures between and after them.
CUDA_ARCHITECTURES = "8.0+PTX;9.0a;10.0a;12.0+PTX"


def say(message: str) -> None:
    """A message of the build. pip shows it with -v; `python -m paperops info` tells the outcome afterwards."""
    print(f"paperops: {message}", file=sys.stderr, flush=True)


def wanted(variable: str) -> bool | None:
    """True: must be built; False: must not; None: if possible."""
    value = os.environ.get(variable, "").strip().lower()
    if value in ("", "auto"):
        return None
    if value not in ("0", "1"):
        raise SystemExit(f"paperops: {variable} must be 0, 1 or unset; got {value!r}")
    return value == "1"


def refuse(library: str, variable: str, reason: str) -> None:
    """Goes on without a library, or fails where it was asked for."""
    if wanted(variable):
        raise SystemExit(f"paperops: {variable}=1, but {library} cannot be built: {reason}")
    say(f"installing WITHOUT {library}: {reason}. Set {variable}=1 to make this an error, {variable}=0 to expect it.")


# --- tools -------------------------------------------------------------------------------------------------------


def cxx_compiler() -> list[str] | None:
    """The C++ compiler's command."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    name = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    return [name] if name else None


def nvcc_compiler() -> str | None:
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    files = [str(home / "bin" / "nvcc") for home in homes]
    return next(filter(None, map(shutil.which, [*files, "nvcc", "/usr/local/cuda/bin/nvcc"])), None)


def first_line(command: list[str], pattern: str = "") -> str:
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return next((line.strip() for line in output.splitlines() if pattern in line), "unknown")


def cuda_architectures(nvcc: str) -> list[str]:
    """TORCH_CUDA_ARCH_LIST, or the default cut to what this nvcc knows, as ["80", "80+PTX", "90a", ...]."""
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    names = []
    for name in re.split(r"[;,\s]+", listed or CUDA_ARCHITECTURES):
        match = re.fullmatch(r"(\d+)\.?(\d)([af]?)(\+PTX)?", name)
        if match is None:
            raise SystemExit(
                f"paperops: TORCH_CUDA_ARCH_LIST: cannot read {name!r}; write for example 8.0;9.0a;12.0+PTX"
            )
        number = match[1] + match[2] + match[3]
        names += [number] + ([number + "+PTX"] if match[4] else [])
    if listed:
        return names
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=False).stdout.split()
    return [name for name in names if not known or "compute_" + re.match(r"\d+", name)[0] in known]


def gencode(architecture: str) -> list[str]:
    number = architecture.removesuffix("+PTX")
    code = f"compute_{number}" if architecture.endswith("+PTX") else f"sm_{number}"
    return ["-gencode", f"arch=compute_{number},code={code}"]


# --- the three libraries -----------------------------------------------------------------------------------------


class Library(Extension):
    """One library: how each source is compiled, how the objects are linked."""

    def __init__(self, name: str, sources: list[Path], variable: str, compile: list[str], link: list[str]):
        super().__init__(name, [str(source.relative_to(ROOT)) for source in sources])
        self.variable = variable
        self.compile = compile
        self.link = link


def torch_paths() -> tuple[Path, str] | None:
    """torch's folder and version, without importing it (slow, and it may be broken in other ways)."""
    from importlib import metadata, util

    spec = util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent, metadata.version("torch")


def native_library(cxx: list[str], torch: Path) -> Library:
    shared = ["-dynamiclib", "-undefined", "dynamic_lookup"] if MACOS else ["-shared", "-Wl,--no-as-needed"]
    return Library(
        "paperops._native",
        sorted(CSRC.glob("*/*_cpu*.cpp")),
        "PAPEROPS_BUILD_NATIVE",
        [*cxx, *CXX_FLAGS, *CXX_QUIET, STABLE_ABI, "-isystem", str(torch / "include")],
        # No path to torch is stored: its libraries are in the process before ours is loaded.
        [*cxx, *shared, f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10"],
    )


def cuda_library(nvcc: str, cxx: list[str], torch: Path) -> Library:
    codes = [flag for architecture in cuda_architectures(nvcc) for flag in gencode(architecture)]
    host = ["-ccbin", cxx[0]] if os.environ.get("CXX") else []
    return Library(
        "paperops._cuda",
        sorted(CSRC.glob("*/*.cu")),
        "PAPEROPS_BUILD_CUDA",
        [nvcc, *host, *NVCC_FLAGS, *codes, STABLE_ABI, "-isystem", str(torch / "include")],
        # libtorch brings libtorch_cuda where torch has it, so a CPU-only torch is enough to link against.
        [nvcc, *host, "-shared", "-cudart", "static", "-Xlinker", "--no-as-needed", f"-L{torch / 'lib'}", "-ltorch"]
        + ["-ltorch_cpu", "-lc10"],
    )


def info_module(cxx: list[str], torch_version: str, nvcc: str | None) -> Library | None:
    try:
        import pybind11
    except ImportError:
        say("pybind11 is not installed: without paperops._C, the build information")
        return None
    facts = {
        "COMPILER": first_line([*cxx, "--version"]),
        "FLAGS": " ".join(CXX_FLAGS),
        "TORCH": torch_version,
        "PYTHON": platform.python_version(),
        "NVCC": first_line([nvcc, "--version"], "release") if nvcc else "",
        "NVCC_FLAGS": " ".join(NVCC_FLAGS) if nvcc else "",
        "CUDA_ARCHITECTURES": ";".join(cuda_architectures(nvcc)) if nvcc else "",
    }
    defines = [f"-DPAPEROPS_{name}={json.dumps(value)}" for name, value in facts.items()]
    include = ["-isystem", pybind11.get_include(), "-isystem", sysconfig.get_paths()["include"]]
    shared = ["-bundle", "-undefined", "dynamic_lookup"] if MACOS else ["-shared"]
    return Library(
        "paperops._C",
        [CSRC / "module.cpp"],
        "PAPEROPS_BUILD_NATIVE",
        [*cxx, *CXX_FLAGS, *CXX_QUIET, *defines, *include],
        [*cxx, *shared],
    )


def libraries() -> list[Library]:
    """What can be built here. What cannot is reported."""
    if wanted("PAPEROPS_BUILD_NATIVE") is False:
        say("installing WITHOUT compiled libraries: PAPEROPS_BUILD_NATIVE=0")
        return []
    torch = torch_paths()
    cxx = cxx_compiler()
    if cxx is None or shutil.which(cxx[0]) is None:
        refuse("the native library", "PAPEROPS_BUILD_NATIVE", "no C++ compiler was found (c++, g++, clang++, or CXX)")
        return []
    if torch is None:
        refuse("the native library", "PAPEROPS_BUILD_NATIVE", "torch is not installed (use --no-build-isolation)")
        return []
    sources = list(CSRC.glob("*/*.cu"))
    nvcc = nvcc_compiler() if sources and wanted("PAPEROPS_BUILD_CUDA") is not False else None
    if nvcc is None and wanted("PAPEROPS_BUILD_CUDA"):
        refuse("the CUDA library", "PAPEROPS_BUILD_CUDA", "no nvcc was found (CUDA_HOME, PATH, /usr/local/cuda)")
    built = [native_library(cxx, torch[0]), info_module(cxx, torch[1], nvcc)]
    if nvcc is not None:
        built.append(cuda_library(nvcc, cxx, torch[0]))
    return [library for library in built if library is not None]


class Build(build_ext):
    """Compiles all sources of all libraries in parallel, then links. Objects are kept in build/ and reused."""

    def get_ext_filename(self, fullname: str) -> str:
        # Only the pybind11 module depends on the Python version.
        name = super().get_ext_filename(fullname)
        return name if fullname.endswith("_C") else re.sub(r"\.[^/\\]*$", ".so", name)

    def build_extensions(self) -> None:
        headers = [path for suffix in ("h", "cuh") for path in CSRC.rglob(f"*.{suffix}")]
        newest = max((path.stat().st_mtime for path in headers), default=0.0)
        jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
        with ThreadPoolExecutor(jobs) as pool:
            # The slowest first: CUDA, then the rest.
            order = sorted(self.extensions, key=lambda library: not library.name.endswith("_cuda"))
            tasks = {
                library.name: [pool.submit(self._compile, library, Path(source), newest) for source in library.sources]
                for library in order
            }
        built = []
        for library in self.extensions:
            try:
                self._link(library, [task.result() for task in tasks[library.name]])
                built.append(library)
            except subprocess.CalledProcessError as error:
                print(shlex.join(error.cmd), error.output, sep="\n", file=sys.stderr)
                refuse(library.name, library.variable, "its compiler failed (command and output are above)")
        self.extensions[:] = built  # setuptools must not look for what is not there

    def _compile(self, library: Library, source: Path, newest_header: float) -> Path:
        digest = hashlib.sha256(shlex.join(library.compile).encode()).hexdigest()[:12]
        target = ROOT / "build" / "objects" / f"{source.stem}-{digest}.o"
        if target.exists() and target.stat().st_mtime > max((ROOT / source).stat().st_mtime, newest_header):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}.o")
        self._run([*library.compile, "-c", str(source), "-o", str(partial)])
        partial.replace(target)
        return target

    def _link(self, library: Library, objects: list[Path]) -> None:
        target = Path(self.get_ext_fullpath(library.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        command, libraries = library.link, [flag for flag in library.link if flag.startswith("-l")]
        options = [flag for flag in command if flag not in libraries]
        # A new file, not the old one overwritten: a process may have that loaded.
        partial = target.with_name(target.name + ".partial")
        self._run([*options, *map(str, objects), *libraries, "-o", str(partial)])
        partial.replace(target)
        say(f"built {target.name}")

    @staticmethod
    def _run(command: list[str]) -> None:
        result = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if result.returncode != 0:
            raise subprocess.CalledProcessError(result.returncode, command, result.stdout)
        if result.stdout.strip():
            print(result.stdout, file=sys.stderr)


def subpackages(folder: str, package: str) -> list[str]:
    """kernels/ and benchmarks/ lie beside paperops/ and are installed inside it."""
    if not (ROOT / folder / "__init__.py").exists():
        return []
    return [package, *(f"{package}.{name}" for name in find_packages(str(ROOT / folder)))]


setup(
    packages=[
        *find_packages(str(ROOT), include=["paperops", "paperops.*"]),
        *subpackages("kernels", "paperops.kernels"),
        *subpackages("benchmarks", "paperops.benchmarks"),
    ],
    package_dir={"paperops": "paperops", "paperops.kernels": "kernels", "paperops.benchmarks": "benchmarks"},
    package_data={"paperops": ["py.typed"], "paperops.benchmarks": ["results/*/*.json"]},
    ext_modules=libraries(),
    cmdclass={"build_ext": Build},
)

"""CONTRIBUTING.md, carried out: its op `centroid` is added to a copy of the checkout and passes the generic checks."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

NEW_FILE = re.compile(r"^`([\w/.]+)`:\n\n```[\w+]+\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ADDED_LINES = re.compile(r"Added to\s`([\w/.]+)`:\n\n```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources with the guide's steps done, laid out as it is installed."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("paperops", "tests", "csrc", "kernels"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path, text in NEW_FILE.findall(GUIDE):
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        (copy / path).write_text(text, encoding="utf-8")
    for path, lines in ADDED_LINES.findall(GUIDE):
        with open(copy / path, "a", encoding="utf-8") as file:
            file.write(lines)
    registry = copy / "paperops/testing/registry.py"
    declared = registry.read_text(encoding="utf-8").replace("FAMILIES = (", 'FAMILIES = ("centroid", ', 1)
    registry.write_text(declared, encoding="utf-8")
    (copy / "kernels").rename(copy / "paperops" / "kernels")
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


def python(checkout: Path, *arguments: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), **environment},
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    return result.stdout


def test_guide_names_every_floor() -> None:
    paths = {path for path, _ in NEW_FILE.findall(GUIDE)}
    assert {path.split("/")[0] for path in paths} == {"paperops", "kernels", "csrc", "tests"}, paths
    assert len(ADDED_LINES.findall(GUIDE)) == 3


CHECK = """
import sys, torch, paperops
from paperops.testing import checks, registry
assert paperops.__file__.startswith(sys.argv[1]), paperops.__file__
(entry,) = registry.select(["centroid"])
with paperops.use_backend(sys.argv[2]):
    for dtype in entry.dtypes:
        for name in checks.CHECKS:
            if checks.applies(name, entry, "cpu", dtype):
                checks.run(name, entry, torch.device("cpu"), dtype)
                print(name, dtype)
"""


def build_native(checkout: Path) -> None:
    """The guide's C++ alone, as setup.py compiles it."""
    import torch

    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("no C++ compiler")
    for library in (checkout / "paperops").glob("_native*.so"):
        library.unlink()
    root = Path(torch.__file__).parent
    flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    source, target = "csrc/centroid/centroid_cpu.cpp", "paperops/_native.so"
    folders = ["-isystem", str(root / "include"), f"-L{root / 'lib'}"]
    command = [*compiler.split(), *flags, *folders, source, "-o", target, "-ltorch_cpu", "-lc10"]
    subprocess.run(command, check=True, cwd=checkout)


@pytest.mark.parametrize("backend", ["reference", "native", "triton"])
def test_generic_checks(checkout: Path, backend: str) -> None:
    if backend == "native":
        build_native(checkout)
    if backend == "triton":
        pytest.importorskip("triton")
    done = python(checkout, "-c", CHECK, str(checkout), backend, TRITON_INTERPRET=str(int(backend == "triton")))
    expected = {"values", "gradients", "overwritten"}
    if backend != "triton":  # the interpreter runs the checks of kernels alone
        expected |= {"opcheck", "compiles", "refused"}
    assert expected <= {line.split()[0] for line in done.splitlines()}


def test_particular_test_and_doctest(checkout: Path) -> None:
    done = python(checkout, "-m", "pytest", "-q", "tests/ops/test_centroid.py", "paperops/ops/centroid.py")
    assert "2 passed" in done


def test_linters(checkout: Path) -> None:
    """What the guide shows is formatted and linted as everything else is."""
    pytest.importorskip("ruff")
    files = [path for path, _ in NEW_FILE.findall(GUIDE) if path.endswith(".py")]
    files = [path.replace("kernels/", "paperops/kernels/") for path in files]
    python(checkout, "-m", "ruff", "check", "--no-cache", *files)
    python(checkout, "-m", "ruff", "format", "--check", "--no-cache", *files)

"""What a user installs: what the wheel holds, what importing it costs, and which module may import which."""

import ast
import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import paperops

ROOT = Path(__file__).resolve().parent.parent


def run(code: str, **environment: str) -> str:
    """Run code in a Python of its own, started away from the checkout, and return what it prints."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd="/",
        env={**os.environ, **environment},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that `make test` has just built, or one built here."""
    if given := os.environ.get("PAPEROPS_WHEEL"):
        return ROOT / given
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "-w", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def modules(folder: str) -> set[str]:
    return {
        str(path.relative_to(ROOT / folder)) for path in (ROOT / folder).rglob("*.py") if "results" not in path.parts
    }


@pytest.mark.parametrize(
    ("source", "installed"),
    [("paperops", "paperops"), ("kernels", "paperops/kernels"), ("benchmarks", "paperops/benchmarks")],
)
def test_wheel_holds_every_module(unpacked: Path, source: str, installed: str) -> None:
    missing = {name for name in modules(source) if not (unpacked / installed / name).is_file()}
    assert not missing, f"not in the wheel: {sorted(missing)}"


def test_wheel_holds_what_is_not_python(unpacked: Path) -> None:
    assert (unpacked / "paperops" / "py.typed").is_file()
    assert (unpacked / "paperops" / "residues" / "residues.json").is_file()
    (information,) = unpacked.glob("paperops-*.dist-info")
    assert (information / "licenses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert (information / "licenses" / "NOTICE").is_file()


@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++") or os.environ.get("CXX")), reason="no C++ compiler")
def test_wheel_holds_the_native_library(unpacked: Path) -> None:
    libraries = sorted(path.name for path in (unpacked / "paperops").glob("*.so"))
    assert any(name.startswith("_native") for name in libraries), libraries
    assert not any((unpacked / "paperops").rglob("*.cpp")), "sources do not belong in a wheel"


def test_wheel_holds_nothing_else(unpacked: Path) -> None:
    top = {path.name for path in unpacked.iterdir() if not path.name.endswith(".dist-info")}
    assert top == {"paperops"}, f"a wheel must not install a top-level {top - {'paperops'}}"


CHAMFER = """
import torch, paperops
x, y = torch.rand(2, 9, 3, requires_grad=True), torch.rand(2, 8, 3)
loss, _ = paperops.chamfer_distance(x, y)
loss.backward()
print(paperops.__file__, bool(x.grad.isfinite().all()))
"""


def test_wheel_works_without_its_native_library(unpacked: Path, tmp_path: Path) -> None:
    """As on a machine that had no compiler: everything works, and `info` says what is missing."""
    shutil.copytree(unpacked, tmp_path / "site", ignore=shutil.ignore_patterns("*.so"))
    where = {"PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"}
    assert run(CHAMFER, **where) == f"{tmp_path}/site/paperops/__init__.py True"
    code = "import runpy, sys; sys.argv = ['paperops', 'info']; runpy.run_module('paperops', run_name='__main__')"
    assert "native" in run(code, **where)


def test_wheel_works_away_from_the_checkout(unpacked: Path) -> None:
    where = {"PYTHONPATH": str(unpacked), "PYTHONSAFEPATH": "1"}
    assert run(CHAMFER, **where) == f"{unpacked}/paperops/__init__.py True"
    kernels = run("import importlib.util; print(importlib.util.find_spec('paperops.kernels').origin)", **where)
    assert kernels == f"{unpacked}/paperops/kernels/__init__.py"


def test_version() -> None:
    assert paperops.__version__ == importlib.metadata.version("paperops")


def test_import_is_quick() -> None:
    """Under 0.1 s of a processor beyond torch; the quickest of five, since other processes share its caches."""
    code = "import torch, time; start = time.process_time(); import paperops; print(time.process_time() - start)"
    seconds = []
    for _ in range(5):
        seconds.append(float(run(code)))
        if seconds[-1] < 0.1:
            return
    pytest.fail(f"import paperops took {min(seconds):.3f} s beyond torch")


def test_import_is_lazy() -> None:
    """No Triton, no native library, no device, and none of the packages that only the command line needs."""
    code = """
import sys, torch
before = set(sys.modules)
import paperops
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(new & {"triton", "rich", "matplotlib", "scipy", "sklearn", "gemmi", "numpy", "pytest"}))
print([name for name in sys.modules if name.startswith(("paperops.kernels", "paperops.benchmarks"))])
print([path for path in torch.ops.loaded_libraries if "paperops" in str(path)])
print(torch.cuda.is_initialized())
"""
    assert run(code).splitlines() == ["[]", "[]", "[]", "False"]


# Which part of the package may import which (dependencies point down only).
FORBIDDEN = {
    "paperops/residues": [
        *(
            "paperops.reference",
            "paperops.ops",
            "paperops.nn",
            "paperops.models",
            "paperops.testing",
            "paperops.backends",
        ),
        *("paperops.geometry", "paperops.compat"),
    ],
    "paperops/geometry": [
        "paperops.nn",
        "paperops.models",
        "paperops.compat",
        "paperops.testing",
        "paperops.structures",
    ],
    "paperops/structures": [
        "paperops.nn",
        "paperops.models",
        "paperops.compat",
        "paperops.testing",
        "paperops.geometry",
    ],
    "paperops/reference": ["paperops.ops", "paperops.nn", "paperops.models", "paperops.testing", "paperops.backends"],
    "kernels": ["paperops.ops", "paperops.nn", "paperops.models", "paperops.testing", "paperops.reference"],
    "paperops/ops": ["paperops.nn", "paperops.models", "paperops.compat", "paperops.testing", "paperops.benchmarks"],
    "paperops/compat": ["paperops.nn", "paperops.models", "paperops.testing", "paperops.benchmarks"],
    "paperops/nn": ["paperops.models", "paperops.testing", "paperops.benchmarks"],
    "paperops/models": ["paperops.testing", "paperops.benchmarks"],
}


def imported(file: Path, package: str) -> set[str]:
    """The absolute names that a file imports, wherever in it the import stands."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("folder", [*FORBIDDEN, "paperops", "benchmarks"])
def test_dependencies_point_down(folder: str) -> None:
    above = [*FORBIDDEN.get(folder, []), "tests"]
    offending = []
    for file in sorted((ROOT / folder).rglob("*.py")):
        parts = file.relative_to(ROOT).parent.parts
        package = ".".join(parts if parts[0] == "paperops" else ("paperops", *parts))
        for name in imported(file, package):
            if any(name == module or name.startswith(f"{module}.") for module in above):
                offending.append(f"{file.relative_to(ROOT)} imports {name}")
    assert not offending, "\n".join(offending)


def test_every_public_op_is_registered() -> None:
    """What is public and has a definition has an entry too: see FAMILIES in paperops/testing/registry.py."""
    from paperops.testing.registry import entries

    functions = {name for name in paperops.__all__ if name in paperops.reference.__all__ and name.islower()}
    assert functions == {entry.name for entry in entries()}


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").glob("*.py")), ids=lambda path: path.name)
def test_kernels_have_no_atomics_and_state_the_precision_of_products(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert not node.func.attr.startswith("atomic_"), f"{path.name}:{node.lineno}: the order of atomics varies"
            if node.func.attr == "dot":
                given = {keyword.arg for keyword in node.keywords}
                assert "input_precision" in given, f"{path.name}:{node.lineno}: tl.dot defaults to tf32"

"""``python -m paperops info | check | bench | evidence | demo``."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import platform
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import paperops
from paperops import backends
from paperops.testing import registry

DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}
DEMOS = {
    "lmnet3d": "3D-LMNet on handwritten digits: images to point clouds, trained with the Chamfer distance",
    "dynopool": "DynOPool on handwritten digits, stretched, tiled and enlarged: learned heights and widths of maps",
    "acmix": "ACmix on handwritten digits: attention and convolution mixed, against either alone at equal parameters",
    "structure_module": "AlphaFold2's structure module, fitted to a protein chain (FILE: mmCIF or PDB)",
}
WITH_FILE = ("structure_module",)


def info(console: Console, arguments: argparse.Namespace) -> int:
    """What is built, what runs where, and why not."""
    machine = Table(title="paperops", show_header=False)
    machine.add_row("paperops", paperops.__version__)
    machine.add_row("Python", platform.python_version())
    machine.add_row(
        "torch", f"{torch.__version__} (CUDA {torch.version.cuda or 'no'}, {torch.get_num_threads()} threads)"
    )
    machine.add_row("Triton", _version("triton"))
    machine.add_row("CPU", f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}")
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    machine.add_row("GPUs", ", ".join(gpus) or "none")
    machine.add_row("build", _build_information())
    machine.add_row("forced backend", backends.forced() or "none")
    console.print(machine)

    table = Table(title="implementations of torch.ops.paperops.*")
    for column in ("op", "tensors on", *backends.BACKENDS):
        table.add_column(column, overflow="fold")
    notes: dict[str, int] = {}
    for op in backends.ops():
        for device in ("cpu", "cuda"):
            reasons = {backend: backends.why_not(op, backend, device) for backend in backends.BACKENDS}
            try:
                runs = backends.candidates(op, device)[0]
            except backends.BackendError:
                runs = ""
            cells = []
            for backend, reason in reasons.items():
                if reason is not None:
                    cells.append(f"[dim]no ({notes.setdefault(reason, len(notes) + 1)})[/]")
                else:
                    cells.append("[green]runs[/]" if backend == runs else "there")
            table.add_row(op if device == "cpu" else "", device, *cells)
    console.print(table)
    for reason, number in notes.items():
        console.print(f"({number}) {reason}", markup=False, highlight=False, soft_wrap=True)
    if not gpus:
        console.print("No GPU is visible here: the rows for cuda tell what this installation would run on one.")
    return 0


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _build_information() -> str:
    try:
        module = importlib.import_module("paperops._C")
    except ImportError:
        return "no native build information (paperops._C is not there)"
    return "\n".join(f"{key}: {value}" for key, value in module.build_info().items() if value)


def _device(words: str | None) -> torch.device:
    """The device that was named, or a GPU if there is one. Raises BackendError if it is not there."""
    try:
        device = torch.device(words or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise backends.BackendError(f"--device: {str(error).splitlines()[0]}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise backends.BackendError(f"{device} is not there: torch {torch.__version__} sees no GPU")
    return device


def check(console: Console, arguments: argparse.Namespace) -> int:
    """Every op against its reference on this machine."""
    from paperops.testing import checks

    device = _device(arguments.device)
    chosen = [arguments.backend] if arguments.backend else list(backends.BACKENDS)
    there = [backend for backend in chosen if backends.missing(backend, device.type) is None]
    for backend in chosen:
        if backend not in there:
            reason = backends.missing(backend, device.type)
            console.print(f"{backend} is not checked: {reason}", markup=False, highlight=False)
    if not there:
        return 2
    wanted = {name: DTYPES[name] for name in ([arguments.dtype] if arguments.dtype else DTYPES)}
    work = []
    for entry in registry.select(arguments.ops):
        for backend in there:
            reason = checks.lacks(entry, device, backend)
            if reason is not None:
                console.print(f"{entry.name} is not checked on {backend}: {reason}", markup=False, highlight=False)
                continue
            work += [(entry, backend, name, dtype) for name, dtype in wanted.items() if dtype in entry.dtypes]
    table = Table(title=f"checks on {_device_name(device)}")
    for column in ("op", "backend", "dtype"):
        table.add_column(column, no_wrap=True)
    for column in ("error", "torch's error", "of allowed", "checks"):
        table.add_column(column, justify="right")
    failures: list[str] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("checking", total=len(work) * len(checks.CHECKS))
        for entry, backend, name, dtype in work:
            errors, passed, applied = [], 0, 0
            for title in checks.CHECKS:
                progress.update(task, description=f"{entry.name}, {backend}, {name}: {title}", advance=1)
                if not checks.applies(title, entry, device, dtype, backend):
                    continue
                applied += 1
                try:
                    with paperops.use_backend(backend):
                        found = checks.run(title, entry, device, dtype)
                    errors += [error for error in found if error.allowed > 0]
                    passed += 1
                except Exception as error:  # whatever a check meets is its finding
                    failures.append(f"{entry.name}, {backend}, {name}, {title}: {type(error).__name__}: {error}")
            worst = max(errors, key=lambda error: error.ratio, default=None)
            cells = ["", "", ""]
            if worst is not None:
                unit = worst.scale or 1.0
                cells = [f"{worst.ours / unit:.2g}", f"{worst.plain / unit:.2g}", f"{worst.ratio:.2f}"]
            colour = "green" if passed == applied else "red"
            table.add_row(entry.name, backend, name, *cells, f"[{colour}]{passed}/{applied}[/]")
    console.print(table)
    console.print(
        "error: against float64, in units of the largest value, at the result that comes closest to its limit: twice "
        "the error of plain torch in the same dtype plus one rounding.",
        highlight=False,
        soft_wrap=True,
    )
    for failure in failures:
        console.print(f"FAILED {failure}", style="red", markup=False, highlight=False)
    console.print(f"{'FAILED' if failures else 'All checks passed'}: {len(failures)} failures in {len(work)} rows.")
    return 1 if failures else 0


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"


def bench(console: Console, arguments: argparse.Namespace) -> int:
    """Timings, memory and the achieved share of the roofline."""
    from paperops.benchmarks import bench as benchmarks

    if arguments.case and arguments.out is not None:
        raise KeyError("--case goes without --out: what is written are all cases of an op, measured in one run")
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)  # a folder that cannot be written to is said before measuring
    return benchmarks.run(
        arguments.ops,
        against=arguments.against,
        device=_device(arguments.device),
        dtype=DTYPES[arguments.dtype or "float32"],
        out=arguments.out,
        console=console,
        case=arguments.case,
    )


def evidence(console: Console, arguments: argparse.Namespace) -> int:
    """Which ops' device measurements are stale or missing."""
    from paperops.benchmarks import evidence as measurements

    return measurements.report(console, arguments.ops)


def demo(console: Console, arguments: argparse.Namespace) -> int:
    """A paper end to end, on real input."""
    if arguments.name is None:
        for name, description in DEMOS.items():
            console.print(f"{name}: {description}", highlight=False)
        console.print("Run one with: python -m paperops demo NAME")
        return 0
    if arguments.name not in DEMOS:
        console.print(f"no demo is called {arguments.name!r}; there are {', '.join(DEMOS)}", markup=False)
        return 2
    given: dict[str, object] = {"file": arguments.file, "chain": arguments.chain}
    if arguments.name not in WITH_FILE:
        for name, value in given.items():
            if value is not None:
                console.print(f"the demo {arguments.name} takes no {name}; got {value}", style="red", markup=False)
                return 2
        given = {}
    module = importlib.import_module(f"paperops.demos.{arguments.name}")
    return module.run(arguments.out or Path(f"demo-{arguments.name}"), console=console, seed=arguments.seed, **given)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main_parser = argparse.ArgumentParser(prog="python -m paperops", description=paperops.__doc__)
    commands = main_parser.add_subparsers(dest="command", required=True)

    def add(
        function: object, *, ops: bool = False, layers: bool = False, device: bool = False
    ) -> argparse.ArgumentParser:
        name, text = function.__name__, function.__doc__  # type: ignore[attr-defined]
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(function=function)
        if ops:
            found = registry.entries(layers=layers)
            known = sorted({name for entry in found for name in (entry.family, entry.name)})
            what = "ops, families or layers" if layers else "ops or families"
            command.add_argument("ops", nargs="*", metavar="OP", help=f"{what} (default all): {', '.join(known)}")
        if device:
            command.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
            command.add_argument("--dtype", choices=DTYPES, help="only this dtype")
        return command

    add(info)
    command = add(check, ops=True, device=True)
    command.add_argument("--backend", choices=backends.BACKENDS, help="only this implementation")
    command = add(bench, ops=True, layers=True, device=True)
    command.add_argument(
        "--against",
        nargs="+",
        metavar="PEER",
        help="peers to time beside ours (default: those that take part unasked; see benchmarks/peers)",
    )
    command.add_argument("--case", default="", metavar="TEXT", help="only the cases whose names contain this")
    command.add_argument("--out", type=Path, metavar="DIR", help="write JSON and plots into this folder")
    add(evidence, ops=True, layers=True)
    command = add(demo)
    command.add_argument("name", nargs="?", metavar="NAME", help=f"one of {', '.join(DEMOS)} (default: list them)")
    command.add_argument("file", nargs="?", type=Path, metavar="FILE", help="for demos that take one: what to read")
    command.add_argument("--chain", metavar="NAME", help="the chain of FILE (default: the first protein)")
    command.add_argument("--out", type=Path, metavar="DIR", help="folder for what it writes (default: demo-NAME)")
    command.add_argument("--seed", type=int, default=0, help="of all random numbers (default: 0)")
    return main_parser


def main(words: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = parser().parse_args(words)
    # Where nothing tells the width, in a pipe or a file, tables are not cut to that of an old terminal.
    console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160)
    try:
        return arguments.function(console, arguments)
    except (KeyError, backends.BackendError, OSError) as error:
        message = str(error) if isinstance(error, OSError) else error.args[0]
        console.print(f"error: {message}", style="red", markup=False, highlight=False)
        return 2


if __name__ == "__main__":
    sys.exit(main())

"""What a demonstration needs before it starts: packages, and a fast implementation of its op."""

from __future__ import annotations

import importlib

from rich.console import Console

from paperops import backends


def lacking(*modules: str) -> str | None:
    """What to say where one of these packages is missing, which the extra `paperops[demo]` brings; None: none is."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            return f"The demonstration needs {module} ({error}): pip install '.[demo]' in the checkout"
    return None


def refuse(console: Console, message: str) -> int:
    """Say why the demonstration does not run; returns its exit status."""
    console.print(message, style="red", markup=False, highlight=False, soft_wrap=True)
    return 2


def backend_of(op: str, name: str, console: Console, *, quick: bool) -> tuple[str, bool]:
    """The backend that runs the op on a CPU, and whether the run is to be a quick one: on the definition it is."""
    backend = backends.candidates(op, "cpu")[0]
    if backend == "reference" and not quick:
        why = backends.why_not(op, "native", "cpu") or "the reference is forced"
        message = f"{name} runs on its slow definition here ({why}), so the run is a small one."
        console.print(message, style="yellow", markup=False, highlight=False)
        quick = True
    return backend, quick

"""The page of an op, from its docstring, its entry in the registry and its measurements; and the list of all ops."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from paperops.benchmarks import evidence, plots, records, tables
from paperops.benchmarks.records import Record
from sphinx.util.inspect import signature, stringify_signature
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import paperops
from generate import docstrings, modules, source
from paperops import backends
from paperops.testing import checks
from paperops.testing.registry import BenchCase, Cost, Entry

CPU = torch.device("cpu")
NAMES = {
    "reference": "`reference` (plain torch, any device)",
    "native": "`native` (C++, CPU)",
    "cuda": "`cuda` (CUDA C++, NVIDIA GPU)",
    "triton": "`triton` (NVIDIA and AMD GPUs)",
}
SECTIONS = ("Formula", "Use", "Promises", "Cost", "Figures", "Time against size", "Definition")
"""The headings of every op's page, in this order."""


def page(entry: Entry, pictures: Sequence[str], results: Path = records.RESULTS, root: Path | None = None) -> str:
    """The page of an op in MyST's Markdown. ``pictures`` are paths of files, relative to the page."""
    about = docstrings.split(entry.function)
    parts = {
        "Formula": _formula(about),
        "Use": _use(entry, about),
        "Promises": _promises(entry, about),
        "Cost": _cost(entry, about),
        "Figures": _figures(entry, results, root),
        "Time against size": _pictures(entry, pictures),
        "Definition": _definition(entry),
    }
    assert tuple(parts) == SECTIONS
    body = "\n".join(f"## {title}\n\n{text.rstrip()}\n" for title, text in parts.items())
    runs = ", ".join(NAMES[name] for name in implementations(entry))
    times = "; ".join(evidence.summary(entry, records.load_all(results), root or records.checkout()))
    lead = f"Implementations: {runs}.\n\nTime of eager torch, in units of ours: {times or 'never measured'}.\n"
    return f"# `{entry.name}`\n\n{rst(about.summary)}\n{lead}\n{body}"


def rst(text: str) -> str:
    """reStructuredText within Markdown; names are looked up in ``paperops``."""
    return f"`````{{eval-rst}}\n.. py:currentmodule:: paperops\n\n{text}\n`````\n"


def implementations(entry: Entry) -> list[str]:
    """The backends that implement all that a call of the op and its backward pass dispatch to."""
    sample = next(entry.samples(CPU, entry.dtypes[0]))
    with backends.use_backend("reference"):
        called = checks.dispatched(entry, [sample])
    of_calls = [set(backends.implemented(name.split("::")[-1].split(".")[1])) for name in called]
    return [name for name in backends.BACKENDS if all(name in there for there in of_calls)]


def _formula(about: docstrings.Docstring) -> str:
    text = rst(about.lead or about.summary)
    paper = about.sections.get("Source")
    return text + ("\n" + rst(docstrings.section("Source", paper)) if paper else "")


def _use(entry: Entry, about: docstrings.Docstring) -> str:
    example = f"```pycon\n{about.sections['Example']}\n```\n\n" if "Example" in about.sections else ""
    head = stringify_signature(signature(entry.function), unqualified_typehints=True)
    fields = "".join(
        docstrings.section(title, about.sections[title]).rstrip() + "\n"
        for title in ("Args", "Returns", "Raises")
        if title in about.sections
    )
    indented = "".join(f"   {line}\n" if line else "\n" for line in fields.splitlines())
    return example + rst(f".. py:function:: {entry.name}{head}\n\n{indented}")


def _promises(entry: Entry, about: docstrings.Docstring) -> str:
    text = rst(about.rest) + "\n" if about.rest else ""
    items = [f"Takes {_listed(_dtype(dtype) for dtype in entry.dtypes)}."]
    if entry.differentiable:
        twice = ", first and second derivatives" if entry.twice else ", first derivatives only"
        items.append(f"Differentiable in {_listed(f'`{name}`' for name in entry.differentiable)}{twice}.")
    else:
        items.append("Not differentiable.")
    items.append(
        "Each implementation is held to the definition in float64: its error is at most twice that of plain torch in "
        f"the same dtype plus {_roundings(entry)}."
    )
    if entry.unit:
        items.append(f"Terms of size {entry.unit:g} that may cancel count with 32 roundings of theirs besides.")
    if entry.tolerance:
        given = _listed(f"{value:g} in {_dtype(dtype)}" for dtype, value in entry.tolerance.items())
        items.append(f"Instead, the error is at most {given}.")
    if entry.tolerance_reason:
        items.append(f"The reason: {entry.tolerance_reason}.")
    names = [name for name in checks.CHECKS if name not in entry.exceptions]
    everywhere = _listed(f"`{name}`" for name in names if name not in checks.OF_TRACING)
    once = _listed(f"`{name}`" for name in names if name in checks.OF_TRACING)
    items.append(f"Checked on every implementation: {everywhere}; on the one that a device takes by itself: {once}.")
    items += [f"Not checked: `{name}`, for {reason}." for name, reason in entry.exceptions.items()]
    return text + "".join(f"- {item}\n" for item in items) + "\n[What the checks are](../library/checks.md).\n"


def _roundings(entry: Entry) -> str:
    if not entry.roundings:
        return "one rounding of the largest value (32 in float64)"
    given = _listed(f"{count} in {_dtype(dtype)}" for dtype, count in entry.roundings.items())
    others = "" if torch.float64 in entry.roundings else ", 32 in float64"
    return f"one rounding of the largest value ({given}{others})"


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _listed(words: Iterator[str] | Sequence[str]) -> str:
    *first, last = list(words) or [""]
    return f"{', '.join(first)} and {last}" if first else last


def _cost(entry: Entry, about: docstrings.Docstring) -> str:
    text = rst(about.sections["Cost"]) + "\n" if "Cost" in about.sections else ""
    head = (
        "The least that the cases of `python -m paperops bench` take in float32, by the op's cost model: the floor "
        "that stands beside each time.\n\n| case | on | operations | bytes |\n|---|---|---:|---:|\n"
    )
    lines = ""
    for case in entry.bench:
        cost = counted(entry, case)
        if cost is not None:
            devices = " and ".join("GPU" if device == "cuda" else device.upper() for device in case.devices)
            operations, size = tables.rate(cost.operations).strip(), tables.size(cost.bytes)
            lines += f"| {case.name} | {devices} | {operations}op | {size} |\n"
    return text + (head + lines if lines else "There are no cases to time.\n")


def counted(entry: Entry, case: BenchCase) -> Cost | None:
    """The floor of a bench case, of tensors without data; where it depends on values, on a CPU alone, or None."""
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):  # constants are real
            return entry.floor(case, case.make(CPU, torch.float32))
    except DataDependentOutputException:
        return entry.floor(case, case.make(CPU, torch.float32)) if "cpu" in case.devices else None


def _figures(entry: Entry, results: Path, root: Path | None) -> str:
    return evidence.markdown(results, root=root, names=[entry.name])


def _pictures(entry: Entry, pictures: Sequence[str]) -> str:
    if not pictures:
        return f"`{entry.name}` was never measured: there is nothing to draw.\n"
    return "\n".join(
        f"![Time against size: {Path(name).parent.name}, {Path(name).stem}]({name})\n" for name in pictures
    )


def _definition(entry: Entry) -> str:
    return (
        f"What every implementation is held to, in plain torch; from `{source.file(entry.reference)}`:\n\n"
        f"```python\n{source.closure(entry.reference)}\n```\n"
    )


# --- pictures, and the list of all ops -------------------------------------------------------------------------------


def draw(measured: Sequence[Record], folder: Path) -> dict[str, list[str]]:
    """Draw every record into ``<folder>/figures/<device>/``; the files by op, relative to the folder."""
    found: dict[str, list[str]] = {}
    for record in measured:
        file = plots.draw(record, folder / "figures" / record.device["slug"], ".svg")
        if file is not None:
            found.setdefault(record.op, []).append(file.relative_to(folder).as_posix())
    return found


def readme(part: str) -> str:
    """A part of README.md, which has comments where it begins and ends."""
    marks = f":start-after: <!-- {part}:begin -->\n:end-before: <!-- {part}:end -->"
    return f"```{{include}} ../../README.md\n{marks}\n```\n"


def table(entries: Sequence[Entry], measured: Sequence[Record]) -> str:
    """All ops in one table."""
    rows = [("op", "meaning", "implementations", "time of eager torch, in units of ours")]
    for entry in entries:
        times = "; ".join(evidence.summary(entry, measured, records.checkout())) or "never measured"
        meaning = docstrings.split(entry.function).summary
        rows.append((f":doc:`{entry.name} </ops/{entry.name}>`", meaning, ", ".join(implementations(entry)), times))
    head = ".. list-table::\n   :header-rows: 1\n   :widths: 25 40 15 20\n\n"
    return rst(head + "".join("   * - " + "\n     - ".join(row) + "\n" for row in rows))


def listing(entries: Sequence[Entry], table: str) -> str:
    """The page of all ops: their table, what the ops return, and how an implementation is chosen."""
    shown = [name for name in paperops.__all__ if inspect.isclass(getattr(paperops, name))]
    results = [name for name in shown if issubclass(getattr(paperops, name), tuple)]
    errors = [name for name in shown if issubclass(getattr(paperops, name), Exception)]
    toctree = "\n".join(entry.name for entry in entries)
    return "\n".join(
        (
            "# The ops\n",
            table,
            readme("promises"),
            "## Results\n",
            rst("\n".join(modules.classes(name, getattr(paperops, name)) for name in results)),
            "## Implementations\n",
            readme("runs"),
            rst(".. autofunction:: use_backend\n\n" + "\n".join(f".. autoexception:: {name}\n" for name in errors)),
            f"```{{toctree}}\n:hidden:\n\n{toctree}\n```\n",
        )
    )

"""What the kept measurements prove: which ops were measured on which device, and whether their sources changed since.

``python -m paperops.benchmarks.evidence --update-readme`` writes the tables into README.md between the markers
``<!-- performance:begin -->`` and ``<!-- performance:end -->``; ``--check`` fails if they are out of date.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from paperops.testing.registry import Entry, entries, select

from . import records, tables
from .peers import torch_eager
from .records import RESULTS, Record, Row

BEGIN, END = "<!-- performance:begin -->", "<!-- performance:end -->"

NOTHING = "Nothing has been measured on {} yet, so nothing is claimed for one."
NO_GPU = NOTHING.format("a GPU")
NO_CHECKOUT = "cannot tell: the sources are not here; run it in a checkout"


@dataclass(frozen=True)
class Status:
    """One op on one device. ``state``: "current", "stale", "never measured", or why that cannot be told."""

    op: str
    device: str
    state: str
    record: Record | None = None


def statuses(found: Sequence[Entry], measured: Sequence[Record], root: Path | None) -> list[Status]:
    """Every op on every device that has a record of any op; a record for each dtype measured."""
    devices = {record.device["slug"]: record.device["name"] for record in measured}
    result = []
    for slug, name in devices.items():
        for entry in found:
            of_op = [record for record in measured if record.op == entry.name and record.device["slug"] == slug]
            if not of_op:
                result.append(Status(entry.name, name, "never measured"))
            result += [Status(entry.name, name, state(entry, record, root), record) for record in of_op]
    return result


def state(entry: Entry, record: Record, root: Path | None) -> str:
    """Whether a record belongs to the sources at hand."""
    if root is None:
        return NO_CHECKOUT
    if record.digest is None:
        return "stale: it was measured away from a checkout, from unknown sources"
    return "current" if record.digest == records.digest(entry, root) else "stale"


def kind(record: Record) -> str:
    """The kind of device, of those that there are implementations for."""
    if record.device["type"] != "cuda":  # what torch calls AMD's GPUs, too
        return "a CPU"
    return "an AMD GPU" if "hip" in record.versions else "an NVIDIA GPU"


def unmeasured(measured: Sequence[Record]) -> list[str]:
    """A sentence for each kind of device on which nothing has been measured."""
    found = {kind(record) for record in measured}
    gpus = {"an NVIDIA GPU", "an AMD GPU"}
    missing = [name for name in ("a CPU", *sorted(gpus, reverse=True)) if name not in found]
    if not found & gpus:
        missing = [name for name in missing if name not in gpus] + ["a GPU"]
    return [NOTHING.format(name) for name in missing]


def report(console: Console, names: Sequence[str] = (), *, results: Path = RESULTS, root: Path | None = None) -> int:
    """Print which ops' measurements are current, stale or missing, for every device that has some. Returns 0.

    Args:
        console: where it goes.
        names: ops, layers or families; none means all.
        results: the folder of the measurements.
        root: the checkout; by default the one that this package runs from, if any.
    """
    root = root or records.checkout()
    found = select(list(names), layers=True)
    measured = records.load_all(results)
    listed = statuses(found, measured, root)
    if not console.is_terminal:
        console.width = max(console.width, tables.NARROWEST)
    if listed:
        table = Table(title="Measurements kept as evidence", title_justify="left")
        for column in ("device", "op", "dtype", "state", "measured", "commit"):
            table.add_column(column, overflow="fold")
        colours = {"current": "green", "never measured": "yellow"}
        for status in listed:
            dtype, date, commit = "", "", ""
            if status.record is not None:
                dtype, date, commit = status.record.dtype, status.record.date[:10], status.record.commit or ""
            table.add_row(
                status.device, status.op, dtype, status.state, date, commit, style=colours.get(status.state, "red")
            )
        console.print(table)
    for sentence in unmeasured(measured):
        console.print(sentence, highlight=False)
    if not any(record.device["type"] == "cuda" for record in measured):
        console.print(
            "Never measured on any GPU: " + ", ".join(entry.name for entry in found) + ".\n"
            "To measure, on a machine with a GPU: python -m paperops bench --device cuda --out benchmarks/results",
            highlight=False,
        )
    if root is None:
        console.print("Whether sources changed since can be told only in a checkout: digests need the sources.")
    return 0


# --- tables in Markdown ----------------------------------------------------------------------------------------------


def markdown(results: Path = RESULTS, *, root: Path | None = None, names: Sequence[str] = ()) -> str:
    """The README's performance section: tables for each device, stale rows marked, and what was never measured.

    Args:
        results: the folder of the measurements.
        root: the checkout; by default the one that this package runs from, if any.
        names: ops and layers, as on the page of one; none means all.
    """
    root = root or records.checkout()
    measured = records.load_all(results)
    by_name = {entry.name: entry for entry in entries(layers=True) if not names or entry.name in names}
    wanted = [record for record in measured if not names or record.op in names]
    parts = [sentence + "\n" for sentence in unmeasured(measured)]
    never = [name for name in by_name if not any(record.op == name for record in measured)]
    if never:
        parts.append("Never measured, on any device: " + ", ".join(f"`{name}`" for name in never) + ".\n")
    devices = {record.device["slug"]: record.device for record in measured}
    for slug, device in sorted(devices.items(), key=lambda item: (item[1]["type"] != "cuda", item[0])):
        of_device = [record for record in wanted if record.device["slug"] == slug]
        missing = [name for name in by_name if not any(record.op == name for record in of_device) and name not in never]
        if of_device or missing:
            parts.append(f"### {device['name']}\n")
        for conditions in dict.fromkeys(_conditions(record) for record in of_device):
            parts.append(conditions + "\n")
            same = [record for record in of_device if _conditions(record) == conditions]
            parts.append(_table(same, by_name, root, several=len(names) != 1))
        if missing:
            parts.append("Not measured on this device: " + ", ".join(f"`{name}`" for name in missing) + ".\n")
    if wanted:
        parts.append(
            "Ours: the median time of a call. Ratios are to it, from the same run: 20x is a peer that takes twenty "
            "times as long. Share: the floor, from the op's operations and bytes at the measured ceilings, in our "
            "time (above 100 %: work that the cost model counts is skipped). Peak memory: our call's, results "
            "included, inputs not. Error: the largest, against float64, in units of the largest value. **stale**: "
            "the op's sources have changed since.\n"
        )
    else:
        parts.append("`python -m paperops bench` prints the figures of your own machine, beside those of its peers.\n")
    return "\n".join(parts).rstrip() + "\n"


def summary(entry: Entry, measured: Sequence[Record], root: Path | None) -> list[str]:
    """For each device on which the op was timed how many times as long eager torch takes, and whether that is stale."""
    found = []
    for slug in dict.fromkeys(record.device["slug"] for record in measured if record.op == entry.name):
        of_op = [record for record in measured if record.op == entry.name and record.device["slug"] == slug]
        rows = [row for record in of_op for row in record.rows if row.contestant == torch_eager.NAME]
        ratios = [row.ratio for row in rows if row.ratio is not None]
        range_ = " to ".join(dict.fromkeys(tables.times(of(ratios)) for of in (min, max))) if ratios else "not timed"
        states = {state(entry, record, root).split(":")[0] for record in of_op} - {"current"}
        found.append(f"{of_op[0].device['name']}: {range_}" + (f" ({', '.join(sorted(states))})" if states else ""))
    return found


def _conditions(record: Record) -> str:
    """Versions, date and conditions, in one sentence."""
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    c, working = record.ceilings, "float64" if record.dtype == "float64" else "float32"
    return (
        f"Measured {record.date[:10]} with {versions}; {_machine(record)}. Ceilings, measured: "
        f"memory {tables.rate(c['bandwidth'])}B/s, multiply-add {tables.rate(c['vector'])}op/s in {working}."
        f"{_precision(record)}"
    ) + (f" {busy}" if (busy := tables.busy_line(record)) else "")


def _machine(record: Record) -> str:
    """What of the device took part: threads of a CPU; all of a GPU."""
    about = record.conditions
    if "multiprocessors" not in about:
        return f"{about['threads']} threads"
    return f"{about['multiprocessors']} multiprocessors, {tables.size(about['memory'])} of memory"


def _precision(record: Record) -> str:
    """What torch was allowed to round in float32's matrix products, where that is not its default."""
    setting = record.conditions.get("float32_matmul_precision", "highest")
    return "" if setting == "highest" else f" Matrix products of float32 were allowed torch's precision {setting!r}."


def _table(measured: Sequence[Record], by_name: dict[str, Entry], root: Path | None, several: bool) -> str:
    """Rows by case; without the column of ops where the page is that of one."""
    peers = list(dict.fromkeys(row.contestant for record in measured for row in record.rows if not row.ours))
    head = [*(["op"] * several), "case", "dtype", "ours", *peers, "share", "peak memory", "error", ""]
    lines = [_line(head), "|---" * several + "|---|---|" + "---:|" * (len(peers) + 4) + "---|"]
    notes: dict[str, int] = {}
    for record in measured:
        entry = by_name.get(record.op)
        mark = "gone" if entry is None else state(entry, record, root).split(":")[0]
        for case in dict.fromkeys(row.case for row in record.rows):
            rows = {row.contestant: row for row in record.rows if row.case == case}
            ours = next((row for row in rows.values() if row.chosen), None)
            if ours is None:
                continue
            cells = [*([f"`{record.op}`"] * several), case, record.dtype]
            cells.append(f"{tables.seconds(ours.median)} ({ours.contestant.split()[-1]})")
            cells += [_peer(rows.get(peer), notes) for peer in peers]
            cells += [tables.percent(ours.share), tables.size(ours.peak), tables.error(ours)]
            lines.append(_line([*cells, "" if mark == "current" else f"**{mark}**"]))
    footnotes = [f"({number}) {note[0].upper()}{note[1:]}." for note, number in notes.items()]
    return "\n".join(lines) + "\n" + ("\n" + "  \n".join(footnotes) + "\n" if footnotes else "")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _peer(row: Row | None, notes: dict[str, int]) -> str:
    if row is None:
        return ""
    ratio = "-" if row.ratio is None else tables.times(row.ratio)
    return f"{ratio} ({notes.setdefault(row.note, len(notes) + 1)})" if row.note else ratio


def update_readme(readme: Path, text: str) -> bool:
    """Put the text between the markers; return whether anything changed. Raises ValueError if a marker is missing."""
    before = readme.read_text()
    if before.count(BEGIN) != 1 or before.count(END) != 1 or before.index(BEGIN) > before.index(END):
        raise ValueError(f"{readme} must hold one {BEGIN} and, after it, one {END}")
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    after = pattern.sub(lambda _: f"{BEGIN}\n{text}{END}", before)
    if after != before:
        readme.write_text(after)
    return after != before


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m paperops.benchmarks.evidence", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the measurements")
    parser.add_argument("--readme", type=Path, help="the file with the markers (default: README.md of the checkout)")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--update-readme", action="store_true", help="write the tables between the markers")
    action.add_argument("--check", action="store_true", help="fail if the tables between the markers are out of date")
    options = parser.parse_args(arguments)
    if not (options.update_readme or options.check):
        report(Console(), results=options.results)
        return 0
    root = records.checkout()
    readme = options.readme or (root / "README.md" if root is not None else None)
    if readme is None:
        parser.error("there is no checkout here: name the file with --readme")
    text = markdown(options.results)
    if options.check:
        current = f"{BEGIN}\n{text}{END}" in readme.read_text()
        print(f"{readme}: " + ("up to date" if current else "out of date; run with --update-readme"))
        return 0 if current else 1
    print(f"{readme}: " + ("updated" if update_readme(readme, text) else "unchanged"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Measurements as tables on the screen and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .records import Record, Row

NARROWEST = 120
"""Columns for which the table is laid out where the output is a file, and has no width of its own."""
NARROW = 104
"""Columns below which the table does without the quantiles."""
BUSY = 0.1
"""The share of the CPU used by others from which on figures come with a warning."""


def seconds(value: float | None) -> str:
    """A duration to three digits."""
    if value is None:
        return ""
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "us")):
        if value * factor >= 0.9995:
            return f"{value * factor:#.3g}".rstrip(".") + f" {unit}"
    return f"{value * 1e9:.3g} ns"


def size(value: float | None) -> str:
    """A number of bytes to three digits, in powers of 1000."""
    if value is None:
        return ""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= 0.9995 * factor:
            return f"{value / factor:#.3g}".rstrip(".") + f" {unit}"
    return f"{value:.0f} B"


def rate(value: float) -> str:
    """A number per second, in powers of 1000."""
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.3g} "


def times(value: float | None) -> str:
    """A ratio: how many times as long as ours."""
    return "" if value is None else f"{value:.2f}x" if value < 9.995 else f"{value:.0f}x"


def percent(value: float | None) -> str:
    """A share of the ceiling."""
    if value is None:
        return ""
    return f"{value:.0%}" if value >= 0.0995 else f"{value:.1%}" if value >= 0.0005 else "<0.1%"


def ceilings_line(record: Record) -> str:
    """The measured ceilings in one sentence."""
    c = record.ceilings
    return (
        f"{record.device['name']}, {int(c['threads'])} threads. Measured ceilings: memory {rate(c['bandwidth'])}B/s "
        f"(copy {rate(c['copy'])}B/s, triad {rate(c['triad'])}B/s); multiply-add {rate(c['vector'])}op/s "
        f"(products in {record.dtype} {rate(c['matrix'])}op/s, elementwise from cache {rate(c['elementwise'])}op/s)"
    )


def show(console: Console, record: Record) -> None:
    """Print a record: a table, and a note for each contestant that was not timed or is not right."""
    if not console.is_terminal:
        console.width = max(console.width, NARROWEST)
    columns = ["median", "10-90 %", "ratio", "floor", "share", "peak mem.", "saved", "error"]
    if console.width < NARROW:
        columns.remove("10-90 %")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("case / contestant", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    notes: dict[str, int] = {}
    for case in dict.fromkeys(row.case for row in record.rows):
        rows = [row for row in record.rows if row.case == case]
        floor = {"floor": seconds(rows[0].floor)}
        counts = f"{rate(rows[0].operations)}op, {size(rows[0].bytes)}"
        table.add_row(f"[bold]{escape(case)}[/] ({counts})", *(floor.get(column, "") for column in columns))
        for row in rows:
            mark = f" [{notes.setdefault(row.note, len(notes) + 1)}]" if row.note else ""
            cells = _cells(row)
            style = "green" if row.chosen else None
            table.add_row(escape(f"  {row.contestant}{mark}"), *(cells.get(name, "") for name in columns), style=style)
        table.add_section()
    console.print(f"[bold]{record.op}[/], {record.dtype}, on {record.device['name']}", highlight=False)
    console.print(table)
    for note, number in notes.items():
        console.print(f"[{number}] {note}", markup=False, highlight=False)
    console.print()


def _cells(row: Row) -> dict[str, str]:
    if row.median is None:
        return {"median": "-", "error": error(row)}
    return {
        "median": seconds(row.median),
        "10-90 %": _spread(row),
        "ratio": times(row.ratio),
        "share": percent(row.share),
        "peak mem.": size(row.peak),
        "saved": size(row.saved),
        "error": error(row),
    }


def error(row: Row) -> str:
    """The error against float64, to one digit."""
    return "" if row.error is None else "0" if row.error == 0 else f"{row.error:.0e}"


def _spread(row: Row) -> str:
    low, high = seconds(row.q10), seconds(row.q90)
    if low.split()[-1] == high.split()[-1]:
        low = low.split()[0]
    return f"{low} - {high}"


def legend(console: Console, measured: Sequence[Record]) -> None:
    """Print under which ceilings the records were taken, and what the columns mean."""
    lines = list(dict.fromkeys(ceilings_line(record) for record in measured))
    lines += list(dict.fromkeys(line for record in measured if (line := busy_line(record))))
    rows = [row for record in measured for row in record.rows]
    lines.append(
        "ratio: time in units of ours (green), from the same rounds. floor: the operations or bytes by the op's cost "
        "model (of the backward pass too where it has one), whichever takes longer at these ceilings; share: the floor "
        "in the time."
        + (
            " Above 100 %: work that the cost model counts is skipped."
            if any((row.share or 0) > 1 for row in rows)
            else ""
        )
    )
    lines.append(
        "peak mem.: beyond the inputs, results included. saved: kept for backward, beyond the inputs. "
        "error: the largest, against float64, in units of the largest value, gradients included."
    )
    for record in measured:
        hosts = [f"{row.contestant} {seconds(row.host)} ({row.case})" for row in record.rows if row.host is not None]
        if hosts:
            lines.append(f"Host time of a call of {record.op}: {', '.join(hosts)}.")
    absent = {name: reason for record in measured for name, reason in record.absent.items()}
    lines += [f"{name} took no part: {reason}" for name, reason in absent.items()]
    for line in lines:
        console.print(line, style="dim", markup=False, highlight=False)


def busy_line(record: Record) -> str:
    """A warning where others used the CPU before the op was measured."""
    share = record.conditions.get("others_share")
    if share is None or share < BUSY:
        return ""
    return f"Others used {share:.0%} of the CPU before {record.op} was measured: measure again on a quiet machine."

"""Time against size, one picture an op and dtype.

Where cases differ in more than size (two of them have the same number of operations), they are rows instead, and time
goes across.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .records import Record, Row

OURS = ("#0072b2", "#56b4e9", "#004c78", "#8ab6d6")
THEIRS = ("#d55e00", "#e69f00", "#cc79a7", "#009e73", "#7f5539", "#999933")
"""Okabe and Ito's colours, told apart by colour-blind eyes too: blues for ours."""

FLOOR = "floor at the measured ceilings"
TIME = "time per call (median; bars: 10-90 %)"


def draw(record: Record, folder: Path, suffix: str = ".png") -> Path | None:
    """Write ``<op>-<dtype>.png``, or ``.svg``, into the folder; None if nothing was timed."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # not pyplot: no state of the process is touched, no window is needed

    timed = [row for row in record.rows if row.median is not None]
    if not timed:
        return None
    kinds = [backward for backward in (False, True) if any(row.backward == backward for row in timed)]
    groups = [[row for row in timed if row.backward == backward] for backward in kinds]
    by_size = all(len(_cases(rows)) == len({case[0] for case in _cases(rows)}) for rows in groups)
    if by_size:
        figure = Figure(figsize=(1.2 + 5.2 * len(kinds), 5.4), dpi=130, layout="constrained")
        panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    else:
        heights = [0.5 + len(_cases(rows)) for rows in groups]
        figure = Figure(figsize=(9.4, 1.6 + 0.36 * sum(heights)), dpi=130, layout="constrained")
        panels = figure.subplots(len(kinds), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for panel, backward, rows in zip(panels, kinds, groups, strict=True):
        (_panel if by_size else _rows)(panel, record, rows)
        panel.set_title("forward and backward" if backward else "forward", fontsize=10)
    if by_size:
        operations = [row.operations for row in timed]
        for panel in panels:  # one scale, so that slopes compare
            panel.set_xlim(min(operations) / 2.5, max(operations) * 2.5)
            panel.set_xlabel("case, placed by its number of operations", fontsize=9)
        panels[0].set_ylabel(TIME, fontsize=9)
    else:
        panels[-1].set_xlabel(TIME, fontsize=9)
    handles: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    names = [name for name in _colours(record) if name in handles] + [FLOOR]
    figure.legend(
        [handles[name] for name in names], names, loc="outside lower center", ncols=min(4, len(names)), frameon=False
    )
    threads = f", {int(record.ceilings['threads'])} threads" if record.device["type"] == "cpu" else ""
    about = f"{record.device['name']}{threads}, torch {record.versions['torch']}, {record.date[:10]}"
    figure.suptitle(f"{record.op}, {record.dtype}  ({about})", fontsize=11)
    file = folder / f"{record.op}-{record.dtype}{suffix}"
    file.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.hashsalt": record.op}):  # the same figures, the same file
        figure.savefig(file, metadata={"Date": None} if suffix == ".svg" else None)
    return file


def _panel(panel, record: Record, rows: list[Row]) -> None:  # type: ignore[no-untyped-def]
    from matplotlib.ticker import EngFormatter, FixedLocator, NullLocator

    colours = _colours(record)
    for name in dict.fromkeys(row.contestant for row in record.rows):
        line = sorted((row for row in rows if row.contestant == name), key=lambda row: row.operations)
        if not line:
            continue
        median, below, above = _spread(line)
        chosen = any(row.chosen for row in line)
        panel.errorbar(
            [row.operations for row in line],
            median,
            yerr=(below, above),
            label=name,
            color=colours[name],
            marker="o" if line[0].ours else "s",
            markersize=5.5 if chosen else 4.5,
            linewidth=2.2 if chosen else 1.4,
            linestyle="-" if line[0].ours else (0, (5, 1.5)),
            capsize=2.5,
            zorder=3 if chosen else 2,
        )
    cases = _cases(rows)
    panel.plot(
        [case[0] for case in cases],
        [case[1] for case in cases],
        label=FLOOR,
        color="0.45",
        linewidth=1.2,
        linestyle=":",
        marker="_",
        zorder=1,
    )
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(EngFormatter(unit="s", usetex=False))
    panel.xaxis.set_major_locator(FixedLocator([case[0] for case in cases]))
    panel.xaxis.set_minor_locator(NullLocator())
    labels = [_tick(case[2]) for case in cases]
    panel.set_xticklabels(labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
    panel.grid(axis="y", which="major", color="0.88", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _rows(panel, record: Record, rows: list[Row]) -> None:  # type: ignore[no-untyped-def]
    from matplotlib.ticker import EngFormatter

    colours = _colours(record)
    cases = _cases(rows)
    place = {case[2]: number for number, case in enumerate(cases)}
    for name in dict.fromkeys(row.contestant for row in record.rows):
        points = [row for row in rows if row.contestant == name]
        if not points:
            continue
        median, below, above = _spread(points)
        chosen = any(row.chosen for row in points)
        panel.errorbar(
            median,
            [place[row.case] for row in points],
            xerr=(below, above),
            label=name,
            color=colours[name],
            marker="o" if points[0].ours else "s",
            markersize=6.5 if chosen else 5,
            linestyle="none",
            capsize=2.5,
            zorder=3 if chosen else 2,
        )
    panel.plot(
        [case[1] for case in cases],
        range(len(cases)),
        label=FLOOR,
        color="0.45",
        linestyle="none",
        marker="|",
        markersize=11,
        zorder=1,
    )
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter(EngFormatter(unit="s", usetex=False))
    panel.tick_params(axis="x", labelbottom=True)
    panel.set_yticks(range(len(cases)), [_tick(case[2]) for case in cases], fontsize=8)
    panel.set_ylim(len(cases) - 0.4, -0.6)
    panel.grid(axis="both", which="major", color="0.88", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _cases(rows: list[Row]) -> list[tuple[float, float, str]]:
    """Operations, floor and name of each case, the smallest first."""
    return sorted({(row.operations, row.floor, row.case) for row in rows})


def _spread(rows: list[Row]) -> tuple[list[float], list[float], list[float]]:
    """Medians, and how far the quantiles are below and above them."""
    median = [row.median or 0.0 for row in rows]
    below = [max(0.0, m - (row.q10 or m)) for m, row in zip(median, rows, strict=True)]
    above = [max(0.0, (row.q90 or m) - m) for m, row in zip(median, rows, strict=True)]
    return median, below, above


def _tick(case: str) -> str:
    """A case's name without what the panel's title says."""
    return case.removesuffix(", with backward").replace(", with backward to ", ", to ")


def _colours(record: Record) -> dict[str, str]:
    """A colour for each contestant of the record, the same in all panels."""
    found: dict[str, str] = {}
    for row in sorted(record.rows, key=lambda row: not row.chosen):  # the chosen one first: the strongest blue
        palette = OURS if row.ours else THEIRS
        used = sum(1 for colour in found.values() if colour in palette)
        found.setdefault(row.contestant, palette[used % len(palette)])
    return found

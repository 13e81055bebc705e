"""Time against size, one picture an op and dtype."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .records import Record, Row

OURS = ("#0072b2", "#56b4e9", "#004c78", "#8ab6d6")
THEIRS = ("#d55e00", "#e69f00", "#cc79a7", "#009e73", "#7f5539", "#999933")
"""Okabe and Ito's colours, told apart by colour-blind eyes too: blues for ours."""

FLOOR = "floor at the measured ceilings"


def draw(record: Record, folder: Path, suffix: str = ".png") -> Path | None:
    """Write ``<op>-<dtype>.png``, or ``.svg``, into the folder; None if nothing was timed."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # not pyplot: no state of the process is touched, no window is needed

    timed = [row for row in record.rows if row.median is not None]
    if not timed:
        return None
    kinds = [backward for backward in (False, True) if any(row.backward == backward for row in timed)]
    figure = Figure(figsize=(1.2 + 5.2 * len(kinds), 5.4), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for panel, backward in zip(panels, kinds, strict=True):
        _panel(panel, record, [row for row in timed if row.backward == backward])
        panel.set_title("forward and backward" if backward else "forward", fontsize=10)
    operations = [row.operations for row in timed]
    for panel in panels:  # one scale, so that slopes compare
        panel.set_xlim(min(operations) / 2.5, max(operations) * 2.5)
        panel.set_xlabel("case, placed by its number of operations", fontsize=9)
    panels[0].set_ylabel("time per call (median; bars: 10-90 %)", fontsize=9)
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
        median = [row.median or 0.0 for row in line]
        below = [max(0.0, m - (row.q10 or m)) for m, row in zip(median, line, strict=True)]
        above = [max(0.0, (row.q90 or m) - m) for m, row in zip(median, line, strict=True)]
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
    cases = sorted({(row.operations, row.floor, row.case) for row in rows})
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


def _tick(case: str) -> str:
    """A case's name without what the panel's title says."""
    return case.removesuffix(", with backward")


def _colours(record: Record) -> dict[str, str]:
    """A colour for each contestant of the record, the same in all panels."""
    found: dict[str, str] = {}
    for row in sorted(record.rows, key=lambda row: not row.chosen):  # the chosen one first: the strongest blue
        palette = OURS if row.ours else THEIRS
        used = sum(1 for colour in found.values() if colour in palette)
        found.setdefault(row.contestant, palette[used % len(palette)])
    return found

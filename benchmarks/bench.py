"""Times the registry's bench cases: each of our implementations that can run, against peers, in one run."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console

from paperops.backends import BackendError
from paperops.testing.registry import BenchCase, Entry, select

from . import ceilings as machine
from . import contestants as who
from . import memory, plots, records, tables
from .contestants import Contestant
from .measure import host_time, runner, time_together
from .peers import NotComparable
from .peers import select as select_peers
from .records import Record, Row

SECONDS = 3.0
"""About how long the timing of one case may take."""
HOST_OPERATIONS = 1e6
"""Cases of fewer operations are small enough to show a call's host time on a GPU."""


def run(
    names: Sequence[str] = (),
    *,
    against: Sequence[str] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | Iterable[torch.dtype] | None = None,
    out: Path | None = None,
    console: Console | None = None,
    seconds: float = SECONDS,
    case: str = "",
) -> int:
    """The command ``bench``: :func:`measure`, with the legend below the tables. Returns an exit status."""
    console = console or Console()
    try:
        found = measure(
            names, against=against, device=device, dtype=dtype, out=out, console=console, seconds=seconds, case=case
        )
    except KeyError as error:
        console.print(error.args[0], markup=False, highlight=False)
        return 2
    if not found:
        console.print("nothing to measure: no bench case of these ops for this device and dtype")
        return 1
    tables.legend(console, found)
    return 0


def measure(
    names: Sequence[str] = (),
    *,
    against: Sequence[str] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | Iterable[torch.dtype] | None = None,
    out: Path | None = None,
    console: Console | None = None,
    seconds: float = SECONDS,
    case: str = "",
) -> list[Record]:
    """Measure, print a table an op, and write records and plots as they come.

    Args:
        names: ops, layers or families; none means all.
        against: peers by the names of their files in ``peers/``; none means those that take part unasked.
        device: the GPU if there is one, otherwise the CPU.
        dtype: one or several; float32 by default. An op that does not take one is left out.
        out: a folder for ``<device>/<family>.json`` and the plots beside it; None writes nothing.
        console: where tables go; None prints nothing.
        seconds: about how long the timing of one case may take.
        case: only the cases whose names contain this.

    Returns:
        The records, one an op and dtype.

    Raises:
        KeyError: for an unknown op, family or peer; the message lists the known ones.
    """
    console = console or Console(quiet=True)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtypes = [dtype] if isinstance(dtype, torch.dtype) else list(dtype or [torch.float32])
    entries = select(list(names), layers=True)
    peers = select_peers(list(against or ()), device)
    found = []
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        for entry, one in itertools.product(entries, dtypes):
            cases = tuple(each for each in entry.bench if case in each.name and device.type in each.devices)
            if one not in entry.dtypes or not cases:
                continue
            record = measure_entry(replace(entry, bench=cases), peers, device, one, console=console, seconds=seconds)
            found.append(record)
            file = records.save(out, record) if out is not None else None  # first: a picture can be drawn again
            tables.show(console, record)
            if file is not None:
                console.print(f"written: {file}, {_draw(record, file.parent)}\n", highlight=False)
    return found


def _draw(record: Record, folder: Path) -> str:
    """What became of the plot."""
    try:
        picture = plots.draw(record, folder)
    except ImportError as error:
        return f"no plot ({error}; pip install '.[bench]' in the checkout)"
    return picture.name if picture is not None else "no plot (nothing was timed)"


def measure_entry(
    entry: Entry,
    peers: tuple[who.Peer, ...],
    device: torch.device,
    dtype: torch.dtype,
    *,
    console: Console | None = None,
    seconds: float = SECONDS,
) -> Record:
    """Measure all bench cases of one op in one dtype."""
    ceilings = machine.measure(device, dtype)
    own, absent = who.ours(entry, device)
    others, absent_too = who.theirs(entry, peers, device)
    conditions = {**records.conditions(device), "others_share": machine.others_share()}
    root = records.checkout()
    digest = records.digest(entry, root)  # now: sources that change while we measure make the record stale
    rows: list[Row] = []
    for case in entry.bench:
        with console.status(f"{entry.name}, {case.name}") if console is not None else nullcontext():
            rows += measure_case(entry, case, [*own, *others], device, dtype, ceilings, seconds)
    return Record(
        op=entry.name,
        family=entry.family,
        dtype=str(dtype).removeprefix("torch."),
        device=records.describe(device),
        date=records.now(),
        digest=digest,
        commit=records.commit(root),
        versions=records.versions(),
        conditions=conditions,
        ceilings={**asdict(ceilings), "bandwidth": ceilings.bandwidth},
        rows=rows,
        absent=absent | absent_too,
    )


def measure_case(
    entry: Entry,
    case: BenchCase,
    contestants: Sequence[Contestant],
    device: torch.device,
    dtype: torch.dtype,
    ceilings: machine.Ceilings,
    seconds: float,
) -> list[Row]:
    """One row a contestant: first each is tried and judged, then all that passed are timed together."""
    if case.differentiable is not None:
        entry = replace(entry, differentiable=case.differentiable)
    sample = case.make(device, dtype)
    cost = entry.floor(case, sample)
    exact = who.truth(entry, sample, case.backward, cost.operations, device)
    rows: dict[str, Row] = {}
    runners = {}
    chosen: str | None = None
    for contestant in contestants:
        blank = Row(
            case=case.name,
            contestant=contestant.name,
            backward=case.backward,
            operations=cost.operations,
            bytes=cost.bytes,
            floor=ceilings.floor(cost),
            ours=contestant.backend is not None,
        )
        row = rows[contestant.name] = _try(entry, contestant, case, blank, exact, device, dtype)
        if row.note and row.peak is None:
            continue
        if chosen is None and row.ours:
            chosen = contestant.name

        def make(contestant: Contestant = contestant) -> who.Call:
            with contestant.context():
                return who.prepare(entry, contestant.function, sample, case.backward)

        runners[contestant.name] = runner(make, who.input_bytes(sample), device, contestant.context)
    timings = time_together(runners, seconds=seconds) if runners else {}
    for name, timing in timings.items():
        rows[name] = replace(
            rows[name],
            chosen=name == chosen,
            median=timing.median,
            q10=timing.q10,
            q90=timing.q90,
            least=min(timing.samples),
            rounds=len(timing.samples),
            calls=timing.calls,
            method=timing.method,
            ratio=timing.ratio(timings[chosen]) if chosen is not None else None,
        )
        if device.type == "cuda" and cost.operations < HOST_OPERATIONS:
            with runners[name].context():
                rows[name] = replace(rows[name], host=host_time(runners[name].call))
    return list(rows.values())


def _try(
    entry: Entry,
    contestant: Contestant,
    case: BenchCase,
    row: Row,
    exact: who.Truth | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Row:
    """Run a contestant once, judge its values, and count its memory; without ``peak`` it is not to be timed."""
    sample = case.make(device, dtype)
    reason = who.too_much(entry, contestant, sample, case.backward, row.operations, device)
    if reason is not None:
        return replace(row, note=f"not run: {reason}")
    try:
        with contestant.context():
            call = who.prepare(entry, contestant.function, sample, case.backward)
            values = call()
            if exact is not None:
                verdict = who.judge(values, exact.values, dtype)
                row = replace(row, error=verdict.error, note=verdict.note, truth=exact.source)
                if verdict.refused:
                    return replace(row, note=f"not timed: {verdict.note}")
            del values
            peak = memory.peak(call, device)
        saved = who.saved_bytes(entry, contestant, sample) if case.backward else None
    except (BackendError, NotComparable) as error:
        return replace(row, note=f"not run: {error}")
    except Exception as error:  # a peer may fail in any way; that is a result, not the end of the run
        if contestant.peer is None and not isinstance(error, torch.OutOfMemoryError):
            raise
        return replace(
            row, note=f"it failed: {type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
        )
    return replace(row, peak=peak, saved=saved)

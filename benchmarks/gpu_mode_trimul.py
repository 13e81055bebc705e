"""The GPU MODE problem "trimul": its benchmark list, timed, and the geometric mean over it.

    python -m paperops.benchmarks.gpu_mode_trimul

Outgoing, hidden width 128, the gate before the projection, float32 in and out (the list: ``GPU_MODE_TRIMUL`` in
``paperops/testing/triangle_multiplication.py``). The problem's tolerance of 2e-2 allows tf32, so torch is set to that
here, for every contestant.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace

import torch
from rich.console import Console

from paperops.testing.registry import select
from paperops.testing.triangle_multiplication import gpu_mode_cases

from . import bench, tables
from .peers import select as select_peers
from .records import Record

GOAL = 900e-6
"""Seconds: the geometric mean to be reached on an H200. The best published entry takes 1161 us on an H100."""


def means(record: Record) -> dict[str, float]:
    """Geometric mean of the medians by contestant, of those that were timed on the whole list."""
    cases = {row.case for row in record.rows}
    found: dict[str, list[float]] = {}
    for row in record.rows:
        if row.median is not None:
            found.setdefault(row.contestant, []).append(row.median)
    return {
        name: math.exp(sum(map(math.log, medians)) / len(medians))
        for name, medians in found.items()
        if len(medians) == len(cases)
    }


def main(words: list[str] | None = None) -> int:
    """Measure the list; print each case and the means. Returns an exit status: 2 where there is no GPU."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--device", default="cuda", help="default: cuda")
    device = torch.device(parser.parse_args(words).device)
    console = Console()
    if device.type != "cuda" or not torch.cuda.is_available():
        console.print("the list is one of sizes for a GPU, and none is visible here")
        return 2
    (entry,) = select(["triangle_multiplicative_update"])
    listed = replace(entry, bench=gpu_mode_cases())
    torch.set_float32_matmul_precision("high")
    with torch.cuda.device(device):
        record = bench.measure_entry(listed, select_peers((), device), device, torch.float32, console=console)
    tables.show(console, record)
    for name, mean in sorted(means(record).items(), key=lambda item: item[1]):
        console.print(f"{name}: geometric mean {tables.seconds(mean)} (goal on an H200: {tables.seconds(GOAL)})")
    return 0


if __name__ == "__main__":
    sys.exit(main())

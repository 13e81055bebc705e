"""DynOPool's first experiment in small: digits stretched, tiled and enlarged, and what sizes of maps are learned.

scikit-learn's 1797 scans of 8 x 8 pixels become images of 1024 pixels in three ways, and `run` trains the same small
VGG on each with fixed pooling, with Shape Adaptor and with DynOPool: which heights and widths are learned, and what
that is worth in accuracy and in multiply-adds.
"""

from __future__ import annotations

import json
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from paperops.demos import needs

__all__ = ["run"]


def run(
    output: str | Path = "demo-dynopool", *, console: Console | None = None, seed: int = 0, quick: bool = False
) -> int:
    """Train, score, and write `dynopool.png` and `metrics.json` into the folder `output`; return an exit status.

    A minute or two on two CPU cores. `quick` takes smaller networks and a single epoch, and is what runs where the
    package has no fast implementation of the pooling. The same seed gives the same numbers on the same machine.

    Returns:
        0 if each network with DynOPool learned (more than half of the held-out digits are recognised; with `quick`,
        always), 1 if not, and 2 if a package is missing that the extra `paperops[demo]` brings (the message names it).
        Whether it beats the others is reported, and is no matter of the status.
    """
    console = console or Console()
    if message := needs.lacking("sklearn", "matplotlib"):
        return needs.refuse(console, message)
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    backend, quick = needs.backend_of("dynopool", "DynOPool", console, quick=quick)

    from paperops.demos.dynopool import data, picture, training

    plan = training.QUICK if quick else training.Plan()
    results: dict[str, dict[str, training.Result]] = {}
    examples, held_out_count = {}, 0
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with torch.random.fork_rng(devices=[]), Progress(*columns, console=console) as progress:
        for disguise in data.SIZES:
            digits, held_out = data.load(disguise, seed)
            examples[disguise], held_out_count = held_out.images[0, 0], len(held_out.images)
            steps = plan.epochs * (min(plan.train or math.inf, len(digits.images)) // plan.batch)
            results[disguise] = {}
            for kind in training.KINDS:
                task = progress.add_task(f"{disguise}: {kind}", total=steps)
                tick = partial(progress.advance, task)
                results[disguise][kind] = training.train(kind, digits, held_out, plan, seed, tick)
    picture.draw(output / "dynopool.png", examples, results)
    metrics: dict[str, Any] = {"seed": seed, "quick": quick, "backend": backend, "torch": torch.__version__}
    metrics["results"] = {
        disguise: {
            kind: {
                "accuracy": result.accuracy,
                "macs": result.macs,
                "seconds": round(result.seconds, 1),
                "sizes": result.sizes[-1] if result.sizes[-1] else _fixed(of_kind, len(plan.widths)),
            }
            for kind, result in of_kind.items()
        }
        for disguise, of_kind in results.items()
    }
    metrics["held_out"] = held_out_count
    metrics["seconds"] = round(time.perf_counter() - started, 1)
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    _report(console, metrics)
    console.print(results["stretched"]["DynOPool"].counter.table("Stretched digits, DynOPool: one image"))
    message = f"{metrics['seconds']:.0f} s in all; the picture is {output / 'dynopool.png'}, the numbers are beside it."
    console.print(message, markup=False, highlight=False)
    for line in verdicts(metrics["results"], held_out_count):
        console.print(line, markup=False, highlight=False)
    learned = all(of_kind["DynOPool"].accuracy > 0.5 for of_kind in results.values())
    return 0 if learned or quick else 1


def _fixed(results: Any, layers: int) -> list[tuple[int, int]]:
    from paperops.demos.dynopool.picture import fixed_size

    return [(fixed_size(results, layer, 0), fixed_size(results, layer, 1)) for layer in range(layers)]


def _report(console: Console, metrics: dict[str, Any]) -> None:
    table = Table(title="Held-out digits", caption="Sizes are height x width behind each pooling, at the end.")
    for name in ("images", "pooling"):
        table.add_column(name)
    for name in ("accuracy", "million multiply-adds", "sizes of the maps", "seconds"):
        table.add_column(name, justify="right")
    for disguise, of_kind in metrics["results"].items():
        for kind, result in of_kind.items():
            sizes = ", ".join(f"{height} x {width}" for height, width in result["sizes"])
            numbers = (f"{result['accuracy']:.1%}", f"{result['macs'] / 1e6:.2f}", sizes, f"{result['seconds']:.1f}")
            table.add_row(disguise if kind == "fixed pooling" else "", kind, *numbers)
        table.add_section()
    console.print(table)


def verdicts(results: dict[str, dict[str, dict[str, Any]]], held_out: int) -> list[str]:
    """Where DynOPool wins and where it does not, in words. A difference within chance is called one."""
    lines = []
    for disguise, of_kind in results.items():
        ours = of_kind["DynOPool"]
        for rival in ("fixed pooling", "Shape Adaptor"):
            other = of_kind[rival]
            gain = ours["accuracy"] - other["accuracy"]
            spread = sum(value["accuracy"] * (1 - value["accuracy"]) for value in (ours, other))
            chance = 2 * math.sqrt(max(spread, 1 / held_out) / held_out)  # two standard errors of a difference
            accuracy = "does not win" if gain <= chance else "wins"
            by = f"{gain * 100:+.1f} points" + (", within chance" if abs(gain) <= chance else "")
            ratio = ours["macs"] / other["macs"]
            cost = "wins" if ratio < 0.98 else "does not win"
            lines.append(
                f"{disguise}, against {rival}: DynOPool {accuracy} in accuracy ({by}) and {cost} in cost "
                f"({ratio:.2f} of the multiply-adds)"
            )
    lines.append(
        "One seed, small networks, and cost is in DynOPool's loss alone: no rival was made as cheap. An illustration "
        "of what sizes are learned, not a benchmark."
    )
    return lines

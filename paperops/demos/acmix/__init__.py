"""ACmix in small: one residual network on handwritten digits, with ACmix, with convolution only, with attention only.

scikit-learn's 1797 scans of 8 x 8 pixels are enlarged to 32 x 32, and `run` trains the three networks, of equal
parameters, from several seeds: which recognises more, and how the two weights of each ACmix layer move meanwhile.
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
    output: str | Path = "demo-acmix", *, console: Console | None = None, seed: int = 0, quick: bool = False
) -> int:
    """Train, score, and write `acmix.png` and `metrics.json` into the folder `output`; return an exit status.

    A minute or two on two CPU cores. `quick` takes a smaller network, a single epoch and a single seed, and is what
    runs where the package has no fast implementation of the layer. The same seed gives the same numbers on the same
    machine.

    Returns:
        0 if the network with ACmix learned (more than half of the held-out digits are recognised; with `quick`,
        always), 1 if not, and 2 if a package is missing that the extra `paperops[demo]` brings (the message names it).
        Whether it beats the others is reported, and is no matter of the status.
    """
    console = console or Console()
    if message := needs.lacking("sklearn", "matplotlib"):
        return needs.refuse(console, message)
    output = Path(output)
    if output.exists() and not output.is_dir():
        return needs.refuse(console, f"{output} is a file, and the results need a folder: name another")
    started = time.perf_counter()
    chosen: dict[str, str] = {}
    for op in ("local_attention", "shift_conv"):
        chosen[op], quick = needs.backend_of(op, "ACmix", console, quick=quick)

    from paperops.demos.acmix import picture, training
    from paperops.demos.dynopool.data import load

    plan = training.QUICK if quick else training.Plan()
    results: dict[str, list[training.Result]] = {kind: [] for kind in training.KINDS}
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    held_out_count = 0
    watched = console.is_terminal
    with torch.random.fork_rng(devices=[]), Progress(*columns, console=console, disable=not watched) as progress:
        for each in range(seed, seed + plan.seeds):
            digits, held_out = load("enlarged", each)
            held_out_count += len(held_out.images)
            steps = plan.epochs * (min(plan.train or math.inf, len(digits.images)) // plan.batch)
            for kind in training.KINDS:
                task = progress.add_task(f"seed {each}: {kind}", total=steps)
                tick = partial(progress.advance, task)
                result = training.train(kind, digits, held_out, plan, each, tick)
                results[kind].append(result)
                if not watched:
                    line = f"seed {each}: {kind}: {result.accuracy:.1%} recognised, {result.seconds:.0f} s"
                    console.print(line, markup=False, highlight=False)
    output.mkdir(parents=True, exist_ok=True)  # here, so that an interrupted run leaves none
    picture.draw(output / "acmix.png", held_out.images[:4, 0], results)
    metrics: dict[str, Any] = {"seed": seed, "seeds": plan.seeds, "quick": quick, "backends": chosen}
    metrics |= {"torch": torch.__version__, "held_out": held_out_count}
    metrics["results"] = {kind: _metrics(of_kind) for kind, of_kind in results.items()}
    metrics["rates"] = {
        layer: [round(value, 4) for value in rates] for layer, rates in results["ACmix"][0].rates[-1].items()
    }
    metrics["seconds"] = round(time.perf_counter() - started, 1)
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    _report(console, metrics)
    message = f"{metrics['seconds']:.0f} s in all; the picture is {output / 'acmix.png'}, the numbers are beside it."
    console.print(message, markup=False, highlight=False)
    for line in verdicts(metrics["results"], held_out_count):
        console.print(line, markup=False, highlight=False)
    return 0 if quick or metrics["results"]["ACmix"]["accuracy"] > 0.5 else 1


def _metrics(results: list[Any]) -> dict[str, Any]:
    return {
        "accuracy": sum(result.accuracy for result in results) / len(results),
        "accuracies": [round(result.accuracy, 4) for result in results],
        "parameters": results[0].parameters,
        "macs": results[0].macs,
        "seconds": round(sum(result.seconds for result in results), 1),
    }


def _report(console: Console, metrics: dict[str, Any]) -> None:
    seeds = metrics["seeds"]
    table = Table(title=f"Held-out digits, {seeds} seed{'s' * (seeds > 1)}")
    table.add_column("network")
    for name in ("accuracy", "of each seed", "parameters", "million multiply-adds", "seconds"):
        table.add_column(name, justify="right")
    for kind, result in metrics["results"].items():
        each = ", ".join(f"{accuracy:.1%}" for accuracy in result["accuracies"])
        numbers = (f"{result['accuracy']:.2%}", each, f"{result['parameters']:,}", f"{result['macs'] / 1e6:.2f}")
        table.add_row(kind, *numbers, f"{result['seconds']:.1f}")
    console.print(table)
    table = Table(title="The weights of ACmix's layers at the end, of the first seed")
    for name in ("layer", "attention (rate1)", "convolution (rate2)", "log |rate1 / rate2|"):
        table.add_column(name, justify="left" if name == "layer" else "right")
    for layer, (first, second) in metrics["rates"].items():
        table.add_row(layer, f"{first:.3f}", f"{second:.3f}", f"{log_ratio(first, second):+.3f}")
    console.print(table)


def log_ratio(first: float, second: float) -> float:
    """log |first / second|, kept finite."""
    return math.log(max(abs(first), 1e-9) / max(abs(second), 1e-9))


def verdicts(results: dict[str, dict[str, Any]], held_out: int) -> list[str]:
    """Whether ACmix wins, in words. A difference within chance is called one."""
    lines = []
    ours = results["ACmix"]
    for rival, other in results.items():
        if rival == "ACmix":
            continue
        gain = ours["accuracy"] - other["accuracy"]
        spread = sum(value["accuracy"] * (1 - value["accuracy"]) for value in (ours, other))
        chance = 2 * math.sqrt(max(spread, 1 / held_out) / held_out)  # two standard errors of a difference
        verdict = "wins" if gain > chance else "does not win"
        by = f"{gain * 100:+.2f} points" + (", within chance" if abs(gain) <= chance else "")
        parameters, macs = (ours[name] / other[name] for name in ("parameters", "macs"))
        cost = f"{parameters:.2f} of its parameters and {macs:.2f} of its multiply-adds"
        lines.append(f"Against {rival}, at {cost}: ACmix {verdict} ({by})")
    lines.append("Small networks on a small set of easy images: an illustration of the layer, not a benchmark.")
    return lines

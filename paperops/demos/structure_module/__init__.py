"""AlphaFold2's structure module on a real structure: a chain of an mmCIF or PDB file, learned by heart.

`run` reads the chain, trains the module (narrower than AlphaFold2's, and with fewer blocks) on it from fixed random
numbers until the backbone's FAPE is under 0.5 A, and writes the predicted atoms as mmCIF, a picture and the numbers.
Without a file it builds a helix, a turn and a helix from torsion angles.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from paperops.demos import needs

__all__ = ["run"]

LONG, TOO_LONG = 128, 512  # residues


def run(
    output: str | Path = "demo-structure_module",
    *,
    console: Console | None = None,
    seed: int = 0,
    file: str | Path | None = None,
    chain: str | None = None,
    quick: bool = False,
) -> int:
    """Fit the structure module to a chain; write `predicted.cif`, `true.cif`, `structure_module.png`, `metrics.json`.

    All go into the folder `output`; both structures are superposed. `file` is an mmCIF or PDB file and `chain` the
    name of a chain in it, by default the first protein; without a file the built-in structure is taken. `quick` takes
    few steps of a small module, and then no FAPE is asked for. A seed gives the same numbers on the same machine.

    Returns:
        0 if the backbone's FAPE came under 0.5 A (or `quick`), 1 if not, and 2 if the file or the chain is refused, or
        if a package is missing that the extra `paperops[demo]` brings; the message says which and why.
    """
    console = console or Console()
    if message := needs.lacking("gemmi", "matplotlib"):
        return needs.refuse(console, message)
    from paperops.demos.structure_module import training
    from paperops.demos.structure_module.ideal import helix_turn_helix
    from paperops.structures import read_chain

    started = time.perf_counter()
    if file is None and chain is not None:
        return needs.refuse(console, f"--chain {chain} goes with a file: the built-in structure has one chain")
    try:
        read = helix_turn_helix() if file is None else read_chain(file, chain)
        count = len(read.sequence)
        if count > TOO_LONG:
            raise ValueError(f"chain {read.name} has {count} residues; the demonstration takes {TOO_LONG} at most")
        target = training.target_of(read)
    except (OSError, ValueError) as error:
        return needs.refuse(console, f"error: {error}")
    title = "a helix, a turn and a helix" if file is None else f"chain {read.name} of {Path(file).name}"
    console.print(f"{title}: {count} residues\n{read.sequence}", markup=False, highlight=False)
    for note in read.notes:
        console.print(f"  {note}", style="dim", markup=False, highlight=False)
    if count > LONG:
        message = f"{count} residues are many for this demonstration: it takes longer than two minutes."
        console.print(message, style="yellow", highlight=False)
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)

    plan = training.Plan(c_s=32, c_z=8, c_ipa=8, heads=2, blocks=2, steps=12, warm_up=3) if quick else training.Plan()
    columns = (TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        torch.random.fork_rng(devices=[]),
        Progress(*columns, TextColumn("backbone FAPE {task.fields[error]}"), console=console) as progress,
    ):
        torch.manual_seed(seed)
        task = progress.add_task("structure module", total=plan.steps, error="")
        fit = training.train(target, plan, lambda error: progress.update(task, advance=1, error=f"{error:.2f} Å"))
        progress.update(task, total=len(fit.losses["loss"]))
    scores = training.score(fit.structure, target)
    metrics: dict[str, Any] = {
        "structure": title,
        "residues": count,
        "seed": seed,
        "quick": quick,
        "torch": torch.__version__,
        "plan": plan._asdict(),
        "steps": len(fit.losses["loss"]),
        "scores": scores._asdict(),
        "plddt": round(fit.plddt.mean().item(), 2),
    }
    _write(output, read, fit, target)
    from paperops.demos.structure_module import picture

    picture.draw(output / "structure_module.png", title, fit, target, scores, plan.enough)
    metrics["seconds"] = round(time.perf_counter() - started, 1)
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    _report(console, metrics, scores)
    message = (
        f"{metrics['seconds']:.0f} s in all; the atoms are {output / 'predicted.cif'} (true.cif has what they were "
        f"fitted to, superposed), the picture is {output / 'structure_module.png'}, the numbers are beside them."
    )
    console.print(message, markup=False, highlight=False, soft_wrap=True)
    if quick:
        return 0
    if scores.fape >= plan.enough:
        message = f"The backbone's FAPE did not come under {plan.enough} Å in {plan.steps} steps: {scores.fape:.2f} Å"
        console.print(message, style="red", highlight=False)
        return 1
    console.print(f"The backbone's FAPE is under {plan.enough} Å.", style="green", highlight=False)
    return 0


def _write(output: Path, chain: Any, fit: Any, target: Any) -> None:
    """Both structures, the predicted one where the true one is."""
    from paperops.demos.structure_module.training import superposed
    from paperops.geometry import atom14_to_atom37
    from paperops.residues import tables
    from paperops.structures import write_mmcif

    alpha, resolved = target.backbone.translations[0], target.resolved[0]
    atoms = fit.structure.positions[-1][0]  # [N, 14, 3]
    points = torch.cat([fit.structure.translations[-1][0], atoms.flatten(0, 1)])
    others = len(points) - len(alpha)
    moved = superposed(
        points,
        torch.cat([alpha, alpha.new_zeros(others, 3)]),
        torch.cat([resolved, resolved.new_zeros(others)]),
    )[len(alpha) :].reshape(atoms.shape)
    there = tables().atom14_exists[chain.aatype]
    for name, positions, mask, plddt in (
        ("predicted", moved, there, fit.plddt),
        ("true", target.atoms.positions[0], target.atoms.mask[0], None),
    ):
        placed = atom14_to_atom37(chain.aatype, positions, mask)
        write_mmcif(
            output / f"{name}.cif", chain.aatype, *placed, residue_index=chain.residue_index, plddt=plddt,
            chain=chain.name, name=name,
        )  # fmt: skip


def _report(console: Console, metrics: dict[str, Any], scores: Any) -> None:
    table = Table(
        title=f"{metrics['structure']}: {metrics['residues']} residues, {metrics['steps']} steps", show_header=False
    )
    table.add_column()
    table.add_column(justify="right")
    for name, value in (
        ("backbone FAPE (no clamp)", f"{scores.fape:.3f} Å"),
        ("side-chain FAPE", f"{scores.sidechain_fape:.3f} Å"),
        ("CA RMSD", f"{scores.rmsd:.3f} Å"),
        ("lDDT-CA", f"{scores.lddt:.4f}"),
        ("pLDDT, mean", f"{metrics['plddt']:.1f}"),
        ("residues with a violation", f"{scores.violations} (true structure: {scores.true_violations})"),
        ("mean overlap of atoms", f"{scores.clashes:.5f} Å"),
    ):
        table.add_row(name, value)
    console.print(table)
    plan = metrics["plan"]
    console.print(
        f"The module: {plan['c_s']} and {plan['c_z']} channels, {plan['heads']} heads, {plan['blocks']} blocks "
        "(AlphaFold2: 384 and 128, 12, 8). Violations take no part in its loss.",
        highlight=False,
    )

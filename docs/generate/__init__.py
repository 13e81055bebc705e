"""Sphinx extension: writes the pages that are generated, before the others are read. Nothing is written twice.

An op gets its page by being registered, a paper by being a package in ``paperops.models``. What is written lies in
``docs/ops``, ``docs/models`` and ``docs/library``, which git ignores.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from paperops.benchmarks import evidence, records

from generate import docstrings, modules, ops
from paperops.testing.registry import entries


def pages(folder: Path) -> dict[str, str]:
    """Every generated page, by its path in ``folder``, where its pictures are drawn."""
    measured = records.load_all(records.RESULTS)
    pictures = ops.draw(measured, folder / "ops")
    table = ops.table(entries(), measured)  # on the front page, too
    found = {"ops/table": table, "ops/index": ops.listing(entries(), table)}
    for entry in entries():
        found[f"ops/{entry.name}"] = ops.page(entry, pictures.get(entry.name, []))
    found["library/performance"] = performance(pictures)
    found["library/checks"] = modules.generic_checks()
    found["library/command_line"] = modules.command_line()
    found |= {f"library/{name}": modules.page(f"paperops.{name}") for name in modules.LIBRARY}
    found["models/index"] = modules.listing()
    found |= {f"models/{name}": modules.page(f"paperops.models.{name}") for name in modules.models()}
    return found


def performance(pictures: dict[str, list[str]]) -> str:
    """All measurements on one page; pictures of what has no page of its own."""
    layers = entries(layers=True)[len(entries()) :]
    text = "# Performance\n\n" + evidence.markdown().replace("\n### ", "\n## ")
    for layer in layers:
        drawn = [f"![Time against size: {layer.name}](/ops/{name})\n" for name in pictures.get(layer.name, [])]
        text += "\n".join([f"\n## The layer `{layer.name}`\n", *drawn] if drawn else [])
    return text


def write(app: Any) -> None:
    """Write the pages that have changed, and remove those that are no more."""
    docs = Path(app.srcdir)
    for name in ("ops", "models", "library"):
        shutil.rmtree(docs / name, ignore_errors=True)
    for name, text in pages(docs).items():
        (docs / f"{name}.md").parent.mkdir(parents=True, exist_ok=True)
        (docs / f"{name}.md").write_text(text, encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", write)
    app.connect("autodoc-process-docstring", docstrings.process)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

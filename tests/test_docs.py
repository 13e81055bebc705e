"""The documentation's generated pages, without building the site (``make docs`` does)."""

import dataclasses
import inspect
import re
import sys
from pathlib import Path

import pytest
from paperops.benchmarks import evidence, records

import paperops
from paperops.testing.registry import BenchCase, Cost, entries

ROOT = Path(__file__).resolve().parent.parent
pytest.importorskip("sphinx")
if not (ROOT / "docs").is_dir():
    pytest.skip("not in a checkout", allow_module_level=True)
sys.path.insert(0, str(ROOT / "docs"))

import generate  # noqa: E402  # docs/ is no package
from generate import docstrings, modules, ops, source  # noqa: E402  # docs/ is no package


def planted(**arguments):
    """Attention of a sort.

    .. math:: y = x

    Args:
        x: anything.

    Returns:
        The same: x.

    Said afterwards.

    Raises:
        TypeError, ValueError: in no
            case.
    """
    return paperops.knn(**arguments)


def entry(**changed):
    knn = entries()[0]
    case = BenchCase("one size", lambda device, dtype: next(knn.samples(device, dtype)))
    given = {"name": "planted", "function": planted, "bench": (case,), "cost": lambda sample: Cost(2e6, 3e3)}
    return dataclasses.replace(knn, **given, **changed)


def headings(page):
    return [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]


@pytest.mark.parametrize("op", entries(), ids=str)
def test_every_op_has_a_page_of_all_sections(op, monkeypatch):
    monkeypatch.setattr(ops, "counted", lambda entry, case: Cost(1.0, 1.0))  # seconds, of all ops
    page = ops.page(op, [])
    assert headings(page) == list(ops.SECTIONS)
    assert page.startswith(f"# `{op.name}`\n") and "`reference`" in page
    about = docstrings.split(op.function)
    assert {"Args", "Returns", "Raises", "Example"} <= set(about.sections), "its docstring lacks a section"
    for text in (about.summary, about.sections["Example"], f"def {op.reference.__name__}(", *op.exceptions.values()):
        assert text in page
    assert all(f"``{name}``" in page or f"**{name}" in page or f"`{name}`" in page for name in op.differentiable)


def test_wider_tolerances_are_explained():
    for op in entries(layers=True):
        assert bool(op.tolerance or op.roundings or op.unit) == bool(op.tolerance_reason), op.name


def test_a_registered_op_gets_its_page(tmp_path):
    page = ops.page(entry(exceptions={"vmap": "it has no batch"}), [], results=tmp_path)
    assert headings(page) == list(ops.SECTIONS)
    assert "| one size | CPU and GPU | 2 Mop | 3.00 kB |" in page
    assert "Not checked: `vmap`, for it has no batch." in page and "`values`, `gradients`" in page
    assert ":Returns:\n" in page and "The same: x." in page, "what stands before a colon is no type"
    assert re.search(r":Raises:\n +\* \*\*TypeError, ValueError\*\* -- in no\n +case\.\n", page)
    assert page.index("## Promises") < page.index("Said afterwards.") < page.index("## Cost")
    table = ops.table([entry()], [])
    assert ":doc:`planted </ops/planted>`" in table and "Attention of a sort." in table and "never measured" in table


def test_pages_follow_the_registry(tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "entries", lambda layers=False: (entry(),))
    monkeypatch.setattr(records, "load_all", lambda folder: [])
    found = generate.pages(tmp_path)
    assert found["ops/planted"] == ops.page(entry(), [])
    assert [name for name in found if name.startswith("ops/")] == ["ops/table", "ops/index", "ops/planted"]
    for name in ("ops/table", "ops/index"):
        assert ":doc:`planted </ops/planted>`" in found[name]
    assert {f"models/{paper}" for paper in modules.models()} < set(found)
    linked = (ROOT / "docs/index.md").read_text()
    assert all(name in linked for name in found if name.startswith("library/")), "a page that no table of contents has"


def test_conditions_are_those_that_bear_on_the_figures():
    device = {"type": "cuda", "name": "Trial GPU", "slug": "trial-gpu"}
    conditions = {"threads": 2, "multiprocessors": 132, "memory": 141e9, "float32_matmul_precision": "high"}
    about = {"date": "2030-01-02T00:00:00Z", "digest": None, "commit": None, "versions": {"cuda": "13.0"}, "rows": []}
    ceilings = {"bandwidth": 4e12, "vector": 6e13}
    text = evidence._conditions(
        records.Record("knn", "nearest", "float32", device, conditions=conditions, ceilings=ceilings, **about)
    )
    assert text.startswith("Measured 2030-01-02 with cuda 13.0; 132 multiprocessors, 141 GB of memory. Ceilings")
    assert text.endswith("Matrix products of float32 were allowed torch's precision 'high'.")


def test_a_page_says_what_was_never_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "entries", lambda layers: (entry(),))
    page = ops.page(entry(), [], results=tmp_path)
    assert "Time of eager torch, in units of ours: never measured." in page
    assert evidence.NO_GPU in page and evidence.NOTHING.format("a CPU") in page
    assert "Never measured, on any device: `planted`." in page
    assert "`planted` was never measured: there is nothing to draw." in page


def test_a_page_shows_what_was_measured(tmp_path):
    row = records.Row("one size", "paperops native", False, 1e6, 1e3, 1e-5, ours=True, chosen=True, median=2e-5)
    eager = dataclasses.replace(row, contestant="torch eager", ours=False, chosen=False, median=1e-4, ratio=5.0)
    device = {"type": "cpu", "name": "Trial CPU", "slug": "cpu-trial"}
    ceilings = {"bandwidth": 1e10, "vector": 1e11, "threads": 2}
    about = {
        "date": "2030-01-02T00:00:00Z",
        "commit": None,
        "versions": {"torch": "2.13"},
        "conditions": {"threads": 2},
    }
    record = records.Record(
        "knn", "nearest", "float32", device, digest="old", ceilings=ceilings, rows=[row, eager], **about
    )
    records.save(tmp_path, record)
    pictures = ops.draw(records.load_all(tmp_path), tmp_path)
    assert pictures == {"knn": ["figures/cpu-trial/knn-float32.svg"]}
    drawn = (tmp_path / pictures["knn"][0]).read_bytes()
    assert b"<svg" in drawn
    ops.draw([record], tmp_path)
    assert (tmp_path / pictures["knn"][0]).read_bytes() == drawn, "the same figures, the same file"
    assert b"<!-- case, placed by its number of operations -->" in drawn
    same = dataclasses.replace(row, case="as large")  # in a picture by size the one would hide the other
    ops.draw([dataclasses.replace(record, rows=[row, same])], tmp_path)
    by_row = (tmp_path / pictures["knn"][0]).read_bytes()
    assert b"<!-- one size -->" in by_row and b"<!-- as large -->" in by_row and b"placed by its" not in by_row
    op = dataclasses.replace(entries()[0], bench=())
    page = ops.page(op, pictures["knn"], results=tmp_path)
    assert "Time of eager torch, in units of ours: Trial CPU: 5.00x (stale)." in page
    assert "| one size | float32 | 20.0 us (native) | 5.00x | 50% |  |  | **stale** |" in page
    assert "Measured 2030-01-02 with torch 2.13; 2 threads" in page and evidence.NO_GPU in page
    assert "](figures/cpu-trial/knn-float32.svg)" in page


def test_kinds_of_devices_without_measurements_are_named():
    def record(kind, **versions):
        return records.Record("knn", "nearest", "float32", {"type": kind}, "", None, None, versions, {}, {}, [])

    cpu, nvidia, amd = record("cpu"), record("cuda", cuda="13.0"), record("cuda", hip="7.0")
    said = {"cpu": evidence.NOTHING.format("a CPU"), "amd": evidence.NOTHING.format("an AMD GPU")}
    assert evidence.unmeasured([cpu]) == [evidence.NO_GPU]
    assert evidence.unmeasured([nvidia]) == [said["cpu"], said["amd"]]
    assert evidence.unmeasured([cpu, amd]) == [evidence.NOTHING.format("an NVIDIA GPU")]
    assert evidence.unmeasured([cpu, nvidia, amd]) == []


def test_readme_has_the_tables_of_these_sources():
    assert evidence.main(["--check"]) == 0, "run: python -m paperops.benchmarks.evidence --update-readme"


def test_definitions_are_shown_with_what_they_use():
    shown = source.closure(paperops.reference.dynopool_2d)
    assert shown.index("FOUR, CENTRE") < shown.index("def axis(") < shown.index("def dynopool_2d(")
    assert "def resample_2d(" not in shown and "import" not in shown
    compile(shown, "shown", "exec")


@pytest.mark.parametrize("name", [*modules.LIBRARY, *(f"models.{paper}" for paper in modules.models())])
def test_every_public_name_is_on_its_modules_page(name):
    page = modules.page(f"paperops.{name}")
    module = sys.modules[f"paperops.{name}"]
    for public in module.__all__:
        assert public in page
        assert inspect.ismodule(getattr(module, public)) or f".{public}\n" in page or f":: {public}\n" in page


def test_every_command_and_check_is_told():
    told = modules.command_line()
    for command in ("info", "check", "bench", "evidence", "demo"):
        assert f"## `{command}`" in told
    assert "``values``\n   Results against the float64 definition" in modules.generic_checks()

"""What the demonstrations have in common: each is listed, and says which package is missing before it begins."""

import importlib

import pytest
from rich.console import Console

from paperops import __main__

NEEDED = {"lmnet3d": "sklearn", "dynopool": "sklearn", "acmix": "sklearn", "structure_module": "gemmi"}


@pytest.mark.parametrize(("name", "package"), NEEDED.items())
def test_missing_package_is_named(name, package, tmp_path, monkeypatch):
    demo = importlib.import_module(f"paperops.demos.{name}")
    whole = importlib.import_module

    def without(wanted, *rest):
        if wanted == package:
            raise ImportError(f"no {package} here")
        return whole(wanted, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    console = Console(record=True, width=200)
    output = tmp_path / "out"
    assert demo.run(output, console=console) == 2
    assert f"needs {package} (no {package} here): pip install '.[demo]'" in console.export_text()
    assert not output.exists()


def test_all_are_listed(capsys):
    assert __main__.main(["demo"]) == 0
    listed = capsys.readouterr().out
    assert [name for name in NEEDED if f"{name}: " not in listed] == []

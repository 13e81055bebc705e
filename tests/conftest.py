"""Settings of the whole test suite, and what several files need."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    """Files that run some of the tests once more take minutes each: they come first, so that no process is left with
    one of them when the others are done. (After them the registry's checks, which are the longest of the rest.)"""

    def due(item):
        again = "rerun" in getattr(item, "fixturenames", ())
        return 0 if again else 1 if item.path.name == "test_registry.py" else 2

    order: dict[Path, int] = {}
    for item in items:
        order[item.path] = min(order.get(item.path, 2), due(item))
    items.sort(key=lambda item: order[item.path])


@pytest.fixture
def rerun():
    """Run some of the tests in a process with other environment variables: for what is chosen before one starts."""

    def run(selection, **environment):
        command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "--show-capture=no", *selection]
        done = subprocess.run(
            command,
            cwd=Path(__file__).parent.parent,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        print(done.stdout[-4000:], done.stderr[-2000:])
        assert done.returncode == 0
        assert " passed" in done.stdout

    return run

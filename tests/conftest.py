"""Settings of the whole test suite, and what several files need."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

torch.manual_seed(0)


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

"""Every Triton kernel, forward and backward, in Triton's interpreter: in a process of its own, through the public ops.

The interpreter has to be chosen before a kernel is imported, so this runs the registry's tests again with it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is the interpreter's process")
def test_registry_in_the_interpreter():
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "tests/test_registry.py"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PAPEROPS_BACKEND": "triton"}
    root = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout[-4000:], done.stderr[-2000:])
    assert done.returncode == 0
    assert " passed" in done.stdout

"""The registry's tests once more where the choice has to be made before a process starts.

- Every Triton kernel, forward and backward, in Triton's interpreter, through the public ops.
- The native kernels for less capable processors than this one.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from paperops import backends

ROOT = Path(__file__).parent.parent


def rerun(selection, **environment):
    """Run some of the registry's tests in a process with these environment variables; return its output."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "--show-capture=no", *selection]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    print(done.stdout[-4000:], done.stderr[-2000:])
    assert done.returncode == 0
    assert " passed" in done.stdout


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is the interpreter's process")
def test_triton_in_the_interpreter():
    pytest.importorskip("triton")
    rerun(["tests/test_registry.py"], TRITON_INTERPRET="1", PAPEROPS_BACKEND="triton")
    rerun(["tests/ops", "-k", "triton"], TRITON_INTERPRET="1")


@pytest.mark.parametrize("instructions", ["portable", "avx2"])
def test_native_for_other_processors(instructions):
    if backends.missing("native", "cpu") is not None:
        pytest.skip(backends.missing("native", "cpu"))
    checks = "native and (values or gradients or overwritten or deterministic)"
    rerun(["tests/test_registry.py", "-k", checks], PAPEROPS_CPU_ISA=instructions)
    rerun(["tests/ops", "-k", "native or pruned"], PAPEROPS_CPU_ISA=instructions)

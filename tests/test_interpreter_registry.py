"""The registry's tests with every Triton kernel, forward and backward, in Triton's interpreter, through the public ops.

A file of its own, for this is the longest of all tests and the files are shared among processes.
"""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("this is the interpreter's process", allow_module_level=True)
pytest.importorskip("triton")


def test_registry(rerun):
    rerun(["tests/test_registry.py"], TRITON_INTERPRET="1", PAPEROPS_BACKEND="triton")

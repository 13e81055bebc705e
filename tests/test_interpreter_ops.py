"""The ops' own tests with every Triton kernel in Triton's interpreter."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("this is the interpreter's process", allow_module_level=True)
pytest.importorskip("triton")


def test_ops(rerun):
    rerun(["tests/ops", "-k", "triton"], TRITON_INTERPRET="1")

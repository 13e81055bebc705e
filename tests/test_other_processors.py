"""The registry's tests, and the ops' own, with the native kernels for less capable processors than this one."""

import pytest

from paperops import backends


@pytest.mark.parametrize("instructions", ["portable", "avx2"])
def test_native(rerun, instructions):
    if backends.missing("native", "cpu") is not None:
        pytest.skip(backends.missing("native", "cpu"))
    checks = "native and (values or gradients or overwritten or deterministic)"
    rerun(["tests/test_registry.py", "-k", checks], PAPEROPS_CPU_ISA=instructions)
    rerun(["tests/ops", "-k", "native or pruned"], PAPEROPS_CPU_ISA=instructions)

"""Every generic check, over every registered op, on every backend and device that can run here."""

import functools
from contextlib import nullcontext

import pytest
import torch

import paperops
from paperops import backends
from paperops.testing import checks
from paperops.testing.registry import entries
from paperops.testing.targets import INTERPRETED, targets

# In the interpreter the others run as they do without it.
TARGETS = targets(*(name for name in backends.BACKENDS if name != "triton")) if INTERPRETED else targets()


@functools.cache
def lacks(name, device, backend):
    (entry,) = (entry for entry in entries() if entry.name == name)  # a family may have the name of one of its ops
    return checks.lacks(entry, torch.device(device), backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("check", list(checks.CHECKS))
@pytest.mark.parametrize("entry", entries(), ids=str)
@pytest.mark.parametrize(("device", "backend"), TARGETS)
def test_check(device, backend, entry, check, dtype):
    if dtype not in entry.dtypes or not checks.applies(check, entry, device, dtype, backend):
        pytest.skip("does not apply")
    if INTERPRETED and dtype != torch.float32 and check not in ("values", "gradients"):
        pytest.skip("what remains is the same for every dtype, and the interpreter is slow")
    if INTERPRETED and check == "gradients" and dtype == torch.bfloat16:
        pytest.skip("computed in float32 and rounded, as float16 is, and the interpreter is slow")
    if INTERPRETED and check == "overwritten":
        pytest.skip("values and gradients are compared in memory filled with NaN, and the interpreter is slow")
    if INTERPRETED and entry.widens and check == "gradients" and dtype == torch.float16:
        pytest.skip("the kernels are those of float32, and the interpreter is slow")
    if (reason := lacks(entry.name, device, backend)) is not None:
        pytest.skip(reason)
    with paperops.use_backend(backend), checks.fresh_memory_filled() if INTERPRETED else nullcontext():
        checks.run(check, entry, torch.device(device), dtype)

"""The batched product in Triton: it serves only where torch's library does not do what is asked, which no CPU needs."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

SCRIPT = """
import torch
from paperops.kernels.launch import Architecture, run
from paperops.kernels.triangle_multiplication_contract import plan_product, product_launch

arch = Architecture("interpreter", 1)
for n in (0, 1, 5, 64, 70):
    stored = torch.randn(2, 7, n, n)
    left, right = stored[:, 2:5], torch.randn(3, 2, n, n).transpose(0, 1)
    for a, b in ((left, right.mT), (left.mT, right), (left, right)):
        results = [torch.full((2, 4, n, n), float("nan")) for _ in range(2)]
        run(a.device, [product_launch(a, b, results[0][:, 1:], "ieee", arch), plan_product(a, b, results[1][:, 1:], "", arch)])
        for result in results:
            assert result[:, 0].isnan().all()
            torch.testing.assert_close(result[:, 1:], a @ b)
print("agreed")
"""  # noqa: E501


def test_agrees_with_torch():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment)
    assert result.stdout == "agreed\n", result.stderr

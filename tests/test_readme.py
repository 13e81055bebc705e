"""The README's examples run, one after another, as they stand there."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"


def test_examples_run(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) > 5
    names: dict[str, object] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for block in blocks:
            try:
                exec(compile(block, str(README), "exec"), names)
            except Exception as error:
                pytest.fail(f"{type(error).__name__}: {error}\n\n{block}")
    assert names["near"].shape == (2, 4, 16, 28, 28) and names["fewer"].shape == (2, 4, 16, 14, 14)
    assert names["logits"].shape == (2, 10)

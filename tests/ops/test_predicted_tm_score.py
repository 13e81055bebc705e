"""What is particular to predicted_tm_score, beyond the generic checks."""

import math

import pytest
import torch
from paperops.benchmarks import memory

import paperops
from paperops import backends
from paperops.testing.predicted_tm_score import score_arguments
from paperops.testing.targets import targets

CPU = torch.device("cpu")
backend = pytest.mark.parametrize("target", targets("cuda"), ids="-".join)


def score(target, **given):
    with paperops.use_backend(target[1]):
        return paperops.predicted_tm_score(**given)


@backend
@pytest.mark.parametrize("interface", [False, True])
def test_term_by_term(target, interface):
    """With Python's own numbers, one bin at a time."""
    n, bins, max_bin = 7, 6, 20.0
    given = score_arguments(2, n, bins, torch.device(target[0]), torch.float64, 2) | {"max_bin": max_bin}
    given["interface"] = interface
    weights = torch.tensor([[1, 1, 0, 1, 0.5, 1, 2], [0, 1, 1, 1, 1, 1, 0]], dtype=torch.float64)
    found = score(target, **given, residue_weights=weights.to(target[0])).tolist()
    logits, chains = given["logits"].tolist(), given["asym_id"].tolist()
    step = max_bin / (bins - 2)
    boundaries = [step * b for b in range(bins - 1)]
    centres = [boundary + step / 2 for boundary in boundaries] + [boundaries[-1] + 1.5 * step]
    for item, w in enumerate(weights.tolist()):
        d0 = 1.24 * (max(sum(w), 19) - 15) ** (1 / 3) - 1.8
        best = value = 0.0
        for i in range(n):
            above = below = 0.0
            for j in range(n):
                if interface and chains[item][i] == chains[item][j]:
                    continue
                powers = [math.exp(x) for x in logits[item][i][j]]
                scores = [1 / (1 + (c / d0) ** 2) for c in centres]
                expected = sum(p * s for p, s in zip(powers, scores, strict=True)) / sum(powers)
                above, below = above + w[i] * w[j] * expected, below + w[i] * w[j]
            if above / (1e-8 + below) * w[i] > best:
                value, best = above / (1e-8 + below), above / (1e-8 + below) * w[i]
        assert found[item] == pytest.approx(value, abs=1e-13)


@backend
def test_certain_errors(target):
    """All of the probability in one bin: the score is that bin's, whatever the row."""
    for bin_, n in ((0, 25), (3, 60), (63, 10)):
        logits = torch.full((1, n, n, 64), -1e4, dtype=torch.float64, device=target[0])
        logits[..., bin_] = 0
        d0 = 1.24 * (max(n, 19) - 15) ** (1 / 3) - 1.8
        expected = 1 / (1 + ((bin_ + 0.5) * 0.5 / d0) ** 2)
        assert float(score(target, logits=logits)) == pytest.approx(expected, rel=1e-9)


@backend
def test_gradient_is_of_the_first_row_that_attains_the_maximum(target):
    logits = torch.zeros(2, 6, 6, 8, device=target[0])
    logits[1, 2, :, 0] = logits[1, 4, :, 0] = 3.0
    weights = torch.ones(2, 6, device=target[0])
    weights[0, 0] = 0
    logits.requires_grad_()
    result = score(target, logits=logits, residue_weights=weights, bins=8)
    gradient = torch.autograd.grad(result.sum(), logits)[0]
    rows = gradient.abs().sum((2, 3)) > 0
    assert rows.nonzero().tolist() == [[0, 1], [1, 2]]
    assert not gradient[0, 1, 0].any()  # of weight 0
    torch.testing.assert_close(gradient.sum(-1), torch.zeros_like(gradient[..., 0]), rtol=0, atol=1e-7)


@backend
def test_descending_on_it_raises_the_score(target):
    given = score_arguments(1, 12, 16, torch.device(target[0]), torch.float64, 2)
    logits = given.pop("logits").requires_grad_()
    before = score(target, logits=logits, **given)
    (gradient,) = torch.autograd.grad(before.sum(), logits)
    assert score(target, logits=logits + gradient / gradient.norm(), **given) > before


@backend
@pytest.mark.parametrize("kind", ["weights of 0", "one chain"])
def test_without_pairs_it_is_zero(target, kind):
    given = score_arguments(2, 5, 8, torch.device(target[0]), torch.float32, 1)
    if kind == "weights of 0":
        given |= {"residue_weights": torch.zeros(2, 5, dtype=torch.bool, device=target[0]), "interface": False}
    given["logits"][:] = float("nan")
    logits = given.pop("logits").requires_grad_()
    result = score(target, logits=logits, **given)
    assert not result.any()
    assert not torch.autograd.grad(result.sum(), logits)[0].any()


@backend
def test_nan_passes_through(target):
    given = score_arguments(2, 6, 8, torch.device(target[0]), torch.float32)
    given["logits"][1, 3, 2, 5] = float("nan")
    assert score(target, **given).isnan().tolist() == [False, True]
    given["logits"][1, 3, 2] = float("-inf")  # no bin can be
    assert score(target, **given).isnan().tolist() == [False, True]


@backend
def test_each_item_has_its_own_length(target):
    """A padded item of weight 0 beyond its residues scores as the item alone."""
    given = score_arguments(1, 31, 64, torch.device(target[0]), torch.float64, 2)
    weights = (torch.arange(31, device=target[0]) < 24)[None]
    short = given | {"logits": given["logits"][:, :24, :24], "asym_id": given["asym_id"][:, :24]}
    torch.testing.assert_close(score(target, **given, residue_weights=weights), score(target, **short))


@pytest.mark.skipif(backends.missing("native", "cpu") is not None, reason="no native library")
def test_memory():
    """Forward nothing that grows as N^2; backward the gradient of the logits, once."""
    logits = score_arguments(1, 128, 64, CPU, torch.float32)["logits"].requires_grad_()
    with paperops.use_backend("native"):
        with torch.no_grad():
            assert memory.peak(lambda: paperops.predicted_tm_score(logits), CPU) < 128 * 100
        peak = memory.peak(lambda: torch.autograd.grad(paperops.predicted_tm_score(logits).sum(), logits), CPU)
    assert peak < logits.numel() * 4 + 128 * 64 * 4 * 12

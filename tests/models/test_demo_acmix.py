"""The demonstration of ACmix: equal networks, a short run, its files, and that it says where it does not win."""

import json

import pytest
import torch
from rich.console import Console

import paperops
from paperops.nn import ACmix

for module in ("sklearn", "matplotlib"):
    pytest.importorskip(module, reason=f"{module} is not installed: pip install 'paperops[demo]'")

from paperops.demos import acmix  # noqa: E402
from paperops.demos.acmix import training  # noqa: E402
from paperops.demos.dynopool import data  # noqa: E402


def test_networks_have_equal_parameters():
    plan = training.Plan()
    counts = {}
    for kind in training.KINDS:
        model = training.resnet(kind, plan.widths, plan.blocks)
        counts[kind] = sum(parameter.numel() for parameter in model.parameters())
        assert model(torch.rand(2, 1, 32, 32)).shape == (2, 10)
    assert all(abs(count / counts["ACmix"] - 1) < 0.03 for count in counts.values()), counts


def test_attention_only_is_acmix_without_its_convolution():
    torch.manual_seed(0)
    attention, layer = training.Attention(8, 2), ACmix(8, 8, stride=2)
    with torch.no_grad():
        layer.rate1.fill_(1)
        layer.rate2.zero_()
        for part, name in enumerate(("conv1", "conv2", "conv3")):
            getattr(layer, name).weight.copy_(attention.qkv.weight[8 * part : 8 * part + 8])
            getattr(layer, name).bias.copy_(attention.qkv.bias[8 * part : 8 * part + 8])
        layer.conv_p.weight.copy_(attention.conv_p.weight)
    x = torch.rand(2, 8, 9, 10)
    torch.testing.assert_close(attention(x), layer(x))


def test_a_short_training_learns():
    train, held_out = data.load("enlarged", seed=0)
    plan = training.QUICK._replace(widths=(8, 16), epochs=4, train=1024, rate=1e-2)
    result = training.train("ACmix", train, held_out, plan, 0, lambda: None)
    assert result.accuracy > 0.3  # chance is 0.1
    assert len(result.rates) == 65 and result.rates[0] == {"1": (0.5, 0.5), "2": (0.5, 0.5)}
    assert all(rate != 0.5 for rates in result.rates[-1].values() for rate in rates)


def test_a_training_repeats():
    train, held_out = data.load("enlarged", seed=0)
    first, again = (training.train("ACmix", train, held_out, training.QUICK, 0, lambda: None) for _ in range(2))
    assert (first.accuracies, first.rates) == (again.accuracies, again.rates)


def test_short_run(tmp_path):
    console = Console(record=True, width=140)
    assert acmix.run(tmp_path / "out", console=console, quick=True) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(metrics["results"]) == list(training.KINDS)
    assert all(0 < result["accuracy"] <= 1 and result["macs"] > 0 for result in metrics["results"].values())
    assert list(metrics["rates"]) == ["1", "2"]
    assert (tmp_path / "out" / "acmix.png").stat().st_size > 20_000
    text = console.export_text()
    assert text.count(" recognised, ") == 3  # a line a network, as this is no terminal
    assert "Held-out digits" in text and text.count("ACmix wins") + text.count("ACmix does not win") == 2


def test_reference_makes_it_short(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "QUICK", training.QUICK._replace(train=64, widths=(4,)))
    console = Console(record=True, width=140)
    with paperops.use_backend("reference"):
        assert acmix.run(tmp_path, console=console) == 0
    assert "slow definition" in console.export_text()


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        acmix.run(tmp_path / "out", console=Console(record=True), quick=True)
    assert not list(tmp_path.iterdir())


def test_a_file_is_no_folder(tmp_path):
    console = Console(record=True, width=300)
    (tmp_path / "out").touch()
    assert acmix.run(tmp_path / "out", console=console, quick=True) == 2
    assert "out is a file" in console.export_text()


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        (0.95, "ACmix wins (+5.00 points)"),
        (0.80, "ACmix does not win (-10.00 points)"),
        (0.91, "ACmix does not win (+1.00 points, within chance)"),
        (0.89, "ACmix does not win (-1.00 points, within chance)"),
    ],
)
def test_verdicts(ours, verdict):
    results = {kind: {"accuracy": 0.9, "macs": 100, "parameters": 50} for kind in training.KINDS}
    results["ACmix"] = {"accuracy": ours, "macs": 120, "parameters": 49}
    *found, last = acmix.verdicts(results, held_out=2000)
    for line, rival in zip(found, ("convolution only", "attention only"), strict=True):
        assert line == f"Against {rival}, at 0.98 of its parameters and 1.20 of its multiply-adds: {verdict}"
    assert "not a benchmark" in last

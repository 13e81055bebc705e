"""The demonstration of DynOPool: its images, a short run, its files, and that it says where it does not win."""

import json

import pytest
import torch
from rich.console import Console

import paperops

for module in ("sklearn", "matplotlib"):
    pytest.importorskip(module, reason=f"{module} is not installed: pip install 'paperops[demo]'")

from paperops.demos import dynopool  # noqa: E402
from paperops.demos.dynopool import data, training  # noqa: E402


def test_images_of_the_three_kinds():
    scans = torch.rand(3, 1, 8, 8)
    stretched, tiled, enlarged = (data.disguised(scans, kind) for kind in data.SIZES)
    assert [image.shape[1:].numel() for image in (stretched, tiled, enlarged)] == [1024] * 3
    assert torch.equal(tiled[..., 8:16, 24:], scans)
    torch.testing.assert_close(stretched.unflatten(2, (8, 8)).unflatten(4, (8, 2)).mean((3, 5)), enlarged.unflatten(
        2, (8, 4)).unflatten(4, (8, 4)).mean((3, 5)), rtol=0, atol=0.1)  # fmt: skip
    train, held_out = data.load("tiled", seed=1)
    assert len(train.labels) + len(held_out.labels) == 1797 and train.images.shape[1:] == (1, 32, 32)
    assert not any(torch.equal(image, other) for image in held_out.images[:5] for other in train.images)
    assert torch.equal(data.load("tiled", seed=1)[1].labels, held_out.labels)


def test_networks_differ_in_their_pooling_alone():
    x = torch.rand(2, 1, 32, 16)
    outs = []
    for kind in training.KINDS:
        torch.manual_seed(0)
        outs.append(training.vgg(kind, (4, 8))(x))
    assert torch.equal(outs[0], outs[2])  # at scale 1/2 it is max pooling
    assert outs[1].shape == outs[0].shape and not torch.equal(outs[1], outs[0])


def test_a_short_training_learns_and_repeats():
    train, held_out = data.load("enlarged", seed=0)
    plan = training.QUICK._replace(widths=(8, 16), epochs=4, train=512, rate=4e-2, weight=200.0)
    first, again = (training.train("DynOPool", train, held_out, plan, 0, lambda: None) for _ in range(2))
    assert (first.accuracy, first.sizes) == (again.accuracy, again.sizes)
    assert first.accuracy > 0.3  # chance is 0.1
    assert len(first.sizes) == 32 and first.sizes[0] == [(16, 16), (8, 8)] and first.sizes[-1] < first.sizes[0]
    assert first.macs < training.train("fixed pooling", train, held_out, plan, 0, lambda: None).macs


def test_short_run(tmp_path):
    console = Console(record=True, width=140)
    assert dynopool.run(tmp_path / "out", console=console, quick=True) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(metrics["results"]) == list(data.SIZES)
    for of_kind in metrics["results"].values():
        assert list(of_kind) == list(training.KINDS)
        assert all(0 < result["accuracy"] <= 1 and result["macs"] > 0 for result in of_kind.values())
    assert metrics["results"]["stretched"]["fixed pooling"]["sizes"] == [[32, 8], [16, 4]]
    assert (tmp_path / "out" / "dynopool.png").stat().st_size > 20_000
    text = console.export_text()
    assert "Held-out digits" in text and text.count("in accuracy (") == 6 and "One seed" in text


def test_reference_makes_it_short(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "QUICK", training.QUICK._replace(train=64, widths=(2, 2)))
    console = Console(record=True, width=140)
    with paperops.use_backend("reference"):
        assert dynopool.run(tmp_path, console=console) == 0
    assert "slow definition" in console.export_text()


@pytest.mark.parametrize(
    ("ours", "macs", "accuracy", "cost"),
    [
        (0.95, 100, "wins in accuracy (+5.0 points)", "does not win in cost (1.00 of"),
        (0.80, 50, "does not win in accuracy (-10.0 points)", "wins in cost (0.50 of"),
        (0.91, 200, "does not win in accuracy (+1.0 points, within chance)", "does not win in cost (2.00 of"),
        (0.89, 97, "does not win in accuracy (-1.0 points, within chance)", "wins in cost (0.97 of"),
    ],
)
def test_verdicts(ours, macs, accuracy, cost):
    results = {"tiled": {kind: {"accuracy": 0.9, "macs": 100} for kind in training.KINDS}}
    results["tiled"]["DynOPool"] = {"accuracy": ours, "macs": macs}
    first, second, last = dynopool.verdicts(results, held_out=2000)
    for line, rival in ((first, "fixed pooling"), (second, "Shape Adaptor")):
        assert line == f"tiled, against {rival}: DynOPool {accuracy} and {cost} the multiply-adds)"
    assert "not a benchmark" in last

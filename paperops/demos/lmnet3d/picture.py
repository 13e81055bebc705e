"""The picture at the end: inputs, targets and predictions of held-out digits, and how the training went."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from paperops.demos.lmnet3d.data import EDGE, FRONT, HEIGHT
from paperops.models.lmnet3d import diversity_target

_INK, _GREY, _BLUE, _ORANGE, _GREEN = "#222222", "#8a8a8a", "#2f6db5", "#d9822b", "#3a8f5c"


class Examples(NamedTuple):
    """Ten digits from sides that go from the front to the edge, and one digit reconstructed several times."""

    images: Tensor  # [10, 1, 8, 8]
    angles: Tensor  # [10]
    targets: Tensor  # [10, P, 3]
    predictions: Tensor  # [10, P, 3]
    sampled_images: Tensor  # [2, 1, 8, 8], front and edge
    sampled_angles: Tensor  # [2]
    sampled_targets: Tensor  # [2, P, 3]
    sampled: Tensor  # [2, 8, P, 3], the mean's cloud and seven samples


class Curves(NamedTuple):
    """What the plots show."""

    histories: dict[str, list[float]]  # "autoencoder", "matching", "probabilistic", "diversity"
    angles: Tensor  # [V], of all held-out pictures
    deviations: Tensor  # [V], mean over the latent
    amplitude: float
    chamfer: dict[str, Tensor]  # [V] each, by predictor


def draw(path: Path, examples: Examples, curves: Curves) -> None:
    """Write the picture."""
    # Figure and canvas directly: pyplot would keep global state and could want a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 13.2), facecolor="white")
    FigureCanvasAgg(figure)
    whole = figure.add_gridspec(
        3, 1, height_ratios=(3.1, 2.1, 1.55), left=0.06, right=0.985, top=0.925, bottom=0.05, hspace=0.17
    )
    figure.text(0.06, 0.972, "3D-LMNet on handwritten digits", fontsize=19, weight="bold", color=_INK)
    figure.text(
        0.985, 0.974, "held-out digits: an 8 × 8 picture in, a cloud of points out; colour is height above the sheet",
        fontsize=11.5, color=_GREY, ha="right",
    )  # fmt: skip
    _predictions(figure, whole[0].subgridspec(3, 10, hspace=0.04, wspace=0.06), examples)
    _samples(figure, whole[1].subgridspec(2, 10, hspace=0.04, wspace=0.06), examples)
    _plots(figure, whole[2].subgridspec(1, 4, wspace=0.27), curves)
    figure.savefig(path, dpi=110)


def _predictions(figure: Any, grid: Any, examples: Examples) -> None:
    for column in range(10):
        axes = [figure.add_subplot(grid[row, column]) for row in range(3)]
        _image(axes[0], examples.images[column])
        axes[0].set_title(_view(examples.angles[column]), fontsize=11, color=_INK)
        _cloud(axes[1], examples.targets[column])
        _cloud(axes[2], examples.predictions[column])
        if column == 0:
            for axis, name in zip(axes, ("picture", "target", "predicted"), strict=True):
                _label(axis, name)


def _samples(figure: Any, grid: Any, examples: Examples) -> None:
    for row in range(2):
        axes = [figure.add_subplot(grid[row, column]) for column in range(10)]
        _image(axes[0], examples.sampled_images[row])
        _label(axes[0], _view(examples.sampled_angles[row]))
        _cloud(axes[1], examples.sampled_targets[row])
        for axis, cloud in zip(axes[2:], examples.sampled[row], strict=True):
            _cloud(axis, cloud)
        if row == 0:
            for axis, name in zip(axes, ("picture", "target", "mean"), strict=False):
                axis.set_title(name, fontsize=11, color=_INK)
            axes[6].set_title("drawn from the probabilistic model", fontsize=11, color=_INK)


def _plots(figure: Any, grid: Any, curves: Curves) -> None:
    training, matching, spread, scores = (figure.add_subplot(grid[0, column]) for column in range(4))
    for axis in (training, matching, spread, scores):
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9, colors=_INK)
        axis.grid(alpha=0.25, linewidth=0.6)

    history = curves.histories
    _history(training, [value * 100 for value in history["autoencoder"]], _BLUE, None)
    training.set_ylim(0, 300 * history["autoencoder"][-1])  # the first few steps would squeeze the rest
    _name(training, "stage 1: Chamfer × 100", "step")
    _history(matching, history["matching"], _BLUE, "latent, L1")
    _history(matching, history["probabilistic"], _ORANGE, "latent, L2, of samples")
    _history(matching, history["diversity"], _GREEN, "diversity")
    matching.set_yscale("log")
    _name(matching, "stage 2: losses", "step")
    matching.legend(fontsize=8.5, frameon=False)

    spread.scatter(
        curves.angles.numpy(),
        curves.deviations.numpy(),
        s=3,
        color=_ORANGE,
        alpha=0.35,
        linewidths=0,
        label="predicted",
    )
    line = torch.linspace(FRONT, EDGE, 100)
    spread.plot(
        line.numpy(), diversity_target(line, amplitude=curves.amplitude).numpy(), color=_INK, lw=1.5, label="asked for"
    )
    _name(spread, "spread of the latent", "azimuth of the view (degrees)")
    spread.legend(fontsize=8.5, frameon=False, markerscale=4)

    edges = torch.linspace(FRONT, EDGE, 10)
    middles = ((edges[1:] + edges[:-1]) / 2).numpy()
    bins = torch.bucketize(curves.angles, edges[1:-1])
    for (name, values), colour in zip(curves.chamfer.items(), (_GREY, _ORANGE, _BLUE), strict=True):
        means = [values[bins == index].mean().item() * 100 for index in range(9)]
        scores.plot(middles, means, color=colour, lw=1.8, marker="o", ms=3.5, label=name)
    scores.set_ylim(bottom=0)
    _name(scores, "held-out Chamfer × 100", "azimuth of the view (degrees)")
    scores.legend(fontsize=8.5, frameon=False, loc="lower left")


def _cloud(axis: Any, points: Tensor) -> None:
    """A cloud, seen a little from the right and from above."""
    side, above = torch.deg2rad(torch.tensor([22.0, 14.0]))
    x, y, z = points.unbind(-1)
    x, depth = x * side.cos() + z * side.sin(), z * side.cos() - x * side.sin()
    y, depth = y * above.cos() - depth * above.sin(), depth * above.cos() + y * above.sin()
    order = depth.argsort()  # the nearest are drawn last
    x, y, z = x[order], y[order], z[order]
    axis.scatter(
        x.numpy(),
        y.numpy(),
        c=z.numpy(),
        s=min(14, 2600 / len(points)),
        linewidths=0,
        cmap="viridis",
        vmin=-HEIGHT / 2,
        vmax=HEIGHT / 2,
        alpha=0.9,
    )
    axis.set(xlim=(-0.58, 0.58), ylim=(-0.58, 0.58), aspect="equal", xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.set_facecolor("#f6f6f4")


def _image(axis: Any, image: Tensor) -> None:
    axis.imshow(image[0].numpy(), cmap="gray_r", vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_color("#cccccc")


def _history(axis: Any, values: list[float], colour: str, label: str | None) -> None:
    raw = torch.tensor(values)
    window = max(1, len(values) // 50)
    smooth = raw.unfold(0, window, 1).mean(-1)
    axis.plot(raw.numpy(), color=colour, alpha=0.2, lw=0.7)
    axis.plot((torch.arange(len(smooth)) + window // 2).numpy(), smooth.numpy(), color=colour, lw=1.8, label=label)


def _name(axis: Any, title: str, below: str) -> None:
    axis.set_title(title, fontsize=11, color=_INK, loc="left")
    axis.set_xlabel(below, fontsize=9, color=_GREY)


def _label(axis: Any, text: str) -> None:
    axis.set_ylabel(text, fontsize=11, color=_INK, labelpad=8)


def _view(angle: Tensor) -> str:
    degrees = round(angle.item())
    return f"{degrees}°" + (" (front)" if degrees == FRONT else " (edge)" if degrees >= EDGE - 2 else "")

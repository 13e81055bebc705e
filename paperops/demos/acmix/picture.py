"""The picture at the end: how the weights of attention and convolution move in each layer, and who recognises more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from paperops.demos.acmix import log_ratio
from paperops.demos.acmix.training import Result

_INK, _GREY = "#222222", "#8a8a8a"
_ATTENTION, _CONVOLUTION = "#2f6db5", "#d9822b"
_KINDS = {"convolution only": _CONVOLUTION, "attention only": _ATTENTION, "ACmix": "#3a8f5c"}


def draw(path: Path, examples: Tensor, results: dict[str, list[Result]]) -> None:
    """Write the picture: rate1 and rate2 of each layer through training, their ratio, digits, accuracies."""
    # Figure and canvas directly: pyplot would keep global state and could want a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    runs = results["ACmix"]
    layers = list(runs[0].rates[0])
    columns = max(3, len(layers))
    figure = Figure(figsize=(15, 7.4), facecolor="white")
    FigureCanvasAgg(figure)
    rows = figure.add_gridspec(2, 1, left=0.045, right=0.985, top=0.84, bottom=0.075, hspace=0.42)
    figure.text(0.03, 0.945, "ACmix on handwritten digits", fontsize=18, weight="bold")
    figure.text(
        0.985, 0.945, "how much of attention and of convolution each layer takes, as training goes on",
        fontsize=11.5, color=_GREY, ha="right",
    )  # fmt: skip

    upper = rows[0].subgridspec(1, columns, wspace=0.12)
    first: Any = None
    for number, layer in enumerate(layers):
        axes = figure.add_subplot(upper[number], sharey=first)
        _plain(axes)
        for run in runs:
            for rate, (name, colour) in enumerate((("attention", _ATTENTION), ("convolution", _CONVOLUTION))):
                label = f"{name} (rate{rate + 1})" if run is runs[0] else None
                axes.plot([rates[layer][rate] for rates in run.rates], color=colour, lw=1.6, alpha=0.8, label=label)
        axes.set_title(f"layer {layer}", fontsize=11, color=_INK, loc="left")
        axes.set_xlabel("step", fontsize=8.5, color=_GREY)
        if first is None:
            first = axes
            axes.legend(fontsize=8.5, frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.08))
        else:
            axes.tick_params(labelleft=False)

    lower = rows[1].subgridspec(1, 3, width_ratios=(1.3, 1, 1.3), wspace=0.2)
    _ratios(figure.add_subplot(lower[0]), layers, runs)
    shown = lower[1].subgridspec(2, 2, hspace=0.05, wspace=0.05)
    for number, image in enumerate(examples[:4]):
        axes = figure.add_subplot(shown[number // 2, number % 2])
        axes.imshow(image.numpy(), cmap="gray_r")
        axes.set(xticks=[], yticks=[])
    _accuracies(figure.add_subplot(lower[2]), results)
    figure.savefig(path, dpi=110)


def _ratios(axes: Any, layers: list[str], runs: list[Result]) -> None:
    """log |rate1 / rate2| at the end, of each layer and seed."""
    _plain(axes)
    for run in runs:
        ratios = [log_ratio(*run.rates[-1][layer]) for layer in layers]
        axes.plot(range(1, len(layers) + 1), ratios, "o-", color=_INK, lw=1.2, ms=5, alpha=0.6)
    axes.axhline(0, color=_GREY, lw=0.9, ls=":")
    axes.set_xticks(range(1, len(layers) + 1))
    axes.set_title("log |rate1 / rate2| at the end, by layer (above 0: more attention)", fontsize=11, loc="left")
    axes.set_xlabel("layer", fontsize=8.5, color=_GREY)


def _accuracies(axes: Any, results: dict[str, list[Result]]) -> None:
    """Held-out accuracy after each epoch, the mean of all seeds and each of them."""
    _plain(axes)
    for kind, runs in results.items():
        epochs = range(1, len(runs[0].accuracies) + 1)
        each = [[100 * accuracy for accuracy in run.accuracies] for run in runs]
        for accuracies in each:
            axes.plot(epochs, accuracies, color=_KINDS[kind], lw=0.7, alpha=0.4)
        means = [sum(of_epoch) / len(each) for of_epoch in zip(*each, strict=True)]
        axes.plot(epochs, means, "o-", color=_KINDS[kind], lw=2, ms=4, label=f"{kind}: {means[-1]:.1f} %")
    axes.legend(fontsize=9, frameon=False, loc="lower right")
    axes.set_title("held-out accuracy (%)", fontsize=11, color=_INK, loc="left")
    axes.set_xlabel("epoch (bold: the mean of all seeds)", fontsize=8.5, color=_GREY)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, colors=_INK)
    axes.grid(alpha=0.25, linewidth=0.6)

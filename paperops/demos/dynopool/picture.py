"""The picture at the end: how high and wide each layer's map became through training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from paperops.demos.dynopool.training import KINDS, Result

_INK, _GREY = "#222222", "#8a8a8a"
_COLOURS = ("#2f6db5", "#d9822b", "#3a8f5c", "#a8456b")


def draw(path: Path, examples: dict[str, Tensor], results: dict[str, dict[str, Result]]) -> None:
    """Write the picture: a row a kind of image, with its example ``[h, w]``, sizes through training, and scores."""
    # Figure and canvas directly: pyplot would keep global state and could want a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = len(results)
    figure = Figure(figsize=(15, 3.3 * rows + 0.9), facecolor="white")
    FigureCanvasAgg(figure)
    top = 1 - 0.95 / (3.3 * rows + 0.9)
    grid = figure.add_gridspec(
        rows, 4, width_ratios=(1, 2.1, 2.1, 1.3), left=0.03, right=0.985, top=top, bottom=0.06, hspace=0.42, wspace=0.22
    )
    figure.text(0.03, 1 - 0.38 / (3.3 * rows + 0.9), "DynOPool on handwritten digits", fontsize=18, weight="bold")
    figure.text(
        0.985, 1 - 0.38 / (3.3 * rows + 0.9), "height and width of the maps behind each pooling, as training goes on",
        fontsize=11.5, color=_GREY, ha="right",
    )  # fmt: skip
    for row, (kind, of_kind) in enumerate(results.items()):
        image, height, width, scores = (figure.add_subplot(grid[row, column]) for column in range(4))
        image.imshow(examples[kind].numpy(), cmap="gray_r")
        image.set(xticks=[], yticks=[])
        image.set_title(f"{kind}, {examples[kind].shape[0]} x {examples[kind].shape[1]}", fontsize=11, color=_INK)
        for axes, axis, name in ((height, 0, "height"), (width, 1, "width")):
            _sizes(axes, of_kind, axis)
            axes.set_title(f"{name} (pixels)", fontsize=11, color=_INK, loc="left")
        if row == 0:
            height.legend(fontsize=8.5, frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1, 0.99))
        _scores(scores, of_kind)
    figure.savefig(path, dpi=110)


def _sizes(axes: Any, results: dict[str, Result], axis: int) -> None:
    """DynOPool's sizes as full lines, Shape Adaptor's as thin dashes, the fixed ones as dots."""
    learned = results[KINDS[2]].sizes
    _plain(axes)
    for layer, colour in zip(range(len(learned[0])), _COLOURS, strict=False):
        axes.plot(
            [sizes[layer][axis] for sizes in learned],
            color=colour,
            lw=2,
            label=f"{layer + 1}" if layer else "pooling 1",
        )
        adaptor = [sizes[layer][axis] for sizes in results[KINDS[1]].sizes]
        axes.plot(adaptor, color=colour, lw=0.9, ls="--", alpha=0.8)
        axes.axhline(fixed_size(results, layer, axis), color=colour, lw=0.9, ls=":")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step (full: DynOPool; dashed: Shape Adaptor; dotted: fixed)", fontsize=8.5, color=_GREY)


def fixed_size(results: dict[str, Result], layer: int, axis: int) -> int:
    """What fixed pooling makes of the map, behind its pooling of that number."""
    whole = results[KINDS[0]].counter.layers[0].output_size[1 + axis]
    return int(whole) >> (layer + 1)


def _scores(axes: Any, results: dict[str, Result]) -> None:
    """Accuracy against multiply-adds."""
    _plain(axes)
    most = max(result.macs for result in results.values())
    least = min(result.macs for result in results.values())
    places = ((_GREY, -14), (_COLOURS[1], 6), (_COLOURS[0], 6))  # what coincides is named above and below
    for (name, result), (colour, above) in zip(results.items(), places, strict=True):
        right = result.macs > (least + most) / 2
        axes.scatter(result.macs / 1e6, result.accuracy * 100, color=colour, s=46)
        axes.annotate(
            name, (result.macs / 1e6, result.accuracy * 100), textcoords="offset points",
            xytext=(6 if right else -6, above), ha="right" if right else "left", fontsize=8.5,
        )  # fmt: skip
    axes.margins(0.25, 0.4)
    axes.set_title("held-out accuracy (%)", fontsize=11, color=_INK, loc="left")
    axes.set_xlabel("million multiply-adds an image", fontsize=8.5, color=_GREY)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, colors=_INK)
    axes.grid(alpha=0.25, linewidth=0.6)

"""The picture at the end: the predicted trace over the true one, and how the training went."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paperops.demos.structure_module.training import Fit, Scores, Target, superposed

_INK, _GREY, _BLUE, _ORANGE, _GREEN = "#222222", "#8a8a8a", "#2f6db5", "#d9822b", "#3a8f5c"


def draw(path: Path, title: str, fit: Fit, target: Target, scores: Scores, enough: float) -> None:
    """Write the picture."""
    # Figure and canvas directly: pyplot would keep global state and could want a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 7.6), facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.03, 0.94, f"The structure module, fitted to {title}", fontsize=17, weight="bold", color=_INK)
    figure.text(
        0.03, 0.90,
        f"backbone FAPE {scores.fape:.2f} Å, CA RMSD {scores.rmsd:.2f} Å, lDDT-CA {scores.lddt:.3f}; "
        "from random representations",
        fontsize=11.5, color=_GREY,
    )  # fmt: skip
    # All in the true structure's frame, turned so that its longest axes lie in the page.
    resolved = target.resolved[0]
    true = target.backbone.translations[0]
    axes = torch.linalg.svd(true[resolved] - true[resolved].mean(0), full_matrices=False)[2]
    axes[2] *= torch.det(axes).sign()  # the same hand
    blocks = [superposed(block[0], true, resolved) for block in fit.structure.translations]
    starts = _breaks(target)
    # The page is the plane of the two longest axes; in two dimensions the limits hold all that is drawn.
    space: Any = figure.add_axes((0.03, 0.03, 0.56, 0.84))
    _trace(space, true @ axes.T, resolved, starts, color=_GREY, width=5.0, alpha=0.55, label="true")
    _trace(space, blocks[-1] @ axes.T, resolved, starts, color=_BLUE, width=1.8, alpha=1.0, label="predicted")
    _atoms(space, fit, target, resolved, axes)
    space.set_axis_off()
    space.set_aspect("equal", adjustable="datalim")
    space.legend(loc="lower left", fontsize=11, frameon=False)
    _curves(figure, fit, enough)
    figure.savefig(path, dpi=110)


def _breaks(target: Target) -> list[int]:
    """Where the chain begins, and where residues are missing before."""
    return [0, *((target.residue_index[0].diff() != 1).nonzero()[:, 0] + 1).tolist()]


def _trace(
    space: Any, points: Tensor, resolved: Tensor, starts: list[int], *, color: str, width: float, alpha: float,
    label: str,
) -> None:  # fmt: skip
    for start, end in zip(starts, [*starts[1:], len(points)], strict=True):
        piece = points[start:end][resolved[start:end]]
        space.plot(
            *_smooth(piece)[:, :2].T.tolist(), color=color, linewidth=width, alpha=alpha, solid_capstyle="round",
            label=label if start == 0 else None,
        )  # fmt: skip


def _smooth(points: Tensor, between: int = 8) -> Tensor:
    """A curve through the points ``[N, 3]`` (Catmull and Rom's)."""
    if len(points) < 3:
        return points
    ends = torch.stack([2 * points[0] - points[1], 2 * points[-1] - points[-2]])
    a, b, c, d = torch.cat([ends[:1], points, ends[1:]]).unfold(0, 4, 1).movedim(-1, 0)[:, :, None]
    t = torch.arange(between, dtype=points.dtype)[:, None] / between
    curve = b + t / 2 * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return torch.cat([curve.flatten(0, 1), points[-1:]])


def _atoms(space: Any, fit: Fit, target: Target, resolved: Tensor, axes: Tensor) -> None:
    """The predicted side chains' atoms, moved as the trace is."""
    mask = target.atoms.mask[0] & resolved[:, None]
    mask[:, :4] = False
    points = torch.cat([fit.structure.translations[-1][0], fit.structure.positions[-1][0].flatten(0, 1)])
    alpha = target.backbone.translations[0]
    onto = torch.cat([alpha, torch.zeros(len(points) - len(alpha), 3)])
    kept = torch.cat([resolved, torch.zeros(len(points) - len(alpha), dtype=torch.bool)])
    moved = superposed(points, onto, kept)[len(alpha) :].unflatten(0, mask.shape)[mask] @ axes[:2].T
    space.scatter(*moved.T.tolist(), color=_ORANGE, s=9, alpha=0.6, linewidths=0, label="predicted side chains")


def _curves(figure: Any, fit: Fit, enough: float) -> None:
    upper = figure.add_axes((0.65, 0.55, 0.32, 0.31))
    upper.semilogy(fit.fape, color=_BLUE, linewidth=1.5)
    upper.axhline(enough, color=_GREY, linewidth=1, linestyle="--")
    upper.set_ylabel("backbone FAPE, last block, Å")
    lower = figure.add_axes((0.65, 0.1, 0.32, 0.35))
    for name, color in (("loss", _INK), ("backbone", _BLUE), ("sidechain", _ORANGE), ("torsion", _GREEN)):
        lower.semilogy(fit.losses[name], color=color, linewidth=1.3, label=name)
    lower.set_xlabel("step")
    lower.set_ylabel("loss")
    lower.legend(frameon=False, fontsize=9.5)
    for axis in (upper, lower):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)

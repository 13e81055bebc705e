"""Handwritten digits as solid objects: clouds of points, and small pictures of them from any side.

The digits are scikit-learn's (1797 real 8 x 8 scans). Each is read as a relief: the darker the ink, the higher it
stands. x runs to the right, y up, and z, the height, towards the reader; the sheet's side is 1, its middle the origin.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

HEIGHT = 0.4  # of the darkest ink, where the sheet's side is 1
FRONT, EDGE = 90.0, 180.0  # azimuths in degrees: facing the sheet, and looking along it
_FINE = 32  # cells on a side of the refined scan that points are drawn from
_INK = 0.4  # darkness below which there is no ink, of 1


class Digits(NamedTuple):
    """Objects with their pictures; S pictures of each of the B objects."""

    points: Tensor  # [B, N, 3], within the unit cube around the origin
    images: Tensor  # [B, S, 1, 8, 8], darkness from 0 to about 1
    angles: Tensor  # [B, S], azimuths in degrees
    labels: Tensor  # [B]


def load(points: int, views: int, seed: int) -> tuple[Digits, Digits]:
    """The training part and the held-out fifth of the digits.

    Every object is seen from `views` sides: the first is the front, the others are drawn evenly between front and edge.
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    scans = torch.from_numpy(raw.images).float() / 16  # [B, 8, 8]
    labels = torch.from_numpy(raw.target)  # [B]
    generator = torch.Generator().manual_seed(seed)

    relief = refine(scans)  # [B, F, F]
    clouds = sample_points(relief, points, generator)  # [B, N, 3]
    angles = FRONT + (EDGE - FRONT) * torch.rand(len(scans), views, generator=generator)  # [B, S]
    angles[:, 0] = FRONT
    images = torch.stack([render(relief, angle) for angle in angles.unbind(1)], dim=1)  # [B, S, 1, 8, 8]

    order = torch.randperm(len(scans), generator=generator)
    held_out = len(scans) // 5
    whole = Digits(clouds, images, angles, labels)
    return Digits(*(part[order[held_out:]] for part in whole)), Digits(*(part[order[:held_out]] for part in whole))


def refine(scans: Tensor) -> Tensor:
    """The scans `[B, 8, 8]`, resampled smoothly to `[B, F, F]`, with the paper's own grey taken away."""
    fine = functional.interpolate(scans[:, None], (_FINE, _FINE), mode="bicubic", align_corners=False)[:, 0]
    return (fine - _INK).clamp(0, 1 - _INK) / (1 - _INK)  # [B, F, F]


def sample_points(relief: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Clouds `[B, count, 3]`: cells drawn in proportion to their ink, a place within each, its ink as the height."""
    cells = torch.multinomial(relief.flatten(1), count, replacement=True, generator=generator)  # [B, count]
    jitter = torch.rand(*cells.shape, 2, generator=generator)  # [B, count, 2]
    x = (cells % _FINE + jitter[..., 0]) / _FINE - 0.5
    y = 0.5 - (torch.div(cells, _FINE, rounding_mode="floor") + jitter[..., 1]) / _FINE
    z = HEIGHT * relief.flatten(1).gather(1, cells)
    return torch.stack([x, y, z - HEIGHT / 2], dim=-1)  # [B, count, 3]


def render(relief: Tensor, angles: Tensor, size: int = 8) -> Tensor:
    """Pictures `[B, 1, size, size]` of the objects from azimuths `angles` `[B]` in degrees.

    The object is turned about its vertical axis and all its ink is projected along the line of sight (a see-through
    view, as in an X-ray). From the front, 90 degrees, that is the scan again. From the edge, 180 degrees, the whole
    sheet falls on a few columns that show how much ink each row has and how high it stands: many digits fit that.
    """
    batch = relief.shape[0]
    turn = torch.deg2rad(angles - FRONT)[:, None]  # [B, 1]
    centre = (torch.arange(_FINE) + 0.5) / _FINE - 0.5  # [F]
    ink = relief.flatten(1)  # [B, F * F]
    depth = HEIGHT * (ink - 0.5)
    across = centre.repeat(_FINE) * torch.cos(turn) + depth * torch.sin(turn)  # [B, F * F]
    down = centre.repeat_interleave(_FINE).expand(batch, -1)  # [B, F * F]

    # Every cell spreads its ink over the four pixels around it, in proportion to their nearness.
    column, row = (across + 0.5) * size - 0.5, (down + 0.5) * size - 0.5
    left, top = column.floor(), row.floor()
    image = relief.new_zeros(batch, size * size)
    for dx in (0, 1):
        for dy in (0, 1):
            weight = (1 - (column - left - dx).abs()) * (1 - (row - top - dy).abs()) * ink
            place = (top + dy).clamp(0, size - 1) * size + (left + dx).clamp(0, size - 1)
            image.scatter_add_(1, place.long(), weight)
    # An edge-on pixel gathers more ink than a frontal one: darkness saturates, as it does on film.
    return (1 - torch.exp(-2 * image * (size / _FINE) ** 2)).view(batch, 1, size, size)

"""The stages of training, the rivals to beat, and the scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

import paperops
from paperops.demos.lmnet3d.data import Digits
from paperops.models.lmnet3d import (
    ImageEncoder,
    LatentMatching,
    PointAutoEncoder,
    ProbabilisticLatentMatching,
    latent_matching_loss,
)

RADIUS = 0.05  # of the F-score, where the sheet's side is 1

Tick = Callable[[float], None]  # told the loss after every step


class Plan(NamedTuple):
    """How large and how long."""

    points: int = 512  # of a reconstructed cloud, and of the target it is compared with
    seen: int = 192  # points that the encoder is shown
    pool: int = 1024  # points of an object that both are drawn from
    views: int = 8
    held_out: int = 359  # objects that are scored, of the held-out fifth
    latent: int = 64
    autoencoder_steps: int = 1300
    matching_steps: int = 1600
    mean_shape_steps: int = 150
    autoencoder_batch: int = 32
    image_batch: int = 64


QUICK = Plan(
    points=96,
    seen=96,
    pool=384,
    views=4,
    held_out=100,
    autoencoder_steps=900,
    matching_steps=900,
    mean_shape_steps=80,
    autoencoder_batch=16,
)


def networks(plan: Plan) -> tuple[PointAutoEncoder, ImageEncoder]:
    """Small, freshly initialised networks."""
    autoencoder = PointAutoEncoder(
        plan.points, plan.latent, encoder_widths=(32, 64, 128), decoder_widths=(256, 256), decoder_norm=True
    )
    encoder = ImageEncoder(plan.latent, in_channels=1, image_size=8, widths=(32, 64), depths=(2, 2), last_kernel=3)
    return autoencoder, encoder


def train_autoencoder(
    model: PointAutoEncoder, digits: Digits, plan: Plan, generator: torch.Generator, tick: Tick
) -> list[float]:
    """Stage 1; every step sees other points of the same objects."""

    def loss(chosen: Tensor) -> Tensor:
        points = digits.points[chosen]
        return model.loss(subset(points, plan.seen, generator), subset(points, plan.points, generator))

    batches = draw(len(digits.points), plan.autoencoder_batch, plan.autoencoder_steps, generator)
    return descend(model, loss, batches, plan.autoencoder_steps, 3e-3, tick)


def train_matching(
    model: LatentMatching, digits: Digits, plan: Plan, generator: torch.Generator, tick: Tick
) -> list[float]:
    """Stage 2, one latent an image."""
    images, _, targets = pairs(model, digits)

    def loss(chosen: Tensor) -> Tensor:
        return latent_matching_loss(model(images[chosen]), targets[chosen], model.kind)

    batches = draw(len(images), plan.image_batch, plan.matching_steps, generator)
    return descend(model, loss, batches, plan.matching_steps, 2e-3, tick)


def train_probabilistic(
    model: ProbabilisticLatentMatching, digits: Digits, plan: Plan, generator: torch.Generator, tick: Tick
) -> tuple[list[float], list[float]]:
    """Stage 2, probabilistic; the histories of the matching and of the diversity loss."""
    images, angles, targets = pairs(model, digits)
    diversity: list[float] = []
    matching: list[float] = []

    def loss(chosen: Tensor) -> Tensor:
        parts = model.loss_from_targets(images[chosen], targets[chosen], angles[chosen], generator)
        matching.append(parts.matching.item())
        diversity.append(parts.diversity.item())
        return parts.total

    batches = draw(len(images), plan.image_batch, plan.matching_steps, generator)
    descend(model, loss, batches, plan.matching_steps, 2e-3, tick)
    return matching, diversity


def descend(
    model: nn.Module, loss: Callable[[Tensor], Tensor], batches: Iterator[Tensor], steps: int, rate: float, tick: Tick
) -> list[float]:
    """Adam over `steps` batches, the rate rising for a tenth of them and then falling to nothing."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    history = []
    model.train()
    for chosen in batches:
        value = loss(chosen)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        history.append(value.item())
        tick(history[-1])
    model.eval()
    return history


def draw(count: int, size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of `steps` batches: shuffled rounds over all `count`, the incomplete batch of a round left out."""
    order = torch.randperm(count, generator=generator)
    start = 0
    for _ in range(steps):
        if start + size > count:
            order, start = torch.randperm(count, generator=generator), 0
        yield order[start : start + size]
        start += size


def subset(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """A random window of `count` points of every cloud `[B, pool, 3]`, whose order is random already."""
    first = int(torch.randint(points.shape[1] - count + 1, (), generator=generator))
    return points[:, first : first + count]  # [B, count, 3]


def pairs(model: LatentMatching | ProbabilisticLatentMatching, digits: Digits) -> tuple[Tensor, Tensor, Tensor]:
    """Every picture with its azimuth and the latent that it should be matched with."""
    views = digits.images.shape[1]
    targets = model.targets(digits.points)  # [B, latent]
    return digits.images.flatten(0, 1), digits.angles.flatten(), targets.repeat_interleave(views, dim=0)


@torch.no_grad()
def mean_decoded(autoencoder: PointAutoEncoder, digits: Digits) -> Tensor:
    """A mean shape: the mean reconstruction `[P, 3]` of the training clouds, point by point in the decoder's order."""
    return autoencoder(digits.points).mean(dim=0)


def mean_optimised(digits: Digits, plan: Plan, generator: torch.Generator, tick: Tick) -> Tensor:
    """The other mean shape: the constant cloud `[P, 3]` that is best for the training set, found by descent."""
    everything = digits.points.flatten(0, 1)
    start = everything[torch.randperm(len(everything), generator=generator)[: plan.points]]
    cloud = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([cloud], lr=0.01)
    size = plan.autoencoder_batch
    for step, chosen in enumerate(draw(len(digits.points), size, plan.mean_shape_steps, generator)):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / plan.mean_shape_steps)
        target = subset(digits.points[chosen], plan.points, generator)
        value = paperops.chamfer_distance(cloud.expand(size, -1, -1), target, squared=False)[0]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        tick(value.item())
    return cloud.detach()


class Scores(NamedTuple):
    """Of each picture `[B * S]`: Chamfer distance (both directions, not squared) and F-score."""

    chamfer: Tensor
    f: Tensor


@torch.no_grad()
def score(predicted: Tensor, digits: Digits, plan: Plan) -> Scores:
    """Scores of predictions `[B, S, P, 3]` for all pictures, or `[P, 3]` for any."""
    views = digits.images.shape[1]
    target = digits.points[:, : plan.points]  # [B, P, 3]
    chamfer, f = [], []
    for view in range(views):
        cloud = predicted.expand(len(target), -1, -1) if predicted.dim() == 2 else predicted[:, view]
        chamfer.append(paperops.chamfer_distance(cloud, target, batch_reduction=None, squared=False)[0])
        f.append(paperops.f_score(cloud, target, RADIUS).f)
    return Scores(torch.stack(chamfer, dim=1).flatten(), torch.stack(f, dim=1).flatten())


@torch.no_grad()
def predict(model: LatentMatching | ProbabilisticLatentMatching, digits: Digits) -> Tensor:
    """Clouds `[B, S, P, 3]` for all pictures; of the probabilistic model, those of the mean latent."""
    images = digits.images.flatten(0, 1)
    clouds = model.predict_mean(images) if isinstance(model, ProbabilisticLatentMatching) else model.predict(images)
    return clouds.unflatten(0, digits.images.shape[:2])

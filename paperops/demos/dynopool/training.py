"""A small VGG with one of three kinds of pooling, and its training."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from paperops.demos.dynopool.data import Digits
from paperops.models.dynopool import MacsCounter, gmacs_loss
from paperops.nn import DynOPool2d, ShapeAdaptor
from paperops.nn.learned_size import LearnedSize

KINDS = ("fixed pooling", "Shape Adaptor", "DynOPool")

Tick = Callable[[], None]


class Plan(NamedTuple):
    """What is trained, for how long."""

    widths: tuple[int, ...] = (8, 16, 32)
    epochs: int = 8
    batch: int = 64
    train: int | None = None  # images, all by default
    rate: float = 6e-3  # of the weights
    size_rate: float = 1e-2  # of alpha
    weight: float = 100.0  # of the loss of multiply-adds, in 10^9


QUICK = Plan(widths=(4, 8), epochs=1, train=128)


class Result(NamedTuple):
    """How one network came out."""

    accuracy: float
    macs: int  # of one image
    seconds: float
    sizes: list[list[tuple[int, int]]]  # of each step, each pooling's output
    counter: MacsCounter


def vgg(kind: str, widths: tuple[int, ...], classes: int = 10) -> nn.Sequential:
    """Two convolutions and a pooling for each of the widths; then the mean of each channel, and a linear layer."""
    pooling = {
        "fixed pooling": lambda: nn.MaxPool2d(2),
        "Shape Adaptor": lambda: ShapeAdaptor(init_scale=0.6),
        "DynOPool": lambda: DynOPool2d(0.5),
    }[kind]
    layers: list[nn.Module] = []
    before = 1
    for width in widths:
        for channels in (before, width):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        layers.append(pooling())
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


def train(kind: str, digits: Digits, held_out: Digits, plan: Plan, seed: int, tick: Tick) -> Result:
    """Train one network from the seed, and score it with its sizes frozen."""
    started = time.perf_counter()
    torch.manual_seed(seed)
    model = vgg(kind, plan.widths)
    counter = MacsCounter(model).attach()
    learned = [module for module in model.modules() if isinstance(module, LearnedSize)]
    alphas = [layer.alpha for layer in learned]
    weights = [parameter for parameter in model.parameters() if all(parameter is not alpha for alpha in alphas)]
    groups: list[dict[str, Any]] = [{"params": weights, "lr": plan.rate, "weight_decay": 1e-4}]
    if alphas:
        groups.append({"params": alphas, "lr": plan.size_rate, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups)
    digits = Digits(*(part[: plan.train] for part in digits))
    steps = plan.epochs * max(1, len(digits.images) // plan.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in groups], total_steps=steps, pct_start=0.3
    )
    sizes = []
    for _ in range(plan.epochs):
        order = torch.randperm(len(digits.images))
        for chosen in order[: len(order) // plan.batch * plan.batch].split(plan.batch):
            images, labels = digits.images[chosen], digits.labels[chosen]
            loss = functional.cross_entropy(model(images), labels)
            sizes.append(_sizes(counter))
            if kind == "DynOPool":
                loss = loss + gmacs_loss(model, plan.weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            tick()
    for layer in learned:
        layer.freeze()
    return Result(_accuracy(model.eval(), held_out), counter.macs, time.perf_counter() - started, sizes, counter)


def _sizes(counter: MacsCounter) -> list[tuple[int, int]]:
    """Height and width behind each layer that learned its size."""
    kinds = (DynOPool2d.__name__, ShapeAdaptor.__name__)
    return [(layer.output_size[1], layer.output_size[2]) for layer in counter.layers if layer.kind in kinds]


@torch.no_grad()
def _accuracy(model: nn.Module, digits: Digits) -> float:
    guesses: Tensor = model(digits.images).argmax(1)
    return (guesses == digits.labels).float().mean().item()

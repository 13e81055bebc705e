"""A small residual network whose blocks mix pixels in one of three ways, and its training."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from paperops.demos.dynopool.data import Digits
from paperops.models.dynopool import MacsCounter
from paperops.nn import ACmix
from paperops.ops.local_attention import local_attention_2d

KINDS = ("convolution only", "attention only", "ACmix")
_HEADS = 4

Tick = Callable[[], None]


class Plan(NamedTuple):
    """What is trained, for how long."""

    widths: tuple[int, ...] = (8, 16, 32)  # of ACmix in the stages' blocks; maps between blocks are twice as wide
    blocks: int = 2  # of a stage
    epochs: int = 6
    batch: int = 64
    train: int | None = None  # images, all by default
    seeds: int = 2
    rate: float = 4e-3


QUICK = Plan(widths=(4, 8), blocks=1, epochs=1, train=128, seeds=1)


class Result(NamedTuple):
    """How one network came out."""

    accuracy: float
    accuracies: list[float]  # held-out, after each epoch
    parameters: int
    macs: int  # of one image
    seconds: float
    rates: list[dict[str, tuple[float, float]]]  # of each step and each ACmix layer: rate1 and rate2


class Attention(nn.Module):
    """ACmix without its convolution: windows of 7 x 7, positions, 4 heads."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride, depth = stride, width // _HEADS
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.conv_p = nn.Conv2d(2, depth, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The map `[B, width, ceil(h / stride), ceil(w / stride)]` of x `[B, width, h, w]`."""
        q, k, v = self.qkv(x).unflatten(1, (3, _HEADS, -1)).unbind(1)  # [B, H, D, h, w] each
        across, down = (torch.linspace(-1, 1, size) for size in (x.shape[3], x.shape[2]))
        p = self.conv_p(torch.stack(torch.broadcast_tensors(across, down[:, None]))[None])  # [1, D, h, w]
        scale = q.shape[2] ** -0.5
        return local_attention_2d(q, k - p[:, None], v, 7, stride=self.stride, scale=scale).flatten(1, 2)


def mixing(kind: str, width: int, stride: int) -> nn.Module:
    """What stands in the middle of a block."""
    if kind == "ACmix":
        return ACmix(width, width, 7, _HEADS, 3, stride)
    if kind == "attention only":
        return Attention(width, stride)
    return nn.Conv2d(width, width, 3, stride, 1, bias=False)


class Block(nn.Module):
    """A residual block: 1 x 1, the mixing of pixels, 1 x 1."""

    def __init__(self, kind: str, before: int, after: int, width: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            mixing(kind, width, stride), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, after, 1, bias=False), nn.BatchNorm2d(after),
        )  # fmt: skip
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """The map `[B, after, ceil(h / stride), ceil(w / stride)]` of x `[B, before, h, w]`."""
        return functional.relu(self.shortcut(x) + self.inner(x))


def equal_width(kind: str, before: int, after: int, width: int, stride: int) -> int:
    """The inner width, divided by the heads, at which a block has about the parameters of ACmix's of this width."""

    def parameters(kind: str, width: int) -> int:
        with torch.device("meta"):
            return sum(value.numel() for value in Block(kind, before, after, width, stride).parameters())

    goal = parameters("ACmix", width)
    return min(range(_HEADS, 4 * width + 1, _HEADS), key=lambda other: abs(parameters(kind, other) - goal))


def resnet(kind: str, widths: tuple[int, ...], blocks: int, classes: int = 10) -> nn.Sequential:
    """A strided convolution, a stage of blocks for each of the widths, the mean of each channel, a linear layer."""
    before = 2 * widths[0]
    layers: list[nn.Module] = [nn.Conv2d(1, before, 3, 2, 1, bias=False), nn.BatchNorm2d(before), nn.ReLU()]
    for stage, width in enumerate(widths):
        for number in range(blocks):
            stride = 2 if stage and not number else 1
            inner = equal_width(kind, before, 2 * width, width, stride)
            layers.append(Block(kind, before, 2 * width, inner, stride))
            before = 2 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


def train(kind: str, digits: Digits, held_out: Digits, plan: Plan, seed: int, tick: Tick) -> Result:
    """Train one network from the seed, and score it after each epoch."""
    started = time.perf_counter()
    torch.manual_seed(seed)
    model = resnet(kind, plan.widths, plan.blocks)
    mixed = [layer for layer in model.modules() if isinstance(layer, ACmix)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.rate, weight_decay=1e-4)
    digits = Digits(*(part[: plan.train] for part in digits))
    steps = plan.epochs * max(1, len(digits.images) // plan.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.rate, total_steps=steps, pct_start=0.3)
    rates, accuracies = [_rates(mixed)], []
    for _ in range(plan.epochs):
        model.train()
        order = torch.randperm(len(digits.images))
        for chosen in order[: len(order) // plan.batch * plan.batch].split(plan.batch):
            loss = functional.cross_entropy(model(digits.images[chosen]), digits.labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            rates.append(_rates(mixed))
            tick()
        accuracies.append(_accuracy(model.eval(), held_out))
    with MacsCounter(model) as counter, torch.no_grad():
        model(held_out.images[:1])
    parameters = sum(value.numel() for value in model.parameters())
    return Result(accuracies[-1], accuracies, parameters, counter.macs, time.perf_counter() - started, rates)


def _rates(layers: list[ACmix]) -> dict[str, tuple[float, float]]:
    return {str(number): (layer.rate1.item(), layer.rate2.item()) for number, layer in enumerate(layers, 1)}


@torch.no_grad()
def _accuracy(model: nn.Module, digits: Digits) -> float:
    guesses: Tensor = model(digits.images).argmax(1)
    return (guesses == digits.labels).float().mean().item()

"""How AlphaFold2 starts its linear layers (supplement 1.11.4, and as OpenFold does it)."""

from __future__ import annotations

import math

import torch
from torch import nn

_TRUNCATED = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))
"""Standard deviation of a standard normal distribution cut off at -2 and 2."""


@torch.no_grad()
def lecun_normal(linear: nn.Linear) -> None:
    """Weights from a normal distribution cut off at two deviations, of variance 1 / inputs; bias 0."""
    _normal(linear, 1.0)


@torch.no_grad()
def he_normal(linear: nn.Linear) -> None:
    """As :func:`lecun_normal` with variance 2 / inputs: what goes into a ReLU."""
    _normal(linear, 2.0)


def _normal(linear: nn.Linear, scale: float) -> None:
    deviation = math.sqrt(scale) / (_TRUNCATED * math.sqrt(linear.in_features))
    nn.init.trunc_normal_(linear.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
    if linear.bias is not None:
        linear.bias.zero_()


@torch.no_grad()
def open_gate(linear: nn.Linear) -> None:
    """Weights 0, bias 1: a sigmoid gate that is mostly open, the same everywhere."""
    linear.weight.zero_()
    if linear.bias is not None:
        linear.bias.fill_(1)


@torch.no_grad()
def zero(linear: nn.Linear) -> None:
    """Weights and bias 0: a residual block's last layer, so that the block starts as the identity."""
    linear.weight.zero_()
    if linear.bias is not None:
        linear.bias.zero_()

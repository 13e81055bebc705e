"""What the networks share: the convolution beside attention, stochastic depth, and the parts of transformers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from paperops.nn.acmix import ShiftSum2d


class MixedPaths(nn.Module):
    """The part of an attention layer that makes it ACmix: ``fc``, ``dep_conv``, ``rate1`` and ``rate2``.

    Layers of attention inherit it, so that these parameters lie beside their own, as in the authors' code.
    """

    def __init__(self, channels: int, width: int, maps: int, *, bias: bool) -> None:
        super().__init__()
        self.fc = nn.Conv2d(maps, 9, 1, bias=bias)
        self.dep_conv = ShiftSum2d(channels, width, 3)
        self.rate1 = nn.Parameter(torch.full((1,), 0.5))
        self.rate2 = nn.Parameter(torch.full((1,), 0.5))

    def convolution(self, maps: Tensor) -> Tensor:
        """``[B, C, h, w]`` of the queries, keys and values ``[B, T, D, h, w]``."""
        return self.dep_conv(maps, self.fc.weight[:, :, 0, 0], self.fc.bias)

    def mixed(self, attention: Tensor, convolution: Tensor) -> Tensor:
        """Both, weighted."""
        first, second = (rate.to(attention.dtype) for rate in (self.rate1, self.rate2))
        return torch.addcmul(first * attention, second, convolution)


class StochasticDepth(nn.Module):
    """In training, drops the whole of single items with a probability, and enlarges the others."""

    def __init__(self, dropped: float) -> None:
        super().__init__()
        self.dropped = dropped

    def forward(self, x: Tensor) -> Tensor:
        """x, or in training what is left of it."""
        if not self.training or self.dropped == 0:
            return x
        kept = 1 - self.dropped
        return x * x.new_empty((x.shape[0], *(1,) * (x.dim() - 1))).bernoulli_(kept).div_(kept)

    def extra_repr(self) -> str:
        return f"{self.dropped:.3g}"


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, on the last dimension."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Of x's shape."""
        return self.fc2(functional.gelu(self.fc1(x)))


def initialise_transformer(network: nn.Module) -> None:
    """Linear weights from a normal distribution of deviation 0.02 (cut off far out), biases 0, norms 1 and 0."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def depths_dropped(most: float, blocks: int) -> list[float]:
    """The probability of being dropped of each block, from 0 to the most."""
    return [most * number / max(1, blocks - 1) for number in range(blocks)]

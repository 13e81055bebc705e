"""Shape Adaptor: a learned mixture of two resized branches, the baseline that DynOPool is compared with."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from paperops.nn.learned_size import LearnedSize, outside_graphs
from paperops.ops import _checks


class ShapeAdaptor(LearnedSize):
    r"""A learned size between those of two branches, and their mixture.

    .. math:: s = (r_2 - r_1) \, \sigma(\alpha) + r_1, \qquad
              y = (1 - \sigma(\alpha)) \, R_s(b_1(x)) + \sigma(\alpha) \, R_s(b_2(x))

    R_s resizes to max(1, round(size * s)) bilinearly, with aligned corners as in the authors' code. alpha is one
    number for both axes, and its gradient comes through the mixture alone: the size itself has none. That, and one
    scale for both axes, is what DynOPool changes.

    Args:
        branch_1, branch_2: modules. By default max pooling by 2, and x itself.
        r1, r2: what the branches multiply sizes by.
        init_scale: s to start from, between r1 and r2.
        device, dtype: of the parameter.

    Shapes:
        ``forward(x)``: ``[B, C, h, w]`` to ``[B, C', h', w']``.

    Freezing, compilation and forced sizes are as in :class:`DynOPool2d`.

    Raises:
        ValueError: alpha is NaN or infinite (the error names the layer); init_scale not between r1 and r2; x that is
            not ``[B, C, h, w]``.

    Source:
        Liu, Lin, Wang, Davison, Johns: Shape Adaptor: A Learnable Resizing Module, ECCV 2020, arXiv 2008.00892.

    Example:
        >>> import torch, paperops
        >>> adaptor = paperops.nn.ShapeAdaptor(init_scale=0.75)
        >>> adaptor(torch.randn(2, 8, 20, 20)).shape
        torch.Size([2, 8, 15, 15])
    """

    def __init__(
        self,
        branch_1: nn.Module | None = None,
        branch_2: nn.Module | None = None,
        r1: float = 0.5,
        r2: float = 1.0,
        init_scale: float = 0.75,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, branch in (("branch_1", branch_1), ("branch_2", branch_2)):
            if branch is not None and not isinstance(branch, nn.Module):
                raise TypeError(f"{name} must be a module or None; got {type(branch).__name__}")
        self.r1, self.r2 = _checks.positive_number("r1", r1), _checks.positive_number("r2", r2)
        self.init_scale = _checks.positive_number("init_scale", init_scale)
        low, high = sorted((self.r1, self.r2))
        if not low < self.init_scale < high:
            raise ValueError(f"init_scale must lie between r1 and r2, {self.r1:g} and {self.r2:g}; got {init_scale}")
        self.branch_1 = nn.MaxPool2d(2, ceil_mode=True) if branch_1 is None else branch_1
        self.branch_2 = nn.Identity() if branch_2 is None else branch_2
        self.alpha = nn.Parameter(torch.empty((), device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """alpha back to what ``init_scale`` says; what was frozen is not any more. The branches stay as they are."""
        self.unfreeze()
        share = (self.init_scale - self.r1) / (self.r2 - self.r1)
        self.alpha.fill_(math.log(share / (1 - share)))

    def initial_scale(self) -> tuple[float, float]:
        """``init_scale`` for both axes."""
        return self.init_scale, self.init_scale

    def scale(self) -> Tensor:
        """s, twice, before rounding: ``[2]`` float64, differentiable in alpha."""
        return ((self.r2 - self.r1) * self.alpha.double().sigmoid() + self.r1).expand(2)

    def scale_of(self, alpha: list[float]) -> tuple[float, float]:
        """s, twice, from alpha's number."""
        share = 1 / (1 + math.exp(-alpha[0])) if alpha[0] > 0 else 1 - 1 / (1 + math.exp(max(alpha[0], -700)))
        s = (self.r2 - self.r1) * share + self.r1
        return s, s

    def forward(self, x: Tensor) -> Tensor:
        """x ``[B, C, h, w]`` through both branches, resized and mixed, see the class."""
        return outside_graphs(self, x) if self._reads_when_compiled() else self.resized(x)

    def resized(self, x: Tensor) -> Tensor:
        """What ``forward`` returns, without regard to compilation."""
        _checks.parameter_of_rank("x", x, 4)
        size = self.output_size(x.shape[2:])
        first, second = (
            nn.functional.interpolate(branch(x), size, mode="bilinear", align_corners=True)
            for branch in (self.branch_1, self.branch_2)
        )
        if self._frozen is not None:  # the mixture is constant too
            share: Tensor | float = (self._frozen[0] - self.r1) / (self.r2 - self.r1)
        else:
            share = self.alpha.sigmoid().to(first.dtype)
        return (1 - share) * first + share * second

    def extra_repr(self) -> str:
        return f"r1={self.r1:g}, r2={self.r2:g}, init_scale={self.init_scale:g}{self._described()}"

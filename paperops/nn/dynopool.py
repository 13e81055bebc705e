"""DynOPool: pooling whose output height and width are learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paperops.nn.learned_size import LearnedSize, axes_of, effective, outside_graphs, within
from paperops.ops import _checks
from paperops.ops.dynopool import dynopool_2d


class DynOPool2d(LearnedSize):
    r"""Pooling to a learned size, by the maximum or mean of four samples a cell.

    The parameter is :math:`\alpha = 1 / r` of height and width, since gradients of r behave like 1 / r^2. Of a map of
    height h (width alike), with :math:`[\cdot]` rounding half to even:

    .. math:: h' = \max(1, [h / \alpha]), \qquad \hat r = h' / h, \qquad
              \frac{\partial \hat r}{\partial \alpha} := \frac{\partial (1 / \alpha)}{\partial \alpha}

    and the output is :func:`paperops.dynopool_2d` of x at the scale :math:`\hat r`. It is the rounded ratio that is
    used and not 1 / alpha, so that the cells cover the map exactly (with 1 / alpha the last of them would repeat the
    border, or leave it out), the result depends on the size alone, and what is frozen computes what was trained.
    Rounding is transparent to gradients (straight through).

    Args:
        init_scale: r to start from, of height and width, or one number for both: 1 / stride of what is replaced.
        mode: ``"max"`` or ``"mean"``.
        scale_range: r stays in this range. A layer enlarges a map to 4 times its pixels at most by default, so that one
            bad step does not use up the memory, and reduces it 10 times an axis, where four samples have long stopped
            seeing most of a cell. In training an alpha that a step took beyond a bound is set to the bound by the next
            forward pass, where its size is read; at a bound only the gradient that leads back passes.
        device, dtype: of the parameter. ``half()`` leaves it as it is, and autocast does not touch it.

    Weight decay draws alpha to 0, which is r to its upper bound: give the alphas a group of their own in the optimizer,
    ``{"params": alphas, "weight_decay": 0.0}``, and bound the cost by
    :func:`paperops.models.dynopool.gmacs_loss` instead.

    Shapes:
        ``forward(x)``: ``[B, C, h, w]`` to ``[B, C, h', w']``, contiguous or channels_last, in the dtype of x.
        Unbatched maps are refused, as by the op.

    The size is read on the host, once a forward pass: a GPU's host waits there unless the layer is frozen.
    ``freeze()`` makes the scale a constant, for inference, export, and compilation in one graph; ``unfreeze()`` takes
    it back. Unfrozen, torch.compile breaks the graph here and goes on with sizes marked as dynamic, so that a new size
    compiles nothing anew (a size of 1 does, once; and no graph is made of a loop, such as that of nn.Sequential, which
    holds an unfrozen layer). On CPUs torch's own Inductor undoes that in training (seen with torch 2.13): it fixes a
    map's width in the backward pass of a convolution, and compiles again for each new one; other backends, such as
    ``"aot_eager"``, do not. ``set_sizes((height, width))`` forces the output's size. In data-parallel training alpha
    is the same on all ranks and so are the sizes, if those of the inputs are;
    :func:`paperops.models.dynopool.synchronise` makes sure.

    Where the map has one pixel a side, or is reduced to one, the result is defined, and the gradient to alpha is that
    of the samples' positions: 0 where all are clamped to the border.

    Raises:
        ValueError: alpha is NaN or infinite (the error names the layer, by its qualified name after
            :func:`paperops.models.dynopool.replace_resizing`); init_scale or scale_range that is not positive and
            finite; init_scale out of scale_range; x that is not ``[B, C, h, w]``.
        RuntimeError: exporting what is not frozen.

    Source:
        Jang et al., Pooling Revisited: Your Receptive Field is Suboptimal (DynOPool), CVPR 2022, arXiv 2205.15254,
        section 3. The range is ours.

    Example:
        >>> import torch, paperops
        >>> pool = paperops.nn.DynOPool2d((0.5, 0.7))
        >>> out = pool(torch.randn(2, 8, 20, 20))
        >>> out.shape
        torch.Size([2, 8, 10, 14])
        >>> out.square().sum().backward()
        >>> pool.alpha.grad.shape
        torch.Size([2])
    """

    def __init__(
        self,
        init_scale: float | tuple[float, float] = (0.5, 0.5),
        mode: str = "max",
        *,
        scale_range: tuple[float, float] = (0.1, 2.0),
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.init_scale = axes_of("init_scale", init_scale)
        if mode not in ("max", "mean"):
            raise ValueError(f"mode must be 'max' or 'mean'; got {mode!r}")
        self.mode = mode
        if not isinstance(scale_range, (tuple, list)) or len(scale_range) != 2:
            raise ValueError(f"scale_range must be two numbers, the least and the greatest scale; got {scale_range!r}")
        low, high = (_checks.positive_number("scale_range", bound) for bound in scale_range)
        if low > high:
            raise ValueError(f"scale_range must not be empty; got {scale_range!r}")
        for r in self.init_scale:
            if not low <= r <= high:
                raise ValueError(f"init_scale must lie in scale_range, [{low:g}, {high:g}]; got {r:g}")
        self.scale_range = (low, high)
        self.alpha = nn.Parameter(torch.empty(2, device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Back to ``init_scale``; what was frozen is not any more."""
        self.unfreeze()
        for axis, r in enumerate(self.init_scale):
            self.alpha[axis].fill_(1 / r)

    def initial_scale(self) -> tuple[float, float]:
        """``init_scale``, of height and width."""
        return self.init_scale

    def _alpha_range(self) -> tuple[float, float]:
        low, high = self.scale_range
        return 1 / high, 1 / low

    def scale(self) -> Tensor:
        """r of height and width before rounding, ``[2]`` float64, differentiable in alpha."""
        return within(self.alpha.double(), *self._alpha_range()).reciprocal()

    def scale_of(self, alpha: list[float]) -> tuple[float, float]:
        """r of height and width, from alpha's two numbers. In training alpha is brought back to its bound."""
        low, high = self._alpha_range()
        kept = [min(max(value, low), high) for value in alpha]
        if self.training:
            for axis, (value, bound) in enumerate(zip(alpha, kept, strict=True)):
                if abs(value - bound) > 1e-6 * bound:  # not for a rounding: an earlier graph may need what is there
                    self.alpha[axis].fill_(bound)
        height, width = (1 / value for value in kept)
        return height, width

    def forward(self, x: Tensor) -> Tensor:
        """x ``[B, C, h, w]`` pooled to the learned size, see the class."""
        return outside_graphs(self, x) if self._reads_when_compiled() else self.resized(x)

    def resized(self, x: Tensor) -> Tensor:
        """What ``forward`` returns, without regard to compilation."""
        _checks.parameter_of_rank("x", x, 4)
        if x.shape[2] == 0 or x.shape[3] == 0:
            raise ValueError(f"x must have at least one pixel; got {list(x.shape)}")
        size = self.output_size(x.shape[2:])
        learned = None if self._frozen is not None else self.scale()
        if learned is not None and learned.device != x.device:
            raise ValueError(f"x must be on the device of alpha, {learned.device}; got {x.device}")
        return dynopool_2d(x, effective(learned, x.shape[2:], size, x.device), size, self.mode)

    def extra_repr(self) -> str:
        shown = "init_scale=({:.4g}, {:.4g})".format(*self.init_scale)
        return f"{shown}, mode={self.mode!r}, scale_range={self.scale_range}{self._described()}"

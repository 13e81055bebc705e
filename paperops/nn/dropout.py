"""Dropout whose mask rows or columns of the pair representation share, fused with the residual sum after it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from paperops.ops import _checks


class _AddScaled(torch.autograd.Function):
    """residual + scale * kept * update, in one pass; kept, 0 or 1, is all that backward needs.

    torch's own derivative of addcmul multiplies the mask by the scale in the mask's dtype, which rounds the scale.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(residual: Tensor | None, update: Tensor, kept: Tensor, scale: float) -> Tensor:
        return torch.addcmul(update.new_zeros(()) if residual is None else residual, update, kept, value=scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor | None, Tensor, Tensor, float], output: Tensor) -> None:
        residual, update, kept, ctx.scale = inputs
        ctx.residual_dtype, ctx.update_dtype = None if residual is None else residual.dtype, update.dtype
        ctx.save_for_backward(kept)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (kept,) = ctx.saved_tensors
        of_residual = grad.to(ctx.residual_dtype) if ctx.needs_input_grad[0] else None
        of_update = _AddScaled.apply(None, grad, kept, ctx.scale) if ctx.needs_input_grad[1] else None
        return of_residual, None if of_update is None else of_update.to(ctx.update_dtype), None, None


class _SharedDropout(nn.Module):
    shared_dim: int
    """The dimension over which the mask is shared."""

    def __init__(self, r: float) -> None:
        super().__init__()
        self.r = _checks.probability("r", r)

    def forward(self, update: Tensor, residual: Tensor | None = None) -> Tensor:
        """residual + dropout(update), or dropout(update): ``[*, rows, columns, C]`` as both are."""
        _checks.tensor("update", update)
        if update.dim() < 3 or not update.is_floating_point():
            got = f"{update.dtype} {list(update.shape)}"
            raise ValueError(f"update must be floating, of shape [*, rows, columns, channels]; got {got}")
        if residual is not None:
            if _checks.tensor("residual", residual).shape != update.shape:
                raise ValueError(f"residual must have update's shape, {list(update.shape)}; got {list(residual.shape)}")
            if not residual.is_floating_point():
                raise TypeError(f"residual must have a floating dtype; got {residual.dtype}")
            if residual.device != update.device:
                raise ValueError(f"residual must be on the device of update, {update.device}; got {residual.device}")
        if not self.training or self.r == 0:
            return update if residual is None else residual + update
        shape = list(update.shape)
        shape[self.shared_dim] = 1
        kept = update.new_empty(shape).bernoulli_(1 - self.r)  # [*, 1, N, C] or [*, N, 1, C]
        scale = 1 / (1 - self.r) if self.r < 1 else 1.0
        out: Tensor = _AddScaled.apply(residual, update, kept, scale)
        return out

    def extra_repr(self) -> str:
        return f"r={self.r}"


class DropoutRowwise(_SharedDropout):
    r"""Dropout with one mask for all rows of the pair representation, fused with the residual sum.

    .. math:: z_{ijc} + \frac{m_{jc}}{1 - r} u_{ijc}, \qquad m_{jc} \in \{0, 1\}, \quad P(m_{jc} = 0) = r

    Args:
        r: probability of dropping, from 0 to 1.

    ``forward(update, residual=None)``: u and z, ``[*, rows, columns, C]`` of one shape, z 0 where it is None. Each
    leading index has a mask of its own, ``[1, columns, C]``. In evaluation mode the update, or the plain sum, is
    returned. The result has the dtype of a sum of the two: a float32 residual with a bfloat16 update gives float32.

    Draws N C random numbers for each leading index, from torch's generator of the device, and saves those 0s and 1s
    alone for backward: neither tensor, nor a mask of their size. One pass over both tensors. Differentiable any number
    of times.

    Raises:
        ValueError: r outside [0, 1]; an update of fewer than three dimensions; a residual of another shape.

    Source:
        Jumper et al., Nature 596 (2021), supplement 1.11.6, and Algorithm 6, where it follows both triangle
        multiplications (r = 0.25). The name and the argument are OpenFold's.

    Example:
        >>> import torch, paperops
        >>> dropout = paperops.nn.DropoutRowwise(0.25)
        >>> z, update = torch.zeros(4, 4, 8), torch.ones(4, 4, 8)
        >>> z = dropout(update, z)
        >>> bool((z[0] == z[3]).all())  # every row has the same zeros
        True
    """

    shared_dim = -3


class DropoutColumnwise(_SharedDropout):
    r"""Dropout with one mask for all columns of the pair representation, fused with the residual sum.

    .. math:: z_{ijc} + \frac{m_{ic}}{1 - r} u_{ijc}, \qquad m_{ic} \in \{0, 1\}, \quad P(m_{ic} = 0) = r

    As :class:`DropoutRowwise`, with a mask ``[N, 1, C]`` for each leading index; in Algorithm 6 it follows the
    attention around the ending node.

    Args:
        r: probability of dropping, from 0 to 1.

    Example:
        >>> import torch, paperops
        >>> dropout = paperops.nn.DropoutColumnwise(0.25)
        >>> z, update = torch.zeros(4, 4, 8), torch.ones(4, 4, 8)
        >>> z = dropout(update, z)
        >>> bool((z[:, 0] == z[:, 3]).all())  # every column has the same zeros
        True
    """

    shared_dim = -2

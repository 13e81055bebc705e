"""In which dtype modules compute what becomes coordinates: float32 at least, whatever autocast says."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paperops.ops import _checks


def wide(values: Tensor) -> Tensor:
    """The values in float32 if they are of 16 bits."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def linear_in_full(linear: nn.Linear, x: Tensor) -> Tensor:
    """The layer's result for x, float32 at least and computed so."""
    x, weight = wide(x), wide(linear.weight)
    if weight.dtype != x.dtype:  # autocast unites what the caller does not
        x = x.to(weight.dtype)
    bias = None if linear.bias is None else wide(linear.bias)
    if not torch.amp.is_autocast_available(x.device.type):
        return nn.functional.linear(x, weight, bias)
    with torch.autocast(x.device.type, enabled=False):
        return nn.functional.linear(x, weight, bias)


def check_dtype(name: str, x: Tensor, parameter: Tensor) -> None:
    """TypeError where x and a module's parameters are of dtypes that do not go together, and autocast does not help."""
    if parameter.dtype != x.dtype and not _checks.autocast_unites(parameter, x):
        raise TypeError(
            f"{name} of {x.dtype} does not go with parameters of {parameter.dtype}: convert the one or the other"
        )

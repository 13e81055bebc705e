"""Definition of the triangle multiplicative update (AlphaFold2 supplement, Algorithms 11 and 12)."""

from __future__ import annotations

import torch
from torch import Tensor

from paperops.reference.nearest import result_dtype


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension, at least in float32."""
    wide = x.to(result_dtype(x.dtype))
    centred = wide - wide.mean(-1, keepdim=True)
    normal = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        normal = normal * weight
    if bias is not None:
        normal = normal + bias
    return normal.to(x.dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W^T + b, the parameters taken in the dtype of x."""
    return torch.nn.functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def triangle_contract(a: Tensor, b: Tensor, direction: str = "outgoing", mask: Tensor | None = None) -> Tensor:
    """See :func:`paperops.triangle_contract`."""
    if mask is not None:
        a, b = (value * mask[..., None].to(value.dtype) for value in (a, b))
    a, b = a.movedim(-1, -3), b.movedim(-1, -3)  # [*, D, N, N]
    if direction == "outgoing":
        product = a @ b.transpose(-1, -2)  # sum_k a_ik b_jk
    else:
        product = a.transpose(-1, -2) @ b  # sum_k a_ki b_kj
    return product.movedim(-3, -1)


def triangle_multiplicative_update(
    x: Tensor,
    direction: str = "outgoing",
    mask: Tensor | None = None,
    norm_in_weight: Tensor | None = None,
    norm_in_bias: Tensor | None = None,
    p_in_weight: Tensor | None = None,
    p_in_bias: Tensor | None = None,
    g_in_weight: Tensor | None = None,
    g_in_bias: Tensor | None = None,
    norm_out_weight: Tensor | None = None,
    norm_out_bias: Tensor | None = None,
    p_out_weight: Tensor | None = None,
    p_out_bias: Tensor | None = None,
    g_out_weight: Tensor | None = None,
    g_out_bias: Tensor | None = None,
    eps: float = 1e-5,
    precision: str | None = None,
    *,
    gate_position: str = "after_projection",
    low_memory: bool = False,
) -> Tensor:
    """See :func:`paperops.triangle_multiplicative_update`.

    A formula has neither a precision nor a peak: products are torch's own, and the last argument changes nothing.
    """
    assert p_in_weight is not None and g_in_weight is not None and p_out_weight is not None and g_out_weight is not None
    h = layer_norm(x, norm_in_weight, norm_in_bias, eps)  # [*, N, N, C]
    ab = torch.sigmoid(linear(h, g_in_weight, g_in_bias)) * linear(h, p_in_weight, p_in_bias)  # [*, N, N, 2D]
    a, b = ab.chunk(2, -1)
    t = layer_norm(triangle_contract(a, b, direction, mask), norm_out_weight, norm_out_bias, eps)  # [*, N, N, D]
    gate = torch.sigmoid(linear(h, g_out_weight, g_out_bias))
    if gate_position == "before_projection":
        return linear(gate * t, p_out_weight, p_out_bias)
    return gate * linear(t, p_out_weight, p_out_bias)

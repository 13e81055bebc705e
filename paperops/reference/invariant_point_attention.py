"""Definition of invariant point attention (AlphaFold2 supplement, Algorithm 22)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from paperops.reference.nearest import result_dtype


class IPA(NamedTuple):
    """What invariant point attention gives, for each query and head."""

    o: Tensor
    """``[B, N, H, C]``: means of the values."""
    o_points: Tensor
    """``[B, N, H, Pv, 3]``: means of the value points, in the query's local frame."""
    o_point_norms: Tensor
    """``[B, N, H, Pv]``: their lengths, sqrt(square + eps)."""
    o_pair: Tensor
    """``[B, N, H, Cz]``: means of the pair representation's rows."""


def invariant_point_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_points: Tensor,
    k_points: Tensor,
    v_points: Tensor,
    z: Tensor,
    rotations: Tensor,
    translations: Tensor,
    head_weights: Tensor,
    *,
    bias: Tensor | None = None,
    bias_weight: Tensor | None = None,
    bias_bias: Tensor | None = None,
    mask: Tensor | None = None,
    inf: float = 1e5,
    eps: float = 1e-8,
    finite_mask: bool = False,
) -> IPA:
    """See :func:`paperops.invariant_point_attention`."""
    dtype, wide = q.dtype, result_dtype(q.dtype)
    if mask is not None and not finite_mask:  # what does not exist may hold anything
        q, k, v, q_points, k_points, v_points, rotations, translations = (
            value.masked_fill((mask == 0).reshape(*mask.shape, *(1,) * (value.dim() - 2)), 0)
            for value in (q, k, v, q_points, k_points, v_points, rotations, translations)
        )
    q, k, v, z = (value.to(wide) for value in (q, k, v, z))
    rotations, translations = rotations.to(wide), translations.to(wide)

    def to_global(points: Tensor) -> Tensor:  # T_i o x, [B, N, H, P, 3]
        rotated = torch.einsum("bnij,bnhpj->bnhpi", rotations, points.to(wide))
        return rotated + translations[:, :, None, None]

    w_l = math.sqrt(1 / 3)
    w_c = math.sqrt(2 / (9 * max(q_points.shape[3], 1)))
    gamma = torch.nn.functional.softplus(head_weights.to(wide))  # [H]
    content = torch.einsum("bihc,bjhc->bhij", q, k) / math.sqrt(max(q.shape[3], 1))
    difference = to_global(q_points)[:, :, None] - to_global(k_points)[:, None]  # [B, N, N, H, Pq, 3]
    distance = difference.square().sum((-1, -2)).permute(0, 3, 1, 2)
    if bias is None:
        assert bias_weight is not None
        bias = torch.nn.functional.linear(z, bias_weight.to(wide), None if bias_bias is None else bias_bias.to(wide))
    logits = w_l * (content + bias.to(wide).permute(0, 3, 1, 2) - gamma[:, None, None] * w_c / 2 * distance)

    valid = torch.ones(q.shape[:2], dtype=torch.bool, device=q.device) if mask is None else mask != 0  # [B, N]
    pair = (valid[:, :, None] & valid[:, None])[:, None]  # [B, 1, N, N]
    if finite_mask:
        weights = torch.softmax(logits - inf * (~pair).to(wide), -1)  # [B, H, N, N]
    else:
        # A masked key does not exist; the row of a masked query is empty.
        logits = logits.masked_fill(~pair, -math.inf)
        weights = torch.softmax(logits.masked_fill(~pair.any(-1, keepdim=True), 0), -1).masked_fill(~pair, 0)

    o = torch.einsum("bhij,bjhc->bihc", weights, v)
    reached = torch.einsum("bhij,bjhpx->bihpx", weights, to_global(v_points))
    centre = weights.sum(-1).transpose(1, 2)[..., None, None] * translations[:, :, None, None]  # the sum is 1, or 0
    o_points = torch.einsum("bnji,bnhpj->bnhpi", rotations, reached - centre)  # T_i^-1
    norms = torch.sqrt(o_points.square().sum(-1) + eps)
    if not finite_mask:
        norms = norms.masked_fill(~pair.any(-1).transpose(1, 2)[..., None], 0)
    o_pair = torch.einsum("bhij,bijc->bihc", weights, z)
    return IPA(o.to(dtype), o_points, norms, o_pair.to(dtype))

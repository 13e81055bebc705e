"""Definition of local attention: each query attends to the window of keys around it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from paperops.reference.nearest import result_dtype

PADDING_MODES = ("reflect", "zeros", "mask", "shift")
"""What the window holds beyond the map; ops are given the position in this list."""
REFLECT, ZEROS, MASK, SHIFT = range(4)


class Axis(NamedTuple):
    """The keys of one axis, for each slot of the window and each query."""

    keys: Tensor  # [k, queries] int64: the key's coordinate, one that is there
    inside: Tensor  # [k, queries] bool: whether it is the key's own; otherwise the slot lies outside the map


def axis(size: int, kernel_size: int, stride: int, dilation: int, padding: int, device: torch.device) -> Axis:
    """Query i sits at u = i * stride; slot a holds the key at u + (a - k // 2) * dilation, or what lies there."""
    place = torch.arange(0, size, stride, device=device)  # [queries]
    slot = torch.arange(kernel_size, device=device)[:, None]  # [k, 1]
    unpadded = place + (slot - kernel_size // 2) * dilation  # [k, queries]
    if padding == REFLECT:
        folded = unpadded.abs()
        keys = torch.where(folded >= size, 2 * (size - 1) - folded, folded)
        return Axis(keys, torch.ones_like(keys, dtype=torch.bool))
    if padding == SHIFT:
        # Of the coordinates of the query's residue the window holds k in a row, as near to it as the map allows.
        residue, number = place % dilation, place // dilation
        count = (size - residue + dilation - 1) // dilation
        start = torch.minimum((number - kernel_size // 2).clamp(min=0), count - kernel_size)
        keys = (start + slot) * dilation + residue
        return Axis(keys, torch.ones_like(keys, dtype=torch.bool))
    return Axis(unpadded.clamp(0, size - 1), (unpadded >= 0) & (unpadded < size))


def at(x: Tensor, rows: Tensor, columns: Tensor, inside: Tensor) -> Tensor:
    """x [B, H, D, h, w] at these rows and columns, 0 where they are not inside: [B, H, D, Ho, Wo]."""
    return torch.where(inside, x.index_select(3, rows).index_select(4, columns), 0)


def softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Weights over dimension 2 and its logsumexp: 0 and -inf where all logits are -inf."""
    empty = (logits == -math.inf).all(2, keepdim=True)
    logits = logits.masked_fill(empty, 0)
    lse = torch.logsumexp(logits, 2, keepdim=True).masked_fill(empty, -math.inf)
    return torch.softmax(logits, 2).masked_fill(empty, 0), lse[:, :, 0]


def attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, kernel_size: int, stride: int, dilation: int, padding: int,
    scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The result [B, H, D, Ho, Wo] and the logits' logsumexp [B, H, Ho, Wo], of tensors of one wide dtype."""
    rows = axis(q.shape[3], kernel_size, stride, dilation, padding, q.device)
    columns = axis(q.shape[4], kernel_size, stride, dilation, padding, q.device)
    queries = q[:, :, :, ::stride, ::stride]  # [B, H, D, Ho, Wo]
    slots, logits = [(a, b) for a in range(kernel_size) for b in range(kernel_size)], []
    for a, b in slots:
        inside = rows.inside[a][:, None] & columns.inside[b]  # [Ho, Wo]
        logit = scale * (queries * at(k, rows.keys[a], columns.keys[b], inside)).sum(2)  # [B, H, Ho, Wo]
        if bias is not None:
            logit = logit + bias[:, a, b, None, None]
        logits.append(logit.masked_fill(~inside, -math.inf) if padding == MASK else logit)
    weights, lse = softmax(torch.stack(logits, 2))  # [B, H, k * k, Ho, Wo]
    out = torch.zeros_like(queries)
    for number, (a, b) in enumerate(slots):
        inside = rows.inside[a][:, None] & columns.inside[b]
        out = out + weights[:, :, number, None] * at(v, rows.keys[a], columns.keys[b], inside)
    return out, lse


def local_attention_2d(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernel_size: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    padding_mode: str = "reflect",
    bias: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """See :func:`paperops.local_attention_2d`."""
    wide = result_dtype(q.dtype)
    given = None if bias is None else bias.to(wide)
    padding = PADDING_MODES.index(padding_mode)
    out, _ = attention(q.to(wide), k.to(wide), v.to(wide), given, kernel_size, stride, dilation, padding, scale)
    return out.to(q.dtype)

"""Definition of ACmix's convolution path (arXiv 2111.14556): maps mixed at every pixel, then a grouped convolution."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from paperops.reference.nearest import result_dtype


def cells_of(pixels: int, stride: int) -> int:
    """How many positions of an axis the convolution has: ceil(pixels / stride)."""
    return (pixels + stride - 1) // stride


def at_tap(padded: Tensor, dy: int, dx: int, cells: tuple[int, int], stride: int) -> Tensor:
    """What tap (dy, dx) reads of a padded map [..., h + k - 1, w + k - 1] at every position: [..., Ho, Wo]."""
    return padded[..., dy::stride, dx::stride][..., : cells[0], : cells[1]]


def mixed_maps(x: Tensor, fc_weight: Tensor, fc_bias: Tensor | None) -> Tensor:
    """[B, T, D, h, w] -> [B, D, K, h, w]."""
    mixed = torch.einsum("kt,btdyx->bdkyx", fc_weight, x)
    return mixed if fc_bias is None else mixed + fc_bias[:, None, None]


def shift_conv_2d(
    x: Tensor, fc_weight: Tensor, conv_weight: Tensor, *, fc_bias: Tensor | None = None, stride: int = 1
) -> Tensor:
    """See :func:`paperops.shift_conv_2d`."""
    working = result_dtype(x.dtype)
    batch, _, depth, height, width = x.shape
    kernel = conv_weight.shape[-1]
    cells = cells_of(height, stride), cells_of(width, stride)
    bias = None if fc_bias is None else fc_bias.to(working)
    mixed = mixed_maps(x.to(working), fc_weight.to(working), bias)
    padded = pad(mixed, (kernel // 2,) * 4)  # zero outside the map, the bias too
    weight = conv_weight.to(working).unflatten(0, (depth, -1))  # [D, C / D, K, k, k]
    out = x.new_zeros((batch, *weight.shape[:2], *cells), dtype=working)  # [B, D, C / D, Ho, Wo]
    for dy in range(kernel):
        for dx in range(kernel):
            read = at_tap(padded, dy, dx, cells, stride)  # [B, D, K, Ho, Wo]
            out = out + torch.einsum("dmk,bdkyx->bdmyx", weight[..., dy, dx], read)
    return out.flatten(1, 2).to(x.dtype)

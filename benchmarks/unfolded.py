"""Attention over windows and ACmix as they are written in models: windows unfolded into memory, by torch eager."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_PADDING = {"reflect": "reflect", "zeros": "constant"}


def unfolded(maps: Tensor, kernel_size: int, stride: int, dilation: int, padding_mode: str) -> Tensor:
    """The windows of maps ``[N, D, h, w]``: ``[N, D, slots, Ho, Wo]``."""
    padded = functional.pad(maps, (dilation * (kernel_size // 2),) * 4, mode=_PADDING[padding_mode])
    windows = functional.unfold(padded, kernel_size, dilation=dilation, stride=stride)  # [N, D * slots, Ho * Wo]
    rows, columns = (-(-size // stride) for size in maps.shape[2:])
    return windows.view(len(maps), maps.shape[1], kernel_size**2, rows, columns)


def local_attention_2d(
    q: Tensor, k: Tensor, v: Tensor, kernel_size: int, stride: int = 1, dilation: int = 1,
    padding_mode: str = "reflect", bias: Tensor | None = None, scale: float = 1.0,
) -> Tensor:  # fmt: skip
    window = (kernel_size, stride, dilation, padding_mode)
    queries = (q * scale)[..., ::stride, ::stride].flatten(0, 1).unsqueeze(2)  # [B * H, D, 1, Ho, Wo]
    logits = (queries * unfolded(k.flatten(0, 1), *window)).sum(1)  # [B * H, slots, Ho, Wo]
    if bias is not None:
        logits = logits + bias.flatten(1)[:, :, None, None].repeat(len(q), 1, 1, 1)
    weights = logits.softmax(1).unsqueeze(1)
    return (weights * unfolded(v.flatten(0, 1), *window)).sum(2).unflatten(0, q.shape[:2])


def shift_conv_2d(
    x: Tensor, fc_weight: Tensor, conv_weight: Tensor, fc_bias: Tensor | None = None, stride: int = 1
) -> Tensor:
    batch, maps, depth, height, width = x.shape
    taps = len(fc_weight)
    mixed = functional.conv2d(x.reshape(batch, maps, depth, height * width), fc_weight[:, :, None, None], fc_bias)
    mixed = mixed.transpose(1, 2).reshape(batch, depth * taps, height, width)  # channel by channel
    return functional.conv2d(mixed, conv_weight, stride=stride, padding=conv_weight.shape[-1] // 2, groups=depth)


def acmix(
    x: Tensor, *, rate1: Tensor, rate2: Tensor, conv1_weight: Tensor, conv1_bias: Tensor, conv2_weight: Tensor,
    conv2_bias: Tensor, conv3_weight: Tensor, conv3_bias: Tensor, conv_p_weight: Tensor, conv_p_bias: Tensor,
    fc_weight: Tensor, dep_conv_weight: Tensor, head: int, kernel_att: int, stride: int, dilation: int,
) -> Tensor:  # fmt: skip
    """The whole layer: positions are unfolded too, and every term of the logits is there."""
    height, width = x.shape[2:]
    q, k, v = (
        functional.conv2d(x, weight, bias)
        for weight, bias in ((conv1_weight, conv1_bias), (conv2_weight, conv2_bias), (conv3_weight, conv3_bias))
    )
    depth, window = q.shape[1] // head, (kernel_att, stride, dilation, "reflect")
    across = torch.linspace(-1, 1, width, device=x.device, dtype=x.dtype).expand(height, width)
    down = torch.linspace(-1, 1, height, device=x.device, dtype=x.dtype)[:, None].expand(height, width)
    p = functional.conv2d(torch.stack((across, down))[None], conv_p_weight, conv_p_bias)  # [1, D, h, w]

    by_heads = [part.reshape(-1, depth, height, width) for part in (q, k, v)]  # [B * H, D, h, w]
    queries = (by_heads[0] * depth**-0.5)[..., ::stride, ::stride].unsqueeze(2)  # [B * H, D, 1, Ho, Wo]
    relative = unfolded(by_heads[1], *window) + p[..., ::stride, ::stride].unsqueeze(2) - unfolded(p, *window)
    weights = (queries * relative).sum(1).softmax(1).unsqueeze(1)
    attention = (weights * unfolded(by_heads[2], *window)).sum(2)  # [B * H, D, Ho, Wo]
    attention = attention.reshape(len(x), -1, *attention.shape[2:])

    maps = torch.cat([part.unflatten(1, (head, depth)) for part in (q, k, v)], 1)  # [B, 3 * H, D, h, w]
    convolution = shift_conv_2d(maps, fc_weight.flatten(1), dep_conv_weight, stride=stride)
    return rate1 * attention + rate2 * convolution


def memory(op: str, arguments: dict[str, Any]) -> int:
    """Bytes of the unfolded tensors: keys, values and their products; the layer's keys with positions besides."""
    if op == "shift_conv_2d":  # the mixed maps, in two orders
        x, elements, tensors = arguments["x"], arguments["x"].numel() // arguments["x"].shape[1], 2
        elements *= len(arguments["fc_weight"])
    else:
        x, side = (arguments[name] for name in (("q", "kernel_size") if "q" in arguments else ("x", "kernel_att")))
        channels = 1.0 if "q" in arguments else len(arguments["conv1_weight"]) / x.shape[1]
        elements = int(x.numel() * channels * side**2 / arguments.get("stride", 1) ** 2)
        tensors = 3 if "q" in arguments else 5
    return (2 if x.requires_grad else 1) * tensors * elements * x.element_size()

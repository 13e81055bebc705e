"""ACmix's convolution path: maps mixed at every pixel into one map a tap, then a grouped convolution, as one op.

The mixed maps are never in memory. Kernels choose between the two orders of the sums, by count: one convolution with
the merged weight W[c, t] = sum over kk of conv[c, kk] fc[kk, t], or the mixing of a few rows at a time on chip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from paperops.backends import Implementation
from paperops.ops import _checks
from paperops.ops._define import define, fold_or_loop, native, triton
from paperops.reference.nearest import result_dtype
from paperops.reference.shift_conv import at_tap, cells_of, mixed_maps
from paperops.reference.shift_conv import shift_conv_2d as definition


def _empty(like: Tensor, shape: Sequence[Any], channels_last: bool) -> Tensor:
    """An uninitialised tensor [B, ..., h, w], contiguous or with the channels of a pixel next to each other."""
    if not channels_last:
        return like.new_empty(shape)
    order = [*range(len(shape) - 3, 0, -1), len(shape) - 1, len(shape) - 2, 0]  # from the innermost on
    strides, stride = [1] * len(shape), 1
    for dim in order:
        strides[dim] = stride
        stride = stride * shape[dim]
    return like.new_empty_strided(shape, strides)


def _in_layout(value: Tensor, channels_last: bool) -> Tensor:
    return _empty(value, value.shape, channels_last).copy_(value)


def _laid_out(function: Any) -> Implementation:
    """A function in plain torch as an implementation, given contiguous tensors; ``channels_last`` comes last."""

    def laid_out(*arguments: Any) -> Any:
        given = (value.detach().contiguous() if isinstance(value, Tensor) else value for value in arguments[:-1])
        results = function(*given)
        if isinstance(results, Tensor):
            return _in_layout(results, arguments[-1])
        return _in_layout(results[0], arguments[-1] and results[0].dim() == 5), *results[1:]

    return Implementation(lambda: laid_out)


# --- backward ------------------------------------------------------------------------------------------------------


def _spread(grad: Tensor, height: int, width: int, kernel: int, stride: int) -> Tensor:
    """grad [..., Ho, Wo] at the pixels of its positions, k // 2 zeros around them: [..., h + k - 1, w + k - 1]."""
    rows, columns = grad.shape[-2:]
    wide = pad(grad[..., None], (0, stride - 1)).flatten(-2)  # [..., Ho, Wo * s]
    wide = pad(wide[..., None, :], (0, 0, 0, stride - 1)).flatten(-3, -2)  # [..., Ho * s, Wo * s]
    half = kernel // 2
    return pad(wide, (half, half + width - columns * stride, half, half + height - rows * stride))


def gradients(
    grad: Tensor, x: Tensor | None, fc_weight: Tensor, conv_weight: Tensor, fc_bias: Tensor | None,
    depth: int, height: int, width: int, stride: int, wants_x: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of x, both weights and the bias, written out: what the kernels compute, differentiable itself.

    Those of weights are there if x is, that of x if it is wanted; what is not is empty.
    """
    working = result_dtype(grad.dtype)
    kernel = conv_weight.shape[-1]
    cells = grad.shape[-2], grad.shape[-1]
    fc, conv = fc_weight.to(working), conv_weight.to(working).unflatten(0, (depth, -1))
    bias = None if fc_bias is None else fc_bias.to(working)
    grads = grad.to(working).unflatten(1, (depth, -1))  # [B, D, C / D, Ho, Wo]
    spread = _spread(grads, height, width, kernel, stride)
    dmixed: Any = 0  # [B, D, K, h, w]
    for dy in range(kernel):
        for dx in range(kernel):
            read = spread[..., kernel - 1 - dy :, kernel - 1 - dx :][..., :height, :width]
            dmixed = dmixed + torch.einsum("dmk,bdmyx->bdkyx", conv[..., dy, dx], read)
    found = [grad.new_empty(0), fc_weight.new_empty(0), conv_weight.new_empty(0)]
    found.append(grad.new_empty(0) if fc_bias is None else fc_bias.new_empty(0))
    if wants_x:
        found[0] = torch.einsum("kt,bdkyx->btdyx", fc, dmixed).to(grad.dtype)
    if x is not None:
        x = x.to(working)
        padded = pad(mixed_maps(x, fc, bias), (kernel // 2,) * 4)
        # Each row apart, and then the rows: one long product over all pixels, in order, is off by ten times as much.
        taps = [
            torch.einsum("bdmyx,bdkyx->bydmk", grads, at_tap(padded, dy, dx, cells, stride)).sum((0, 1))
            for dy in range(kernel)
            for dx in range(kernel)
        ]
        found[1] = torch.einsum("bdkyx,btdyx->bdykt", dmixed, x).sum((0, 1, 2)).to(fc_weight.dtype)
        found[2] = torch.stack(taps, -1).reshape(conv_weight.shape).to(conv_weight.dtype)
        if fc_bias is not None:
            found[3] = dmixed.sum((0, 1, 3, 4)).to(fc_bias.dtype)
    return found[0], found[1], found[2], found[3]


def _backward_fake(
    grad: Tensor, x: Tensor | None, fc_weight: Tensor, conv_weight: Tensor, fc_bias: Tensor | None,
    depth: int, height: int, width: int, stride: int, wants_x: bool, channels_last: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    shape = (grad.shape[0], fc_weight.shape[1], depth, height, width)
    dx = _empty(grad, shape, channels_last) if wants_x else grad.new_empty(0)
    if x is None:
        nothing = grad if fc_bias is None else fc_bias
        return dx, fc_weight.new_empty(0), conv_weight.new_empty(0), nothing.new_empty(0)
    bias = grad.new_empty(0) if fc_bias is None else fc_bias.new_empty(fc_bias.shape)
    return dx, fc_weight.new_empty(fc_weight.shape), conv_weight.new_empty(conv_weight.shape), bias


def _backward_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.depth, ctx.height, ctx.width, ctx.stride, ctx.wants_x, _ = inputs
    ctx.save_for_backward(*tensors)
    ctx.mark_non_differentiable(*(value for value in output if value.shape == (0,)))


def _second_derivative(ctx: Any, *tangents: Tensor) -> tuple[Any, ...]:
    """torch's derivative of the gradients as written out above."""
    tensors = ctx.saved_tensors  # grad, x, fc_weight, conv_weight, fc_bias
    free = [number for number, value in enumerate(tensors) if value is not None]

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        given: Any = dict(zip(free, values, strict=True))
        grad, x, fc_weight, conv_weight, fc_bias = (given.get(number) for number in range(len(tensors)))
        sizes = ctx.depth, ctx.height, ctx.width, ctx.stride
        return gradients(grad, x, fc_weight, conv_weight, fc_bias, *sizes, ctx.wants_x)

    pull: Any = torch.func.vjp(function, *(tensors[number] for number in free))[1]
    found: list[Any] = [None] * len(tensors)
    for number, value in zip(free, pull(tangents), strict=True):
        found[number] = value
    return *found, *(None,) * 6


def _backward_batched(info: Any, in_dims: Sequence[int | None], *arguments: Any) -> tuple[Any, Any]:
    """Each item of vmap's dimension has gradients of the weights of its own."""
    return fold_or_loop(backward_op, (0,) if arguments[1] is None else ())(info, in_dims, *arguments)


backward_op: Any = define(
    "shift_conv_backward",
    "(Tensor grad, Tensor? x, Tensor fc_weight, Tensor conv_weight, Tensor? fc_bias, SymInt depth, SymInt height, "
    "SymInt width, int stride, bool wants_x, bool channels_last) "
    "-> (Tensor dx, Tensor dfc_weight, Tensor dconv_weight, Tensor dfc_bias)",
    {
        "reference": _laid_out(gradients),
        "native": native("shift_conv_backward"),
        "triton": triton("shift_conv", "shift_conv_backward"),
    },
    fake=_backward_fake,
    save=_backward_save,
    backward=_second_derivative,
    batched=_backward_batched,
    autocast=(),
)


# --- forward -------------------------------------------------------------------------------------------------------


def _reference(x: Tensor, fc_weight: Tensor, conv_weight: Tensor, fc_bias: Tensor | None, stride: int) -> Tensor:
    return definition(x, fc_weight, conv_weight, fc_bias=fc_bias, stride=stride)


def _fake(
    x: Tensor, fc_weight: Tensor, conv_weight: Tensor, fc_bias: Tensor | None, stride: int, channels_last: bool
) -> Tensor:
    cells = cells_of(x.shape[3], stride), cells_of(x.shape[4], stride)
    return _empty(x, (x.shape[0], conv_weight.shape[0], *cells), channels_last)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, fc_weight, conv_weight, fc_bias, ctx.stride, ctx.channels_last = inputs
    ctx.size = x.shape[2:]
    wants_weights = any(ctx.needs_input_grad[1:4])
    ctx.save_for_backward(x if wants_weights else None, fc_weight, conv_weight, fc_bias)


def _derivative(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    wanted = ctx.needs_input_grad[:4]
    found = backward_op(grad, *ctx.saved_tensors, *ctx.size, ctx.stride, wanted[0], ctx.channels_last)
    return *(value if is_wanted else None for value, is_wanted in zip(found, wanted, strict=True)), None, None


shift_conv_op: Any = define(
    "shift_conv",
    "(Tensor x, Tensor fc_weight, Tensor conv_weight, Tensor? fc_bias, int stride, bool channels_last) -> Tensor",
    {"reference": _laid_out(_reference), "native": native("shift_conv"), "triton": triton("shift_conv", "shift_conv")},
    fake=_fake,
    save=_save,
    backward=_derivative,
    batched=lambda *arguments: fold_or_loop(shift_conv_op, (0,))(*arguments),
    autocast=(0,),
)


# --- the public function -------------------------------------------------------------------------------------------


def _channels_are_neighbours(x: Tensor) -> bool:
    """Whether x [B, T, D, h, w] lies in memory by pixels: the channels t * D + d of one are next to each other."""
    maps, depth = x.shape[1:3]
    by_channels = (depth == 1 or x.stride(2) == 1) and (maps == 1 or x.stride(1) == depth)
    return maps * depth > 1 and by_channels and not x.is_contiguous()


def shift_conv_2d(
    x: Tensor, fc_weight: Tensor, conv_weight: Tensor, *, fc_bias: Tensor | None = None, stride: int = 1
) -> Tensor:
    r"""ACmix's convolution path: T maps of D channels are mixed into :math:`K = k^2`, then convolved in D groups.

    .. math:: f_{d,\kappa}(p) = \sum_t A_{\kappa t}\, x_{t,d}(p) + b_\kappa, \qquad
              y_c(p) = \sum_\kappa \sum_{\delta} V_{c \kappa \delta}\, f_{d(c), \kappa}(s p + \delta)

    with A = ``fc_weight``, V = ``conv_weight``, :math:`d(c) = \lfloor c D / C \rfloor` and :math:`\delta` over the
    k x k taps around the pixel; f is zero outside the map, its bias included. With the weights of
    :func:`paperops.nn.shift_kernel` this is a k x k convolution whose taps are mixtures of the T maps.

    Args:
        x: ``[B, T, D, h, w]``, float16, bfloat16, float32 or float64, of any strides (in ACmix T = 3 * heads, a view
            of queries, keys and values). Where the channels of a pixel are neighbours (channels_last) the result is
            laid out in the same way, and otherwise contiguous.
        fc_weight: ``[K, T]``, K = k * k, in the dtype of x, or float32 beside halves; the other weights likewise.
        conv_weight: ``[C, K, k, k]``, k odd, C a multiple of D: channel c belongs to group :math:`\lfloor c D / C
            \rfloor`, and reads the K mixed maps of that channel of x.
        fc_bias: ``[K]`` or None.
        stride: of the convolution; position i sits at pixel i * stride.

    Returns:
        ``[B, C, ceil(h / stride), ceil(w / stride)]`` in the dtype of x. Sums of halves are made in float32.

    Differentiable twice in x, both weights and the bias, the second time through plain torch. Sums are made in a fixed
    order. Autocast takes x in its own dtype and leaves the weights.

    Raises:
        TypeError: no tensors, or of wrong dtypes; stride is no integer.
        ValueError: x is not ``[B, T, D, h, w]`` or is empty in one of T, D, h, w; weights of another shape, or on
            another device; an even k; C that is no multiple of D; stride below 1.

    Source:
        ACmix, arXiv 2111.14556 (CVPR 2022), section 4: shift as depthwise convolution with learnable kernels.

    Cost:
        2 C T k^2 floating-point operations a position of the result where that is less, otherwise 2 D T k^2 a pixel
        and 2 C k^4 a position. Kept for the backward pass: x and the weights; without gradients of weights, not even x.

    Example:
        >>> import torch, paperops
        >>> x = torch.randn(2, 6, 4, 9, 9)
        >>> fc_weight = torch.randn(9, 6)
        >>> conv_weight = paperops.nn.shift_kernel(8, 3)
        >>> paperops.shift_conv_2d(x, fc_weight, conv_weight, stride=2).shape
        torch.Size([2, 8, 5, 5])
    """
    _checks.parameter_of_rank("x", x, 5)
    maps, depth, height, width = x.shape[1:]
    if maps == 0 or depth == 0 or height == 0 or width == 0:
        raise ValueError(f"x must have at least one map, channel and pixel, [B, T, D, h, w]; got {list(x.shape)}")
    _checks.tensor("conv_weight", conv_weight)
    shape = list(conv_weight.shape)
    if conv_weight.dim() != 4 or shape[2] != shape[3] or shape[1] != shape[2] ** 2:
        raise ValueError(f"conv_weight must have shape [C, k * k, k, k]; got {shape}")
    channels, taps, kernel, _ = shape
    if kernel % 2 == 0:
        raise ValueError(f"conv_weight must have an odd kernel, so that a pixel is its centre; got {shape}")
    if channels == 0 or channels % depth:
        raise ValueError(f"conv_weight must have a multiple of D = {depth} output channels; got {shape}")
    _checks.parameter("conv_weight", conv_weight, tuple(shape), "one map a tap", x, required=True)
    _checks.parameter("fc_weight", fc_weight, (taps, maps), "from T maps to one a tap", x, required=True)
    _checks.parameter("fc_bias", fc_bias, (taps,), "one value a tap", x)
    stride = _checks.positive_int("stride", stride)
    return shift_conv_op(x, fc_weight, conv_weight, fc_bias, stride, _channels_are_neighbours(x))

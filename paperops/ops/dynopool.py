"""DynOPool's pooling and resampling of maps, with gradients to the scale; no grid and no tensor of samples.

One dispatcher op does both. What it keeps of a maximum is which of the four samples it was, in two bits: four channels
share a byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from paperops.backends import Implementation
from paperops.ops import _checks
from paperops.ops._define import define, fold_or_loop, native, triton
from paperops.reference.dynopool import CENTRE, CORNER, FOUR, Axis, axes, between, by_cell, ends, output_size_of
from paperops.reference.nearest import result_dtype

MAX, MEAN, CENTRES, CORNERS = range(4)
"""The dispatcher's modes: of four samples the maximum or mean; one at the cell's centre; or at (i / r, j / r)."""
PLACES = (FOUR, FOUR, CENTRE, CORNER)

PACKED = 4
"""Channels whose choice is in one byte, the first in the lowest bits."""


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _laid_out(function: Any) -> Implementation:
    """A function in plain torch as an implementation, given contiguous tensors; ``channels_last`` comes last."""

    def laid_out(*arguments: Any) -> tuple[Tensor, ...]:
        given = (value.detach().contiguous() if isinstance(value, Tensor) else value for value in arguments)
        results = function(*given)
        return tuple(
            value.contiguous(memory_format=_format(arguments[-1])) if value.dim() == 4 else value for value in results
        )

    return Implementation(lambda: laid_out)


def _packed(chosen: Tensor) -> Tensor:
    """Numbers [B, C, Ho, Wo] from 0 to 3 -> [B, ceil(C / 4), Ho, Wo] uint8."""
    channels = chosen.shape[1]
    chosen = torch.nn.functional.pad(chosen, (0, 0, 0, 0, 0, -channels % PACKED)).unflatten(1, (-1, PACKED))
    shifts = torch.arange(0, 8, 2, device=chosen.device)[:, None, None]
    return (chosen << shifts).sum(2).to(torch.uint8)


def _unpacked(packed: Tensor, channels: int) -> Tensor:
    """The reverse, int64."""
    shifts = torch.arange(0, 8, 2, device=packed.device)[:, None, None]
    return ((packed[:, :, None].long() >> shifts) & 3).flatten(1, 2)[:, :channels]


# --- backward ------------------------------------------------------------------------------------------------------


def _weights(along: Axis, pixels: int, dtype: torch.dtype) -> Tensor:
    """[samples, pixels]: what each sample of an axis takes of each pixel."""
    number = torch.arange(pixels, device=along.first.device)
    fraction = along.fraction.to(dtype)[:, None]
    return (along.first[:, None] == number) * (1 - fraction) + (along.second[:, None] == number) * fraction


def gradients(
    grad: Tensor, chosen: Tensor, scale: Tensor, x: Tensor | None, height: int, width: int, mode: int, zeros: bool,
    wants_x: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradients of x and scale, written out: what the kernels compute, differentiable itself. Empty if unwanted."""
    working = result_dtype(grad.dtype)
    k = len(PLACES[mode])
    rows, columns = axes((height, width), grad.shape[2:], scale, PLACES[mode], zeros)
    b, c, *cells = grad.shape
    share = grad.to(working)[..., None]  # [B, C, Ho, Wo, 1]
    taken = torch.ones(k * k, dtype=torch.bool, device=grad.device)
    if mode == MAX:
        taken = _unpacked(chosen, c)[..., None] == torch.arange(k * k, device=grad.device)
    elif mode == MEAN:
        share = share / (k * k)
    of_samples = torch.where(taken, share, 0).unflatten(-1, (k, k)).permute(0, 1, 2, 4, 3, 5)
    of_samples = of_samples.reshape(b, c, k * cells[0], k * cells[1])  # by rows and columns of samples
    dx, dscale = grad.new_empty(0), scale.new_empty(0)
    if wants_x:
        down, across = _weights(rows, height, working), _weights(columns, width, working)
        dx = (down.mT @ of_samples @ across).to(grad.dtype)
    if x is not None:
        x = x.to(working)
        by_rows = ends(between(x, 3, columns), 2, rows)[1]
        by_columns = ends(between(x, 2, rows), 3, columns)[1]
        reached = of_samples != 0  # what is not taken may be anything
        slopes = [torch.where(reached, of_samples * value, 0).double() for value in (by_rows, by_columns)]
        parts = (slopes[0].sum((0, 1, 3)) @ rows.slope, slopes[1].sum((0, 1, 2)) @ columns.slope)
        dscale = torch.stack(parts).to(scale.dtype)
    return dx, dscale


def _backward_reference(*arguments: Any) -> tuple[Tensor, ...]:
    return gradients(*arguments[:-1])


def _backward_fake(
    grad: Tensor, chosen: Tensor, scale: Tensor, x: Tensor | None, height: int, width: int, mode: int, zeros: bool,
    wants_x: bool, channels_last: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    shape = (*grad.shape[:2], height, width)
    dx = grad.new_empty(shape).to(memory_format=_format(channels_last)) if wants_x else grad.new_empty(0)
    return dx, scale.new_empty(0 if x is None else 2)


def _backward_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.height, ctx.width, ctx.mode, ctx.zeros, ctx.wants_x, _ = inputs
    ctx.save_for_backward(*tensors)
    ctx.mark_non_differentiable(*(value for value in output if value.shape == (0,)))


def _second_derivative(ctx: Any, *tangents: Tensor) -> tuple[Any, ...]:
    """torch's derivative of the gradients as written out above; a choice stays what it is."""
    grad, chosen, scale, x = ctx.saved_tensors
    free = [grad, scale] if x is None else [grad, scale, x]

    def function(grad: Tensor, scale: Tensor, x: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return gradients(grad, chosen, scale, x, ctx.height, ctx.width, ctx.mode, ctx.zeros, ctx.wants_x)

    pull: Any = torch.func.vjp(function, *free)[1]
    of_grad, of_scale, *of_x = pull(tangents)
    return of_grad, None, of_scale, of_x[0] if of_x else None, *(None,) * 6


def _backward_batched(info: Any, in_dims: Sequence[int | None], *arguments: Any) -> tuple[Any, Any]:
    """Each item of vmap's dimension has a gradient of the scale of its own."""
    return fold_or_loop(backward_op, (0, 1) if arguments[3] is None else ())(info, in_dims, *arguments)


backward_op: Any = define(
    "dynopool_backward",
    "(Tensor grad, Tensor chosen, Tensor scale, Tensor? x, SymInt height, SymInt width, int mode, bool zeros, "
    "bool wants_x, bool channels_last) -> (Tensor dx, Tensor dscale)",
    {
        "reference": _laid_out(_backward_reference),
        "native": native("dynopool_backward"),
        "triton": triton("dynopool", "dynopool_backward"),
    },
    fake=_backward_fake,
    save=_backward_save,
    backward=_second_derivative,
    batched=_backward_batched,
    autocast=(),
)


# --- forward -------------------------------------------------------------------------------------------------------


def _reference(
    x: Tensor, scale: Tensor, height: int, width: int, mode: int, zeros: bool, keep: bool, _: bool
) -> tuple[Tensor, Tensor]:
    rows, columns = axes(x.shape[2:], (height, width), scale, PLACES[mode], zeros)
    samples = between(between(x.to(result_dtype(x.dtype)), 2, rows), 3, columns)
    none = x.new_empty(0, dtype=torch.uint8)
    if mode in (CENTRES, CORNERS):
        return samples.to(x.dtype), none
    samples = by_cell(samples, 2)
    if mode == MEAN:
        return samples.mean(-1).to(x.dtype), none
    most, chosen = samples.max(-1)
    return most.to(x.dtype), _packed(chosen) if keep else none


def _fake(
    x: Tensor, scale: Tensor, height: int, width: int, mode: int, zeros: bool, keep: bool, channels_last: bool
) -> tuple[Tensor, Tensor]:
    b, c = x.shape[:2]
    layout = _format(channels_last)
    out = x.new_empty((b, c, height, width)).to(memory_format=layout)
    if mode != MAX or not keep:
        return out, x.new_empty(0, dtype=torch.uint8)
    bytes_ = (c + PACKED - 1) // PACKED
    return out, x.new_empty((b, bytes_, height, width), dtype=torch.uint8).to(memory_format=layout)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, scale, ctx.height, ctx.width, ctx.mode, ctx.zeros, keep, ctx.channels_last = inputs
    ctx.chosen_unknown = ctx.mode == MAX and not keep
    ctx.size = x.shape[2:]
    ctx.save_for_backward(x if ctx.needs_input_grad[1] or ctx.chosen_unknown else None, scale, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # no zeros for the choices


def _derivative(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 8
    x, scale, chosen = ctx.saved_tensors
    wants_x, wants_scale = ctx.needs_input_grad[:2]
    if ctx.chosen_unknown:  # the forward pass did not know that it would be needed
        chosen = pool_op(x, scale, ctx.height, ctx.width, ctx.mode, ctx.zeros, True, ctx.channels_last)[1]
    dx, dscale = backward_op(
        grad, chosen, scale, x if wants_scale else None, *ctx.size, ctx.mode, ctx.zeros, wants_x, ctx.channels_last
    )
    return dx if wants_x else None, dscale if wants_scale else None, *(None,) * 6


pool_op: Any = define(
    "dynopool",
    "(Tensor x, Tensor scale, SymInt height, SymInt width, int mode, bool zeros, bool keep, bool channels_last) "
    "-> (Tensor out, Tensor chosen)",
    {"reference": _laid_out(_reference), "native": native("dynopool"), "triton": triton("dynopool", "dynopool")},
    fake=_fake,
    save=_save,
    backward=_derivative,
    batched=lambda *arguments: fold_or_loop(pool_op, (0,))(*arguments),
    autocast=(),
)


# --- the public functions ------------------------------------------------------------------------------------------


def _check(x: Tensor, scale: Tensor, output_size: object) -> tuple[int, int]:
    """Shapes, dtypes, devices and, where that is free, the scale's values. Returns the output's size."""
    _checks.parameter_of_rank("x", x, 4)
    if x.shape[2] == 0 or x.shape[3] == 0:
        raise ValueError(f"x must have at least one pixel; got {list(x.shape)}")
    _checks.tensor("scale", scale)
    if scale.dim() != 1 or scale.shape[0] != 2:
        raise ValueError(f"scale must have shape [2], height and width; got {list(scale.shape)}")
    if scale.dtype not in (torch.float32, torch.float64, x.dtype):
        raise TypeError(f"scale must have dtype torch.float32, torch.float64 or that of x; got {scale.dtype}")
    if scale.device != x.device:
        raise ValueError(f"scale must be on the device of x, {x.device}; got {scale.device}")
    if output_size is not None:
        if not isinstance(output_size, (tuple, list)) or len(output_size) != 2:
            raise ValueError(f"output_size must be None or two integers, height and width; got {output_size!r}")
        height, width = (_checks.positive_int("output_size", value) for value in output_size)
        if _checks.values_are_free(scale):
            _positive(scale)
        return height, width
    if torch._C._functorch.is_batchedtensor(scale) or scale.device.type == "meta":
        raise ValueError("output_size must be given where scale has no values that can be read (vmap, meta)")
    _positive(scale)
    height, width = (
        _checks.positive_int("output_size", value) for value in output_size_of(x.shape[2:], scale.detach())
    )
    return height, width


def _positive(scale: Tensor) -> None:
    for ratio in scale.tolist():
        if not 0 < ratio < float("inf"):
            raise ValueError(f"scale must be positive and finite; got {ratio}")


def _is_channels_last(x: Tensor) -> bool:
    """Whether x lies in memory by pixels; vmap cannot tell by ``is_contiguous``."""
    _, c, h, w = x.shape
    expected = (h * w * c, 1, w * c, c)
    by_pixels = all(
        size == 1 or stride == right for size, stride, right in zip(x.shape, x.stride(), expected, strict=True)
    )
    return c > 1 and by_pixels and not x.is_contiguous()


def _resampled(x: Tensor, scale: Tensor, size: tuple[int, int], mode: int, zeros: bool) -> Tensor:
    channels_last = _is_channels_last(x)
    keep = mode == MAX and torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad)
    return pool_op(x, scale, *size, mode, zeros, keep, channels_last)[0]


def dynopool_2d(x: Tensor, scale: Tensor, output_size: Sequence[int] | None = None, mode: str = "max") -> Tensor:
    r"""DynOPool: pooling to any size, up or down, with a gradient to the scale.

    With r = out / in, a = 1 / r and x(.) the map interpolated bilinearly, pixel p covering [p, p + 1], output cell
    (i, j) is the maximum (or the mean) of four samples:

    .. math:: \max_{\pm, \pm} \; x((i + \tfrac12 \pm \tfrac14) a_h, \; (j + \tfrac12 \pm \tfrac14) a_w)

    clamped at the border. r = 1/2 is exactly ``max_pool2d(2)``; r = 1 is not the identity. The scale's gradient flows
    through the positions, from the right where a sample lies on a pixel's centre; it is 0 where a position is clamped.
    Of equal samples the first, by rows, has the gradient. Rounding to ``output_size`` is not differentiated.

    Args:
        x: ``[B, C, h, w]``, float16, bfloat16, float32 or float64; contiguous or channels_last, and then the result is
            too. Other strides are copied.
        scale: ``[2]``, r of height and width, positive and finite; float32, float64 or the dtype of x. On a GPU, and
            inside torch.compile, its values are not read if ``output_size`` is given; NaN gives NaN.
        output_size: (Ho, Wo). None is max(1, round(size * r)) per axis, half to even, for which the host waits for the
            scale on a GPU, and which breaks the graph of torch.compile. A size that differs from this repeats the
            border or leaves out what lies beyond it.
        mode: ``"max"`` or ``"mean"``.

    Returns:
        ``[B, C, Ho, Wo]`` in the dtype of x. Halves are computed in float32, positions in float64. NaN is the maximum,
        and a pixel of weight 0 does not count. Autocast changes nothing.

    Differentiable twice in x and scale, the second time through plain torch. Gradients are summed in a fixed order.

    Raises:
        TypeError: x or scale is no tensor, or of a wrong dtype; sizes that are not integers.
        ValueError: x is not ``[B, C, h, w]`` or has no pixel; scale is not ``[2]``, on another device, or not positive
            and finite; ``output_size`` below 1; an unknown mode.

    Source:
        DynOPool, arXiv 2205.15254 (CVPR 2022), section 3.1, with the sample points a quarter of a cell off its centre.

    Cost:
        About 26 floating-point operations an element of the result. Kept for the backward pass: two bits an element of
        the result, and x where the scale requires a gradient.

    Example:
        >>> import torch, paperops
        >>> x = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> scale = torch.tensor([0.5, 0.75], requires_grad=True)
        >>> out = paperops.dynopool_2d(x, scale)
        >>> out.shape, out[0, 0, 0].detach()
        (torch.Size([1, 1, 2, 3]), tensor([4.5000, 5.8333, 7.0000]))
        >>> out.sum().backward()
        >>> scale.grad.shape
        torch.Size([2])
    """
    size = _check(x, scale, output_size)
    _checks.choice("mode", mode, ("max", "mean"))
    if mode is None:
        raise ValueError("mode must be one of 'max', 'mean'; got None")
    return _resampled(x, scale, size, MAX if mode == "max" else MEAN, False)


def resample_2d(
    x: Tensor,
    scale: Tensor,
    output_size: Sequence[int] | None = None,
    *,
    align_corners: bool = False,
    padding_mode: str = "border",
) -> Tensor:
    r"""Bilinear resampling to any size with a gradient to the scale.

    Output cell (i, j) is x at its centre, :math:`((i + \tfrac12) / r_h, (j + \tfrac12) / r_w)`, pixel p covering
    [p, p + 1]. Where h r is an integer this is ``torch.nn.functional.interpolate(mode="bilinear",
    align_corners=False)``, and grid_sample with the grid of these positions always.

    Args:
        x, scale, output_size: as in :func:`dynopool_2d`.
        align_corners: True measures from the centre of the first pixel: (i / r_h, j / r_w) in pixels' centres. With
            r = (Ho - 1) / (h - 1) this is interpolate's ``align_corners=True``.
        padding_mode: what lies beyond the outermost pixels' centres: ``"border"`` repeats them, ``"zeros"`` is as in
            grid_sample. ``"reflection"`` is not there.

    Returns:
        ``[B, C, Ho, Wo]`` in the dtype of x, as in :func:`dynopool_2d`; differentiable in the same way.

    Raises:
        TypeError, ValueError: as in :func:`dynopool_2d`; align_corners is no bool; another padding_mode.

    Source:
        The sampling of DynOPool (arXiv 2205.15254, section 3.1) at one point a cell.

    Cost:
        About 9 floating-point operations an element of the result. Kept for the backward pass: x where the scale
        requires a gradient, otherwise nothing.

    Example:
        >>> import torch, paperops
        >>> x = torch.tensor([[[[0.0, 1.0, 2.0, 3.0]]]])
        >>> paperops.resample_2d(x, torch.tensor([1.0, 2.0]))
        tensor([[[[0.0000, 0.2500, 0.7500, 1.2500, 1.7500, 2.2500, 2.7500, 3.0000]]]])
    """
    size = _check(x, scale, output_size)
    _checks.flag("align_corners", align_corners)
    if padding_mode is None:
        raise ValueError("padding_mode must be one of 'border', 'zeros'; got None")
    _checks.choice("padding_mode", padding_mode, ("border", "zeros"))
    return _resampled(x, scale, size, CORNERS if align_corners else CENTRES, padding_mode == "zeros")

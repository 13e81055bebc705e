"""Attention over the window of keys around each query: nothing is unfolded and no weight is kept.

What is kept for the backward pass beside q, k and v is the result and the logits' logsumexp. Keys lie on the map's own
grid whatever the border: kernels resolve it in the index of a load, and gather gradients by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from paperops.backends import Implementation
from paperops.ops import _checks
from paperops.ops._define import define, fold_or_loop, native, triton
from paperops.reference.local_attention import MASK, PADDING_MODES, REFLECT, SHIFT, Axis, attention, axis, softmax
from paperops.reference.nearest import result_dtype

_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? bias"
_WINDOW = "int kernel_size, int stride, int dilation, int padding, float scale"


def by_pixels(q: Tensor) -> bool:
    """Whether q [B, H, D, h, w] has the channels of a pixel side by side, as channels_last maps do."""
    return q.shape[2] > 1 and q.stride(2) == 1 and q.stride(4) != 1


def empty_like(q: Tensor, height: int, width: int) -> Tensor:
    """An empty [B, H, D, height, width] in the layout of q: by planes, or by pixels with the heads side by side."""
    b, heads, d = q.shape[:3]
    if by_pixels(q):
        return q.new_empty((b, height, width, heads, d)).permute(0, 3, 4, 1, 2)
    return q.new_empty((b, heads, d, height, width))


def _laid_out(function: Any, q: int) -> Implementation:
    """A function in plain torch as an implementation, given contiguous tensors that require no gradient. Maps among
    its results get the layout of q, which is the argument of that number."""

    def laid_out(*arguments: Any) -> tuple[Tensor, ...]:
        results = function(*(x.detach().contiguous() if isinstance(x, Tensor) else x for x in arguments))
        like = arguments[q]
        return tuple(
            empty_like(like, *value.shape[3:]).copy_(value) if value.dim() == 5 else value.contiguous()
            for value in results
        )

    return Implementation(lambda: laid_out)


# --- backward ------------------------------------------------------------------------------------------------------


def _window(rows: Axis, columns: Axis, width: int) -> tuple[Tensor, Tensor]:
    """[k * k, Ho, Wo]: the pixels of all slots' keys, by rows, and whether they are the keys' own."""
    pixels = rows.keys[:, None, :, None] * width + columns.keys[:, None]  # [k, k, Ho, Wo]
    return pixels.flatten(0, 1), (rows.inside[:, None, :, None] & columns.inside[:, None]).flatten(0, 1)


def _gather(x: Tensor, pixels: Tensor, inside: Tensor) -> Tensor:
    """[B, H, D, k * k, Ho, Wo]: what all slots hold of x [B, H, D, h, w]."""
    held = x.flatten(3).index_select(3, pixels.flatten()).unflatten(3, tuple(pixels.shape))
    return torch.where(inside, held, 0)


def _scatter(values: Tensor, pixels: Tensor, inside: Tensor, size: Sequence[int]) -> Tensor:
    """The sums [B, H, D, h, w] of values [B, H, D, k * k, Ho, Wo] over all slots that hold a key, in a fixed order."""
    terms = torch.where(inside, values, 0).flatten(3).permute(3, 0, 1, 2)  # [k * k * Ho * Wo, B, H, D]
    none = terms.new_zeros((size[0] * size[1], *terms.shape[1:]))
    return none.index_put((pixels.flatten(),), terms, accumulate=True).permute(1, 2, 3, 0).unflatten(3, tuple(size))


def gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, kernel_size: int, stride: int, dilation: int,
    padding: int, scale: float, wants_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of q, k, v and bias, written out: what the kernels compute, differentiable itself."""
    given, wide = (q, bias), result_dtype(q.dtype)
    grad, q, k, v = (value.to(wide) for value in (grad, q, k, v))
    h, w = size = q.shape[3:]
    window = kernel_size, stride, dilation, padding, q.device
    pixels, inside = _window(axis(h, *window), axis(w, *window), w)  # [k * k, Ho, Wo]
    keys, values = _gather(k, pixels, inside), _gather(v, pixels, inside)  # [B, H, D, k * k, Ho, Wo]
    queries = q[:, :, :, None, ::stride, ::stride]  # [B, H, D, 1, Ho, Wo]
    logits = scale * (queries * keys).sum(2)  # [B, H, k * k, Ho, Wo]
    if bias is not None:
        logits = logits + bias.to(wide).flatten(1)[:, :, None, None]
    if padding == MASK:
        logits = logits.masked_fill(~inside, -torch.inf)
    weights = softmax(logits)[0]
    share = grad[:, :, :, None]  # [B, H, D, 1, Ho, Wo]
    dweights = (share * values).sum(2)  # [B, H, k * k, Ho, Wo]
    dlogits = weights * (dweights - (weights * dweights).sum(2, keepdim=True))
    if padding == MASK:
        dlogits = dlogits.masked_fill(~inside, 0)
    of_queries = scale * (dlogits[:, :, None] * keys).sum(3, keepdim=True)  # [B, H, D, 1, Ho, Wo]
    alone = 1, stride, 1, padding, q.device
    dq = _scatter(of_queries, *_window(axis(h, *alone), axis(w, *alone), w), size)
    dk = _scatter(scale * dlogits[:, :, None] * queries, pixels, inside, size)
    dv = _scatter(weights[:, :, None] * share, pixels, inside, size)
    dbias = q.new_empty(0)
    if wants_bias:
        dbias = dlogits.sum((0, 3, 4)).unflatten(1, (kernel_size, kernel_size))
    return *(value.to(given[0].dtype) for value in (dq, dk, dv)), dbias.to((given[0] if bias is None else bias).dtype)  # type: ignore[return-value]


def _backward_reference(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, out: Tensor, logsumexp: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    return gradients(grad, q, k, v, bias, *rest)


def _backward_fake(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, out: Tensor, logsumexp: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    dbias = (q if bias is None else bias).new_empty(bias.shape if bias is not None and rest[-1] else 0)
    return *(empty_like(q, *q.shape[3:]) for _ in range(3)), dbias


def _backward_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _, _ = inputs[:7]  # the result and its logsumexp are functions of the other inputs
    ctx.rest = inputs[7:]
    ctx.save_for_backward(*tensors)
    if not ctx.rest[-1]:
        ctx.mark_non_differentiable(output[3])


def _second_derivative(ctx: Any, *tangents: Tensor) -> tuple[Any, ...]:
    """torch's derivative of the gradients as written out above."""
    tensors = ctx.saved_tensors
    free = tensors if tensors[4] is not None else tensors[:4]

    def function(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> tuple[Tensor, ...]:
        return gradients(grad, q, k, v, bias, *ctx.rest)

    pull: Any = torch.func.vjp(function, *free)[1]
    found = (*pull(tangents), None)[:5]
    return *found, *(None,) * (2 + len(ctx.rest))


def _backward_batched(info: Any, in_dims: Sequence[int | None], *arguments: Any) -> tuple[Any, Any]:
    """Each item of vmap's dimension has a gradient of the bias of its own."""
    return fold_or_loop(backward_op, () if arguments[-1] else (0, 1, 2, 3, 5, 6))(info, in_dims, *arguments)


backward_op: Any = define(
    "local_attention_backward",
    f"(Tensor grad, {_INPUTS}, Tensor out, Tensor logsumexp, {_WINDOW}, bool wants_bias) "
    "-> (Tensor dq, Tensor dk, Tensor dv, Tensor dbias)",
    {
        "reference": _laid_out(_backward_reference, 1),
        "native": native("local_attention_backward"),
        "triton": triton("local_attention", "local_attention_backward"),
    },
    fake=_backward_fake,
    save=_backward_save,
    backward=_second_derivative,
    batched=_backward_batched,
    autocast=(),
)


# --- forward -------------------------------------------------------------------------------------------------------


def _reference(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *window: Any) -> tuple[Tensor, Tensor]:
    wide = result_dtype(q.dtype)
    given = None if bias is None else bias.to(wide)
    out, logsumexp = attention(q.to(wide), k.to(wide), v.to(wide), given, *window)
    return out.to(q.dtype), logsumexp


def _fake(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, kernel_size: int, stride: int, *rest: Any
) -> tuple[Tensor, Tensor]:
    height, width = ((pixels + stride - 1) // stride for pixels in q.shape[3:])
    lse = q.new_empty((*q.shape[:2], height, width), dtype=result_dtype(q.dtype))
    return empty_like(q, height, width), lse


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.window = inputs[4:]
    ctx.save_for_backward(*inputs[:4], *output)
    ctx.mark_non_differentiable(output[1])


def _derivative(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    q, k, v, bias, out, logsumexp = ctx.saved_tensors
    wants_bias = ctx.needs_input_grad[3]
    dq, dk, dv, dbias = backward_op(grad, q, k, v, bias, out, logsumexp, *ctx.window, wants_bias)
    return dq, dk, dv, dbias if wants_bias else None, *(None,) * len(ctx.window)


attention_op: Any = define(
    "local_attention",
    f"({_INPUTS}, {_WINDOW}) -> (Tensor out, Tensor logsumexp)",
    {
        "reference": _laid_out(_reference, 0),
        "native": native("local_attention"),
        "triton": triton("local_attention", "local_attention"),
    },
    fake=_fake,
    save=_save,
    backward=_derivative,
    batched=lambda *arguments: fold_or_loop(attention_op, (0, 1, 2))(*arguments),
    autocast=(0, 1, 2),
)


# --- the public function -------------------------------------------------------------------------------------------


def _check_maps(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, value in (("q", q), ("k", k), ("v", v)):
        _checks.parameter_of_rank(name, value, 5)
    if 0 in q.shape[1:]:
        raise ValueError(
            f"q must have shape [batch, heads, channels, height, width], 1 each at least but batch; got {list(q.shape)}"
        )
    for name, value in (("k", k), ("v", v)):
        if value.shape != q.shape:
            raise ValueError(f"{name} must have the shape of q, {list(q.shape)}; got {list(value.shape)}")
        if value.dtype != q.dtype and not _checks.autocast_unites(value, q):
            raise TypeError(f"{name} must have the dtype of q, {q.dtype}; got {value.dtype}")
        if value.device != q.device:
            raise ValueError(f"{name} must be on the device of q, {q.device}; got {value.device}")


def _check_window(size: Sequence[int], kernel_size: int, dilation: int, padding_mode: str) -> None:
    for name, pixels in zip(("height", "width"), size, strict=True):
        if padding_mode == PADDING_MODES[REFLECT] and dilation * (kernel_size // 2) >= pixels:
            raise ValueError(
                f"padding_mode 'reflect' needs a {name} above dilation * (kernel_size // 2) = "
                f"{dilation * (kernel_size // 2)}; got {pixels} (padding_mode 'zeros' and 'mask' take any)"
            )
        if padding_mode == PADDING_MODES[SHIFT] and kernel_size * dilation > pixels:
            raise ValueError(
                f"padding_mode 'shift' needs a {name} of at least kernel_size * dilation = {kernel_size * dilation}; "
                f"got {pixels} (padding_mode 'zeros' and 'mask' take any)"
            )


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
    r"""Attention of each query over the window of keys around it, in a map.

    The query of output (i, j) sits at input (i stride, j stride). Slot (a, b) of its window holds the key and value at
    ((i stride) + (a - c) dilation, (j stride) + (b - c) dilation), with c = kernel_size // 2:

    .. math:: o_{ij} = \sum_{ab} \mathrm{softmax}(\mathrm{scale} \; q_{ij} \cdot k_{ab} + \mathrm{bias}_{ab})\,v_{ab}

    Args:
        q, k, v: ``[B, H, D, h, w]``, float16, bfloat16, float32 or float64, all of one dtype. Any strides; views of one
            tensor are not copied.
        kernel_size: of the window, odd, less than 2**15.
        stride: of the queries.
        dilation: step between the keys of a window.
        padding_mode: what the window holds beyond the map: ``"reflect"``, the map mirrored at its outermost pixels (as
            ``torch.nn.ReflectionPad2d``); ``"zeros"``, keys and values of zeros: the logit is the bias; ``"mask"``,
            nothing; ``"shift"``, the window moves inward, as in neighbourhood attention, by steps of the dilation.
        bias: ``[H, kernel_size, kernel_size]`` in the dtype of q, or float32; by slot whatever the border. -inf takes a
            slot away.
        scale: of the products, a finite number; the bias is not scaled. Attention proper has ``D ** -0.5``.

    Returns:
        ``[B, H, D, ceil(h / stride), ceil(w / stride)]`` in the dtype of q, contiguous, or channels_last (as
        ``[B, H * D, ...]``) where the channels of q lie side by side. 0 where all slots are taken away. Halves are
        accumulated in float32. Autocast takes q, k and v in its own dtype.

    Differentiable twice in q, k, v and bias, the second time through plain torch. Gradients are summed in fixed order.

    Raises:
        TypeError: a tensor is none, or of a wrong dtype; a number is none.
        ValueError: shapes differ, or a side is 0; kernel_size is even; a number below 1, or a scale that is not finite;
            an unknown padding_mode; for ``"reflect"`` a map not larger than dilation * (kernel_size // 2), for
            ``"shift"`` one smaller than dilation * kernel_size; a bias of another shape.

    Source:
        Ramachandran et al., Stand-Alone Self-Attention in Vision Models (arXiv 1906.05909), equation 2; as in ACmix
        (arXiv 2111.14556), equation 9. ``"shift"``: Neighborhood Attention Transformer (arXiv 2204.07143).

    Cost:
        4 D kernel_size ** 2 floating-point operations a query and head, 10 in the backward pass. Kept for that: q, k,
        v, the result, and a float32 a query and head.

    Example:
        >>> import torch, paperops
        >>> q, k, v = torch.randn(3, 2, 4, 16, 9, 9).unbind()  # 2 images, 4 heads of 16 channels, 9 x 9 pixels
        >>> paperops.local_attention_2d(q, k, v, 7, scale=16**-0.5).shape
        torch.Size([2, 4, 16, 9, 9])
        >>> v = torch.arange(5.0).expand(1, 1, 1, 5, 5)
        >>> paperops.local_attention_2d(0 * v, v, v, 3, stride=2, padding_mode="mask")[0, 0, 0]  # means of neighbours
        tensor([[0.5000, 2.0000, 3.5000],
                [0.5000, 2.0000, 3.5000],
                [0.5000, 2.0000, 3.5000]])
    """
    _check_maps(q, k, v)
    kernel_size = _checks.positive_int("kernel_size", kernel_size)
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd; got {kernel_size}")
    if kernel_size >= 2**15:
        raise ValueError(f"kernel_size must be less than 2**15; got {kernel_size}")
    stride, dilation = _checks.positive_int("stride", stride), _checks.positive_int("dilation", dilation)
    _checks.choice("padding_mode", padding_mode, PADDING_MODES)
    _check_window(q.shape[3:], kernel_size, dilation, padding_mode)
    what = "one value a head and slot of the window"
    _checks.parameter("bias", bias, (q.shape[1], kernel_size, kernel_size), what, q, of="q")
    scale = _checks.finite_number("scale", scale)
    height, width = q.shape[3:]
    if stride > height and stride > width:  # then there is one query
        stride = max(height, width)
    if dilation > height and dilation > width:  # then there is no neighbour
        dilation = max(height, width)
    return attention_op(q, k, v, bias, kernel_size, stride, dilation, PADDING_MODES.index(padding_mode), scale)[0]

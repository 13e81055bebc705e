"""The triangle multiplicative update of AlphaFold2's Evoformer, outgoing and incoming, fused."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from paperops.ops import _checks
from paperops.ops._define import define, fold_or_loop, native, plain, triton
from paperops.ops.triangle_contract import DIRECTIONS
from paperops.reference.nearest import result_dtype
from paperops.reference.triangle_multiplication import layer_norm, linear
from paperops.reference.triangle_multiplication import triangle_contract as reference_contract
from paperops.reference.triangle_multiplication import triangle_multiplicative_update as reference_update

GATE_POSITIONS = ("after_projection", "before_projection")

PARAMETERS = (
    "norm_in_weight", "norm_in_bias", "p_in_weight", "p_in_bias", "g_in_weight", "g_in_bias",
    "norm_out_weight", "norm_out_bias", "p_out_weight", "p_out_bias", "g_out_weight", "g_out_bias",
)  # fmt: skip
"""The parameters, in the order in which every function of this family takes them."""

_SCHEMA = "".join(f", Tensor{'' if name[1:] in ('_in_weight', '_out_weight') else '?'} {name}" for name in PARAMETERS)
_OPTIONS = ", bool outgoing, bool gate_first, float eps, int precision"


def _reference_declines(x: Tensor, precision: int, low_memory: bool = False) -> str | None:
    if low_memory:
        return "plain torch holds every intermediate: pass low_memory=False"
    if precision and x.device.type != "cpu" and x.dtype == torch.float32:
        return "plain torch multiplies as torch is set; pass precision=None"
    return None


# --- backward ------------------------------------------------------------------------------------------------------


def _normalise(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x - mean) / sqrt(variance + eps) over the last dimension, and 1 / sqrt(variance + eps)."""
    centred = x - x.mean(-1, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    return centred * scale, scale


def _normalise_backward(grad: Tensor, normal: Tensor, scale: Tensor) -> Tensor:
    """The gradient of x from that of its normalised values."""
    return scale * (grad - grad.mean(-1, keepdim=True) - normal * (grad * normal).mean(-1, keepdim=True))


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def gradients(
    grad: Tensor,
    x: Tensor,
    mask: Tensor | None,
    *parameters: Tensor | None,
    outgoing: bool,
    gate_first: bool,
    eps: float,
) -> tuple[Tensor, ...]:
    """The gradients of x and the parameters, written out: what the kernels compute, and differentiable itself.

    Names as in the op's docstring; a gradient's name is its tensor's with d in
    front. The gradient of a parameter that is None is an empty tensor.
    """
    working = result_dtype(x.dtype)
    gamma_1, beta_1, w_p, b_p, w_g, b_g, gamma_2, beta_2, w_o, b_o, w_q, b_q = (
        None if value is None else value.to(working) for value in parameters
    )
    assert w_p is not None and w_g is not None and w_o is not None and w_q is not None
    dy, m = grad.to(working), None if mask is None else mask[..., None]

    def total(values: Tensor) -> Tensor:  # over all pairs
        return values.flatten(0, -2).sum(0)

    def outer(left: Tensor, right: Tensor) -> Tensor:  # sum over all pairs of left right^T
        return left.flatten(0, -2).transpose(0, 1) @ right.flatten(0, -2)

    # forward, again
    x_normal, x_scale = _normalise(x.to(working), eps)
    h = _affine(x_normal, gamma_1, beta_1)  # [B, N, N, C]
    p, g = torch.nn.functional.linear(h, w_p, b_p), torch.nn.functional.linear(h, w_g, b_g).sigmoid()  # [B, N, N, 2D]
    ab = p * g if m is None else p * g * m
    a, b = (value.permute(0, 3, 1, 2) for value in ab.chunk(2, -1))  # [B, D, N, N]
    t = a @ b.transpose(2, 3) if outgoing else a.transpose(2, 3) @ b  # [B, D, N, N]
    t_normal, t_scale = _normalise(t.permute(0, 2, 3, 1), eps)
    n = _affine(t_normal, gamma_2, beta_2)  # [B, N, N, D]
    q = torch.nn.functional.linear(h, w_q, b_q).sigmoid()  # [B, N, N, C], or D if gate_first

    # y = q (n W_o + b_o), or (q n) W_o + b_o
    if gate_first:
        do, dn_gated = dy, dy @ w_o  # of the projection's result, and of q n
        dn, dq = dn_gated * q, dn_gated * n
        dw_o = outer(do, q * n)
    else:
        do, dq = dy * q, dy * torch.nn.functional.linear(n, w_o, b_o)
        dn = do @ w_o
        dw_o = outer(do, n)
    dq = dq * q * (1 - q)  # of the logits
    dt = _normalise_backward(dn if gamma_2 is None else dn * gamma_2, t_normal, t_scale).permute(0, 3, 1, 2)
    if outgoing:
        da, db = dt @ b, dt.transpose(2, 3) @ a
    else:
        da, db = b @ dt.transpose(2, 3), a @ dt
    dab = torch.cat([da, db], 1).permute(0, 2, 3, 1)  # [B, N, N, 2D]
    dab = dab if m is None else dab * m
    dp, dg = dab * g, dab * p * g * (1 - g)
    dh = dp @ w_p + dg @ w_g + dq @ w_q
    dx = _normalise_backward(dh if gamma_1 is None else dh * gamma_1, x_normal, x_scale)
    found = (
        total(dh * x_normal), total(dh), outer(dp, h), total(dp), outer(dg, h), total(dg),
        total(dn * t_normal), total(dn), dw_o, total(do), outer(dq, h), total(dq),
    )  # fmt: skip
    return dx.to(x.dtype), *(
        x.new_empty(0) if parameter is None else value.to(parameter.dtype)
        for value, parameter in zip(found, parameters, strict=True)
    )


def _backward_reference(grad: Tensor, t: Tensor, x: Tensor, mask: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    *parameters, outgoing, gate_first, eps, _ = rest
    found = gradients(grad, x, mask, *parameters, outgoing=outgoing, gate_first=gate_first, eps=eps)
    return tuple(value.contiguous() for value in found)


def _backward_fake(grad: Tensor, t: Tensor, x: Tensor, mask: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    return x.new_empty(x.shape), *(
        x.new_empty(0) if value is None else value.new_empty(value.shape) for value in rest[: len(PARAMETERS)]
    )


def _backward_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.outgoing, ctx.gate_first, ctx.eps, _ = inputs
    del tensors[1]  # t is a function of x and the parameters
    ctx.save_for_backward(*tensors)


def _second_derivative(ctx: Any, *tangents: Tensor) -> tuple[Any, ...]:
    """torch's derivative of the gradients as written out above."""
    grad, x, mask, *parameters = ctx.saved_tensors
    given = [value for value in parameters if value is not None]

    def function(grad: Tensor, x: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        left = iter(given)
        filled = [None if value is None else next(left) for value in parameters]
        return gradients(grad, x, mask, *filled, outgoing=ctx.outgoing, gate_first=ctx.gate_first, eps=ctx.eps)

    pull: Any = torch.func.vjp(function, grad, x, *given)[1]
    d_grad, d_x, *found = pull(tangents)
    left = iter(found)
    filled = [None if value is None else next(left) for value in parameters]
    return d_grad, None, d_x, None, *filled, None, None, None, None


backward_op: Any = define(
    "triangle_multiplication_backward",
    f"(Tensor grad, Tensor t, Tensor x, Tensor? mask{_SCHEMA}{_OPTIONS}) -> ({', '.join(['Tensor'] * 13)})",
    {
        "reference": plain(_backward_reference, lambda grad, t, x, *rest: _reference_declines(x, rest[-1])),
        "native": native("triangle_multiplication_backward"),
        "triton": triton("triangle_multiplication", "triangle_multiplication_backward"),
    },
    fake=_backward_fake,
    save=_backward_save,
    backward=_second_derivative,
    batched=lambda *arguments: fold_or_loop(backward_op)(*arguments),
    autocast=(),
)


# --- forward -------------------------------------------------------------------------------------------------------


def _reference(x: Tensor, mask: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    *parameters, outgoing, gate_first, eps, _, keep, _ = rest
    direction = DIRECTIONS[not outgoing]
    named: Any = dict(zip(PARAMETERS, parameters, strict=True))
    out = reference_update(x, direction, mask, **named, eps=eps, gate_position=GATE_POSITIONS[gate_first])
    if not keep:
        return out.contiguous(), x.new_empty(0)
    norm_in_weight, norm_in_bias, p_in_weight, p_in_bias, g_in_weight, g_in_bias = parameters[:6]
    h = layer_norm(x, norm_in_weight, norm_in_bias, eps)
    a, b = (linear(h, g_in_weight, g_in_bias).sigmoid() * linear(h, p_in_weight, p_in_bias)).chunk(2, -1)
    return out.contiguous(), reference_contract(a, b, direction, mask).permute(0, 3, 1, 2).contiguous()


def _t_shape(x: Tensor, p_out_weight: Tensor) -> tuple[int, ...]:
    return (x.shape[0], p_out_weight.shape[1], x.shape[1], x.shape[2])


def _fake(x: Tensor, mask: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(_t_shape(x, rest[8]) if rest[-2] else 0)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.outgoing, ctx.gate_first, ctx.eps, ctx.precision, _, _ = inputs
    ctx.save_for_backward(output[1], *tensors)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # or t would get a gradient of zeros


def _derivative(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    t, x, mask, *parameters = ctx.saved_tensors
    options = ctx.outgoing, ctx.gate_first, ctx.eps, ctx.precision
    if grad is None:
        return (None,) * (len(parameters) + 8)
    if t.dim() == 1:  # it was not kept: no gradient seemed to be recorded
        t = update_op(x, mask, *parameters, *options, True, False)[1]
    grad_x, *found = backward_op(grad, t, x, mask, *parameters, *options)
    filled = [None if value is None else gradient for value, gradient in zip(parameters, found, strict=True)]
    return grad_x, None, *filled, None, None, None, None, None, None


update_op: Any = define(
    "triangle_multiplication",
    f"(Tensor x, Tensor? mask{_SCHEMA}{_OPTIONS}, bool keep, bool low_memory) -> (Tensor, Tensor)",
    {
        "reference": plain(_reference, lambda x, *rest: _reference_declines(x, rest[-3], rest[-1])),
        "native": native("triangle_multiplication"),
        "triton": triton("triangle_multiplication", "triangle_multiplication"),
    },
    fake=_fake,
    save=_save,
    backward=_derivative,
    batched=lambda *arguments: fold_or_loop(update_op, (0, 1))(*arguments),
    autocast=(0,),
)


# --- the public function -------------------------------------------------------------------------------------------


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
    r"""AlphaFold2's triangle multiplicative update of a pair representation.

    .. math::
        h &= \mathrm{LN}(x), \qquad a, b = m \odot \sigma(W_g h + b_g) \odot (W_p h + b_p) \\
        t_{ij} &= \sum_k a_{ik} \odot b_{jk} \;\text{(outgoing)}, \quad
                  \sum_k a_{ki} \odot b_{kj} \;\text{(incoming)} \\
        y &= \sigma(W_q h + b_q) \odot (W_o \mathrm{LN}(t) + b_o)

    With ``gate_position="before_projection"`` the gate has the hidden width:
    :math:`y = W_o (\sigma(W_q h + b_q) \odot \mathrm{LN}(t)) + b_o`.

    Args:
        x: pair representation ``[*, N, N, C]``, float16, bfloat16, float32 or float64; any leading dimensions, any N.
        direction: ``"outgoing"`` (Algorithm 11) or ``"incoming"`` (Algorithm 12).
        mask: m, ``[*, N, N]``, bool or floating, 1 = keep. It multiplies a and b, not the result, and takes no
            gradient.
        norm_in_weight, norm_in_bias: ``[C]``; None means 1 and 0.
        p_in_weight, g_in_weight: ``[2D, C]``, the rows of a, then those of b; required.
        p_in_bias, g_in_bias: ``[2D]`` or None.
        norm_out_weight, norm_out_bias: ``[D]``; None means 1 and 0.
        p_out_weight: ``[C, D]``; required.
        p_out_bias: ``[C]`` or None.
        g_out_weight: ``[C, C]``, with ``gate_position="before_projection"`` ``[D, C]``; required.
        g_out_bias: ``[C]``, or ``[D]``, or None.
        eps: added to the variance in both normalisations.
        precision: how float32 matrices are multiplied: ``"ieee"``, ``"tf32"``, ``"tf32x3"``, or None for torch's own
            setting. The CPU has IEEE alone and refuses the others; 16-bit x meets any of them.
        gate_position: ``"after_projection"`` (AlphaFold2 and 3) or ``"before_projection"``.
        low_memory: bound the memory beyond x and the result to N^2 C / 2 elements (for D up to C), at some cost in time
            on a GPU and none on a CPU. Only where no gradient is recorded.

    The parameters have x's dtype, or float32 beside a 16-bit x. Sums and both normalisations are float32 at least, and
    the result has x's dtype. Under autocast x is taken in autocast's dtype; a float32 x less the mean of its row, which
    the normalisation takes off in any case, so that it loses no more digits than if it were normalised first. Between
    the kernels a, b and t have x's dtype: in float16, as in plain torch, a t beyond 65504 is infinite, and what it
    touches NaN (bfloat16 has float32's range).

    Returns:
        y, ``[*, N, N, C]``.

    Differentiable in x and all parameters; twice too, the second time through plain torch, which is slow and takes the
    memory of the definition. Gradients are summed in a fixed order: two runs agree bit for bit.

    Raises:
        TypeError: not tensors, or of the wrong dtype.
        ValueError: pair dimensions not square; a shape or device that does not fit, naming the argument; a missing
            projection; an unknown direction, precision or gate position; a precision that x's device does not have; a
            mask that requires a gradient; ``low_memory`` where a gradient is recorded.

    Source:
        Jumper et al., Nature 596 (2021), supplement, Algorithms 11 and 12. Arguments as in cuequivariance_torch;
        ``before_projection`` as in the GPU MODE "trimul" problem.

    Cost:
        Operations 2 N^3 D + 2 N^2 (4 C D + C D + C C). Saved for backward: x and t, one ``[N, N, D]`` in x's dtype.
        Peak beyond input and result: three such tensors at most.

    Example:
        >>> import torch, paperops
        >>> x, c = torch.randn(1, 5, 5, 8), 8
        >>> weights = dict(p_in_weight=torch.randn(2 * c, c), g_in_weight=torch.randn(2 * c, c))
        >>> weights |= dict(p_out_weight=torch.randn(c, c), g_out_weight=torch.randn(c, c))
        >>> paperops.triangle_multiplicative_update(x, "incoming", **weights).shape
        torch.Size([1, 5, 5, 8])
    """
    x = _checks.pair("x", x)
    channels = x.shape[-1]
    if channels == 0:
        raise ValueError("x must have at least 1 channel; got 0")
    _checks.choice("direction", direction, DIRECTIONS)
    _checks.choice("gate_position", gate_position, GATE_POSITIONS)
    _checks.flag("low_memory", low_memory)
    gate_first = gate_position == "before_projection"
    parameters = (
        norm_in_weight, norm_in_bias, p_in_weight, p_in_bias, g_in_weight, g_in_bias,
        norm_out_weight, norm_out_bias, p_out_weight, p_out_bias, g_out_weight, g_out_bias,
    )  # fmt: skip
    _check_parameters(x, parameters, gate_first)
    mask = _checks.pair_mask("mask", mask, x)
    keep = torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in (x, *parameters))
    if keep and low_memory:
        raise ValueError("low_memory keeps nothing for a backward pass: call under torch.no_grad(), or leave it False")
    options = direction == "outgoing", gate_first, _checks.positive_number("eps", eps), _checks.precision(precision, x)
    working = _checks.working_dtype(x)
    if x.dtype == torch.float32 != working:  # autocast will round x: to an error of its spread, not of its mean
        x = (x - x.mean(-1, keepdim=True)).to(working)
    flat = x.reshape(math.prod(x.shape[:-3]), *x.shape[-3:])  # [B, N, N, C]
    out = update_op(flat, mask, *parameters, *options, keep, low_memory)[0]
    return out.reshape(x.shape)


def _check_parameters(x: Tensor, parameters: tuple[Tensor | None, ...], gate_first: bool) -> None:
    """Shapes, dtypes and devices; the hidden width D is p_out_weight's."""
    named = dict(zip(PARAMETERS, parameters, strict=True))
    for name in ("p_in_weight", "g_in_weight", "p_out_weight", "g_out_weight"):
        if named[name] is None:
            raise ValueError(f"{name} is required; got None")
        _checks.tensor(name, named[name])
    p_out_weight = named["p_out_weight"]
    assert p_out_weight is not None
    channels = x.shape[-1]
    if p_out_weight.dim() != 2 or p_out_weight.shape[1] == 0:
        raise ValueError(
            f"p_out_weight must have shape [{channels}, D], the channels of x by the hidden width; "
            f"got {list(p_out_weight.shape)}"
        )
    hidden = p_out_weight.shape[1]
    gate = hidden if gate_first else channels
    shapes: tuple[tuple[tuple[int, ...], str], ...] = (
        ((channels,), "the channels of x"),
        ((channels,), "the channels of x"),
        ((2 * hidden, channels), "twice the hidden width by the channels of x"),
        ((2 * hidden,), "twice the hidden width"),
        ((2 * hidden, channels), "twice the hidden width by the channels of x"),
        ((2 * hidden,), "twice the hidden width"),
        ((hidden,), "the hidden width"),
        ((hidden,), "the hidden width"),
        ((channels, hidden), "the channels of x by the hidden width"),
        ((channels,), "the channels of x"),
        ((gate, channels), ("the hidden width" if gate_first else "the channels of x") + " by the channels of x"),
        ((gate,), "the hidden width" if gate_first else "the channels of x"),
    )
    working = _checks.working_dtype(x)
    dtypes, device = (working, result_dtype(working)), x.device
    for (name, value), (shape, what) in zip(named.items(), shapes, strict=True):
        if isinstance(value, Tensor) and not value.is_nested and value.layout is torch.strided:
            if value.shape == shape and value.dtype in dtypes and value.device == device:
                continue  # the usual case, at little cost
        _checks.parameter(name, value, shape, what, x)

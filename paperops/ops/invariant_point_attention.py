"""AlphaFold2's invariant point attention, exact and streamed.

The dispatcher's op takes points in global coordinates and gives all means in float32 at least, those of value points
less the query's translation; what lies between that and local frames is plain torch, and so are the gradients of
rotations and translations.
"""

from __future__ import annotations

import importlib
import math
from typing import Any

import torch
from torch import Tensor

from paperops.ops import _checks
from paperops.ops._define import define, fold_or_loop, native, plain, triton
from paperops.reference.invariant_point_attention import IPA
from paperops.reference.nearest import result_dtype

_INPUTS = (
    "Tensor q, Tensor k, Tensor v, Tensor q_points, Tensor k_points, Tensor v_points, Tensor z, Tensor centres, "
    "Tensor point_weights, Tensor? bias, Tensor? bias_weight, Tensor? bias_bias, Tensor? mask, float inf"
)
_BATCHED = (0, 1, 2, 3, 4, 5, 6, 7, 9, 12)  # of these, those with a leading batch dimension

W_L = math.sqrt(1 / 3)


def _logits(
    q: Tensor, k: Tensor, q_points: Tensor, k_points: Tensor, z: Tensor, point_weights: Tensor, bias: Tensor | None,
    bias_weight: Tensor | None, bias_bias: Tensor | None, mask: Tensor | None, inf: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Logits [B, H, N, N], all of T, and the squared distances [B, H, N, N] in them."""
    difference = q_points[:, :, None] - k_points[:, None]  # [B, N, N, H, Pq, 3]
    distance = difference.square().sum((-1, -2)).permute(0, 3, 1, 2)
    if bias is None:
        assert bias_weight is not None
        bias = torch.nn.functional.linear(z, bias_weight, bias_bias)
    content = torch.einsum("bihc,bjhc->bhij", q, k) / math.sqrt(q.shape[3]) + bias.permute(0, 3, 1, 2)
    logits = W_L * content - point_weights[:, None, None] * distance
    if mask is not None:
        gone = ~(mask[:, :, None] & mask[:, None])[:, None]  # [B, 1, N, N]
        logits = logits.masked_fill(gone, -math.inf) if math.isinf(inf) else logits - inf * gone.to(logits.dtype)
    return logits, distance


def _softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Weights over the last dimension, 0 where all logits are -inf, and logsumexp, which is then inf."""
    empty = (logits == -math.inf).all(-1, keepdim=True)
    logits = logits.masked_fill(empty, 0)
    lse = torch.logsumexp(logits, -1, keepdim=True).masked_fill(empty, math.inf)
    return torch.softmax(logits, -1).masked_fill(empty, 0), lse[..., 0]


def _wide(*values: Tensor | None) -> list[Any]:
    return [None if value is None else value.to(result_dtype(value.dtype)) for value in values]


def _near_origin(v_points: Tensor, centres: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both less the mean of the centres that count: only their differences do, and small numbers lose fewer digits."""
    if centres.shape[1] == 0:
        return v_points, centres
    if mask is None:
        origin = centres.mean(1, keepdim=True)  # [B, 1, 3]
    else:
        total = torch.where(mask[..., None], centres, 0).sum(1, keepdim=True)
        origin = total / mask.sum(1).clamp(min=1).to(total.dtype)[:, None, None]
    return v_points - origin[:, :, None, None], centres - origin


def _reference(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    q_points, k_points, v_points, z, centres, point_weights, *bias, mask, inf = rest
    q, k, v, z = _wide(q, k, v, z)
    given, weight, constant = _wide(*bias)
    logits, _ = _logits(q, k, q_points, k_points, z, point_weights, given, weight, constant, mask, inf)
    weights, lse = _softmax(logits)
    v_points, centres = _near_origin(v_points, centres, mask)
    reached = torch.einsum("bhij,bjhpx->bihpx", weights, v_points)
    total = weights.sum(-1).transpose(1, 2)[..., None, None]  # 1, or 0 in an empty row
    o_points = reached - total * centres[:, :, None, None]
    o, o_pair = torch.einsum("bhij,bjhc->bihc", weights, v), torch.einsum("bhij,bijc->bihc", weights, z)
    return o.contiguous(), o_points.contiguous(), o_pair.contiguous(), lse.contiguous()


def _fake(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    _, _, v_points, z, centres, *_ = rest
    b, n, h, c = q.shape
    shapes = (b, n, h, c), v_points.shape, (b, n, h, z.shape[3]), (b, h, n)
    return tuple(centres.new_empty(shape) for shape in shapes)


# --- backward ------------------------------------------------------------------------------------------------------


def gradients(
    do: Tensor, do_points: Tensor, do_pair: Tensor, delta: Tensor, q: Tensor, k: Tensor, v: Tensor, q_points: Tensor,
    k_points: Tensor, v_points: Tensor, z: Tensor, centres: Tensor, point_weights: Tensor, bias: Tensor | None,
    bias_weight: Tensor | None, bias_bias: Tensor | None, mask: Tensor | None, inf: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The gradients of all inputs but centres and mask, written out: what the kernels compute, differentiable itself.

    delta [B, H, N] is the sum over all outputs of a query and head of output times gradient. A gradient's name is its
    tensor's with d in front; the gradient of an input that is None is an empty tensor.
    """
    given = (q, k, v, q_points, k_points, v_points, z, bias, bias_weight, bias_bias, point_weights)
    q, k, v, z = _wide(q, k, v, z)
    bias, bias_weight, bias_bias = _wide(bias, bias_weight, bias_bias)
    logits, distance = _logits(q, k, q_points, k_points, z, point_weights, bias, bias_weight, bias_bias, mask, inf)
    a, _ = _softmax(logits)  # [B, H, N, N]
    v_points, centres = _near_origin(v_points, centres, mask)
    da = torch.einsum("bihc,bjhc->bhij", do, v) + torch.einsum("bihc,bijc->bhij", do_pair, z)
    da = da + torch.einsum("bihpx,bjhpx->bhij", do_points, v_points)
    da = da - torch.einsum("bihpx,bix->bhi", do_points, centres)[..., None]
    ds = a * (da - delta[..., None])  # of the logits
    dv, dv_points = torch.einsum("bhij,bihc->bjhc", a, do), torch.einsum("bhij,bihpx->bjhpx", a, do_points)
    scale = W_L / math.sqrt(q.shape[3])
    dq, dk = torch.einsum("bhij,bjhc->bihc", ds, k) * scale, torch.einsum("bhij,bihc->bjhc", ds, q) * scale
    # of the distance, - point_weights |q_i - k_j|^2
    spread = -2 * point_weights[:, None, None] * ds
    difference = q_points[:, :, None] - k_points[:, None]  # [B, N, N, H, Pq, 3]
    dq_points = torch.einsum("bhij,bijhpx->bihpx", spread, difference)
    dk_points = -torch.einsum("bhij,bijhpx->bjhpx", spread, difference)
    dpoint_weights = -(ds * distance).sum((0, 2, 3))
    dbias = W_L * ds.permute(0, 2, 3, 1)  # [B, N, N, H]
    dz = torch.einsum("bhij,bihc->bijc", a, do_pair)
    dbias_weight = dbias_bias = None
    if bias is None:
        assert bias_weight is not None
        dz = dz + dbias @ bias_weight
        dbias_weight, dbias_bias = torch.einsum("bijh,bijc->hc", dbias, z), dbias.sum((0, 1, 2))
    found = (dq, dk, dv, dq_points, dk_points, dv_points, dz, dbias, dbias_weight, dbias_bias, dpoint_weights)
    return tuple(
        q.new_empty(0) if value is None or gradient is None else gradient.to(value.dtype)
        for value, gradient in zip(given, found, strict=True)
    )


def _backward_reference(do: Tensor, do_points: Tensor, do_pair: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    delta, _, *inputs = rest
    return tuple(value.contiguous() for value in gradients(do, do_points, do_pair, delta, *inputs))


def _backward_fake(do: Tensor, do_points: Tensor, do_pair: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    q, k, v, q_points, k_points, v_points, z, _, point_weights, *bias, _, _ = rest[2:]
    given = (q, k, v, q_points, k_points, v_points, z, *bias, point_weights)
    return tuple(q.new_empty(0) if value is None else value.new_empty(value.shape) for value in given)


def _backward_save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.inf = inputs
    del tensors[4]  # the logsumexp is a function of the other inputs
    ctx.save_for_backward(*tensors)


def _second_derivative(ctx: Any, *tangents: Tensor) -> tuple[Any, ...]:
    """torch's derivative of the gradients as written out above."""
    tensors = ctx.saved_tensors
    free = [number for number, value in enumerate(tensors) if value is not None and value.is_floating_point()]

    def function(*given: Tensor) -> tuple[Tensor, ...]:
        filled = list(tensors)
        for number, value in zip(free, given, strict=True):
            filled[number] = value
        return gradients(*filled, ctx.inf)  # type: ignore[call-arg]

    pull: Any = torch.func.vjp(function, *(tensors[number] for number in free))[1]
    found: list[Any] = [None] * len(tensors)
    for number, value in zip(free, pull(tangents), strict=True):
        found[number] = value
    return *found[:4], None, *found[4:], None


def _triton_declines(values: Tensor, *rest: Any) -> str | None:
    """Of q, or of the gradient of o, which is float64 where q is."""
    if values.dtype != torch.float64:
        return None
    return importlib.import_module("paperops.kernels.invariant_point_attention_plans").float64_is_missing()


backward_op: Any = define(
    "invariant_point_attention_backward",
    f"(Tensor grad_o, Tensor grad_o_points, Tensor grad_o_pair, Tensor delta, Tensor lse, {_INPUTS}) "
    f"-> ({', '.join(['Tensor'] * 11)})",
    {
        "reference": plain(_backward_reference),
        "native": native("invariant_point_attention_backward"),
        "triton": triton("invariant_point_attention", "invariant_point_attention_backward", _triton_declines),
    },
    fake=_backward_fake,
    save=_backward_save,
    backward=_second_derivative,
    batched=lambda *arguments: fold_or_loop(backward_op)(*arguments),
    autocast=(),
)


# --- forward -------------------------------------------------------------------------------------------------------


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.inf = inputs
    ctx.save_for_backward(*output, *tensors)
    ctx.mark_non_differentiable(output[3])


def _derivative(ctx: Any, do: Tensor, do_points: Tensor, do_pair: Tensor, _: Any) -> tuple[Any, ...]:
    o, o_points, o_pair, lse, *tensors = ctx.saved_tensors
    delta = (do_points * o_points).sum((-1, -2)) + (do * o).sum(-1) + (do_pair * o_pair).sum(-1)
    delta = delta.transpose(1, 2).contiguous()  # [B, H, N]
    *found, dpoint_weights = backward_op(do, do_points, do_pair, delta, lse, *tensors, ctx.inf)
    # A query's means were taken less its centre, but where there was nothing to take a mean of.
    dcentres = -(do_points.sum(3) * (lse != math.inf).transpose(1, 2)[..., None].to(lse.dtype)).sum(2)
    dbias = (None if value is None else found[7 + number] for number, value in enumerate(tensors[9:12]))
    return *found[:7], dcentres, dpoint_weights, *dbias, None, None


attention_op: Any = define(
    "invariant_point_attention",
    f"({_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor)",
    {
        "reference": plain(_reference),
        "native": native("invariant_point_attention"),
        "triton": triton("invariant_point_attention", "invariant_point_attention", _triton_declines),
    },
    fake=_fake,
    save=_save,
    backward=_derivative,
    batched=lambda *arguments: fold_or_loop(attention_op, _BATCHED)(*arguments),
    autocast=(0, 1, 2, 6, 9),
)


# --- the public function -------------------------------------------------------------------------------------------


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
    r"""AlphaFold2's invariant point attention, exact, without an N x N tensor per head.

    .. math::
        a_{ij} &= \mathrm{softmax}_j\Big( w_L \Big( \tfrac{1}{\sqrt{C}} q_i \cdot k_j + b_{ij}
                  - \tfrac{\gamma w_C}{2} \sum_p |T_i \circ \vec q_{ip} - T_j \circ \vec k_{jp}|^2 \Big)\Big) \\
        o_i &= \sum_j a_{ij} v_j, \qquad
        \vec o_{ip} = T_i^{-1} \circ \sum_j a_{ij} (T_j \circ \vec v_{jp}), \qquad
        \tilde o_i = \sum_j a_{ij} z_{ij}

    for each head, with :math:`\gamma` = softplus(head_weights), :math:`w_L = \sqrt{1/3}`,
    :math:`w_C = \sqrt{2 / (9 P_q)}` and T = (rotations, translations).

    Args:
        q, k, v: ``[B, N, H, C]``, of one dtype: float16, bfloat16, float32 or float64.
        q_points, k_points: ``[B, N, H, Pq, 3]``, in the local frame of their residue.
        v_points: ``[B, N, H, Pv, 3]``, likewise.
        z: pair representation ``[B, N, N, Cz]``, of q's dtype.
        rotations, translations: the residues' frames, ``[B, N, 3, 3]`` and ``[B, N, 3]``; the unit of length is the
            caller's (AlphaFold2: 10 A).
        head_weights: ``[H]``, before the softplus.
        bias: b, ``[B, N, N, H]``, of q's dtype or float32, but taken in q's dtype; or else
        bias_weight, bias_bias: ``[H, Cz]`` and ``[H]`` (or None): b is then z bias_weight^T + bias_bias, computed where
            z is read. Exactly one of bias and bias_weight must be given.
        mask: ``[B, N]``, bool or floating; a residue of mask 0 is masked, of any other value is not.
        inf: what ``finite_mask`` takes off the logit of a pair with a masked residue.
        eps: added to the square of a point before the root of its norm.
        finite_mask: False: a masked key does not exist; a masked query, or one without any key (all of whose logits
            are -inf), gives 0 and gets no gradient. What masked residues hold does not matter, NaN neither, but for z
            and bias, which must be finite. True: as AlphaFold2 has it, a masked query attends to everything, with
            logits less ``inf``.

    Points, frames and head_weights are of q's dtype, or float32 beside a 16-bit q, which is better. Under autocast q,
    k, v, z and bias are taken in autocast's dtype. Distances are differences, in float32 at least, and so are all sums.

    Returns:
        :class:`IPA` of o ``[B, N, H, C]`` and o_pair ``[B, N, H, Cz]`` in q's dtype, o_points ``[B, N, H, Pv, 3]`` (in
        the local frames) and o_point_norms ``[B, N, H, Pv]`` in float32 at least.

    Differentiable in everything but mask; twice too, the second time through plain torch, which takes the memory of the
    definition. Gradients are summed in a fixed order.

    Raises:
        TypeError: not tensors, or of the wrong dtype.
        ValueError: a shape or device that does not fit, naming the argument; both or neither of bias and bias_weight; a
            mask that requires a gradient; inf or eps that are not positive.

    Source:
        Jumper et al., Nature 596 (2021), supplement, Algorithm 22.

    Cost:
        B N^2 H (4 C + 9 Pq + 6 Pv + 4 Cz) floating-point operations, and three times as many in the backward pass. z is
        read once, in the backward pass twice, and its gradient written. Kept for that: the inputs, the results and a
        float32 for each residue and head.

    Example:
        >>> import torch, paperops
        >>> n, h = 6, 2
        >>> q, k, v = torch.randn(3, 1, n, h, 4)
        >>> points = torch.randn(3, 1, n, h, 5, 3)
        >>> frames = paperops.geometry.Frames.from_three_points(*torch.randn(3, 1, n, 3))
        >>> z, w = torch.randn(1, n, n, 8), torch.randn(h, 8)
        >>> ipa = paperops.invariant_point_attention(q, k, v, *points, z, *frames, torch.zeros(h), bias_weight=w)
        >>> ipa.o.shape, ipa.o_points.shape, ipa.o_pair.shape
        (torch.Size([1, 6, 2, 4]), torch.Size([1, 6, 2, 5, 3]), torch.Size([1, 6, 2, 8]))
    """
    _check(
        q, k, v, q_points, k_points, v_points, z, rotations, translations, head_weights, bias, bias_weight, bias_bias
    )  # fmt: skip
    valid = _checks.residue_mask("mask", mask, q.shape[:2], q, "q")
    inf, eps = _checks.positive_number("inf", inf), _checks.positive_number("eps", eps)
    _checks.flag("finite_mask", finite_mask)
    working = _checks.working_dtype(q)
    wide = result_dtype(working)
    if finite_mask and inf > torch.finfo(wide).max:
        raise ValueError(f"inf must be at most {torch.finfo(wide).max:.4g}, the largest of {wide}; got {inf}")
    if valid is not None and not finite_mask:  # what does not exist may hold anything
        gone = ~valid
        q, k, v, q_points, k_points, v_points, rotations, translations = (
            value.masked_fill(gone.reshape(*gone.shape, *(1,) * (value.dim() - 2)), 0)
            for value in (q, k, v, q_points, k_points, v_points, rotations, translations)
        )
    rotations, translations = rotations.to(wide), translations.to(wide)
    global_points = (_to_global(points.to(wide), rotations, translations) for points in (q_points, k_points, v_points))
    w_c = math.sqrt(2 / (9 * q_points.shape[3]))
    point_weights = torch.nn.functional.softplus(head_weights.to(wide)) * (W_L * w_c / 2)
    if bias is not None and bias.dtype != z.dtype:
        bias = bias.to(z.dtype)
    o, reached, o_pair, lse = attention_op(
        q, k, v, *global_points, z, translations, point_weights, bias, bias_weight, bias_bias, valid,
        inf if finite_mask else math.inf,
    )  # fmt: skip
    o_points = (rotations[:, :, None, None] * reached[..., None]).sum(-2)  # R^T x
    norms = torch.sqrt(o_points.square().sum(-1) + eps)
    if valid is not None and not finite_mask:
        norms = norms.masked_fill((lse == math.inf).transpose(1, 2)[..., None], 0)
    return IPA(o.to(working), o_points, norms, o_pair.to(working))


def _to_global(points: Tensor, rotations: Tensor, translations: Tensor) -> Tensor:
    """T o x for points [B, N, H, P, 3]."""
    return (rotations[:, :, None, None] * points[..., None, :]).sum(-1) + translations[:, :, None, None]


def _check(
    q: Tensor, k: Tensor, v: Tensor, q_points: Tensor, k_points: Tensor, v_points: Tensor, z: Tensor,
    rotations: Tensor, translations: Tensor, head_weights: Tensor, bias: Tensor | None, bias_weight: Tensor | None,
    bias_bias: Tensor | None,
) -> None:  # fmt: skip
    """Shapes, dtypes and devices."""
    _checks.heads("q", q)
    b, n, h, c = q.shape
    for name, value in (("k", k), ("v", v)):
        _checks.parameter(name, value, (b, n, h, c), "the shape of q", q, of="q", required=True, exact=True)
    for name, points in (("q_points", q_points), ("k_points", k_points), ("v_points", v_points)):
        _checks.tensor(name, points)
        if points.dim() != 5 or points.shape[3] == 0:
            raise ValueError(
                f"{name} must have shape [{b}, {n}, {h}, points, 3], of 1 point at least; got {list(points.shape)}"
            )
        count = (q_points if name == "k_points" else points).shape[3]
        what = "as many points as q_points" if name == "k_points" else "for each residue and head of q"
        _checks.parameter(name, points, (b, n, h, count, 3), what, q, of="q", required=True)
    _checks.pair("z", z)
    if z.shape[-1] == 0:
        raise ValueError("z must have at least 1 channel; got 0")
    shape = (b, n, n, z.shape[-1])
    _checks.parameter("z", z, shape, "a row for each pair of residues of q", q, of="q", required=True, exact=True)
    _checks.parameter("rotations", rotations, (b, n, 3, 3), "one for each residue of q", q, of="q", required=True)
    _checks.parameter("translations", translations, (b, n, 3), "one for each residue of q", q, of="q", required=True)
    _checks.parameter("head_weights", head_weights, (h,), "one for each head of q", q, of="q", required=True)
    if (bias is None) == (bias_weight is None):
        given = "neither" if bias is None else "both"
        raise ValueError(f"exactly one of bias and bias_weight must be given; got {given}")
    if bias is not None and bias_bias is not None:
        raise ValueError("bias_bias goes with bias_weight; got it with bias")
    _checks.parameter("bias", bias, (b, n, n, h), "a value for each pair of residues and head of q", q, of="q")
    _checks.parameter("bias_weight", bias_weight, (h, z.shape[-1]), "the heads of q by the channels of z", q, of="q")
    _checks.parameter("bias_bias", bias_bias, (h,), "one for each head of q", q, of="q")

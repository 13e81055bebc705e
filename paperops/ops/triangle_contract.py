"""The product inside the triangle multiplicative update, alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from paperops.ops import _checks
from paperops.ops._define import define, native, plain, triton
from paperops.reference.triangle_multiplication import triangle_contract as reference_triangle_contract

DIRECTIONS = ("outgoing", "incoming")


def _reference(a: Tensor, b: Tensor, mask: Tensor | None, outgoing: bool) -> Tensor:
    return reference_triangle_contract(a, b, DIRECTIONS[not outgoing], mask).contiguous()


def _fake(a: Tensor, b: Tensor, mask: Tensor | None, outgoing: bool) -> Tensor:
    return torch.empty_like(a, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b, mask, ctx.outgoing = inputs
    ctx.save_for_backward(a, b, mask)


def _derivative(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """The products of the gradient with the other factor are again such products, of transposed tensors."""
    a, b, mask = ctx.saved_tensors
    if mask is not None:
        weight = mask[..., None].to(a.dtype)
        a, b = a * weight, b * weight
    if ctx.outgoing:  # t_ij = sum_k a_ik b_jk
        grad_a = contract(grad, b.transpose(1, 2), None, True)  # sum_j g_ij b_jk
        grad_b = contract(grad, a, None, False)  # sum_i g_ij a_ik
    else:  # t_ij = sum_k a_ki b_kj
        grad_a = contract(b, grad, None, True)  # sum_j b_kj g_ij
        grad_b = contract(a, grad.transpose(1, 2), None, True)  # sum_i a_ki g_ij
    if mask is not None:
        grad_a, grad_b = grad_a * weight, grad_b * weight
    return grad_a, grad_b, None, None


contract = define(
    "triangle_contract",
    "(Tensor a, Tensor b, Tensor? mask, bool outgoing) -> Tensor",
    {
        "reference": plain(_reference),
        "native": native("triangle_contract"),
        "triton": triton("triangle_multiplication", "triangle_contract"),
    },
    fake=_fake,
    save=_save,
    backward=_derivative,
    autocast=(0, 1),
)


def triangle_contract(a: Tensor, b: Tensor, direction: str = "outgoing", mask: Tensor | None = None) -> Tensor:
    r"""The product over the third residue of two pair tensors, channel by channel.

    .. math:: t_{ij} = \sum_k a_{ik} b_{jk} \quad\text{(outgoing)}, \qquad t_{ij} = \sum_k a_{ki} b_{kj}
              \quad\text{(incoming)}

    with a and b multiplied by the mask first.

    Args:
        a: ``[*, N, N, D]``, float16, bfloat16, float32 or float64; any leading dimensions, any N, any D.
        b: of the same shape and dtype.
        direction: ``"outgoing"`` or ``"incoming"``.
        mask: ``[*, N, N]``, bool or floating, 1 = keep; it takes no gradient.

    Returns:
        ``[*, N, N, D]`` in the inputs' dtype; summed in float32, or float64 for float64. float32 follows torch's
        setting (``torch.set_float32_matmul_precision``); under autocast a and b are taken in its dtype.

    Differentiable any number of times in a and b. Two runs agree bit for bit.

    Raises:
        TypeError: not tensors, or not of one floating dtype.
        ValueError: pair dimensions not square, shapes or devices that differ, another direction.

    Source:
        Jumper et al., Nature 596 (2021), supplement, Algorithm 11 line 4 and Algorithm 12 line 4.

    Cost:
        2 N^3 D floating-point operations. Saves a, b and the mask for backward.

    Example:
        >>> import torch, paperops
        >>> a = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])  # N = 2, D = 1
        >>> paperops.triangle_contract(a, a).squeeze(-1)
        tensor([[ 5., 11.],
                [11., 25.]])
    """
    a, b = _checks.pair("a", a), _checks.pair("b", b)
    if a.shape != b.shape:
        raise ValueError(f"b must have the shape of a, {list(a.shape)}; got {list(b.shape)}")
    if _checks.working_dtype(a) != _checks.working_dtype(b):
        raise TypeError(f"b must have the dtype of a, {a.dtype}; got {b.dtype}")
    if a.device != b.device:
        raise ValueError(f"b must be on the device of a, {a.device}; got {b.device}")
    _checks.choice("direction", direction, DIRECTIONS)
    mask = _checks.pair_mask("mask", mask, a)
    batch = math.prod(a.shape[:-3])
    a4, b4 = (value.reshape(batch, *value.shape[-3:]) for value in (a, b))  # [B, N, N, D]
    return contract(a4, b4, mask, direction == "outgoing").reshape(a.shape)

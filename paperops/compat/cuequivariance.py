"""cuEquivariance's triangle multiplicative update, over paperops' op: ``cuequivariance_torch`` of its version 0.13.

Arguments, their order, defaults and the formula are the same. What holds beyond the library:

- the CPU and AMD GPUs (there: CUDA alone), and float64;
- any channels C and hidden width D >= 1 (there: multiples of 32), any N from 0, the same kernels for all of them;
- a mask of any floating dtype or bool, and of any shape that broadcasts to x's without its channels;
- second derivatives; sums in a fixed order, so that two runs agree bit for bit; no tuning, no cache of tuned settings;
- ``torch.compile`` needs no call before it (there: ``init_triton_cache()``).

What is accepted or done differently:

- ``precision="tf32"`` and ``"tf32x3"`` are refused, with ValueError, where they are not there: for float64, and on a
  CPU for float32;
- under autocast a float32 x is rounded to its dtype before the first normalisation, less the mean of its row (there:
  after it, since 0.13);
- the mask takes no gradient: one that requires it is refused;
- wrong shapes, dtypes and devices are ValueError or TypeError, before anything runs.
"""

from __future__ import annotations

import enum
import importlib.util
import math
from typing import Any

import torch
from torch import Tensor

from paperops import backends
from paperops.ops import _checks
from paperops.ops.triangle_multiplication import PARAMETERS
from paperops.ops.triangle_multiplication import triangle_multiplicative_update as paperops_update

__all__ = ["triangle_multiplicative_update"]

_PRECISIONS = ("default", "tf32", "tf32x3", "ieee")
"""The library's names of precisions, by the number that its enumeration gives them; also "none" and "bfloat16"."""

_HAS_TRITON = importlib.util.find_spec("triton") is not None


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
    precision: Any = None,
) -> Tensor:
    r"""Triangle multiplicative update: ``cuequivariance_torch.triangle_multiplicative_update``.

    :func:`paperops.triangle_multiplicative_update` has the formula.

    Args:
        x: pair representation ``[*, N, N, C]``, any leading dimensions, none too.
        direction: ``"outgoing"`` or ``"incoming"``.
        mask: ``[*, N, N]``, 1 = keep. It multiplies a and b, as there ("masking the output" in its documentation is
            meant of the first stage).
        norm_in_weight, norm_in_bias: ``[C]``; None means 1 and 0.
        p_in_weight, g_in_weight: ``[2D, C]``, the rows of a, then those of b.
        p_in_bias, g_in_bias: ``[2D]``; None means 0.
        norm_out_weight, norm_out_bias: ``[D]``; None means 1 and 0.
        p_out_weight: ``[C, D]``.
        p_out_bias: ``[C]``; None means 0.
        g_out_weight: ``[C, C]``.
        g_out_bias: ``[C]``; None means 0.
        eps: added to the variance in both normalisations.
        precision: a member of the library's ``TriMulPrecision``, its name in any case, or its number. None, ``NONE``
            and ``DEFAULT``: for float32 on an NVIDIA GPU tf32 where torch allows it, tf32x3 where not (IEEE if only the
            definition is there); torch's own setting elsewhere. ``TF32``, ``TF32x3``, ``IEEE``: how float32 matrices
            are multiplied. ``"bfloat16"``: x, the mask and all weights and biases are rounded to bfloat16 first, and
            so is the result; gradients reach the float32 tensors.

    A projection's weight that is None is drawn at each call, from torch's generator, in the dtype in which x is worked
    on: a normal distribution of variance 1 / inputs, cut off at two deviations (LeCun's; so the documentation of the
    library's JAX function has it, that of this one leaves it open). It is good for trying out speed alone. D is then
    that of the weights that are there, or C.

    Returns:
        ``[*, N, N, C]``.

    Differentiable in x and all weights and biases. Wider than the library: see :mod:`paperops.compat.cuequivariance`.

    Raises:
        TypeError, ValueError: as :func:`paperops.triangle_multiplicative_update`; an unknown precision.

    Example:
        >>> import torch
        >>> from paperops.compat.cuequivariance import triangle_multiplicative_update
        >>> x, mask = torch.randn(1, 12, 12, 32), torch.ones(1, 12, 12)
        >>> triangle_multiplicative_update(x, direction="outgoing", mask=mask).shape
        torch.Size([1, 12, 12, 32])
    """
    _checks.pair("x", x)
    if mask is not None and _checks.tensor("mask", mask).shape != x.shape[:-1]:
        try:
            mask = mask.expand(x.shape[:-1])
        except RuntimeError:
            message = f"mask must have shape {list(x.shape[:-1])} or broadcast to it; got {list(mask.shape)}"
            raise ValueError(message) from None
    given = (
        norm_in_weight, norm_in_bias, p_in_weight, p_in_bias, g_in_weight, g_in_bias,
        norm_out_weight, norm_out_bias, p_out_weight, p_out_bias, g_out_weight, g_out_bias,
    )  # fmt: skip
    for what, value in zip(PARAMETERS, given):
        if value is not None:
            _checks.parameter_of_rank(what, value, 2 if what[1:] in ("_in_weight", "_out_weight") else 1)
    p_in_weight, g_in_weight, p_out_weight, g_out_weight = _drawn(
        x, p_in_weight, g_in_weight, p_out_weight, g_out_weight
    )
    tensors = [
        norm_in_weight, norm_in_bias, p_in_weight, p_in_bias, g_in_weight, g_in_bias,
        norm_out_weight, norm_out_bias, p_out_weight, p_out_bias, g_out_weight, g_out_bias,
    ]  # fmt: skip
    name = _precision_name(precision)
    _checks.pair_mask("mask", mask, x)
    if name == "bfloat16":
        name = "none"
        x, mask = x.bfloat16(), None if mask is None else mask.bfloat16()
        tensors = [None if value is None else value.bfloat16() for value in tensors]
    named: Any = dict(zip(PARAMETERS, tensors))
    return paperops_update(x, direction, mask, **named, eps=eps, precision=_precision(name, x))


def _drawn(x: Tensor, *weights: Tensor | None) -> list[Tensor]:
    """p_in, g_in, p_out and g_out, those that are None from a truncated normal distribution."""
    if all(weight is not None for weight in weights):
        return [weight for weight in weights if weight is not None]
    p_in, g_in, p_out, _ = weights
    c = x.shape[-1]
    d = next(
        (weight.shape[0] // 2 for weight in (p_in, g_in) if weight is not None), c if p_out is None else p_out.shape[-1]
    )
    shapes = ((2 * d, c), (2 * d, c), (c, d), (c, c))
    return [_lecun_normal(shape, x) if weight is None else weight for weight, shape in zip(weights, shapes)]


def _lecun_normal(shape: tuple[int, int], x: Tensor) -> Tensor:
    """Weights for x: a normal distribution cut off at two deviations, of variance 1 / inputs, by inverting erf."""
    uniform = 2 * torch.rand(shape, device=x.device) - 1  # [-1, 1)
    normal = math.sqrt(2) * torch.erfinv(math.erf(math.sqrt(2)) * uniform)
    deviation = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))
    return (normal / (deviation * math.sqrt(max(shape[1], 1)))).to(_checks.working_dtype(x))


def _precision_name(precision: object) -> str:
    """The precision's name in lower case."""
    allowed = ("none", *_PRECISIONS, "bfloat16")
    name: object = precision
    if precision is None:
        name = "none"
    elif isinstance(precision, enum.Enum):
        name = precision.name
    elif isinstance(precision, int) and not isinstance(precision, bool) and 0 <= precision < len(_PRECISIONS):
        name = _PRECISIONS[precision]
    if not isinstance(name, str) or name.lower() not in allowed:
        raise ValueError(f"precision must be None or one of {', '.join(allowed)}; got {precision!r}")
    return name.lower()


def _precision(name: str, x: Tensor) -> str | None:
    """What the op calls it: the library's default for float32 is tf32x3 where torch does not allow tf32."""
    if name not in ("none", "default"):
        return name
    on_nvidia = x.device.type == "cuda" and torch.version.hip is None
    if on_nvidia and _HAS_TRITON and backends.forced() != "reference" and _checks.working_dtype(x) == torch.float32:
        return None if _tf32_is_allowed() else "tf32x3"
    return None


@_checks.constant_when_compiled  # torch.compile cannot trace it, and compiles anew when torch's setting changes
def _tf32_is_allowed() -> bool:
    return torch.backends.cuda.matmul.fp32_precision == "tf32"

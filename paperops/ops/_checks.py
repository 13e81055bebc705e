"""Checks of arguments: each error names the argument, what was expected, and what came.

Values are looked at only where that costs nothing: tensors on the CPU, outside torch.compile. On other devices
kernels clamp lengths to the clouds they belong to, and NaN weights give NaN.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from paperops.reference.nearest import result_dtype

_Value = TypeVar("_Value")

_FLOATING_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_SIGNED = (torch.int64, torch.int32, torch.int16, torch.int8)
INTEGER_DTYPES = (*_SIGNED, torch.uint8, torch.uint16, torch.uint32, torch.uint64)


def constant_when_compiled(function: Callable[[], _Value]) -> Callable[[], _Value]:
    """As torch.compiler.assume_constant_result, which would import the compiler (a second) along with paperops."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def values_are_free(value: Tensor) -> bool:
    """Whether the values may be read without a synchronisation, a graph break or a functorch error."""
    if value.device.type != "cpu" or torch.compiler.is_compiling() or isinstance(value, torch._subclasses.FakeTensor):
        return False
    while torch._C._functorch.is_functorch_wrapped_tensor(value):
        if torch._C._functorch.is_batchedtensor(value):
            return False
        value = torch._C._functorch.get_unwrapped(value)
    return True


def autocast_unites(a: Tensor, b: Tensor) -> bool:
    """Whether autocast is on and takes both as float32."""
    return torch.is_autocast_enabled(a.device.type) and torch.float64 not in (a.dtype, b.dtype)


def tensor(name: str, value: object) -> Tensor:
    """``value`` if it is a dense tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor; got {type(value).__name__}")
    if value.layout is not torch.strided or value.is_nested:
        raise TypeError(f"{name} must be a dense tensor; got {'a nested one' if value.is_nested else value.layout}")
    return value


def _floating(name: str, value: Tensor) -> None:
    if value.dtype not in _FLOATING_DTYPES:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64; got {value.dtype}")


def clouds(x: Tensor, y: Tensor, names: tuple[str, str] = ("x", "y")) -> None:
    """x [B, N, D] and y [B, M, D]: of one floating dtype, on one device, D >= 1. ``names`` are the caller's."""
    for name, points in zip(names, (x, y), strict=True):
        tensor(name, points)
        if points.dim() != 3:
            raise ValueError(f"{name} must have shape [batch, points, dimensions]; got {list(points.shape)}")
        _floating(name, points)
    x_name, y_name = names
    x_shape, y_shape = x.shape, y.shape
    if x_shape[0] != y_shape[0]:
        raise ValueError(f"{y_name} must have the batch size of {x_name}, {x_shape[0]}; got {y_shape[0]}")
    if x_shape[2] != y_shape[2]:
        raise ValueError(f"{y_name} must have points of the dimension of {x_name}, {x_shape[2]}; got {y_shape[2]}")
    if x_shape[2] == 0:
        raise ValueError(f"{x_name} and {y_name} must have points of at least 1 dimension; got 0")
    if x.dtype != y.dtype and not autocast_unites(x, y):
        raise TypeError(f"{y_name} must have the dtype of {x_name}, {x.dtype}; got {y.dtype}")
    if x.device != y.device:
        raise ValueError(f"{y_name} must be on the device of {x_name}, {x.device}; got {y.device}")


def lengths(name: str, value: Tensor | None, points: Tensor) -> Tensor | None:
    """Lengths [B] of the clouds ``points`` [B, N, D], as int64."""
    if value is None:
        return None
    tensor(name, value)
    batch, limit, _ = points.shape
    if value.dtype not in INTEGER_DTYPES:
        raise TypeError(f"{name} must have an integer dtype; got {value.dtype}")
    if value.dim() != 1 or value.shape[0] != batch:
        raise ValueError(f"{name} must have shape [{batch}], one length a cloud; got {list(value.shape)}")
    if value.device != points.device:
        raise ValueError(f"{name} must be on the device of the points, {points.device}; got {value.device}")
    value = value.to(torch.int64)
    if batch and values_are_free(value):
        low, high = (int(bound) for bound in value.aminmax())
        if low < 0:
            raise ValueError(f"{name} must not be negative; got {low}")
        if high > limit:
            raise ValueError(f"{name} must be at most the number of points, {limit}; got {high}")
    return value


def weights(name: str, value: Tensor | None, shape: torch.Size, points: Tensor) -> Tensor | None:
    """Weights of the given shape, in the dtype of the points' distances: not negative, no NaN and no infinity."""
    if value is None:
        return None
    tensor(name, value)
    if not value.is_floating_point():
        raise TypeError(f"{name} must have a floating dtype; got {value.dtype}")
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}; got {list(value.shape)}")
    if value.device != points.device:
        raise ValueError(f"{name} must be on the device of the points, {points.device}; got {value.device}")
    value = value.to(result_dtype(points.dtype))
    if value.numel() and values_are_free(value):
        low, high = (float(bound) for bound in value.detach().aminmax())
        if not (low >= 0 and high < float("inf")):  # a NaN makes both NaN
            found = "NaN" if low != low else low if low < 0 else high
            raise ValueError(f"{name} must be finite and not negative; got {found}")
    return value


def normals(name: str, value: Tensor | None, points: Tensor) -> Tensor | None:
    """Normals of the points, of their shape, dtype and device."""
    if value is None:
        return None
    tensor(name, value)
    if value.shape != points.shape:
        raise ValueError(f"{name} must have the shape of the points, {list(points.shape)}; got {list(value.shape)}")
    if value.dtype != points.dtype and not autocast_unites(value, points):
        raise TypeError(f"{name} must have the dtype of the points, {points.dtype}; got {value.dtype}")
    if value.device != points.device:
        raise ValueError(f"{name} must be on the device of the points, {points.device}; got {value.device}")
    return value


def norm(value: object) -> None:
    """The int 1 or 2."""
    if not isinstance(value, int) or isinstance(value, bool) or value not in (1, 2):
        raise ValueError(f"norm must be 1 or 2; got {value!r}")


def choice(name: str, value: object, allowed: tuple[str | None, ...]) -> None:
    """One of the allowed words, or None where it is allowed."""
    if not (value is None or isinstance(value, str)) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}")


def flag(name: str, value: object) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False; got {value!r}")


def positive_int(name: str, value: object) -> int:
    """An integer of at least 1 and less than 2**31, numpy's among them."""
    if isinstance(value, bool) or not (isinstance(value, (int, torch.SymInt)) or hasattr(value, "__index__")):
        raise TypeError(f"{name} must be an int; got {type(value).__name__}")
    if isinstance(value, Tensor):
        raise TypeError(f"{name} must be an int; got a tensor")
    number: int = value if isinstance(value, (int, torch.SymInt)) else operator.index(value)  # type: ignore[assignment]
    if number < 1:
        raise ValueError(f"{name} must be at least 1; got {number}")
    if number >= 2**31:
        raise ValueError(f"{name} must be less than 2**31; got {number}")
    return number


def _as_float(value: numbers.Real) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def probability(name: str, value: object) -> float:
    """A number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number; got {type(value).__name__}")
    if not 0 <= value <= 1:  # type: ignore[operator]
        raise ValueError(f"{name} must be a probability, from 0 to 1; got {value}")
    return float(value)


def radius(value: object) -> float:
    """A finite number that is not negative."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"radius must be a number; got {type(value).__name__}")
    number = _as_float(value)
    if not 0 <= number < float("inf"):
        raise ValueError(f"radius must be finite and not negative; got {number}")
    return number


# --- pair representations ------------------------------------------------------------------------------------------

PRECISIONS = ("default", "tf32", "tf32x3", "ieee")
"""How a GPU multiplies float32 matrices; ops are given the position in this list. The first is torch's own setting."""


def pair(name: str, value: object) -> Tensor:
    """A pair tensor [*, N, N, C] of a floating dtype."""
    value = tensor(name, value)
    if value.dim() < 3:
        raise ValueError(f"{name} must have shape [*, N, N, channels]; got {list(value.shape)}")
    if value.shape[-3] != value.shape[-2]:
        raise ValueError(f"{name} must be square in its pair dimensions, [*, N, N, channels]; got {list(value.shape)}")
    _floating(name, value)
    return value


def working_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which an op that follows autocast takes x."""
    kind = x.device.type
    if x.dtype != torch.float64 and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


def mask_of(name: str, value: Tensor | None, shape: tuple[int, ...], what: str, x: Tensor, of: str) -> Tensor | None:
    """A mask of this shape on the device of x, which the caller calls ``of``: bool or floating, without a gradient."""
    if value is None:
        return None
    tensor(name, value)
    if value.dtype != torch.bool and value.dtype not in _FLOATING_DTYPES:
        raise TypeError(f"{name} must be bool or floating, 1 = keep; got {value.dtype}")
    if tuple(value.shape) != tuple(shape):
        raise ValueError(
            f"{name} must have shape {list(shape)}, one value a {what}: expand it; got {list(value.shape)}"
        )
    if value.device != x.device:
        raise ValueError(f"{name} must be on the device of {of}, {x.device}; got {value.device}")
    if value.requires_grad:
        raise ValueError(f"{name} takes no gradient: pass {name}.detach()")
    return value


def pair_mask(name: str, value: Tensor | None, x: Tensor) -> Tensor | None:
    """A mask [*, N, N] of the pair tensor x [*, N, N, C], as [B, N, N] in the dtype of sums over x."""
    value = mask_of(name, value, x.shape[:-1], "pair", x, "the pair tensor")
    if value is None:
        return None
    return value.to(result_dtype(x.dtype)).reshape(math.prod(x.shape[:-3]), *x.shape[-3:-1])


def parameter(
    name: str,
    value: Tensor | None,
    shape: tuple[int, ...],
    what: str,
    x: Tensor,
    *,
    of: str = "x",
    required: bool = False,
    exact: bool = False,
) -> None:
    """A tensor of this shape on the device of x, in the dtype that x is worked on in, or float32 beside halves.

    ``of`` is what the caller calls x; None is not allowed if ``required``, nor float32 beside halves if ``exact``.
    """
    if value is None and not required:
        return
    value = tensor(name, value)
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, {what}; got {list(value.shape)}")
    working = working_dtype(x)
    allowed = [working, result_dtype(working)]
    if working == allowed[1] or (exact and working == x.dtype):  # autocast makes one dtype of all
        allowed = [working]
    if value.dtype not in allowed:
        raise TypeError(
            f"{name} must have dtype {' or '.join(map(str, allowed))} for {of} of {x.dtype}; got {value.dtype}"
        )
    if value.device != x.device:
        raise ValueError(f"{name} must be on the device of {of}, {x.device}; got {value.device}")


def parameter_of_rank(name: str, value: object, rank: int) -> None:
    """A dense tensor of a floating dtype and so many dimensions."""
    value = tensor(name, value)
    _floating(name, value)
    if value.dim() != rank:
        raise ValueError(f"{name} must have {rank} dimension{'s' * (rank > 1)}; got {list(value.shape)}")


def precision(value: object, x: Tensor) -> int:
    """The position in PRECISIONS of what is asked for: ValueError where x cannot be multiplied so."""
    if value is None:
        return 0
    allowed = PRECISIONS[1:]
    if not isinstance(value, str) or value.lower() not in allowed:
        raise ValueError(f"precision must be None or one of {', '.join(map(repr, allowed))}; got {value!r}")
    number = PRECISIONS.index(value.lower())
    working = working_dtype(x)
    if working == torch.float32 and x.device.type == "cpu":
        if value.lower() != "ieee":
            raise ValueError(f"precision={value!r} is not there on a CPU: it multiplies in IEEE; pass None or 'ieee'")
        if _cpu_multiplies_in_less():
            raise ValueError(
                "precision='ieee' on a CPU is torch's setting, which allows less at present: "
                "torch.set_float32_matmul_precision('highest')"
            )
    if working == torch.float64 and value.lower() != "ieee":
        raise ValueError(f"precision={value!r} is less than float64 has; pass None or 'ieee'")
    return number


@constant_when_compiled  # torch.compile cannot trace it, and compiles anew when the setting changes
def _cpu_multiplies_in_less() -> bool:
    """Whether torch is allowed to multiply float32 matrices on a CPU in tf32 or bfloat16."""
    return torch.backends.mkldnn.matmul.fp32_precision in ("tf32", "bf16")  # type: ignore[attr-defined]


def positive_number(name: str, value: object) -> float:
    """A finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number; got {type(value).__name__}")
    number = _as_float(value)
    if not 0 < number < float("inf"):
        raise ValueError(f"{name} must be positive and finite; got {number}")
    return number


def finite_number(name: str, value: object) -> float:
    """A number that is neither infinite nor NaN."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number; got {type(value).__name__}")
    number = _as_float(value)
    if not -float("inf") < number < float("inf"):
        raise ValueError(f"{name} must be finite; got {number}")
    return number


# --- frames and points ---------------------------------------------------------------------------------------------


def vectors(name: str, value: object, size: int, what: str, like: tuple[str, Tensor] | None = None) -> Tensor:
    """Vectors [*, size] of a floating dtype; of the dtype and on the device of another tensor, where that is named."""
    value = tensor(name, value)
    if value.dim() < 1 or value.shape[-1] != size:
        raise ValueError(f"{name} must have shape [*, {size}], {what}; got {list(value.shape)}")
    _floating(name, value)
    if like is not None:
        other_name, other = like
        if value.dtype != other.dtype:
            raise TypeError(f"{name} must have the dtype of {other_name}, {other.dtype}; got {value.dtype}")
        if value.device != other.device:
            raise ValueError(f"{name} must be on the device of {other_name}, {other.device}; got {value.device}")
    return value


def frames(rotations_name: str, rotations: object, translations_name: str, translations: object) -> None:
    """Rotations [*, 3, 3] and translations [*, 3] of one floating dtype on one device."""
    rotations = vectors(rotations_name, rotations, 3, "3 x 3 matrices")
    if rotations.dim() < 2 or rotations.shape[-2] != 3:
        raise ValueError(f"{rotations_name} must have shape [*, 3, 3]; got {list(rotations.shape)}")
    translations = vectors(translations_name, translations, 3, "one point each", like=(rotations_name, rotations))
    if translations.shape[:-1] != rotations.shape[:-2]:
        raise ValueError(
            f"{translations_name} must have shape {list(rotations.shape[:-1])}, one for each of {rotations_name}; "
            f"got {list(translations.shape)}"
        )


# --- attention -----------------------------------------------------------------------------------------------------


def heads(name: str, value: object) -> Tensor:
    """A tensor [B, N, H, C] of a floating dtype, of at least one head and one channel."""
    value = tensor(name, value)
    if value.dim() != 4 or value.shape[2] == 0 or value.shape[3] == 0:
        raise ValueError(f"{name} must have shape [B, N, heads, channels], 1 each at least; got {list(value.shape)}")
    _floating(name, value)
    return value


def residue_mask(name: str, value: Tensor | None, shape: tuple[int, ...], x: Tensor, of: str) -> Tensor | None:
    """A mask of residues, beside x, which the caller calls ``of``, as bool."""
    value = mask_of(name, value, shape, "residue", x, of)
    return None if value is None else value != 0


def residue_numbers(
    name: str, value: object, shape: tuple[int, ...], x: Tensor, of: str, what: str = "number"
) -> Tensor:
    """Integers of this shape, beside x, which the caller calls ``of``; as int64."""
    value = tensor(name, value)
    if value.dtype not in INTEGER_DTYPES:
        raise TypeError(f"{name} must have an integer dtype; got {value.dtype}")
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {list(shape)}, one {what} a residue; got {list(value.shape)}")
    if value.device != x.device:
        raise ValueError(f"{name} must be on the device of {of}, {x.device}; got {value.device}")
    return value.to(torch.int64)


RESIDUE_TYPES = 21
"""AlphaFold2's: the twenty amino acids, and unknown."""


def residue_types(name: str, value: object, shape: tuple[int, ...], x: Tensor, of: str) -> Tensor:
    """Types of residues, integers from 0 to 20 of this shape, beside x, which the caller calls ``of``; as int64."""
    types = residue_numbers(name, value, shape, x, of, "type")
    if types.numel() and values_are_free(types):
        low, high = (int(bound) for bound in types.aminmax())
        if low < 0 or high >= RESIDUE_TYPES:
            found = low if low < 0 else high
            raise ValueError(f"{name} must be types of residues, from 0 to {RESIDUE_TYPES - 1}; got {found}")
    return types


def tolerance(name: str, value: object) -> float:
    """A finite number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number; got {type(value).__name__}")
    number = _as_float(value)
    if not 0 <= number < float("inf"):
        raise ValueError(f"{name} must be finite and not negative; got {number}")
    return number

"""In which types and precision kernels multiply and sum, on which hardware; for all families with matrix products."""

from typing import Any

import torch
import triton
import triton.language as tl

from .launch import Architecture, accumulator

PRECISIONS = ("", "tf32", "tf32x3", "ieee")  # by the op's argument `precision`; 0 is torch's own setting


def dot_precision(dtype: torch.dtype, precision: int, arch: Architecture) -> str:
    """tl.dot's `input_precision` for operands of this dtype, given the op's `precision`."""
    if dtype != torch.float32 or arch.vendor == "none":
        return "ieee"
    if precision:
        if arch.vendor != "nvidia" and PRECISIONS[precision] != "ieee":
            raise ValueError(f"precision {PRECISIONS[precision]!r} is not there on {arch.name}: pass 'ieee' or None")
        return PRECISIONS[precision]
    return "tf32" if arch.vendor == "nvidia" and library_precision() == "tf32" else "ieee"


def library_precision() -> str:
    """How torch multiplies float32 matrices on a GPU, as it is set now."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def operand_type(dtype: torch.dtype, arch: Architecture) -> Any:
    """The type of a product's operands is the tensors' own. The interpreter computes wrongly in bfloat16."""
    if dtype == torch.bfloat16 and arch.vendor == "none":
        return tl.float32
    return {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float64: tl.float64}.get(dtype, tl.float32)


def accumulator_type(dtype: torch.dtype) -> Any:
    return tl.float64 if accumulator(dtype) == torch.float64 else tl.float32


@triton.jit
def widen(value, ACC: tl.constexpr):
    if value.dtype == tl.bfloat16:
        # The upper half of a float32. Triton's interpreter takes subnormal numbers for zero when it converts them.
        value = (value.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return value.to(ACC)

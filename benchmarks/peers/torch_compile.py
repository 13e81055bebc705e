"""The same as :mod:`.torch_eager`, compiled for the very shapes of a case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import torch_eager

NAME = "torch.compile"
UNASKED = ("cuda",)  # on a CPU each case would be compiled for most of a minute
memory = torch_eager.memory

_compiled: dict[tuple[Any, ...], Callable[..., Any]] = {}


def available(device: torch.device) -> str | None:
    return None  # a missing compiler shows at the first call


def _call(function: Callable[..., Any], **arguments: Any) -> Any:
    key = (
        function,
        torch.is_grad_enabled(),
        *((name, _signature(value)) for name, value in arguments.items()),
    )
    if key not in _compiled:
        # a new case: drop the last one's code, or a limit on recompilations would end in eager mode unnoticed
        torch.compiler.reset()
        _compiled.clear()
        _compiled[key] = torch.compile(function, dynamic=False, fullgraph=True)
    return _compiled[key](**arguments)


def _signature(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return tuple(value) if isinstance(value, list) else value
    return tuple(value.shape), value.stride(), value.dtype, value.requires_grad


def knn(**arguments: Any) -> Any:
    return _call(torch_eager.knn, **arguments)


def chamfer_distance(**arguments: Any) -> Any:
    return _call(torch_eager.chamfer_distance, **arguments)


def f_score(**arguments: Any) -> Any:
    return _call(torch_eager.f_score, **arguments)


def hausdorff_distance(**arguments: Any) -> Any:
    return _call(torch_eager.hausdorff_distance, **arguments)


def triangle_contract(**arguments: Any) -> Any:
    return _call(torch_eager.triangle_contract, **arguments)


def triangle_multiplicative_update(**arguments: Any) -> Any:
    return _call(torch_eager.triangle_multiplicative_update, **arguments)


def invariant_point_attention(**arguments: Any) -> Any:
    return _call(torch_eager.invariant_point_attention, **arguments)


def lddt(**arguments: Any) -> Any:
    return _call(torch_eager.lddt, **arguments)


def predicted_tm_score(**arguments: Any) -> Any:
    return _call(torch_eager.predicted_tm_score, **arguments)


def structural_violations(**arguments: Any) -> Any:
    return _call(torch_eager.structural_violations, **arguments)


def frame_aligned_point_error(**arguments: Any) -> Any:
    return _call(torch_eager.frame_aligned_point_error, **arguments)


def frame_aligned_point_error_terms(**arguments: Any) -> Any:
    return _call(torch_eager.frame_aligned_point_error_terms, **arguments)


def dynopool_2d(x: torch.Tensor, scale: torch.Tensor, output_size: Any = None, **options: Any) -> Any:
    size = output_size or torch_eager.output_size(x, scale)  # read outside the graph, which it would break
    return _call(torch_eager.dynopool_2d, x=x, scale=scale, output_size=size, **options)


def resample_2d(x: torch.Tensor, scale: torch.Tensor, output_size: Any = None, **options: Any) -> Any:
    size = output_size or torch_eager.output_size(x, scale)
    return _call(torch_eager.resample_2d, x=x, scale=scale, output_size=size, **options)


def local_attention_2d(**arguments: Any) -> Any:
    return _call(torch_eager.local_attention_2d, **arguments)


def shift_conv_2d(**arguments: Any) -> Any:
    return _call(torch_eager.shift_conv_2d, **arguments)


def acmix(**arguments: Any) -> Any:
    return _call(torch_eager.acmix, **arguments)

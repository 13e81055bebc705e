"""NVIDIA's cuEquivariance, where its Python layer and its closed kernels are installed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import NotComparable, importable

NAME = "cuequivariance"
UNASKED = ("cuda",)


def available(device: torch.device) -> str | None:
    if device.type != "cuda":
        return "its kernels run on CUDA devices only"
    for package in ("cuequivariance_torch", "cuequivariance_ops_torch"):
        if (
            reason := importable(package, "pip install cuequivariance-torch cuequivariance-ops-torch-cu13")
        ) is not None:
            return reason
    return None


def triangle_multiplicative_update(x: Tensor, gate_position: str = "after_projection", **arguments: Any) -> Tensor:
    import cuequivariance_torch as theirs

    if gate_position != "after_projection":
        raise NotComparable("it gates after the projection only")
    result: Tensor = theirs.triangle_multiplicative_update(x, **arguments)
    return result

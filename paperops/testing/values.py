"""Values for the tests of modules and losses, in float64, the same at every call, and how results are compared."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from paperops.geometry import Frames


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal random numbers, made in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def random_frames(*shape: int, seed: int = 0, spread: float = 8.0) -> Frames:
    """Frames that are ``spread`` from the origin or so."""
    return Frames.from_quaternion(random(*shape, 4, seed=seed), spread * random(*shape, 3, seed=seed + 1))


def load_random(module: nn.Module, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Load random parameters of these names and shapes, no other, into a module made float64; returned as leaves."""
    state = {name: random(*shape, seed=number) for number, (name, shape) in enumerate(shapes.items())}
    module.double().load_state_dict(state, strict=True)
    return {name: value.clone().requires_grad_() for name, value in state.items()}


def assert_same(found: Tensor, expected: Tensor, leaves: Sequence[Tensor]) -> None:
    """Values agree, and gradients by the leaves."""
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    cotangent = random(*found.shape, seed=99)
    ours, right = (torch.autograd.grad(value, leaves, cotangent) for value in (found, expected))
    for one, other in zip(ours, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)

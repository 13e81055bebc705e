"""What layers that learn the size of their output have in common: reading, freezing and forcing it; its gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from paperops.ops import _checks


class _Within(torch.autograd.Function):
    """Clamped to [low, high]; where a value lies beyond a bound, only the gradient that brings it back passes.

    Clamp's own derivative, 0 out there, would hold a parameter beyond its bound for ever.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, low: float, high: float) -> Tensor:
        return value.clamp(low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, float], output: Tensor) -> None:
        value, ctx.low, ctx.high = inputs
        ctx.save_for_backward(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (value,) = ctx.saved_tensors
        outwards = ((value <= ctx.low) & (grad > 0)) | ((value >= ctx.high) & (grad < 0))  # a step is against grad
        return torch.where(outwards, 0, grad), None, None


class _Rounded(torch.autograd.Function):
    """The ratio out / in after rounding, with the gradient handed on to the ratio before it (straight through)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(scale: Tensor, effective: Tensor) -> Tensor:
        return effective.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        return None

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class LearnedSize(nn.Module):
    """Base of layers whose output size is max(1, round(size * r)), r a function of the parameter ``alpha``.

    ``layer_name`` is what errors call the layer: its qualified name once :func:`name_layers` has run over the model.
    """

    alpha: nn.Parameter

    def __init__(self) -> None:
        super().__init__()
        self.layer_name: str | None = None
        self._frozen: tuple[float, float] | None = None
        self._forced: tuple[int, int] | None = None

    def scale(self) -> Tensor:
        """r of height and width before rounding, ``[2]`` float64, differentiable in alpha."""
        raise NotImplementedError

    def initial_scale(self) -> tuple[float, float]:
        """The r that the layer starts from."""
        raise NotImplementedError

    def scale_of(self, alpha: list[float]) -> tuple[float, float]:
        """The numbers of :meth:`scale`, from those of alpha."""
        raise NotImplementedError

    def current_scale(self) -> tuple[float, float]:
        """r of height and width as numbers: what is frozen, or read from the parameter, for which a GPU's host waits.

        Raises:
            ValueError: alpha is NaN or infinite; the message names the layer.
        """
        if self._frozen is not None:
            return self._frozen
        if self.alpha.is_meta:  # no values: counting on the device "meta" takes what training starts from
            return self.initial_scale()
        if torch._C._functorch.is_batchedtensor(self.alpha):
            raise ValueError(f"{self._named()}: alpha must not be batched by vmap: results would differ in size")
        alpha = self.alpha.detach().reshape(-1).tolist()
        if not all(math.isfinite(value) for value in alpha):
            raise ValueError(
                f"{self._named()}: alpha must be finite; got {alpha}. The loss or its gradient was not finite in an "
                "earlier step: clip gradients, or lower the learning rate of alpha"
            )
        with torch.no_grad():  # not around all of it: torch cannot load an exported program with such a part
            return self.scale_of(alpha)

    def output_size(self, size: Sequence[int]) -> tuple[int, int]:
        """The size, (height, width), of the output for an input of this size."""
        if self._forced is not None:
            return self._forced
        height, width = (max(1, round(pixels * r)) for pixels, r in zip(size, self.current_scale(), strict=True))
        return height, width

    def set_sizes(self, size: Sequence[int] | None) -> None:
        """Force the size, (height, width), of every output from now on; None gives it back to the parameter.

        Gradients still reach alpha, as if rounding had come out so.
        """
        if size is None:
            self._forced = None
            return
        if not isinstance(size, (tuple, list)) or len(size) != 2:
            raise ValueError(f"size must be None or two integers, height and width; got {size!r}")
        height, width = (_checks.positive_int("size", value) for value in size)
        self._forced = (height, width)

    def freeze(self) -> None:
        """Make the learned scale a constant: alpha is read once, now, and requires no gradient until :meth:`unfreeze`.

        What is frozen compiles whole (``fullgraph=True``), exports, and never makes the host wait for a GPU.
        """
        self._frozen = None
        self._frozen = self.current_scale()
        self.alpha.requires_grad_(False)  # or data-parallel training would wait for its gradient

    def unfreeze(self) -> None:
        """Learn again."""
        if self._frozen is not None:
            self._frozen = None
            self.alpha.requires_grad_()

    @property
    def frozen(self) -> bool:
        """Whether the scale is a constant."""
        return self._frozen is not None

    def _reads_when_compiled(self) -> bool:
        """Whether the size must be read from the parameter in the midst of a graph, which cannot be."""
        if torch.jit.is_tracing():
            raise RuntimeError(f"{self._named()} cannot be traced by torch.jit: freeze() it and use torch.export")
        if self._frozen is not None or not torch.compiler.is_compiling():
            return False
        if torch.compiler.is_exporting():
            raise RuntimeError(f"{self._named()} must be frozen before export: call its freeze()")
        return True

    def _apply(self, function: Any, recurse: bool = True) -> Any:
        """``half()`` and ``bfloat16()`` leave alpha as it is: its steps are smaller than their rounding."""

        def applied(value: Tensor) -> Tensor:
            result: Tensor = function(value)
            own = value is self.alpha or value is self.alpha.grad
            if own and result.dtype in (torch.float16, torch.bfloat16):
                return value.to(result.device)
            return result

        return super()._apply(applied, recurse)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        if self._frozen is not None:
            self.freeze()  # what is constant is what was loaded

    def _named(self) -> str:
        return f"{self.layer_name or 'a layer without a name'} ({type(self).__name__})"

    def _described(self) -> str:
        if self._frozen is not None:
            return ", frozen at ({:.4g}, {:.4g})".format(*self._frozen)
        return ""


def effective(scale: Tensor | None, size: Sequence[int], out: Sequence[int], device: torch.device) -> Tensor:
    """(Ho / h, Wo / w), ``[2]`` float64, with the gradient of ``scale``; written by the device, not copied to it."""
    ratios = [
        torch.full((1,), cells / pixels, dtype=torch.float64, device=device)
        for cells, pixels in zip(out, size, strict=True)
    ]
    value = torch.cat(ratios)
    if scale is None or not (scale.requires_grad and torch.is_grad_enabled()):
        return value
    rounded: Tensor = _Rounded.apply(scale, value)
    return rounded


def within(value: Tensor, low: float, high: float) -> Tensor:
    """value in [low, high]; beyond a bound only gradients that lead back pass."""
    clamped: Tensor = _Within.apply(value, low, high)
    return clamped


@_disable_dynamo  # torch._dynamo.disable, which is imported at the first call and not along with paperops
def outside_graphs(layer: Any, x: Tensor) -> Tensor:
    """The layer's eager result, its size marked as dynamic, so that what follows is not compiled for each size."""
    out: Tensor = layer.resized(x)
    torch._dynamo.maybe_mark_dynamic(out, (out.dim() - 2, out.dim() - 1))
    return out


def name_layers(model: nn.Module) -> None:
    """Tell every layer that learns its size its qualified name in the model, for the messages of errors."""
    for name, module in model.named_modules():
        if isinstance(module, LearnedSize):
            module.layer_name = name or type(module).__name__


def axes_of(name: str, value: object) -> tuple[float, float]:
    """One positive number for both axes, or two, of height and width."""
    if not isinstance(value, (tuple, list)):
        number = _checks.positive_number(name, value)
        return number, number
    if len(value) != 2:
        raise ValueError(f"{name} must be one number or two, of height and width; got {value!r}")
    height, width = (_checks.positive_number(name, number) for number in value)
    return height, width

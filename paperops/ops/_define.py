"""Registration of dispatcher ops: one call per op defines schema, routing, fake, autograd, autocast and vmap."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from paperops import backends
from paperops.backends import Implementation

library = torch.library.Library("paperops", "DEF")


def native(op: str) -> Implementation:
    """The C++ kernel that the CPU library registers as ``paperops::<op>.native``."""
    return Implementation(lambda: getattr(torch.ops.paperops, op).native)


def cuda(op: str, declines: Callable[..., str | None] | None = None) -> Implementation:
    """The C++ kernel that the CUDA library registers as ``paperops::<op>.cuda``."""
    return Implementation(lambda: getattr(torch.ops.paperops, op).cuda, declines)


def triton(module: str, function: str, declines: Callable[..., str | None] | None = None) -> Implementation:
    """The function of that name in ``paperops.kernels.<module>``, imported at the first use."""
    return Implementation(lambda: getattr(importlib.import_module(f"paperops.kernels.{module}"), function), declines)


def plain(function: Callable[..., Any], declines: Callable[..., str | None] | None = None) -> Implementation:
    """A function in plain torch. It is given contiguous tensors that require no gradient: torch's order of summation
    depends on strides, and on whether a gradient is recorded."""

    def contiguous(*arguments: Any) -> Any:
        return function(*(value.detach().contiguous() if isinstance(value, Tensor) else value for value in arguments))

    return Implementation(lambda: contiguous, declines)


def define(
    name: str,
    schema: str,
    implementations: dict[str, Implementation],
    *,
    fake: Callable[..., Any],
    save: Callable[..., None] = lambda ctx, inputs, output: None,
    backward: Callable[..., Any] | None = None,
    batched: Callable[..., Any] | None = None,
    autocast: Sequence[int] | None = None,
) -> Any:
    """Define ``paperops::<name>`` and return it.

    Args:
        name: the op's name.
        schema: arguments and results, as ``"(Tensor x, int k) -> Tensor"``; the first argument is a tensor. ``SymInt``
            instead of ``int`` for what may depend on a size, so that torch.compile keeps it symbolic.
        implementations: backend name to :class:`~paperops.backends.Implementation`; a ``reference`` is required.
        fake: gives the results' shapes and dtypes without data, for torch.compile and export.
        save, backward: the derivative, as ``torch.library.register_autograd`` takes ``setup_context`` and ``backward``.
        batched: the vmap rule; by default every tensor has a leading batch dimension into which vmap's is folded.
        autocast: the positions of the tensors that autocast takes in its own dtype, as it does for matrix products; the
            others are left as they are, and inside the op nothing is cast. By default all floating inputs are taken as
            float32.
    """
    library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    for backend in ("native", "cuda"):
        if backend in implementations:  # C++ adds the kernel when its library is loaded
            library.define(f"{name}.{backend}{schema.replace('SymInt', 'int')}")
    backends.register(name, implementations)
    library.impl(name, backends.route(name), "CompositeExplicitAutograd")

    qualified = f"paperops::{name}"
    op = getattr(torch.ops.paperops, name).default
    torch.library.register_fake(qualified, fake, lib=library)
    if backward is not None:
        library.impl(name, _autograd(op, save, backward), "Autograd")
    for device_type in ("cpu", "cuda"):
        if autocast is None:
            torch.library.register_autocast(qualified, device_type, torch.float32, lib=library)
        else:
            library.impl(name, _autocast(op, device_type, autocast), f"Autocast{device_type.upper()}")
    torch.library.register_vmap(qualified, batched or fold_batch(op), lib=library)
    return op


def _autocast(op: Callable[..., Any], device_type: str, positions: Sequence[int]) -> Callable[..., Any]:
    """The kernel for the dispatcher's Autocast key: some of the tensors are taken in autocast's dtype."""
    own_key = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device_type.upper()}"))

    def kernel(*arguments: Any) -> Any:
        dtype = torch.get_autocast_dtype(device_type)
        cast = list(arguments)
        for position in positions:
            value = cast[position]
            if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
                cast[position] = value.to(dtype)
        with torch._C._ExcludeDispatchKeyGuard(own_key):
            return op(*cast)

    return kernel


class _Saved:
    """A Function's context whose saved tensors have been unpacked, once."""

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx
        self.saved_tensors = ctx.saved_tensors

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)


def _autograd(op: Callable[..., Any], save: Callable[..., None], backward: Callable[..., Any]) -> Any:
    """The kernel for the dispatcher's Autograd key: records the derivative where an input requires a gradient.

    What ``torch.library.register_autograd`` does, with two differences: it adds half as much time to a call, which
    small ones notice, and torch.func's transforms work. The dispatcher calls this once for each of their levels, hence
    the single-level Function.
    """

    class Function(_SingleLevelFunction):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            # A Function's forward runs without gradients, but an outer level of torch.func may want to record it.
            outer = torch._C._functorch.peek_interpreter_stack() is not None
            with torch._C._AutoDispatchBelowAutograd(), torch.enable_grad() if outer else nullcontext():
                output = op(*arguments)
            save(ctx, arguments, output)
            return output

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            if torch.is_grad_enabled():  # a second derivative may follow
                return backward(ctx, *gradients)
            saved = _Saved(ctx)  # unpacked here: activation checkpointing computes them again, and records that
            with torch._C._AutoDispatchBelowAutograd():  # nothing is recorded: spare each op the way through autograd
                return backward(saved, *gradients)

    def kernel(*arguments: Any) -> Any:
        for argument in arguments:
            if isinstance(argument, Tensor):
                if argument.requires_grad and torch.is_grad_enabled():
                    with enable_single_level_autograd_function():
                        return Function.apply(*arguments)  # type: ignore[attr-defined]
                if forward_ad._current_level >= 0 and forward_ad.unpack_dual(argument).tangent is not None:
                    raise NotImplementedError(
                        f"{op} has no forward-mode derivative (jvp, jacfwd); use reverse mode (grad, jacrev)"
                    )
        with torch._C._AutoDispatchBelowAutograd():
            return op(*arguments)

    return kernel


def fold_batch(op: Callable[..., Any]) -> Callable[..., Any]:
    """vmap for an op whose tensors, arguments and results, all have a leading batch dimension: fold vmap's into it."""

    def rule(info: Any, in_dims: Sequence[int | None], *arguments: Any) -> tuple[Any, Any]:
        folded = [
            fold(argument, dim, info.batch_size) if isinstance(argument, Tensor) else argument
            for argument, dim in zip(arguments, in_dims, strict=True)
        ]
        inner = inner_batch(arguments, in_dims)
        results = op(*folded)
        if isinstance(results, Tensor):
            return unfold(results, info.batch_size, inner), 0
        return tuple(unfold(result, info.batch_size, inner) for result in results), (0,) * len(results)

    return rule


def fold_or_loop(op: Callable[..., Any], positions: Sequence[int] = ()) -> Callable[..., Any]:
    """vmap for an op of which only some tensors, those at ``positions``, have a leading batch dimension.

    Where vmap batches nothing else its dimension is folded into that one; otherwise the op is called item by item.
    """

    def rule(info: Any, in_dims: Sequence[int | None], *arguments: Any) -> tuple[Any, Any]:
        size = info.batch_size
        if any(dim is not None and number not in positions for number, dim in enumerate(in_dims)):
            items = [op(*_item(arguments, in_dims, item)) for item in range(size)]
            if not items:  # of nothing there are no items, but shapes
                items = [op(*_item(arguments, in_dims, None))]
            if isinstance(items[0], Tensor):
                return torch.stack(items)[:size], 0
            return tuple(torch.stack(parts)[:size] for parts in zip(*items, strict=True)), (0,) * len(items[0])
        folded = list(arguments)
        for number in positions:
            if isinstance(arguments[number], Tensor):
                folded[number] = fold(arguments[number], in_dims[number], size)
        inner = inner_batch([arguments[number] for number in positions], [in_dims[number] for number in positions])
        results = op(*folded)
        if isinstance(results, Tensor):
            return unfold(results, size, inner), 0
        return tuple(unfold(result, size, inner) for result in results), (0,) * len(results)

    return rule


def _item(arguments: Sequence[Any], in_dims: Sequence[int | None], item: int | None) -> list[Any]:
    """The arguments of one item of vmap's dimension; zeros of their shape for None."""
    return [
        value if dim is None else value.select(dim, item) if item is not None else value.any(dim).to(value.dtype)
        for value, dim in zip(arguments, in_dims, strict=True)
    ]


def inner_batch(arguments: Sequence[Any], in_dims: Sequence[int | None]) -> Any:
    """The op's own batch size, within vmap's dimension."""
    value, dim = next((value, dim) for value, dim in zip(arguments, in_dims, strict=True) if isinstance(value, Tensor))
    return value.shape[0 if dim is None or dim % value.dim() else 1]


def fold(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """[..., size, ...] or [B, ...] -> [size * B, ...]."""
    tensor = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return tensor.reshape(size * tensor.shape[1], *tensor.shape[2:])


def unfold(tensor: Tensor, size: int, inner: int) -> Tensor:
    """[size * inner, ...] -> [size, inner, ...]. A result of shape [0], which is not there, becomes [size, 0]."""
    if size and tensor.shape == (0,):
        inner = 0
    return tensor.reshape(size, inner, *tensor.shape[1:])

"""Checks of what torch makes of an op: its dispatcher, compiler, function transforms and checkpointing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from paperops.testing.calls import all_close, call, failure, samples_due
from paperops.testing.compare import CheckFailure, Error, same_bits
from paperops.testing.registry import Entry, Sample, flatten, repeat_batch, with_gradients


class _Recorder(TorchDispatchMode):
    """Notes every call of a paperops op."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, tuple[Any, tuple[Any, ...]]] = {}

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op.namespace == "paperops":
            self.calls.setdefault(str(op), (op, args))
        return op(*args, **(kwargs or {}))


def dispatched(entry: Entry, samples: Iterable[Sample]) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """The dispatcher ops that these samples reach, forward and backward, by name: the op, and one call's arguments."""
    recorder = _Recorder()
    for sample in samples:
        with recorder:
            call(entry.function, entry, sample.arguments)
    return recorder.calls


def _opcheck(entry: Entry, device: torch.device, dtype: torch.dtype, tests: tuple[str, ...]) -> list[Error]:
    calls = dispatched(entry, samples_due(entry, device, dtype))
    if not calls:
        raise CheckFailure("no dispatcher op was called: is the op registered under torch.ops.paperops?")
    for name, (op, args) in calls.items():
        leaves = tuple(
            arg.detach().clone().requires_grad_(arg.is_floating_point()) if isinstance(arg, Tensor) else arg
            for arg in args
        )
        try:
            torch.library.opcheck(op, leaves, test_utils=tests)
        except Exception as error:  # opcheck raises several kinds
            raise CheckFailure(f"opcheck of {name}: {error}") from error
    return []


def opcheck(entry: Entry, device: torch.device, dtype: torch.dtype) -> list[Error]:
    """``torch.library.opcheck`` of every dispatcher op that the samples reach, forward and backward: its schema, its
    autograd registration, and its fake against what it returns."""
    return _opcheck(entry, device, dtype, ("test_schema", "test_autograd_registration", "test_faketensor"))


def traces(entry: Entry, device: torch.device, dtype: torch.dtype) -> list[Error]:
    """The rest of it: traced with dynamic shapes, with gradients, every such op gives what it gives by itself."""
    return _opcheck(entry, device, dtype, ("test_aot_dispatch_dynamic",))


def compiles(entry: Entry, device: torch.device, dtype: torch.dtype) -> list[Error]:
    """``torch.compile(fullgraph=True)`` gives the eager result, with no recompilation for a new batch size."""
    from torch._dynamo.testing import CompileCounterWithBackend

    for sample in samples_due(entry, device, dtype):
        if not sample.gradcheck:
            continue
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(entry.function, fullgraph=True, backend=counter)
        for times in (2, 3, 5):
            arguments = repeat_batch(entry, sample.arguments, times)

            def function(entry: Entry = entry, compiled: Any = compiled, **fresh: Any) -> Any:
                for name in entry.batched:
                    if isinstance(fresh.get(name), Tensor):
                        torch._dynamo.mark_dynamic(fresh[name], 0)
                return compiled(**fresh)

            try:
                got = call(function, entry, arguments)
            except Exception as error:  # dynamo raises many kinds
                raise failure(sample, f"torch.compile: {error}") from error
            exact = call(entry.function, entry, arguments)
            all_close(f"sample {sample}, batch times {times}, compiled against eager", got, exact)
            if counter.frame_count != 1:
                raise failure(sample, f"compiled {counter.frame_count} times for batch sizes that differ only")
    return []


def vmap(entry: Entry, device: torch.device, dtype: torch.dtype) -> list[Error]:
    """``torch.vmap`` gives the results of a loop."""
    for sample in samples_due(entry, device, dtype):
        if not sample.gradcheck:
            continue
        names = [name for name in entry.batched if isinstance(sample.arguments.get(name), Tensor)]
        stacked = [torch.stack([sample.arguments[name], sample.arguments[name].flip(0)]) for name in names]

        def function(*inputs: Tensor, sample: Sample = sample, names: Any = names) -> tuple[Tensor, ...]:
            return tuple(flatten(entry.function(**{**sample.arguments, **dict(zip(names, inputs, strict=True))})))

        together = torch.vmap(function)(*stacked)
        apart = [function(*(value[index] for value in stacked)) for index in range(2)]
        loop = [torch.stack(parts) for parts in zip(*apart, strict=True)]
        all_close(f"sample {sample}, vmap", list(together), loop)
        none = torch.vmap(function)(*(value[:0] for value in stacked))
        all_close(f"sample {sample}, vmap over nothing", list(none), [value[:0] for value in loop])
    return []


def transforms(entry: Entry, device: torch.device, dtype: torch.dtype) -> list[Error]:
    """torch.func's gradients, nested ones too, are autograd's; forward mode is right or raises, never silently zero."""
    if not entry.differentiable:
        return []
    for sample in samples_due(entry, device, torch.float64):
        if not sample.gradcheck:
            continue
        arguments, leaves = with_gradients(entry, sample.arguments)
        names = [name for name in entry.differentiable if isinstance(arguments.get(name), Tensor)]

        def scalar(*inputs: Tensor, arguments: Any = arguments, names: Any = names) -> Tensor:
            results = flatten(entry.function(**{**arguments, **dict(zip(names, inputs, strict=True))}))
            return torch.stack([(r * r).sum() for r in results if r.is_floating_point()]).sum()

        def length(*inputs: Tensor, scalar: Any = scalar, names: Any = names) -> Tensor:
            gradients = torch.func.grad(scalar, argnums=tuple(range(len(names))))(*inputs)
            return torch.stack([(gradient * gradient).sum() for gradient in gradients]).sum()

        inputs = [leaf.detach() for leaf in leaves]
        positions = tuple(range(len(inputs)))
        once = torch.autograd.grad(scalar(*leaves), leaves, create_graph=entry.twice, materialize_grads=True)
        what = f"sample {sample}, torch.func.grad"
        all_close(what, list(torch.func.grad(scalar, argnums=positions)(*inputs)), [value.detach() for value in once])
        if entry.twice:
            twice = torch.autograd.grad(
                torch.stack([(value * value).sum() for value in once]).sum(), leaves, materialize_grads=True
            )
            all_close(f"{what}, nested", list(torch.func.grad(length, argnums=positions)(*inputs)), list(twice))
        try:
            tangent = torch.func.jvp(scalar, tuple(inputs), tuple(inputs))[1]
        except NotImplementedError:
            continue
        expected = torch.stack([(a.detach() * b).sum() for a, b in zip(once, inputs, strict=True)]).sum()
        all_close(f"sample {sample}, torch.func.jvp", [tangent], [expected])
    return []


def checkpointed(entry: Entry, device: torch.device, dtype: torch.dtype) -> list[Error]:
    """Under activation checkpointing, which runs the op again when a saved tensor is asked for, nothing changes."""
    from torch.utils.checkpoint import checkpoint

    for sample in samples_due(entry, device, dtype):

        def again(**arguments: Any) -> Any:
            return checkpoint(entry.function, **arguments, use_reentrant=False)

        expected = call(entry.function, entry, sample.arguments)
        same_bits(f"sample {sample}, checkpointed", expected, call(again, entry, sample.arguments))
    return []

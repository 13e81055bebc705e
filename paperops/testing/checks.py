"""The generic checks: each holds one promise of design, for any registered op, on the backend that is in force.

A check is a function ``(entry, device, dtype) -> list[Error]`` that raises :class:`CheckFailure`. :data:`CHECKS` lists
them all; :func:`applies` tells which say something for an op, and :func:`run` runs one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError
from torch.utils._python_dispatch import TorchDispatchMode

from paperops import backends
from paperops.backends import MissingImplementation, use_backend
from paperops.testing.calls import ONLY_SMALL, all_close, call, call_apart, failure, samples_due
from paperops.testing.compare import CheckFailure, Error, compare, same_bits
from paperops.testing.registry import (
    Entry,
    Sample,
    as_double,
    flatten,
    map_tensors,
    repeat_batch,
    slice_batch,
    with_gradients,
)

Check = Callable[[Entry, torch.device, torch.dtype], list[Error]]

# --- values and gradients ------------------------------------------------------------------------------------------


def values(entry: Entry, device: torch.device, dtype: torch.dtype) -> list[Error]:
    """Results against the float64 definition, on every sample."""
    errors = []
    for sample in samples_due(entry, device, dtype):
        with torch.no_grad():
            ours = flatten(entry.function(**sample.arguments))
            plain = flatten(entry.reference(**sample.arguments))
            exact = flatten(entry.reference(**as_double(sample.arguments)))
        errors += _compare_all(entry, f"sample {sample}, result", ours, plain, exact, dtype)
    return errors


def gradients(entry: Entry, device: torch.device, dtype: torch.dtype) -> list[Error]:
    """Gradients of every differentiable argument against torch's derivative of the float64 definition."""
    errors = []
    for sample in samples_due(entry, device, dtype):
        ours = call_apart(entry.function, entry, sample.arguments)[1]
        plain = call_apart(entry.reference, entry, sample.arguments)[1]
        exact = call_apart(entry.reference, entry, as_double(sample.arguments))[1]
        errors += _compare_all(entry, f"sample {sample}, gradient", ours, plain, exact, dtype)
        if not all(gradient.isfinite().all() for gradient in ours) and all(g.isfinite().all() for g in exact):
            raise failure(sample, "a gradient is not finite")
    return errors


def _compare_all(
    entry: Entry, what: str, ours: list[Tensor], plain: list[Tensor], exact: list[Tensor], dtype: torch.dtype
) -> list[Error]:
    if not len(ours) == len(plain) == len(exact):
        raise CheckFailure(f"{what}s: {len(ours)} instead of the definition's {len(exact)}")
    return [
        compare(
            f"{what} {number}",
            a,
            b,
            c,
            a.dtype if a.is_floating_point() else dtype,
            entry.tolerance.get(dtype),
            entry.roundings.get(a.dtype),
            entry.unit,
        )
        for number, (a, b, c) in enumerate(zip(ours, plain, exact, strict=True))
    ]


def gradcheck(entry: Entry, device: torch.device, dtype: torch.dtype) -> list[Error]:
    """Numerical derivatives in float64, first and, where promised, second."""
    for sample in samples_due(entry, device, torch.float64):
        if not sample.gradcheck:
            continue
        arguments, leaves = with_gradients(entry, sample.arguments)
        names = [name for name in entry.differentiable if isinstance(arguments.get(name), Tensor)]

        def function(*inputs: Tensor, arguments: Any = arguments, names: Any = names) -> tuple[Tensor, ...]:
            changed = {**arguments, **dict(zip(names, inputs, strict=True))}
            return tuple(result for result in flatten(entry.function(**changed)) if result.requires_grad)

        try:
            torch.autograd.gradcheck(function, leaves, fast_mode=ONLY_SMALL)
            if entry.twice:
                torch.autograd.gradgradcheck(function, leaves, fast_mode=ONLY_SMALL)
        except GradcheckError as error:
            raise failure(sample, error) from error
    return []


# --- what the dispatcher and the compiler see ----------------------------------------------------------------------


class _Recorder(TorchDispatchMode):
    """Notes every call of a paperops op."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, tuple[Any, tuple[Any, ...]]] = {}

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op.namespace == "paperops":
            self.calls.setdefault(str(op), (op, args))
        return op(*args, **(kwargs or {}))


def opcheck(entry: Entry, device: torch.device, dtype: torch.dtype) -> list[Error]:
    """``torch.library.opcheck`` of every dispatcher op that the samples reach, forward and backward."""
    recorder = _Recorder()
    for sample in samples_due(entry, device, dtype):
        with recorder:
            call(entry.function, entry, sample.arguments)
    if not recorder.calls:
        raise CheckFailure("no dispatcher op was called: is the op registered under torch.ops.paperops?")
    for name, (op, args) in recorder.calls.items():
        leaves = tuple(
            arg.detach().clone().requires_grad_(arg.is_floating_point()) if isinstance(arg, Tensor) else arg
            for arg in args
        )
        try:
            torch.library.opcheck(op, leaves)
        except Exception as error:  # opcheck raises several kinds
            raise CheckFailure(f"opcheck of {name}: {error}") from error
    return []


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


# --- forms of input ------------------------------------------------------------------------------------------------


def layouts(entry: Entry, device: torch.device, dtype: torch.dtype) -> list[Error]:
    """Transposed, strided and offset inputs give the bits of contiguous ones; inputs are not written."""

    def transposed(_: str, value: Tensor) -> Tensor:
        return value.transpose(0, -1).contiguous().transpose(0, -1) if value.dim() > 1 else value

    def strided(_: str, value: Tensor) -> Tensor:
        if value.dim() == 0:
            return value
        wide = value.new_zeros(*value.shape[:-1], 2 * value.shape[-1] + 1)
        view = wide[..., 1::2]
        view.copy_(value)
        return view

    for sample in samples_due(entry, device, dtype):
        before = map_tensors(sample.arguments, lambda _, value: value.clone())
        expected = call(entry.function, entry, sample.arguments)
        for change in (transposed, strided):
            results = flatten(entry.function(**map_tensors(sample.arguments, change)))
            same_bits(f"sample {sample}, {change.__name__} input", expected[: len(results)], results)
        for name, value in sample.arguments.items():
            if isinstance(value, Tensor):
                same_bits(f"sample {sample}: argument {name} was written to", [before[name]], [value])
    return []


def expanded(entry: Entry, device: torch.device, dtype: torch.dtype) -> list[Error]:
    """One batch item expanded (stride 0) to several gives each of them the item's result."""
    for sample in samples_due(entry, device, dtype):
        if not sample.gradcheck:
            continue
        one = slice_batch(entry, sample.arguments, slice(0, 1))
        wide = map_tensors(
            one, lambda name, value: value.expand(3, *value.shape[1:]) if name in entry.batched else value
        )
        full = map_tensors(wide, lambda _, value: value.contiguous())
        same_bits(f"sample {sample}, expanded", call(entry.function, entry, full), call(entry.function, entry, wide))
        results = flatten(entry.function(**wide))
        same_bits(f"sample {sample}, expanded", flatten(entry.function(**full)), results)
    return []


def empty_batch(entry: Entry, device: torch.device, dtype: torch.dtype) -> list[Error]:
    """A batch of zero gives the definition's shapes and zero gradients."""
    for sample in samples_due(entry, device, dtype):
        none = slice_batch(entry, sample.arguments, slice(0, 0))
        ours, plain = call(entry.function, entry, none), call(entry.reference, entry, none)
        all_close(f"sample {sample}, empty batch", ours, plain)
    return []


def autocast(entry: Entry, device: torch.device, dtype: torch.dtype) -> list[Error]:
    """Under autocast, halves and float32 may be mixed: inputs are cast as the entry says, or more digits are kept."""
    for sample in samples_due(entry, device, dtype):
        single = map_tensors(sample.arguments, lambda _, value: value.float() if value.is_floating_point() else value)
        floating = [name for name, value in single.items() if torch.is_tensor(value) and value.is_floating_point()]
        mixed = {**sample.arguments, **{name: single[name] for name in floating[1::2]}}
        if entry.autocast_arguments:  # they are cast to autocast's dtype, float32 or not; the rest stays as it is
            taken = [name for name in entry.autocast_arguments if name in sample.arguments]
            cast = {**mixed, **{name: sample.arguments[name] for name in taken}}
            with torch.autocast(device.type, dtype):
                inside = call(entry.function, entry, cast)
                wide = {**mixed, **{name: single[name] for name in taken}}
                from_single = flatten(entry.function(**wide))
            same_bits(f"sample {sample}, autocast, with gradients", call(entry.function, entry, cast), inside)
            # Of float32 an op may keep more digits than a cast would.
            exact = flatten(entry.reference(**as_double(wide)))
            plain = inside[: len(exact)]
            _compare_all(entry, f"sample {sample}, autocast of float32, result", from_single, plain, exact, dtype)
            continue
        with torch.autocast(device.type, dtype):
            ours = flatten(entry.function(**mixed))
        same_bits(f"sample {sample}, autocast", flatten(entry.function(**single)), ours)
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


# --- what must not happen ------------------------------------------------------------------------------------------


def refused(entry: Entry, device: torch.device, dtype: torch.dtype) -> list[Error]:
    """Bad input raises the declared error, with a message that names the argument."""
    for case in entry.refused(device):
        try:
            entry.function(**case.arguments)
        except Exception as error:
            if type(error) is not case.error or not re.search(case.message, str(error)):
                raise failure(
                    case.name, f"raised {type(error).__name__}: {error}; expected {case.error.__name__}: {case.message}"
                ) from error
        else:
            raise failure(case.name, f"bad input was accepted; expected {case.error.__name__}: {case.message}")
    return []


@contextmanager
def fresh_memory_filled() -> Iterator[None]:
    """Within, fresh memory is full of NaN (integers: the largest)."""
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]


def overwritten(entry: Entry, device: torch.device, dtype: torch.dtype) -> list[Error]:
    """Fresh memory full of NaN (integers: the largest) does not show in any result: every element is written."""
    for sample in samples_due(entry, device, dtype):
        expected = call(entry.function, entry, sample.arguments)
        with fresh_memory_filled():
            filled = call(entry.function, entry, sample.arguments)
        same_bits(f"sample {sample}, memory filled with NaN before the call", expected, filled)
    return []


def deterministic(entry: Entry, device: torch.device, dtype: torch.dtype) -> list[Error]:
    """Runs agree bit for bit, gradients included; our kernels' also whatever the number of CPU threads.

    (The definitions are made of torch's matrix products, which are summed differently by another number of threads.)
    """
    threads = torch.get_num_threads()
    vary = device.type == "cpu" and backends.forced() != "reference"
    for sample in samples_due(entry, device, dtype):
        expected = call(entry.function, entry, sample.arguments)
        try:
            for count in (threads, 1, threads + 1):
                if vary:
                    torch.set_num_threads(count)
                again = call(entry.function, entry, sample.arguments)
                same_bits(f"sample {sample}, run again with {count} threads", expected, again)
        finally:
            torch.set_num_threads(threads)
    return []


def synchronises(entry: Entry, device: torch.device, dtype: torch.dtype) -> list[Error]:
    """On a GPU the host never waits for the device."""
    for sample in samples_due(entry, device, dtype):
        call(entry.function, entry, sample.arguments)  # compiles and fills caches
        fresh, leaves = with_gradients(entry, sample.arguments)
        torch.cuda.set_sync_debug_mode("error")
        try:
            results = [result for result in flatten(entry.function(**fresh)) if result.requires_grad]
            if results and leaves:
                torch.autograd.grad([result.sum() for result in results], leaves, allow_unused=True)
        except RuntimeError as error:
            raise failure(sample, error) from error
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return []


CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        values,
        gradients,
        gradcheck,
        opcheck,
        compiles,
        layouts,
        expanded,
        empty_batch,
        autocast,
        vmap,
        transforms,
        checkpointed,
        refused,
        overwritten,
        deterministic,
        synchronises,
    )
}
"""Every generic check by name."""

FLOAT64_ONLY = ("gradcheck",)
DTYPE_FREE = ("refused", "opcheck", "compiles", "vmap", "transforms", "checkpointed", "expanded")
"""Checks that say nothing new for another dtype: run for float32 alone."""

OF_KERNELS = ("values", "gradients", "gradcheck", "empty_batch", "overwritten")
"""Checks of what a kernel computes: the ones that are worth their time where every operation is slow."""


def applies(check: str, entry: Entry, device: torch.device | str, dtype: torch.dtype) -> bool:
    """Whether the check says something for this op, device and dtype."""
    if check in entry.exceptions or check in FLOAT64_ONLY and dtype != torch.float64:
        return False
    if ONLY_SMALL and check not in OF_KERNELS:
        return False
    if check == "synchronises" and torch.device(device).type != "cuda":
        return False
    if check == "autocast" and dtype not in (torch.float16, torch.bfloat16):
        return False
    return check not in DTYPE_FREE or dtype == torch.float32


def lacks(entry: Entry, device: torch.device, backend: str) -> str | None:
    """Which of the op's parts this backend does not implement, or None: such a backend is not held to the checks."""
    sample = next(entry.samples(device, entry.dtypes[0]))
    try:
        with use_backend(backend):
            call(entry.function, entry, sample.arguments)
    except MissingImplementation as missing:
        return str(missing)
    return None


def run(check: str, entry: Entry, device: torch.device, dtype: torch.dtype) -> list[Error]:
    """Run one check that applies. Returns the errors it measured; raises CheckFailure if it does not hold."""
    return CHECKS[check](entry, device, dtype)

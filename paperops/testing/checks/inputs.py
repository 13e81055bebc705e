"""Checks of the forms that input takes: layouts, batches, dtypes under autocast, and input that must be refused."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from paperops.testing.calls import all_close, call, failure, samples_due
from paperops.testing.checks.numbers import compare_all
from paperops.testing.compare import Error, same_bits
from paperops.testing.registry import Entry, as_double, flatten, map_tensors, slice_batch


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
            compare_all(entry, f"sample {sample}, autocast of float32, result", from_single, plain, exact, dtype)
            continue
        with torch.autocast(device.type, dtype):
            ours = flatten(entry.function(**mixed))
        same_bits(f"sample {sample}, autocast", flatten(entry.function(**single)), ours)
    return []


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

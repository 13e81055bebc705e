"""Which layers a model runs, what each costs, and on which learned scales the size of its map depends."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode
from torch.utils.weak import WeakIdKeyDictionary

from paperops.nn.learned_size import LearnedSize

Scales = tuple[LearnedSize, ...]
"""The layers whose scales multiply a map's size, once for each time that it went through them."""


class Layer(NamedTuple):
    """One layer as it ran, for one item of the batch."""

    name: str  # qualified, or torch's name of the function where its weight is no parameter of the model
    kind: str
    output_size: tuple[int, ...]  # without the batch: [C, h, w], or [features]
    parameters: int
    macs: int  # multiply-adds of the products; biases are not counted
    scales: Scales  # those to which macs is proportional, along each axis


_CONVOLUTIONS = {f"conv{transposed}{d}d" for d in (1, 2, 3) for transposed in ("", "_transpose")}
_MAPS = (4, 5)  # dimensions of maps: [B, C, h, w], or with the channels split
_ATTENTION = ("scaled_dot_product_attention", "local_attention.default")
_REDUCTIONS = ("mean", "sum", "amax", "amin", "max", "min", "var", "std", "prod", "norm")


class Recording(TorchFunctionMode):
    """While active: notes convolutions, linear layers and attention, and follows each map's size through everything.

    A map is [B, C, h, w], or [B, H, D, h, w] with its channels split. What torch makes of a map has its size times a
    constant (convolutions, pooling, slices), or of two maps that of the one whose size is known to be learned. A size
    that is given (``interpolate(size=...)``) is that of whatever the map is added to or concatenated with; adaptive
    pooling and reductions end the dependence.
    """

    def __init__(self, model: nn.Module, call: FrameType, batch: int | None) -> None:
        super().__init__()
        self.call: FrameType | None = call  # of the model, while it runs
        self.batch = batch  # of what the model was given, where that is a tensor
        self.layers: list[Layer] = []
        self.owners: dict[Tensor, tuple[str, nn.Module | None]] = {
            parameter: (name, module)
            for name, module in model.named_modules()
            for parameter in module.parameters(recurse=False)
        }
        self.scales: WeakIdKeyDictionary = WeakIdKeyDictionary()  # map -> Scales, or None where its size was given

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        if self.call is None:
            return out
        name = getattr(function, "__name__", "")
        results = (out,) if isinstance(out, Tensor) else out if isinstance(out, (tuple, list)) else ()
        for part in results:
            if isinstance(part, Tensor) and part.dim() in _MAPS:
                self.scales[part] = self._scales_of(name, part, args, kwargs)
        if name in _CONVOLUTIONS or name == "linear":
            self._note(name, out, args, kwargs)
        elif name in _ATTENTION:
            self._note_attention(name, results[0], args, kwargs)
        elif name == "shift_conv.default":
            self._note_shift_conv(name, out, args)
        return out

    def resized(self, layer: LearnedSize, x: Tensor, out: Tensor) -> None:
        """A layer has resized x to out."""
        self.scales[out] = (*(self.scales.get(x) or ()), layer) if layer._forced is None and not layer.frozen else ()
        name = layer.layer_name or type(layer).__name__
        parameters = sum(parameter.numel() for parameter in layer.parameters(recurse=False))
        self.layers.append(Layer(name, type(layer).__name__, tuple(out.shape[1:]), parameters, 0, ()))

    def _scales_of(self, name: str, out: Tensor, args: Any, kwargs: Any) -> Scales | None:
        if name in ("interpolate", "upsample") and _argument(args, kwargs, 1, "size") is not None:
            return None
        maps = [value for value in _maps(args, kwargs) if value in self.scales]
        if name.startswith("adaptive_"):
            return ()
        if name.startswith(_REDUCTIONS) and not name.startswith("max_pool"):
            maps = [value for value in maps if value.shape[-2:] == out.shape[-2:]]  # such as of the channels
        maps.sort(key=lambda value: value.shape[-2:] != out.shape[-2:])  # those of the same size come first
        known = [self.scales[value] for value in maps]
        learned: Scales | None = next((scales for scales in known if scales), None)
        return learned or (None if known and all(scales is None for scales in known) else ())

    def _note(self, name: str, out: Tensor, args: Any, kwargs: Any) -> None:
        x, weight = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "weight")
        reused = "transpose" in name  # each input element meets all of its channel's weights
        item = 1 if name == "linear" else weight.dim() - 1  # dimensions without a batch
        sized = x if reused else out
        self._add(name, weight, out, sized.numel() * math.prod(weight.shape[1:]), sized, out.dim() > item)

    def _note_attention(self, name: str, out: Tensor, args: Any, kwargs: Any) -> None:
        """Products of queries and keys, and of weights and values."""
        key, value = _argument(args, kwargs, 1, "key"), _argument(args, kwargs, 2, "value")
        if name == "scaled_dot_product_attention":  # [*, L, D], [*, S, D], [*, S, E]
            macs = out.numel() // max(1, out.shape[-1]) * key.shape[-2] * (key.shape[-1] + value.shape[-1])
        else:
            macs = 2 * out.numel() * args[4] ** 2  # slots of the window
        self._add(name.removesuffix(".default"), None, out, macs, out)

    def _note_shift_conv(self, name: str, out: Tensor, args: Any) -> None:
        """The mixing of the maps into one a tap, and their convolution."""
        x, mixing, weight = args[:3]
        macs = x.numel() * mixing.shape[0] + out.numel() * math.prod(weight.shape[1:])
        self._add(name.removesuffix(".default"), weight, out, macs, out)

    def _add(
        self, name: str, weight: Tensor | None, out: Tensor, macs: int, sized: Tensor, batched: bool = True
    ) -> None:
        """A layer that did so many multiply-adds for the whole batch, in proportion to the size of one of its maps."""
        owner, module = (name, None) if weight is None else self.owners.get(weight, (name, None))
        batch = out.shape[0] if batched and out.dim() > 1 else 1
        if batched and self.batch and batch % self.batch == 0:  # not where windows are folded into the batch
            batch = self.batch
        kind = name if module is None else type(module).__name__
        parameters = 0 if module is None else sum(p.numel() for p in module.parameters(recurse=False))
        size = tuple(out.shape[1:]) if batched and out.dim() > 1 else tuple(out.shape)
        scales = self.scales.get(sized) or () if sized.dim() in _MAPS else ()
        self.layers.append(Layer(owner, kind, size, parameters, macs // max(1, batch), scales))


def _argument(args: Any, kwargs: Any, position: int, name: str) -> Any:
    return args[position] if len(args) > position else kwargs.get(name)


def _maps(args: Any, kwargs: Any) -> Iterator[Tensor]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            if value.dim() in _MAPS:
                yield value
        elif isinstance(value, (tuple, list)):
            yield from (part for part in value if isinstance(part, Tensor) and part.dim() in _MAPS)


class Tracer:
    """Hooks of a model that record each of its forward passes, and keep the layers of the one that ended last.

    Each thread records for itself, for torch's modes are a thread's own.
    """

    def __init__(self) -> None:
        self.layers: list[Layer] | None = None
        self._recordings: dict[int, Recording] = {}  # by thread

    def __getstate__(self) -> dict[str, Any]:
        return {"layers": self.layers, "_recordings": {}}  # a copy runs nothing

    def begin(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Before the model runs."""
        if torch.compiler.is_compiling():
            self.layers = None
            return
        thread, call = threading.get_ident(), _call_of_module()
        before = self._recordings.get(thread)
        if before is not None:
            if _is_running(before.call, call):
                return  # the model calls itself
            _leave(before)  # an interrupt ended it, for which no hook is called
        if len(self._recordings) <= (before is not None):  # nobody else is at it
            self.layers = None
        given = inputs[0] if inputs else None
        batch = given.shape[0] if isinstance(given, Tensor) and given.dim() else None
        recording = self._recordings[thread] = Recording(model, call, batch)
        recording.__enter__()

    def resized(self, layer: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
        """After a layer that learns its size."""
        recording = None if torch.compiler.is_compiling() else self._recordings.get(threading.get_ident())
        if recording is not None and isinstance(layer, LearnedSize):
            recording.resized(layer, inputs[0], out)

    def end(self, model: nn.Module, _: Any, out: Any) -> None:
        """After the model, whether it came through or not."""
        recording = None if torch.compiler.is_compiling() else self._recordings.get(threading.get_ident())
        if recording is None or recording.call is not _call_of_module():
            return
        del self._recordings[threading.get_ident()]
        _leave(recording)
        raised = out is None and sys.exc_info()[0] is not None
        self.layers = None if raised else recording.layers

    def attach(self, model: nn.Module) -> list[Callable[[], None]]:
        """Add the hooks; returns what removes each."""
        handles = [
            module.register_forward_hook(self.resized) for module in model.modules() if isinstance(module, LearnedSize)
        ]
        handles.append(model.register_forward_pre_hook(self.begin))
        handles.append(model.register_forward_hook(self.end, always_call=True))
        return [handle.remove for handle in handles]


def tracer_of(model: nn.Module) -> Tracer | None:
    """The tracer whose hooks the model has, or the model within a wrapper for parallel training or compilation."""
    for hook in model._forward_hooks.values():
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, Tracer):
            return owner
    within = next((child for name, child in model.named_children() if name in ("module", "_orig_mod")), None)
    return None if within is None or len(list(model.children())) > 1 else tracer_of(within)


def _call_of_module() -> FrameType:
    """The call of the module whose hook is asking; hooks before and after it run in different frames below that."""
    frame = sys._getframe(2)
    while frame.f_code.co_name != "_call_impl" and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _is_running(call: FrameType | None, here: FrameType | None) -> bool:
    while here is not None and here is not call:
        here = here.f_back
    return here is not None


def _leave(recording: Recording) -> None:
    recording.call = None  # where another mode was entered after it, it stays beneath that, and does nothing
    if _get_current_function_mode() is recording:
        recording.__exit__(None, None, None)

"""Multiply-adds: a table layer by layer, and the loss that bounds them while sizes are learned."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from numbers import Real
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from paperops.models.dynopool.tracing import Layer, Tracer, tracer_of
from paperops.nn.learned_size import LearnedSize, name_layers

if TYPE_CHECKING:
    from rich.table import Table

GIGA = 1e9


class MacsCounter:
    r"""Counts a model's multiply-adds, layer by layer, as it runs.

    While attached, each forward pass of the model is recorded anew: convolutions, linear layers, attention as one
    function (torch's, or over windows) and ACmix's convolution (multiply-adds of their products for one item of the
    batch, without biases), and the layers that learn their size. Products written by hand are not counted, nor is
    anything under torch.compile.

    Args:
        model: any module.

    Use it around a forward pass, ``with MacsCounter(model) as counter: model(x)``, or, to train with
    :func:`gmacs_loss`, ``MacsCounter(model).attach()``, which :func:`replace_resizing` does by itself. That costs
    some 25 microseconds a call of a torch function, and also tells layers that learn their size their names, for the
    messages of errors.

    Example:
        >>> import torch, paperops
        >>> from paperops.models.dynopool import MacsCounter
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), paperops.nn.DynOPool2d(), torch.nn.Conv2d(8, 8, 1))
        >>> with MacsCounter(model) as counter:
        ...     out = model(torch.rand(2, 3, 18, 18))
        >>> counter.macs, [(layer.name, layer.output_size, layer.macs) for layer in counter.layers]
        (59392, [('0', (8, 16, 16), 55296), ('1', (8, 8, 8), 0), ('2', (8, 8, 8), 4096)])
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a module; got {type(model).__name__}")
        self.model = model
        self._tracer: Tracer | None = None
        self._removals: list[Callable[[], None]] = []

    def attach(self) -> MacsCounter:
        """Record from now on. A model that is recorded already stays so: both counters show the same."""
        if self._tracer is None:
            name_layers(self.model)
            self._tracer = tracer_of(self.model)
            if self._tracer is None:
                self._tracer = Tracer()
                self._removals = self._tracer.attach(self.model)
        return self

    def detach(self) -> None:
        """Record no more, if it was this counter that began; what was recorded last stays."""
        for remove in self._removals:
            remove()
        self._removals = []

    def __enter__(self) -> MacsCounter:
        return self.attach()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    @property
    def layers(self) -> list[Layer]:
        """Those of the last forward pass, in their order; each has name, kind, output_size, parameters and macs."""
        return _layers(self._tracer)

    @property
    def macs(self) -> int:
        """The sum of the layers' multiply-adds."""
        return sum(layer.macs for layer in self.layers)

    def table(self, title: str = "Multiply-adds of one item") -> Table:
        """The layers as a table, to print with rich."""
        from rich.table import Table

        layers = self.layers
        table = Table(title=title)
        for name in ("layer", "kind"):
            table.add_column(name)
        for name in ("output", "parameters", "multiply-adds", "share"):
            table.add_column(name, justify="right")
        total = max(1, self.macs)
        for layer in layers:
            size = " x ".join(map(str, layer.output_size))
            numbers = (f"{layer.parameters:,}", f"{layer.macs:,}", f"{layer.macs / total:.1%}")
            table.add_row(layer.name, layer.kind, size, *numbers)
        table.add_section()
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        table.add_row("all", "", "", f"{parameters:,}", f"{self.macs:,}", "")
        return table


def _layers(tracer: Tracer | None) -> list[Layer]:
    if tracer is None or tracer.layers is None:
        raise RuntimeError(
            "no forward pass has been counted: run the model to its end after MacsCounter(model).attach(), outside "
            "torch.compile"
        )
    return tracer.layers


def gmacs_loss(model: nn.Module, weight: float | Mapping[str, float]) -> Tensor:
    r"""DynOPool's complexity term: the multiply-adds of the last forward pass, differentiable in the learned scales.

    .. math:: L = \sum_l \lambda_l \, \frac{m_l}{10^9}, \qquad
              \frac{\partial m_l}{\partial r_k} := n_{lk} \, \frac{m_l}{r_k}

    m_l is what layer l did for one item of the batch, at the sizes that it had. Its derivative by each scale r_k, of
    height and of width, is that of a count in proportion to every r that its map went through (n_lk times; once, but
    for a layer that is used repeatedly), as if nothing were rounded: straight through again. Layers behind an adaptive
    pooling depend on no scale; where a map is enlarged to the size of another, the other's scales count.

    Args:
        model: one with a :class:`MacsCounter` attached, as :func:`replace_resizing` leaves it, after a forward pass
            that was not compiled. It was counted then; there is no second pass. A wrapper that holds it as ``module``
            (DistributedDataParallel) will do.
        weight: :math:`\lambda`, for all layers; or one for each named layer, by its qualified name, and 0 for the rest.

    Returns:
        A scalar, float32, on the device of the scales. Its value is that of the counts; first derivatives only.

    Raises:
        RuntimeError: nothing was counted.
        ValueError: a weight that is negative or not finite, or whose name is no layer that ran.

    Source:
        Jang et al. (DynOPool), CVPR 2022, arXiv 2205.15254, section 3: the weighted sum of layers' GMACs at each step.
        That a count's derivative reaches every scale before the layer is how we read it.

    Example:
        >>> import torch
        >>> from paperops.models.dynopool import gmacs_loss, replace_resizing
        >>> model = torch.nn.Sequential(torch.nn.MaxPool2d(2), torch.nn.Conv2d(1, 10, 1))
        >>> replaced = replace_resizing(model)
        >>> out = model(torch.rand(4, 1, 200, 100))
        >>> loss = gmacs_loss(model, weight=100.0)
        >>> loss.backward()
        >>> print(f"{loss.item():.4f}", model[0].alpha.grad)
        0.0050 tensor([-0.0025, -0.0025])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module; got {type(model).__name__}")
    layers = _layers(tracer_of(model))
    weights = _weights(weight, layers)
    total, shares = 0.0, defaultdict[LearnedSize, float](float)
    for layer, factor in zip(layers, weights, strict=True):
        weighted = factor * layer.macs / GIGA
        total += weighted
        for resizing in layer.scales:
            shares[resizing] += weighted
    device = next((resizing.alpha.device for resizing in shares), None)
    loss = torch.full((), total, dtype=torch.float64, device=device)
    for resizing, share in shares.items():
        logarithm = resizing.scale().log()
        loss = loss + share * (logarithm - logarithm.detach()).sum()  # adds a gradient, and nothing to the value
    return loss.float()


def _weights(weight: float | Mapping[str, float], layers: list[Layer]) -> list[float]:
    if not isinstance(weight, Mapping):
        return [_weight("weight", weight)] * len(layers)
    if unknown := set(weight) - {layer.name for layer in layers}:
        raise ValueError(f"weight has names that are no layers that ran: {', '.join(sorted(map(str, unknown)))}")
    checked = {name: _weight(f"weight[{name!r}]", value) for name, value in weight.items()}
    return [checked.get(layer.name, 0.0) for layer in layers]


def _weight(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number; got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} must be finite and not negative; got {value}")
    return number

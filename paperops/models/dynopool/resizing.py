"""Any model with learned sizes: its pooling and strided convolutions replaced."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from paperops.models.dynopool.macs import MacsCounter
from paperops.nn.dynopool import DynOPool2d
from paperops.nn.learned_size import LearnedSize

SHORTCUTS = ("downsample", "shortcut", "skip", "identity", "residual")


class Replaced(NamedTuple):
    """What :func:`replace_resizing` did to one layer."""

    name: str  # qualified
    kind: str  # of what was there
    scale: tuple[float, float]  # of height and width, at the start
    shares: str | None  # the name of the layer whose learned size this one takes


class ResizedConv2d(nn.Conv2d):
    """A convolution of stride 1, then a layer that resizes; names and shapes of the parameters are Conv2d's."""

    resize: LearnedSize

    @classmethod
    def of(cls, convolution: nn.Conv2d, resize: LearnedSize) -> ResizedConv2d:
        """The convolution with its own parameters, without its strides."""
        made = cls.__new__(cls)
        made.__dict__.update(convolution.__dict__)  # its parameters and hooks too
        made._modules = dict(convolution._modules)
        made.stride = (1, 1)
        made.resize = resize
        return made

    def forward(self, x: Tensor) -> Tensor:
        """The convolution of x at every pixel, resized."""
        return self.resize(super().forward(x))


def replace_resizing(
    model: nn.Module,
    *,
    mode: str = "max",
    skip: Collection[str] = (),
    share: Iterable[Sequence[str]] = (),
    shortcuts: Collection[str] = SHORTCUTS,
) -> list[Replaced]:
    r"""Make a model's sizes learned, in place.

    - ``nn.MaxPool2d`` and ``nn.AvgPool2d`` of a stride above 1 become :class:`paperops.nn.DynOPool2d` of mode max and
      mean at the scale 1 / stride, whatever their kernels. A size may differ by one from before where strides do not
      divide it.
    - ``nn.Conv2d`` of a stride above 1 keep their weights, their place and their names, lose the stride, and are
      followed at once (before a normalisation) by a DynOPool2d of ``mode`` at 1 / stride. So before its scales move
      such a layer costs stride^2 times as much as it did.
    - Left alone: adaptive pooling (it gives the classifier its fixed size), transposed convolutions, max pooling that
      returns indices, average pooling with a divisor of its own, subclasses of these layers (a convolution under
      ``torch.nn.utils.parametrizations`` is one), and what ``forward`` calls as a function. Hooks of pooling layers go
      with them; those of convolutions stay.

    Maps that a model adds must keep the same size. Within a module with a child of one of the names ``shortcuts``, the
    shortcut's resizing layers, in order, share the DynOPool2d of the module's others: one parameter, hence one size,
    provided that the two paths do not change sizes otherwise. So it is in torchvision's and timm's residual networks.
    Other pairs are for ``share``, in the order in which they run. Layers that share a size also share max or mean: a
    model whose shortcuts average (ResNet-D) takes ``mode="mean"``.

    Args:
        model: any module tree; its layers are replaced in it, its parameters stay the same objects, and each new alpha
            is on the device of the model's first parameter. Make the optimizer afterwards, without weight decay of the
            alphas.
        mode: ``"max"`` or ``"mean"``, after convolutions.
        skip: qualified names of layers to leave as they are, or of modules with all within.
        share: groups of qualified names that shall share one learned size.
        shortcuts: names of children that run beside the rest of their parent.

    Returns:
        What was replaced, in the order of ``model.named_modules()``. The model has a :class:`MacsCounter` attached, so
        that :func:`gmacs_loss` works, and its errors name its layers.

    Raises:
        ValueError: an unknown name; layers that share a size and start from different ones, are of different numbers,
            or pool differently; the model is itself such a layer, which has no parent to put another in its place.

    Source:
        Jang et al. (DynOPool), CVPR 2022, arXiv 2205.15254, section 3 and 4: which layers are replaced, at which
        initial scale. What becomes of shortcuts is ours.

    Example:
        >>> import torch
        >>> from paperops.models.dynopool import replace_resizing
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.nn.AvgPool2d((4, 2)))
        >>> for replaced in replace_resizing(model):
        ...     print(*replaced)
        0 Conv2d (0.5, 0.5) None
        1 AvgPool2d (0.25, 0.5) None
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a module; got {type(model).__name__}")
    if mode not in ("max", "mean"):
        raise ValueError(f"mode must be 'max' or 'mean'; got {mode!r}")
    skip, shortcuts, share = _names("skip", skip), _names("shortcuts", shortcuts), _groups(share)
    found = {
        name: module
        for name, module in model.named_modules()
        if _stride(module) != (1, 1) and not any(name == other or name.startswith(f"{other}.") for other in skip)
    }
    if "" in found:
        raise ValueError(f"model must hold its layers; got a {type(model).__name__}: put it into an nn.Sequential")
    names = {name for name, _ in model.named_modules()}
    if unknown := [name for name in skip if name not in names]:
        raise ValueError(f"skip has names that are not in the model: {', '.join(unknown)}")
    leaders = _united(_leaders(model, found, shortcuts), share, found)

    replaced, layers, new = [], dict[str, DynOPool2d](), dict[nn.Module, nn.Module]()
    device = next((parameter.device for parameter in model.parameters()), None)
    for name, module in found.items():
        height, width = _stride(module)
        scale = (1 / height, 1 / width)
        kind = {nn.MaxPool2d: "max", nn.AvgPool2d: "mean"}.get(type(module), mode)
        leader = _first(name, leaders)
        if leader not in layers:
            layers[leader] = DynOPool2d(scale, kind, scale_range=(min(0.1, min(scale) / 2), 2.0), device=device)
        layer = layers[leader]
        if layer.init_scale != scale:
            raise ValueError(f"{name} and {leader} share a size, but start from {scale} and {layer.init_scale}")
        if layer.mode != kind:
            raise ValueError(
                f"{name} and {leader} share a size, but pool by {kind} and {layer.mode}: give mode, which convolutions "
                "take, or skip one of them"
            )
        replaced.append(Replaced(name, type(module).__name__, scale, None if leader == name else leader))
        made = ResizedConv2d.of(module, layer) if isinstance(module, nn.Conv2d) else layer
        new[module] = made.train(module.training)
    for parent in list(model.modules()):
        for child, module in list(parent._modules.items()):  # under all of its names
            if module in new:
                setattr(parent, child, new[module])
    MacsCounter(model).attach()
    return replaced


def _stride(module: nn.Module) -> tuple[int, int]:
    """The strides of a layer that can be replaced, (1, 1) of all others."""
    if type(module) not in (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d):
        return 1, 1
    if getattr(module, "return_indices", False) or getattr(module, "divisor_override", None):
        return 1, 1
    stride: Any = module.stride
    height, width = stride if isinstance(stride, (tuple, list)) else (stride, stride)
    return int(height), int(width)


def _leaders(model: nn.Module, found: dict[str, nn.Module], shortcuts: Collection[str]) -> dict[str, str]:
    """Of each resizing layer of a shortcut, the one beside it whose size it takes."""
    leaders: dict[str, str] = {}
    for name, module in model.named_modules():
        within = [other for other in found if not name or other.startswith(f"{name}.")]
        start = len(name) + 1 if name else 0
        for shortcut in [child for child, _ in module.named_children() if child in shortcuts]:
            beside = [other for other in within if not set(other[start:].split(".")) & set(shortcuts)]
            own = [other for other in within if other[start:].partition(".")[0] == shortcut]
            if own and len(own) != len(beside):
                raise ValueError(
                    f"{name or type(module).__name__} resizes {len(beside)} times and its {shortcut} {len(own)} times: "
                    "name the layers that run side by side in share, and give shortcuts=(), or skip one of them"
                )
            leaders.update(zip(own, beside, strict=bool(own)))
    return leaders


def _names(argument: str, names: Collection[str]) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise TypeError(f"{argument} must be a collection of names; got {names!r}")
    return tuple(names)


def _groups(share: Iterable[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    if isinstance(share, str) or not isinstance(share, Iterable):
        raise TypeError(f"share must be groups of names; got {share!r}")
    groups = []
    for group in share:
        if isinstance(group, str) or not isinstance(group, Iterable) or len(set(names := tuple(group))) < 2:
            raise ValueError(f"share must have groups of two names at least; got {group!r}")
        groups.append(names)
    return tuple(groups)


def _united(leaders: dict[str, str], share: Iterable[tuple[str, ...]], found: dict[str, nn.Module]) -> dict[str, str]:
    """With these groups too: those that have a layer in common become one."""
    leaders = dict(leaders)
    for group in share:
        if unknown := [name for name in group if name not in found]:
            raise ValueError(f"share has names that are no resizing layers of the model: {', '.join(unknown)}")
        for name in group[1:]:
            first, other = _first(group[0], leaders), _first(name, leaders)
            if first != other:
                leaders[other] = first
    return leaders


def _first(name: str, leaders: dict[str, str]) -> str:
    while name in leaders:
        name = leaders[name]
    return name


@torch.no_grad()
def synchronise(model: nn.Module, group: Any = None) -> None:
    """Give all ranks of a process group rank 0's alphas, and with them the same sizes.

    Data-parallel ranks that begin alike and step alike have the same anyhow. This is for those that may not (different
    devices, local steps): ranks that disagree by a rounding would run maps of different sizes, and from then on apart.

    Args:
        model: its layers that learn sizes are synchronised.
        group: the process group; None is the default one. ``torch.distributed`` must be initialised.

    Cost:
        One broadcast of two numbers a layer.
    """
    from torch import distributed

    layers = [module for module in model.modules() if isinstance(module, LearnedSize)]
    if not layers:
        return
    values = torch.cat([layer.alpha.reshape(-1).double() for layer in layers])
    source = 0 if group is None else distributed.get_global_rank(group, 0)
    distributed.broadcast(values, source, group)
    for layer, part in zip(layers, values.split([layer.alpha.numel() for layer in layers]), strict=True):
        layer.alpha.copy_(part.reshape(layer.alpha.shape))

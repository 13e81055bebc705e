"""What the ops are compared with. A peer is one file of this folder, found by being there, and holds

    NAME                            how tables call it
    available(device) -> str|None   why it cannot run on that device here; None if it can
    UNASKED                         the device types on which it takes part without being named
    GRADIENTS                       whether it has a backward pass (default True)
    memory(op, arguments) -> int    optional: bytes it will need, so that an absurd demand is refused beforehand

and for each op that it has a function of the op's name and keyword arguments, returning the op's result or the first
tensors of it. What it does not take, it raises :class:`NotComparable` for. Values are checked before they are timed.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch


class NotComparable(Exception):
    """The peer does not do what the call asks for; the message says what is missing."""


@dataclass(frozen=True)
class Peer:
    """One peer, read from its module."""

    key: str
    module: ModuleType

    @property
    def name(self) -> str:
        return str(self.module.NAME)

    @property
    def gradients(self) -> bool:
        return bool(getattr(self.module, "GRADIENTS", True))

    def available(self, device: torch.device) -> str | None:
        """Why it cannot run on this device here, or None."""
        reason = self.module.available(device)
        return None if reason is None else str(reason)

    def unasked(self, device: torch.device) -> bool:
        """Whether it takes part without being named."""
        return device.type in self.module.UNASKED

    def function(self, op: str) -> Callable[..., Any] | None:
        """Its function for the op of this name, or None if it has none."""
        return getattr(self.module, op, None)

    def memory(self, op: str, arguments: dict[str, Any]) -> int:
        """Bytes it is expected to need; 0 if it does not say."""
        estimate = getattr(self.module, "memory", None)
        return 0 if estimate is None else int(estimate(op, arguments))


def names() -> tuple[str, ...]:
    """The names of all peers: of their files, without the suffix."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def select(keys: list[str] | tuple[str, ...] | None, device: torch.device) -> tuple[Peer, ...]:
    """The peers of these names, or those that take part unasked. Raises KeyError naming what there is."""
    for key in keys or ():
        if key not in names():
            raise KeyError(f"no peer is called {key!r}; there are {', '.join(names())}")
    found = [Peer(key, importlib.import_module(f"{__name__}.{key}")) for key in keys or names()]
    return tuple(peer for peer in found if keys or peer.unasked(device))


def importable(package: str, install: str) -> str | None:
    """Why a package cannot be imported, with what to do, or None."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        return f"{package} cannot be imported ({error}); {install}"
    return None

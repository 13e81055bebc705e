"""Where an op's own tests run: pairs of a device and a backend that are there."""

from __future__ import annotations

import os

import torch

from paperops import backends

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() and not INTERPRETED else ("cpu",)


def targets(*without: str) -> list[tuple[str, str]]:
    """Every device with every backend that can run on it here, but for the backends named."""
    wanted = [name for name in backends.BACKENDS if name not in without]
    return [(device, name) for device in DEVICES for name in wanted if backends.missing(name, device) is None]


def fast_targets(*without: str) -> list[tuple[str, str]]:
    """Those that can take large inputs: neither plain torch nor the interpreter."""
    found = targets("reference", *without)
    return [(device, name) for device, name in found if name == "native" or device == "cuda"]

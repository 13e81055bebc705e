"""gemmi, where it is installed."""

from __future__ import annotations

import importlib
from typing import Any


def gemmi() -> Any:
    """The module. Raises ImportError with what to do where it is missing."""
    try:
        return importlib.import_module("gemmi")
    except ImportError as error:
        raise ImportError(f"reading and writing structures needs gemmi ({error}): pip install gemmi") from None

"""The source of a definition: a function with what it uses of its own module, in the order of the file."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def closure(function: Callable[..., Any]) -> str:
    """The function and all that it reaches at the top level of its module: functions, classes and constants."""
    text = inspect.getsource(sys.modules[function.__module__])
    lines = text.splitlines()
    nodes = [node for node in ast.parse(text).body if _defines(node)]
    wanted, found = {function.__name__}, set()
    while wanted:
        name = wanted.pop()
        found.add(name)
        for node in nodes:
            if name in _defines(node):
                used = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
                wanted |= used - found
    kept = []
    for node in nodes:
        if _defines(node) & found:
            begins = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
            kept.append("\n".join(lines[begins - 1 : node.end_lineno]))
    return "\n\n\n".join(kept)


def _defines(node: ast.stmt) -> set[str]:
    """The names that a statement at the top level defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}


def file(function: Callable[..., Any]) -> str:
    """Its file, from the package's folder on."""
    return "/".join(Path(inspect.getsourcefile(function) or "").parts[-3:])

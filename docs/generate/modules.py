"""The pages of modules: what they export, in the order of ``__all__``, and the command line's."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import pkgutil
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from sphinx.pycode import ModuleAnalyzer

import paperops.__main__
import paperops.models
from paperops.testing import checks

LIBRARY = ("nn", "geometry", "residues", "structures", "compat")
"""The packages of ``paperops`` that have a page each, beside the ops' and the models'."""


def models() -> list[str]:
    """The names of the papers that there are models of: the packages in ``paperops.models``."""
    return sorted(found.name for found in pkgutil.iter_modules(paperops.models.__path__) if found.ispkg)


def page(name: str) -> str:
    """The page of a module: its docstring, then everything in its ``__all__``; modules in there become sections."""
    module = importlib.import_module(name)
    return f"# `{name.removeprefix('paperops.models.')}`\n\n" + _contents(module)


def _contents(module: ModuleType) -> str:
    parts = [f".. automodule:: {module.__name__}\n"]
    sections = ""
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.ismodule(value):
            sections += f"\n## `{value.__name__}`\n\n{_contents(value)}"
        else:
            parts.append(_directive(module, name, value))
    return "`````{eval-rst}\n" + "\n".join(parts) + "`````\n" + sections


def _directive(module: ModuleType, name: str, value: Any) -> str:
    full = f"{module.__name__}.{name}"
    if inspect.isclass(value):
        return classes(full, value)
    if callable(value):
        return f".. autofunction:: {full}\n"
    text = "".join(f"   {line}\n" if line else "\n" for line in _comment(module, name))
    return f".. py:data:: {name}\n   :module: {module.__name__}\n\n{text}"


def classes(name: str, value: type) -> str:
    """A class with its methods, whose meaning often stands in the docstring of the class."""
    documented = {field for _, field in ModuleAnalyzer.for_module(value.__module__).find_attr_docs()}
    # A named tuple's fields have docstrings of their own or ones that count them.
    hidden = [field for field in getattr(value, "_fields", ()) if field not in documented]
    options = ""
    if issubclass(value, torch.nn.Module):
        theirs = [base for base in value.__mro__ if base.__module__.startswith("torch.")]
        hidden += ["extra_repr", *(name for base in theirs for name in vars(base).get("__annotations__", {}))]
        # What our own base classes have, but not torch's.
        options = f"   :inherited-members: {', '.join(base.__name__ for base in theirs)}\n"
    options += f"   :exclude-members: {', '.join(hidden)}\n" if hidden else ""
    return f".. autoclass:: {name}\n   :members:\n   :undoc-members:\n{options}"


def _comment(module: ModuleType, name: str) -> list[str]:
    """The docstring below a constant, in the module or in the one of its package that defines it."""
    places = [module.__name__]
    if hasattr(module, "__path__"):
        places += [f"{module.__name__}.{found.name}" for found in pkgutil.iter_modules(module.__path__)]
    for place in places:
        found = ModuleAnalyzer.for_module(place).find_attr_docs().get(("", name))
        if found:
            return found
    raise ValueError(f"{module.__name__}.{name} has no docstring below it")


def listing() -> str:
    """The page of all models."""
    module = paperops.models.__name__
    text = f"# Models\n\n{inspect.getdoc(paperops.models)}\n\n"
    for name in models():
        about = inspect.getdoc(importlib.import_module(f"{module}.{name}")) or ""
        text += f"- [`{name}`]({name}.md): {about.splitlines()[0].partition(': ')[2]}\n"
    return text + "\n```{toctree}\n:hidden:\n\n" + "\n".join(models()) + "\n```\n"


def command_line() -> str:
    """The page of ``python -m paperops``: the help of every command."""
    with mock.patch.dict(os.environ, {"COLUMNS": "100"}):
        parser = paperops.__main__.parser()
        commands = next(a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        parts = [f"# The command line\n\n```text\n{parser.format_usage()}```\n"]
        for name, command in commands.items():
            parts.append(f"## `{name}`\n\n```text\n{command.format_help()}```\n")
    return "\n".join(parts)


def generic_checks() -> str:
    """The page of the generic checks: the docstring of each."""
    text = "# The checks\n\nWhat every implementation of every op is held to, by the tests and by "
    text += f"`python -m paperops check`; {' and '.join(f'`{name}`' for name in checks.OF_TRACING)} only on the one "
    text += "that a device takes by itself.\n\n"
    for name, check in checks.CHECKS.items():
        lines = (inspect.getdoc(check) or "").splitlines()
        indented = "".join(f"   {line}\n" if line else "\n" for line in lines)
        text += f"`````{{eval-rst}}\n``{name}``\n{indented}`````\n"
    return text

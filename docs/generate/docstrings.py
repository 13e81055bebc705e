"""The house's docstrings, taken apart into their sections and turned into reStructuredText."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sphinx.ext.napoleon import Config, GoogleDocstring

SECTIONS = ("Args", "Attributes", "Shapes", "Returns", "Raises", "Source", "Cost", "Example")
CONFIG: Any = Config(
    napoleon_use_param=False, napoleon_use_rtype=False, napoleon_custom_sections=["Shapes", "Source", "Cost"]
)

_HEADING = re.compile(rf"^({'|'.join(SECTIONS)}):$")
_EXCEPTIONS = re.compile(r"^    (\w+(?:, \w+)*): (.*)$")
_LETTER = re.compile(r"^(    \w+: )([A-Za-z])\.$")


@dataclass
class Docstring:
    """A docstring's parts, dedented: ``lead`` up to the first section, ``rest`` what stands between sections."""

    summary: str
    lead: str
    sections: dict[str, str] = field(default_factory=dict)
    rest: str = ""


def split(function: Any) -> Docstring:
    """The parts of an object's docstring. Raises ValueError if there is none."""
    text = inspect.getdoc(function)
    if not text:
        raise ValueError(f"{function} has no docstring")
    summary, _, lead = "\n".join(_pieces(text)[""]).partition("\n\n")
    pieces = {title: inspect.cleandoc("\n" + "\n".join(lines)) for title, lines in _pieces(text).items()}
    rest = pieces.pop("rest", "")
    del pieces[""]
    return Docstring(" ".join(summary.split()), lead.strip(), pieces, rest)


def _pieces(text: str) -> dict[str, list[str]]:
    """Lines by section: "" before the first one, "rest" for paragraphs that follow a section, not indented."""
    found: dict[str, list[str]] = {"": []}
    title = ""
    for line in text.splitlines():
        heading = _HEADING.match(line)
        if heading:
            title = heading.group(1)
            found[title] = []
            continue
        if title and line and not line.startswith(" "):
            title = "rest"
        found.setdefault(title, []).append(line)
    return found


def section(title: str, body: str) -> str:
    """One section, its body dedented, as reStructuredText."""
    return "\n".join(converted([f"{title}:", *(f"    {line}" if line else "" for line in body.splitlines())]))


def converted(lines: list[str]) -> list[str]:
    """A docstring's lines as reStructuredText."""
    return GoogleDocstring(list(prepared(lines)), CONFIG, what="function").lines()


def prepared(lines: list[str]) -> Iterator[str]:
    """What napoleon would misread, put into its form.

    It takes what stands before a colon after ``Returns:`` for a type, ``TypeError, ValueError:`` for the name of one
    exception, and an argument that is said to be ``H.`` for the head of a list.
    """
    title = ""
    for line in lines:
        heading = _HEADING.match(line)
        if heading or (line and not line.startswith(" ")):
            title = heading.group(1) if heading else ""
        if heading and title in ("Returns", "Raises"):
            yield f":{title}:"
        elif title == "Raises":
            item = _EXCEPTIONS.match(line)
            yield f"    * **{item.group(1)}** -- {item.group(2)}" if item else f"      {line.strip()}".rstrip()
        else:
            yield _LETTER.sub(r"\1\2\\.", line)


def process(app: Any, what: str, name: str, object: Any, options: Any, lines: list[str]) -> None:
    """Sphinx's autodoc-process-docstring, in the place of napoleon's own, which looks for types in all attributes'."""
    if what not in ("attribute", "data", "property"):
        lines[:] = converted(lines)

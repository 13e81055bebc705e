"""Sphinx's configuration; ``make docs`` builds the site into build/docs."""

import sys
from pathlib import Path

import paperops

sys.path.insert(0, str(Path(__file__).parent))  # the extension beside this file

project = "paperops"
author = "The paperops authors"
copyright = author
version = release = paperops.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "generate"]
exclude_patterns = ["ops/table.md"]  # a part of the front page
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
default_role = "code"

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100

# Names that are no links. Other projects' pages are not read, so that building needs no network; and what a function of
# a model returns is named in its signature by its class, which is not public.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|collections|pathlib|os)\..*|Tensor|Table|nn\.Parameter|LearnedSize"),
    ("py:class", r"paperops\.models\.\w+\.\w+\.\w+|paperops\.nn\.\w+\.\w+"),
]

html_theme = "furo"
html_title = f"paperops {version}"
html_show_sourcelink = False
html_copy_source = False

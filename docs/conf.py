"""Sphinx configuration: ``sphinx-build -W -b html docs docs/_build/html``."""

import re
from typing import Any

from sphinx.application import Sphinx

from sb3_dapo import __version__

project = "sb3-dapo"
author = "the sb3-dapo authors"
copyright = author
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # formulas without a network: MathJax comes with the package
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
nitpick_ignore_regex = [("py:.*", r"(torch|th|stable_baselines3|gymnasium|numpy|np)\..*")]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
python_maximum_signature_line_length = 100

copybutton_prompt_text = "$ "
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = "sb3-dapo"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_sphinx = False
html_copy_source = False


def allow_line_breaks(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Long names in code may be broken after `_` and `/`: the tables are too wide for a phone otherwise."""

    def add(code: re.Match[str]) -> str:
        return re.sub(r"(?<=\w)([_/])(?=\w)", r"\1<wbr>", code[0])

    context["body"] = re.sub(r'(?<=<span class="pre">)[^<]+', add, context.get("body", ""))


def setup(app: Sphinx) -> None:
    app.connect("html-page-context", allow_line_breaks)

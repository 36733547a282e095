"""How Sphinx builds the pages: `nox -s docs`. It needs no network, and every warning is an error."""

from importlib.metadata import version as version_of
from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.napoleon.docstring import GoogleDocstring

project = "ergo_registrar"
author = "the ergo_registrar authors"
copyright = author
version = release = version_of("ergo-registrar")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton", "sphinxcontrib.mermaid"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"{project} {version}"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_fence_as_directive = ["mermaid"]  # the same fence as on GitHub
myst_heading_anchors = 3

# The docstrings are plain English with `code` in single backquotes.
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
copybutton_prompt_text = "$ "

# Only names of this package can be looked up without a network.
nitpick_ignore_regex = [("py:.*", r"(?!ergo_registrar\b).*"), ("py:class", r".*\.T")]  # a TypeVar has no page


def read_sections(app: Sphinx, what: str, name: str, thing: object, options: Any, lines: list[str]) -> None:
    """Read `Raises:` and the like, as napoleon does; not attributes, where it takes any `text: text` for a type."""
    if what in {"class", "exception", "function", "method"}:
        lines[:] = GoogleDocstring(lines).lines()


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", read_sections)

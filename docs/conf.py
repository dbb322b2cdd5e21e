"""How sphinx builds these pages: Markdown by MyST, the reference from docstrings, the first page from the README."""

import importlib.resources
import os
import sys
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "whitebox-crate"
author = "whitebox-crate contributors"
copyright = author
version = release = installed_version("whitebox-crate")

SITE = "https://whitebox-crate.github.io/whitebox-crate/"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinxext.opengraph",
    "code_lines",
    "readme_parts",
]
exclude_patterns = ["_build", "_extensions", "_static", "demo"]

html_theme = "pydata_sphinx_theme"
html_title = f"{project} {release}"
html_static_path = ["_static", str(importlib.resources.files("sphinx-mathjax-offline") / "static/mathjax/tex-svg.js")]
html_css_files = ["site.css"]
html_favicon = "_static/logo.svg"
html_context = {"default_mode": "auto"}
html_show_sourcelink = False
html_theme_options: dict[str, Any] = {
    "logo": {"text": project, "image_light": "_static/logo.svg", "image_dark": "_static/logo.svg"},
    "github_url": "https://github.com/whitebox-crate/whitebox-crate",
    "header_links_before_dropdown": 8,
    "show_prev_next": False,
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
}
published = os.environ.get("DOCS_VERSION")  # "main" or "v1.2.3": where one site has several versions (docs/versions.py)
if published:
    html_theme_options["navbar_start"] = ["navbar-logo", "version-switcher"]
    html_theme_options["switcher"] = {"json_url": f"{SITE}versions.json", "version_match": published}
    html_theme_options["check_switcher"] = False  # the list is made after the pages
html_sidebars: dict[str, list[str]] = {"index": []}

ogp_site_url = SITE  # what others show beside a link to a page
ogp_image = f"{SITE}_static/card.png"
ogp_social_cards = {"enable": False}  # one picture for all pages, which docs/card.py draws

copybutton_prompt_text = r">>> |\.\.\. "  # is not copied, nor is what a line prints
copybutton_prompt_is_regexp = True

mathjax_path = "tex-svg.js"  # MathJax itself, in one file, from the wheel above: formulas need no network
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3

default_role = "code"  # `x` in a docstring is code, as in Markdown
autodoc_default_options = {"members": True, "exclude-members": "extra_repr"}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80  # a longer signature has a line for each argument
toc_object_entries_show_parents = "hide"
autodoc_inherit_docstrings = False  # nn.Module says nothing of ours
napoleon_custom_sections = ["Shape"]
napoleon_use_ivar = True  # the fields of a NamedTuple are members already: described twice, they would be two links
suppress_warnings = ["ref.python"]  # fields of one name in several dataclasses: attribute names are no links here


def keep_colons(_app: Any, _what: str, _name: str, _of: Any, _options: Any, lines: list[str]) -> None:
    """What a function returns begins with no type, for the signature has it: a colon in the first line ends none."""
    for index, line in enumerate(lines[1:], 1):
        if lines[index - 1].strip() == "Returns:":
            text = line.lstrip()
            lines[index] = f"{line[: len(line) - len(text)]}: {text}"


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", keep_colons, priority=400)  # before napoleon's, which is 500

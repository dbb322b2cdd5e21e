"""How sphinx builds these pages: Markdown by MyST, the reference from the docstrings."""

from importlib.metadata import version as installed_version

project = "whitebox-crate"
author = "whitebox-crate contributors"
copyright = author
version = release = installed_version("whitebox-crate")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "demo"]
html_theme = "furo"
html_title = project

default_role = "code"  # `x` in a docstring is code, as in Markdown
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # nn.Module says nothing of ours
napoleon_custom_sections = ["Shape"]
napoleon_use_ivar = True  # the fields of a NamedTuple are members already: described twice, they would be two links
myst_heading_anchors = 3
suppress_warnings = ["ref.python"]  # fields of one name in several dataclasses: attribute names are no links here

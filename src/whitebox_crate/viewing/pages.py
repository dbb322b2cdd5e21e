"""A self-contained HTML page: data, script and style are in the file."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from .._files import write_whole

SCRIPTS = ("attention.js", "pictures.js", "panels.js", "page.js")  # in the order in which they build on each other
FRAME_HEIGHT = 900  # height of a page in a notebook, pixels


@dataclass(frozen=True)
class Page:
    """A page that a notebook shows, and that can be saved.

    Attributes:
        html: The whole page.
    """

    html: str = field(repr=False)  # a megabyte and more

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the page, whole or not at all.

        Raises:
            OutputError: If the file cannot be written.
        """
        target = Path(path)
        write_whole(target, lambda file: file.write_text(self.html, encoding="utf-8"))
        return target

    def _repr_html_(self) -> str:
        return (
            f'<iframe srcdoc="{escape(self.html)}" sandbox="allow-scripts allow-downloads" '
            f'style="width: 100%; height: {FRAME_HEIGHT}px; border: 0" title="What models see"></iframe>'
        )


def assemble(data: Mapping[str, Any]) -> Page:
    """The page for this data, which `page.js` reads."""
    # Text such as a file's name cannot end the element around it.
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    return Page(document(page_script(), before=f'<script type="application/json" id="data">{text}</script>'))


def page_script() -> str:
    """The script of the page. It shows the page's data, or the argument of `showPhotograph`."""
    return "\n".join(map(_part, SCRIPTS))


def document(script: str, *, before: str = "", intro: str = "", style: str = "", allowed: str = "") -> str:
    """A whole document, with the controls and the place for panels that `page.js` knows.

    Args:
        script: The script.
        before: HTML before the script.
        intro: HTML under the heading.
        style: CSS besides its own.
        allowed: Additions to its content security policy, from the sources of scripts on.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    # A policy that the browser enforces: nothing else is fetched, and no other script runs.
    policy = f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    parts = {
        "policy": policy + allowed,
        "style": _part("page.css") + style,
        "intro": intro,
        "before": before,
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _part("page.html"))


def _part(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")

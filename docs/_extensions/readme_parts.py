"""Parts of the README on pages of the site, so that the two cannot differ.

A page says `<!-- README: NAME -->` where it shows what the README has from `<!-- part: NAME -->` to `<!-- /part -->`.
"""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.typing import ExtensionMetadata

README = Path(__file__).parents[2] / "README.md"
PLACE = re.compile(r"^<!-- README: (.+) -->$", re.MULTILINE)
PART = re.compile(r"^<!-- part: ([^>\n]+) -->\n(.*?)^<!-- /part -->$", re.MULTILINE | re.DOTALL)
DEFINITION = re.compile(r"^\[[^]]+\]: .+$", re.MULTILINE)
# The README is shown by others too, so that its links are addresses: of these, the pages and pictures of this folder.
PAGE = re.compile(r"https://whitebox-crate\.github\.io/whitebox-crate/([\w/]+)\.html")
PICTURE = re.compile(r"https://raw\.githubusercontent\.com/whitebox-crate/whitebox-crate/main/docs/")


def with_parts(page: str, readme: str) -> str:
    """A page with the parts of the README that it asks for.

    Args:
        page: Markdown.
        readme: Markdown.

    Raises:
        ExtensionError: If the README has no part of that name.
    """
    parts = {name: text for name, text in PART.findall(readme)}

    def part(place: re.Match[str]) -> str:
        if place[1] not in parts:
            raise ExtensionError(f"README.md has no part {place[1]!r}; it has {', '.join(parts)}")
        return _within_the_site(parts[place[1]])

    filled, count = PLACE.subn(part, page)
    return "\n".join([filled, *map(_within_the_site, DEFINITION.findall(readme))]) if count else page


def _within_the_site(text: str) -> str:
    return PICTURE.sub("/", PAGE.sub(r"/\1.md", text))


def _read(app: Sphinx, page: str, source: list[str]) -> None:
    if PLACE.search(source[0]):
        app.env.note_dependency(str(README))
        source[0] = with_parts(source[0], README.read_text(encoding="utf-8"))


def setup(app: Sphinx) -> ExtensionMetadata:
    """Called by sphinx."""
    app.connect("source-read", _read)
    return {"parallel_read_safe": True}

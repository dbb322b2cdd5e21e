"""Links from pages to lines of code, found by what the line says, so that they lead there whatever is written above it.

A page says {line}`layers/ista.py: residual = x - F.linear(x, self.dictionary)`: the file within the package, and what a
line of it says, or a part of that.
"""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.typing import ExtensionMetadata

PACKAGE = Path(__file__).parents[2] / "src" / "whitebox_crate"
ADDRESS = "https://github.com/whitebox-crate/whitebox-crate/blob/main/src/whitebox_crate"
LINE = re.compile(r"\{line\}`([\w/]+\.py): ([^`]+)`")


def linked(asked: re.Match[str]) -> str:
    """The line as a link, in Markdown.

    Raises:
        ExtensionError: If not exactly one line of the file says this.
    """
    file, code = asked[1], asked[2]
    lines = (PACKAGE / file).read_text(encoding="utf-8").splitlines()
    numbers = [number for number, line in enumerate(lines, start=1) if code in line]
    if len(numbers) != 1:
        raise ExtensionError(f"{len(numbers)} lines of {file} say {code!r}; give a part of a line that one line has")
    return f"[`{code}`]({ADDRESS}/{file}#L{numbers[0]}) ({file}, line {numbers[0]})"


def _read(app: Sphinx, page: str, source: list[str]) -> None:
    for file in {asked[1] for asked in LINE.finditer(source[0])}:
        app.env.note_dependency(str(PACKAGE / file))
    source[0] = LINE.sub(linked, source[0])


def setup(app: Sphinx) -> ExtensionMetadata:
    """Called by sphinx."""
    app.connect("source-read", _read)
    return {"parallel_read_safe": True}

"""Parts of a self-contained HTML page: headings, terms, tables, pictures, escaped text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from ..segmentation.draw import data_url

if TYPE_CHECKING:
    from PIL.Image import Image

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1d2327; background: #fff; max-width: 62rem; margin: 0 auto;
  padding: 1rem; overflow-wrap: break-word }
h1, h2, h3 { line-height: 1.25 } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccd2d8 }
.wide { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums }
caption { text-align: left; padding-bottom: .4rem }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #e3e7eb;
  min-width: 2.5rem; max-width: 14rem }
tbody th { font-weight: 600 }
pre { font-size: .8125rem; line-height: 1.45; background: #f4f6f8; padding: .8rem; overflow-x: auto }
dt { font-weight: 600 } dd { margin: 0 0 .4rem 1rem }
td.long { min-width: 8.5rem }
.holds { color: #0b6b2e } .fails { color: #a3180f; font-weight: 600 } .open { color: #6a4a00 }
.row { display: flex; flex-wrap: wrap; gap: 1rem } .row > figure { flex: 1 1 20rem; margin: 0; max-width: 34rem }
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(7.5rem, 1fr)); gap: .6rem; margin-bottom: 2rem }
.maps > figure { margin: 0 } .maps img, .row svg { width: 100%; height: auto; display: block }
figcaption { font-size: .8125rem; line-height: 1.35; padding-top: .2rem }
"""


def page(title: str, *sections: Iterable[str]) -> Iterator[str]:
    """A whole page, line by line."""
    yield from ("<!DOCTYPE html>", '<html lang="en">', "<head>", '<meta charset="utf-8">')
    # A policy that the browser enforces: nothing is fetched, and nothing runs.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    yield f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield from (f"<title>{safe(title)}: analysis</title>", f"<style>{_STYLE}</style>", "</head>", "<body>", "<main>")
    yield f"<h1>{safe(title)}</h1>"
    for section in sections:
        yield from section
    yield from ("</main>", "</body>", "</html>", "")


def section(anchor: str, title: str, lines: Iterable[str]) -> Iterator[str]:
    """A part of the page under its heading."""
    yield f'<section>\n<h2 id="{anchor}">{safe(title)}</h2>'
    yield from lines
    yield "</section>"


def definitions(terms: Mapping[str, str]) -> Iterator[str]:
    """Terms and what they mean."""
    yield "<dl>"
    yield from (f"<dt>{safe(term)}</dt><dd>{safe(meaning)}</dd>" for term, meaning in terms.items())
    yield "</dl>"


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", classes: Mapping[str, str] | None = None
) -> Iterator[str]:
    """A table that scrolls sideways if it is wide.

    Args:
        head: Names of the columns.
        rows: Cells; the first cell of a row is its heading.
        caption: Text above the table; none if empty.
        classes: CSS classes of cells, by their content.
    """
    yield '<div class="wide" tabindex="0"><table>'
    if caption:
        yield f"<caption>{safe(caption)}</caption>"
    names = "".join(f'<th scope="col">{safe(name)}</th>' for name in head)
    yield f"<thead><tr>{names}</tr></thead><tbody>"
    for first, *others in rows:
        cells = "".join(_cell(cell, classes or {}) for cell in others)
        yield f'<tr><th scope="row">{safe(first)}</th>{cells}</tr>'
    yield "</tbody></table></div>"


def _cell(cell: str, classes: Mapping[str, str]) -> str:
    kind = classes.get(cell, "long" if cell.count(" ") > 2 and "→" not in cell else "")
    held = safe(cell).replace(" → ", "<br>→\N{NO-BREAK SPACE}").replace(" ± ", " ±\N{NO-BREAK SPACE}")
    return f'<td class="{kind}">{held}</td>' if kind else f"<td>{held}</td>"


def picture(image: Image, alt: str, caption: str) -> Iterator[str]:
    """A picture inside the page itself."""
    size = f'width="{image.width}" height="{image.height}"'
    yield f'<figure><img src="{data_url(image)}" {size} alt="{safe(alt)}">'
    yield f"<figcaption>{safe(caption)}</figcaption></figure>"


def safe(text: str) -> str:
    """Text that is safe in elements and attributes. (A file name may hold anything.)"""
    return escape("".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text))

"""Tables as text: in Markdown, in aligned columns, and in HTML for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby


def markdown_table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown, without a newline at its end.

    Args:
        head: Names of the columns.
        rows: Cells of each row; `str` turns them into text.
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells in aligned columns, two spaces apart, without a newline at its end."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def html_table(rows: Sequence[Sequence[object]]) -> str:
    """Rows of cells as an HTML table. The first row has the names. Text in a cell is shown, never interpreted."""
    names, *body = [[escape(str(cell)) for cell in row] for row in rows]
    lines = ["".join(f"<td>{cell}</td>" for cell in row) for row in body]
    head = "".join(f"<th>{name}</th>" for name in names)
    return (
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(f'<tr>{line}</tr>' for line in lines)}</tbody></table>"
    )


def html_of_markdown(text: str) -> str:
    """Markdown as HTML: only paragraphs and the tables of `markdown_table`."""
    parts = []
    for is_table, group in groupby(filter(str.strip, text.splitlines()), lambda line: line.startswith("| ")):
        lines = list(group)
        if is_table:
            rows = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines]
            parts.append(html_table([rows[0], *rows[2:]]))
        else:
            parts += [f"<p>{escape(line)}</p>" for line in lines]
    return "\n".join(parts)

"""Tables as text: in Markdown, and in aligned columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown, without a newline at its end.

    Args:
        head: Names of the columns.
        rows: Cells of each row, as text or what `str` makes text of.
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells in aligned columns, two spaces apart, without a newline at its end."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)

"""Reports show themselves in notebooks: their tables as HTML, in which nothing of a name is interpreted."""

from pathlib import Path
from xml.etree import ElementTree

import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import small_model

from whitebox_crate import LoadReport
from whitebox_crate._tables import html_of_markdown, html_table, markdown_table
from whitebox_crate.analysis import subspace_report
from whitebox_crate.evaluation.runs import Outcome
from whitebox_crate.segmentation import FoundObjects

# Without what XML has no place for: control characters and surrogates.
TEXT = st.text(st.characters(exclude_categories=["C"]), max_size=8)


def cells(html: str) -> list[list[str]]:
    """The cells of a table, as a reader of the page sees them."""
    table = ElementTree.fromstring(html)
    return [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]


@given(st.lists(st.lists(TEXT, min_size=2, max_size=2), min_size=1, max_size=4))
def test_a_table_shows_its_cells_and_interprets_nothing(rows: list[list[str]]) -> None:
    assert cells(html_table(rows)) == rows


def test_tables_in_markdown_become_tables_and_lines_paragraphs() -> None:
    rows = [["", "b <i>"], ["1", "2"], ["3", ""]]
    html = html_of_markdown(f"a title & more\n\n{markdown_table(rows[0], rows[1:])}\n")
    title, table = html.split("\n")
    assert title == "<p>a title &amp; more</p>"
    assert cells(table) == rows


def test_a_load_report_names_what_was_changed() -> None:
    report = LoadReport("a & b", ("x",), {"pos_embed": "14 x 14 to 6 x 6"}, ("head.weight",), ("old.bias",))
    head, *rows = cells(report._repr_html_())
    assert head[0] == "1 tensors from a & b"
    assert [row[0] for row in rows] == ["pos_embed", "head.weight", "old.bias"]


def test_a_report_shows_its_rows() -> None:
    report = subspace_report(small_model("crate_tiny_patch16_224"))
    assert cells(report._repr_html_()) == report.rows()


def test_found_objects_show_a_row_for_each_that_is_there() -> None:
    masks = torch.zeros(2, 2, 4, 6, dtype=torch.bool)
    masks[1, 0, 1:3, 2:5] = True
    boxes = torch.zeros(2, 2, 4, dtype=torch.int64)
    boxes[1, 0] = torch.tensor([2, 1, 3, 2])
    assert cells(FoundObjects(masks, boxes)._repr_html_())[1:] == [["1", "0", "2", "1", "3", "2", "25.0%"]]


def test_the_outcome_of_an_evaluation_shows_its_table() -> None:
    outcome = Outcome({}, "a model\n\n| rule | layer 0 |\n| --- | --- |\n| mean | 41.0 |\n", Path("results.json"))
    assert cells(outcome._repr_html_().split("\n")[1]) == [["rule", "layer 0"], ["mean", "41.0"]]

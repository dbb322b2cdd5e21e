"""The notebooks run from top to bottom, are kept without outputs, and have pages that say the same."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = ROOT / "docs" / "tutorials"


def load_renderer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("render_tutorials", PAGES / "render.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass looks its module up
    spec.loader.exec_module(module)
    return module


render = load_renderer()


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(notebook: Path, tmp_path: Path) -> None:
    outputs = render.run(notebook, tmp_path)
    assert len(outputs) == sum(kind == "code" for kind, _ in render.cells(notebook))
    assert any(output.pictures for output in outputs)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_without_outputs_and_links_to_itself(notebook: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        assert cell["cell_type"] == "markdown" or (cell["outputs"] == [] and cell["execution_count"] is None)
    assert f"/blob/main/notebooks/{notebook.name})" in "".join(cells[0]["source"])


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_page_says_the_same(notebook: Path) -> None:
    """All text and code of the notebook is on its page, in order; outputs stand between."""
    code = [source for kind, source in render.cells(notebook) if kind == "code"]
    page, at = (PAGES / f"{notebook.stem}.md").read_text(encoding="utf-8"), 0
    for part in render.page(notebook, [["\0"]] * len(code)).split("\0"):
        found = page.find(part.strip(), at)
        assert found >= 0, f"run `python docs/tutorials/render.py {notebook.stem}`; it lacks {part.strip()[:200]}"
        at = found + len(part.strip())
    assert page[at:].strip() == ""


def test_every_page_has_its_notebook() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} == {path.stem for path in NOTEBOOKS}

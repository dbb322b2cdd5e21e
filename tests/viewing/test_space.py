"""The Gradio app in a browser: a photograph goes in, its objects and the page to play with come out."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import whitebox_crate

pytestmark = pytest.mark.browser

APP = Path(__file__).parents[2] / "spaces" / "app.py"
SAMPLES = Path(whitebox_crate.__file__).parent / "samples"
PATIENCE = 120_000  # ms: the first photograph waits for PyTorch


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The app, started on a free port."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")  # or it would ask the network
        pytest.importorskip("gradio", reason="needs gradio: pip install 'whitebox-crate[demo]'")
        spec = importlib.util.spec_from_file_location("space", APP)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        _, url, _ = module.app.launch(prevent_thread_lock=True, quiet=True)
        yield url
        module.app.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 1000, "height": 900})
    opened.set_default_timeout(PATIENCE)
    opened.goto(address)
    yield opened
    opened.close()


@pytest.mark.parametrize("model", ["crate_nano", "vit_nano"])
def test_a_photograph_goes_in_and_its_objects_and_a_page_come_out(page: Any, model: str) -> None:
    page.set_input_files("input[type=file]", SAMPLES / "coffee.jpg")
    page.get_by_label(model).check()
    page.get_by_role("button", name="Look").click()
    viewer = page.frame_locator("iframe[title='What models see']")
    viewer.get_by_text(re.compile(model)).first.wait_for()
    assert page.locator("#panel img").evaluate("image => image.naturalWidth") > 1000  # three pictures side by side


def test_without_a_photograph_it_says_what_to_do(page: Any) -> None:
    page.get_by_role("button", name="Look").click()
    page.get_by_text("Choose a photograph first.").wait_for()

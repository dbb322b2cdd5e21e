"""The pages of the site in a browser: nothing is cut, nothing is fetched from elsewhere, nothing goes wrong."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.browser

DOCS = Path(__file__).parents[2] / "docs"
WIDTHS = (360, 768, 1600)
# What lies beyond the right edge of the window and cannot be scrolled to, and code that is cut where it should wrap.
CUT = """() => {
    const edge = document.documentElement.clientWidth + 1;
    const rolls = element => ['auto', 'scroll'].includes(getComputedStyle(element).overflowX);
    const reached = part => part && (rolls(part) || reached(part.parentElement));
    const parts = [...document.querySelectorAll('.bd-article :is(p, code, pre, img, svg, dt, li, table, h1, h2, h3)')];
    const beyond = parts.filter(part => part.getBoundingClientRect().right > edge && !reached(part));
    const code = [...document.querySelectorAll('div[class*=highlight-]:not(.highlight-text) pre')];
    const cut = code.filter(part => part.scrollWidth > part.clientWidth + 1);
    return [...beyond, ...cut].map(part => part.tagName + ' ' + part.textContent.slice(0, 60));
}"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[str]]]:
    """The site, built and served: its address, and its pages."""
    for module in ("sphinx", "myst_parser", "pydata_sphinx_theme", "sphinx_copybutton", "sphinxext.opengraph"):
        pytest.importorskip(module, reason="needs sphinx and more: pip install 'whitebox-crate[docs]'")
    folder = tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", DOCS, folder], check=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pages = sorted(page.relative_to(DOCS).with_suffix(".html").as_posix() for page in DOCS.rglob("*.md"))
    yield f"http://127.0.0.1:{server.server_port}/", pages
    server.shutdown()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_page_is_cut_and_nothing_goes_wrong(browser: Any, site: tuple[str, list[str]], theme: str) -> None:
    address, pages = site
    wrong: list[str] = []
    opened = browser.new_page(color_scheme=theme)
    opened.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("request", lambda asked: None if asked.url.startswith((address, "data:")) else wrong.append(asked.url))
    for page in pages:
        opened.goto(address + page)
        if opened.locator("div.math").count():
            opened.locator("div.math mjx-container").last.wait_for()
        for width in WIDTHS:
            opened.set_viewport_size({"width": width, "height": 900})
            across = opened.evaluate("document.documentElement.scrollWidth")
            wrong += [f"{page}, {width} pixels wide: {fault}" for fault in opened.evaluate(CUT)]
            wrong += [f"{page}, {width} pixels wide: {across} pixels across"] if across > width else []
    opened.close()
    assert not wrong
    assert len(pages) > 40


def test_code_is_copied_without_prompts_and_output(browser: Any, site: tuple[str, list[str]]) -> None:
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    opened = context.new_page()
    opened.goto(site[0] + "reference/layers.html")
    block = opened.locator("div.highlight", has_text=">>> MSSA(").first
    block.hover()
    block.locator("button.copybtn").click()
    assert (
        opened.evaluate("navigator.clipboard.readText()") == "MSSA(dim=128, num_heads=4)(torch.rand(2, 257, 128)).shape"
    )
    context.close()

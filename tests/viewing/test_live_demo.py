"""The live demo in a browser: what onnxruntime-web and the page's own code compute is what PyTorch and Pillow do."""

from __future__ import annotations

import importlib.util
import os
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import whitebox_crate
from whitebox_crate import capture, create_model
from whitebox_crate.images import load_image
from whitebox_crate.models import ImageTransformer
from whitebox_crate.preprocess import fit_photo
from whitebox_crate.viewing.readings import Reading, read

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
SAMPLES = Path(whitebox_crate.__file__).parent / "samples"
SIDE = 96


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The demo, built with a runtime that is here already, and served; its address."""
    runtime = os.environ.get("ONNXRUNTIME_WEB")
    if runtime is None:
        pytest.skip("needs onnxruntime-web: ONNXRUNTIME_WEB names its dist (CONTRIBUTING.md)")
    spec = importlib.util.spec_from_file_location("build_demo", ROOT / "docs" / "demo" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("site")
    module.build(folder, Path(runtime))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def page(browser: Any, site: str) -> Iterator[Any]:
    """The page with its sample; nothing may go wrong in it, and nothing may be fetched from elsewhere."""
    wrong: list[str] = []
    opened = browser.new_page(viewport={"width": 1000, "height": 800})
    opened.set_default_timeout(300_000)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("request", lambda request: None if request.url.startswith((site, "data:")) else wrong.append(request.url))
    opened.goto(site)
    said(opened, "Seen in")
    yield opened
    opened.close()
    assert not wrong


@pytest.fixture(scope="module")
def model() -> ImageTransformer:
    return create_model("crate_nano", pretrained=True, dynamic_img_size=True).eval()


def said(page: Any, words: str) -> None:
    page.locator("#status").filter(has_text=re.compile(words)).wait_for()


def png(name: str, folder: Path, size: tuple[int, int] | None = None) -> Path:
    """A sample without loss, so that no two decoders differ."""
    photo = load_image(SAMPLES / name)
    (photo.resize(size) if size else photo).save(folder / "photo.png")
    return folder / "photo.png"


def choose(page: Any, file: Path) -> None:
    page.evaluate("() => say('')")
    page.locator("#file").set_input_files(file)
    said(page, "Seen in|no photograph")


def seen(page: Any, side: int = SIDE) -> dict[str, Any]:
    """The reading of the photograph that is on the page, as plain numbers."""
    found: dict[str, Any] = page.evaluate(
        """async (side) => {
          const { rows, cls, colours, logits, ...others } = await readPhoto(current.pixels, side);
          return { ...others, cls: Array.from(cls), colours: Array.from(colours), logits: Array.from(logits) };
        }""",
        side,
    )
    return found


def close(found: Any, truth: Tensor, tolerance: float = 1e-4) -> bool:
    """Within this share of the largest value."""
    return bool((torch.tensor(found).view(truth.shape) - truth).abs().max() <= tolerance * truth.abs().max())


@pytest.mark.parametrize("name", ["cat.jpg", "coffee.jpg", "rocket.jpg"])
def test_numbers_are_those_of_pytorch(page: Any, model: ImageTransformer, tmp_path: Path, name: str) -> None:
    file = png(name, tmp_path)
    choose(page, file)
    found, truth = seen(page), read(model, "", load_image(file), SIDE)
    with torch.no_grad():
        logits = model(fit_photo(model, load_image(file), SIDE).pixels[None])[0]
    assert found["grid"] == list(truth.grid)
    assert (torch.tensor(found["logits"]) - logits).abs().max() < 1e-4
    assert (torch.tensor(found["cls"]).view(truth.cls_maps.shape) - truth.cls_maps).abs().max() < 1e-4
    assert close(found["cls"], truth.cls_maps)
    check_numbers(found, truth)


def check_numbers(found: dict[str, Any], truth: Reading) -> None:
    assert [label for label, _ in found["names"]] == list(truth.names)
    assert [share for _, share in found["names"]] == pytest.approx(list(truth.names.values()), rel=1e-4)
    for quantity, states in truth.measures.series.items():
        for state, series in states.items():
            assert found["measures"][quantity][state] == pytest.approx(list(series.mean), rel=1e-4)
    colours = torch.tensor(found["colours"]).view(len(truth.colours), -1, 3)
    assert (colours - 255 * truth.colours.flatten(2).mT).abs().max() <= 1  # of 255


def test_patches_attend_as_in_pytorch(page: Any, model: ImageTransformer, tmp_path: Path) -> None:
    file = png("coffee.jpg", tmp_path)
    choose(page, file)
    patches = [0, 133, 383]
    found = page.evaluate(
        """async ([side, patches]) => {
          const reading = await readPhoto(current.pixels, side);
          const layers = [...Array(reading.layers).keys()];
          return layers.map((layer) => patches.map((patch) =>
            layerMaps(reading, layer, patch).slice(0, -1).map((map) => Array.from(map))));
        }""",
        [SIDE, patches],
    )
    queries = [1 + patch for patch in patches]
    with capture(model, "attention", queries=queries) as trace, torch.no_grad():
        model(fit_photo(model, load_image(file), SIDE).pixels[None])
    for layer, rows in enumerate(found):
        truth = trace["attention", layer][0, :, :, 1:].transpose(0, 1)
        assert (torch.tensor(rows) - truth).abs().max() < 1e-4 and close(rows, truth)


@pytest.mark.parametrize("size", [(420, 280), (60, 41), (300, 97), (900, 33), (7, 9)])
def test_pixels_are_those_of_pillow(page: Any, model: ImageTransformer, tmp_path: Path, size: tuple[int, int]) -> None:
    file = png("cat.jpg", tmp_path, size)
    image = fit_photo(model, load_image(file), SIDE).image
    choose(page, file)
    data = page.evaluate(
        """(side) => {
          const [rows, columns] = gridOver(current.pixels, model.patch, side);
          return Array.from(resized(current.pixels, columns * model.patch, rows * model.patch).data);
        }""",
        SIDE,
    )
    rgb = np.array(data, dtype=np.uint8).reshape(image.height, image.width, 4)[..., :3]
    assert np.array_equal(rgb, np.asarray(image))


def test_a_visitors_own_photograph(page: Any, tmp_path: Path) -> None:
    choose(page, png("rocket.jpg", tmp_path))
    assert page.locator("#name").text_content() == "photo.png"
    page.locator("#detail").select_option("96")
    page.locator(".facts").filter(has_text="16 × ").wait_for()
    page.get_by_role("button", name="layer 2, head 3").click()
    canvas = page.locator(".large")
    canvas.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".caption").text_content().startswith("layer 2, head 3: the patch in row 9")


def test_what_is_no_photograph_is_said(page: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    choose(page, tmp_path / "notes.txt")
    assert page.locator("#status").text_content() == "notes.txt is no photograph that this browser can read."


def test_a_transparent_picture_lies_on_white(page: Any, tmp_path: Path) -> None:
    Image.new("RGBA", (60, 60), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    choose(page, tmp_path / "clear.png")
    assert page.evaluate("Array.from(current.pixels.data.slice(0, 4))") == [255, 255, 255, 255]

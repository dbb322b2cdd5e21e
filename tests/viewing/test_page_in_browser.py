"""The page in a browser: clicking, sliding, keys, themes and widths, and the numbers that it computes itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import whitebox_crate
from whitebox_crate import capture, create_model, view
from whitebox_crate.images import load_image
from whitebox_crate.models import ImageTransformer
from whitebox_crate.preprocess import fit_photo
from whitebox_crate.segmentation import attention_masks, cls_attention

pytestmark = pytest.mark.browser

PHOTO = Path(whitebox_crate.__file__).parent / "samples" / "coffee.jpg"
SIDE = 96
GRID = (16, 24)
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def models() -> list[ImageTransformer]:
    torch.manual_seed(0)
    vit = create_model("vit_nano", dynamic_img_size=True, depth=4, reg_tokens=2).eval()
    return [create_model("crate_nano.tuxpaint_composites", pretrained=True, dynamic_img_size=True).eval(), vit]


@pytest.fixture(scope="module")
def file(models: list[ImageTransformer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return view(PHOTO, models, size=SIDE).save(tmp_path_factory.mktemp("page") / "page.html")


@pytest.fixture
def opened(browser: Any, file: Path) -> Iterator[Open]:
    """Opens the page in a window of some width; nothing may go wrong in it, and nothing may be fetched."""
    wrong: list[str] = []
    contexts = []

    def open_page(path: Path = file, width: int = 1400, theme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=theme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text))
        page.on("request", lambda request: wrong.append(request.url) if request.url.startswith("http") else None)
        page.goto(path.as_uri())
        page.wait_for_selector(".panel .caption:not(:empty)")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


def click_patch(page: Any, row: int, column: int, panel: int = 0) -> None:
    canvas = page.locator(".large").nth(panel)
    box = canvas.bounding_box()
    x, y = box["width"] * (column + 0.5) / GRID[1], box["height"] * (row + 0.5) / GRID[0]
    canvas.click(position={"x": x, "y": y})


def caption(page: Any, panel: int = 0) -> str:
    text: str = page.locator(".caption").nth(panel).text_content()
    return text


def shown(page: Any, panel: int = 0) -> Tensor:
    """The map that a panel shows, (rows, columns)."""
    return torch.tensor(page.evaluate(f"Array.from(shownMap(panels[{panel}]))")).view(GRID)


def slide(page: Any, value: float) -> None:
    page.locator("#amount").evaluate("(slider, value) => { slider.value = value }", value)
    page.locator("#amount").dispatch_event("input")


def pixels(page: Any, panel: int = 0) -> str:
    data: str = page.locator(".large").nth(panel).evaluate("canvas => canvas.toDataURL()")
    return data


@pytest.fixture(scope="module")
def images(models: list[ImageTransformer]) -> Tensor:
    return fit_photo(models[0], load_image(PHOTO), SIDE).pixels[None]


def test_it_begins_with_cls_where_the_weights_say(opened: Open, models: list[ImageTransformer], images: Tensor) -> None:
    page = opened()
    maps = cls_attention(models[0], images, 4).detach()[0, 1]
    assert torch.allclose(shown(page), maps, atol=float(maps.max()) / 65535)
    assert caption(page).startswith("layer 4, head 1: [CLS] attends most to")
    assert caption(page, 1).startswith("layer 3, mean of the heads: [CLS]")
    assert page.locator("#cls").get_attribute("aria-pressed") == "true"


@pytest.mark.parametrize(("rule", "keep"), [("mean", 1.0), ("mass", 0.6), ("mass", 0.3), ("entries", 0.25)])
def test_masks_are_those_of_the_library(opened: Open, rule: Any, keep: float) -> None:
    page = opened()
    page.locator(f"input[value={rule}]").check(force=True)
    slide(page, keep)
    maps = shown(page)
    kept = page.evaluate(f"keptPatches(shownMap(panels[0]), '{rule}', chosen.amounts['{rule}'])")
    assert torch.equal(torch.tensor(kept).view(GRID), attention_masks(maps, keep, rule))
    assert f"The mask covers {100 * sum(kept) / len(kept):.0f}%" in caption(page)


@pytest.mark.parametrize("which", [0, 1])
def test_a_click_shows_what_the_patch_attends_to(
    opened: Open, models: list[ImageTransformer], images: Tensor, which: int
) -> None:
    page = opened()
    click_patch(page, 5, 7, which)
    layer, head = page.evaluate(f"[panels[{which}].layer, panels[{which}].head]")
    prefix = models[which].num_prefix_tokens
    query = prefix + 5 * GRID[1] + 7
    with capture(models[which], "attention", layers=[layer], queries=[query]) as trace, torch.no_grad():
        models[which](images)
    heads = trace["attention", layer][0, :, 0, prefix:]
    truth = heads.mean(0) if head == len(heads) else heads[head]
    assert torch.allclose(shown(page, which).flatten(), truth, atol=5e-4 * float(truth.max()))
    for panel in (0, 1):  # the same patch in both
        assert "the patch in row 6, column 8 attends most to" in caption(page, panel)
    page.locator("#cls").click()
    assert "[CLS]" in caption(page)


def test_dragging_goes_from_patch_to_patch(opened: Open) -> None:
    page = opened()
    click_patch(page, 2, 2)
    page.mouse.down()
    box = page.locator(".large").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 10.5 / GRID[1], box["y"] + box["height"] * 8.5 / GRID[0])
    page.mouse.up()
    assert "row 9, column 11 attends" in caption(page)
    assert page.locator(".under").first.text_content().count("%") == 3  # the ends of the scale, and this patch


def test_the_mask_follows_the_slider(opened: Open) -> None:
    page = opened()
    page.locator("input[value=mask]").check(force=True)
    covered, drawn = [], set()
    for times in (0.5, 1, 2, 4):
        slide(page, times)
        covered.append(
            page.evaluate("keptPatches(shownMap(panels[0]), 'mean', chosen.amounts.mean).filter(Boolean).length")
        )
        drawn.add(pixels(page))
        assert page.locator("#amount-text").text_content() == f"above {times:.2f} × the mean"
    assert covered == sorted(covered, reverse=True) and covered[0] > covered[-1]
    assert len(drawn) == 4


def test_each_view_is_another_picture(opened: Open) -> None:
    page = opened()
    drawn = set()
    for view_name in ("map", "mask", "colours"):
        page.locator(f"input[value={view_name}]").check(force=True)
        drawn.add(pixels(page))
    assert len(drawn) == 3


def test_small_maps_choose_layer_and_head(opened: Open) -> None:
    page = opened()
    page.get_by_role("button", name="layer 2, head 3").first.click()
    assert caption(page).startswith("layer 2, head 3:") and caption(page, 1).startswith("layer 3, mean")
    assert "Layer 2 in numbers" in page.locator(".numbers").first.text_content()
    page.get_by_label("same layer and head in all").check()
    page.get_by_role("button", name="layer 5, mean of the heads").first.click()
    assert caption(page).startswith("layer 5, mean") and caption(page, 1).startswith("layer 3, mean")  # its last
    page.get_by_role("button", name="layer 1, colours of the tokens").first.click()
    assert page.locator("input[value=colours]").is_checked()
    assert page.locator("[aria-pressed=true]").count() == 3  # a cell of each panel, and [CLS]


def test_everything_can_be_done_by_keys(opened: Open) -> None:
    page = opened()
    page.locator(".large").first.focus()
    page.keyboard.press("ArrowRight")  # begins in the middle
    assert "row 9, column 13 attends" in caption(page)
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    assert "row 8, column 12 attends" in caption(page)
    page.keyboard.press("Escape")
    assert "[CLS]" in caption(page)
    page.keyboard.press("Tab")  # to the chosen small map
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert caption(page).startswith("layer 5, head 2:")
    page.locator("#amount").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#amount-text").text_content() == "above 1.05 × the mean"


def test_screen_readers_have_a_name_for_everything(opened: Open) -> None:
    page = opened()
    nameless = page.evaluate(
        """() => Array.from(document.querySelectorAll("button, input, select, canvas[tabindex], svg[role=img], table"))
            .filter((one) => !(one.ariaLabel || one.textContent.trim() || one.caption
                || Array.from(one.labels ?? []).some((label) => label.textContent.trim())))
            .map((one) => one.outerHTML)"""
    )
    assert nameless == []
    assert page.locator(".caption").first.get_attribute("aria-live") == "polite"


CONTRAST = """() => {
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const luminance = (colour) => {
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    const linear = Array.from(context.getImageData(0, 0, 1, 1).data.slice(0, 3))
      .map((value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => luminance(style.getPropertyValue(name));
  return [["--ink", "--paper"], ["--ink", "--raised"], ["--faint", "--paper"], ["--on-accent", "--accent"]]
    .map(([on, under]) => ratio(colour(on), colour(under)));
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_themes(opened: Open, theme: str) -> None:
    page = opened(theme=theme)
    paper = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(paper)
    assert (sum(map(int, before[4:-1].split(","))) > 380) == (theme == "light")
    assert min(page.evaluate(CONTRAST)) > 4.5  # WCAG 2.2, AA
    page.locator("#theme").click()
    assert page.evaluate(paper) != before
    assert min(page.evaluate(CONTRAST)) > 4.5
    page.locator("#theme").click()
    assert page.evaluate(paper) == before


@pytest.mark.parametrize("width", [360, 768, 1400])
def test_widths(opened: Open, width: int) -> None:
    page = opened(width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [page.locator(".large").nth(index).bounding_box() for index in (0, 1)]
    assert all(box["width"] > min(300, width / 2.3) and box["x"] >= 0 for box in boxes)
    assert (boxes[0]["y"] == boxes[1]["y"]) == (width > 360)  # side by side, or below each other
    for name in ("input[value=map] + span", "input[value=entries] + span", "#amount", "#cls"):
        box = page.locator(name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
        assert box["y"] >= 0 and box["y"] + box["height"] <= 800  # at hand without scrolling
        assert min(box["width"], box["height"]) >= 24  # for fingers: WCAG 2.2, 2.5.8


def test_many_heads_scroll_and_do_not_overlap(opened: Open, tmp_path: Path) -> None:
    model = create_model("vit_nano", dynamic_img_size=True, depth=2, num_heads=16).eval()
    page = opened(view(PHOTO, model, size=48).save(tmp_path / "page.html"), width=360)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    boxes = [page.locator(".small tbody tr").first.locator("button").nth(index).bounding_box() for index in range(18)]
    assert all(one["x"] + one["width"] <= next_["x"] + 0.5 for one, next_ in pairwise(boxes))
    assert all(box["width"] >= 24 for box in boxes)
    assert page.locator("thead th").nth(12).text_content() == "11"


def test_the_picture_is_saved_as_it_is_seen(opened: Open, tmp_path: Path) -> None:
    page = opened()
    with page.expect_download() as download:
        page.locator("#png").click()
    assert download.value.suggested_filename == "coffee.jpg.view.png"
    download.value.save_as(tmp_path / "seen.png")
    with Image.open(tmp_path / "seen.png") as picture:
        assert picture.width > 1900 and picture.height > 700
        assert picture.convert("RGB").getpixel((2, 2)) == (255, 255, 255)
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 5000


def test_it_says_what_was_left_out(opened: Open, models: list[ImageTransformer], tmp_path: Path) -> None:
    page = opened(view(PHOTO, models[1], size=SIDE, megabytes=0.5).save(tmp_path / "page.html"))
    assert "what patches attend to in layers 0, 1" in page.locator(".left-out").text_content()
    click_patch(page, 3, 3)
    assert "attends most" in caption(page)
    page.get_by_role("button", name="layer 0, head 1").click()
    assert "left out of this file" in caption(page)
    page.locator("#cls").click()
    assert "layer 0, head 1: [CLS] attends most" in caption(page)


def test_several_photographs(opened: Open, tmp_path: Path) -> None:
    model = create_model("crate_pico", dynamic_img_size=True).eval()
    page = opened(view(PHOTO.parent, model, size=32).save(tmp_path / "page.html"))
    page.locator("#photographs").select_option(label="rocket.jpg")
    page.wait_for_function("document.getElementById('name').textContent === 'rocket.jpg'")
    assert "rocket.jpg" in page.title() and page.locator(".panel").count() == 1


def test_names_are_never_run(opened: Open, tmp_path: Path) -> None:
    name = "<img src=x onerror=throw(1)>.png"
    Image.new("RGB", (40, 30), "teal").save(tmp_path / name)
    model = create_model("crate_pico", dynamic_img_size=True).eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "architecture", "<b>bold</b>")
        page = opened(view(tmp_path / name, model, size=24).save(tmp_path / "page.html"))
    assert page.locator("#name").text_content() == name
    assert page.locator("h2").text_content() == "<b>bold</b>"
    assert page.locator("img").count() == 0


def test_a_notebook_shows_it_in_a_frame(browser: Any, models: list[ImageTransformer], tmp_path: Path) -> None:
    context = browser.new_context(viewport={"width": 1000, "height": 950})
    page = context.new_page()
    page.set_content(f"<!DOCTYPE html><p>Out[1]:</p>{view(PHOTO, models[0], size=48)._repr_html_()}")
    frame = page.frame_locator("iframe")
    frame.locator(".caption").filter(has_text="[CLS] attends most").wait_for()
    frame.get_by_role("button", name="layer 2, head 3").click()
    frame.locator(".caption").filter(has_text="layer 2, head 3").wait_for()
    with page.expect_download() as download:
        frame.locator("#png").click()
    download.value.save_as(tmp_path / "seen.png")
    with Image.open(tmp_path / "seen.png") as picture:
        assert picture.width > 900
    context.close()

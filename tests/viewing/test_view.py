"""view: what is on the page is what the library computes, in few bytes; the page needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import FAMILIES, mostly_slow, small_model
from torch import Tensor

import whitebox_crate.cli as cli
from whitebox_crate import capture, create_model, fold_for_inference, view
from whitebox_crate.analysis import layerwise_analysis
from whitebox_crate.errors import InputError, OutputError, UnknownNameError
from whitebox_crate.images import load_image
from whitebox_crate.models import ImageTransformer
from whitebox_crate.preprocess import fit_photo
from whitebox_crate.segmentation import all_cls_attention
from whitebox_crate.segmentation.states import map_state
from whitebox_crate.viewing import Page

SAMPLES = Path(cli.__file__).parents[1] / "samples"
SIDE = 48


def photo(size: tuple[int, int] = (72, 48)) -> Image.Image:
    noise = torch.randint(0, 256, (size[1], size[0], 3), dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


def small(name: str, **options: Any) -> ImageTransformer:
    return create_model(name, dynamic_img_size=True, **options).eval()


def data(page: Page) -> dict[str, Any]:
    """What the page's script reads."""
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.html, re.DOTALL)
    return json.loads(found)


def reading(page: Page, which: int = 0) -> dict[str, Any]:
    return data(page)["photographs"][0]["readings"][which]


def unpacked(text: str, kind: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), kind).astype(np.float64))


def tokens(packed: dict[str, str], heads: int, bits: int) -> Tensor:
    """(heads, tokens, width)"""
    scales = unpacked(packed["scales"], "<f4").view(heads, -1, 1)
    return unpacked(packed["steps"], f"<i{bits // 8}").view(heads, scales.shape[1], -1) * scales


def attention(found: dict[str, Any], layer: int) -> Tensor:
    """What the page computes from queries and keys, (heads, tokens, tokens)."""
    rows = found["rows"][layer]
    queries = tokens(rows["queries"], found["heads"], found["bits"])
    keys = tokens(rows["keys"], found["heads"], found["bits"]) if "keys" in rows else queries
    if rows.get("plain"):
        return queries @ keys.mT
    return (queries @ keys.mT / found["width"] ** 0.5).softmax(-1)


SHOWN = [family for family in FAMILIES if family not in ("tost", "crate_cbt")]


@pytest.mark.parametrize("family", mostly_slow(SHOWN, "crate", "mhsa", "vit", "cbt"))
def test_the_page_holds_what_the_library_computes(family: str) -> None:
    model, picture = small_model(FAMILIES[family], dynamic_img_size=True), photo()
    found = reading(view(picture, model, size=SIDE))
    images = fit_photo(model, picture, SIDE).pixels[None]
    maps = all_cls_attention(model, images)[0].detach()
    peaks = unpacked(found["cls"]["peaks"], "<f4")
    shown = unpacked(found["cls"]["steps"], "<u2").view(maps.shape) / 65535 * peaks.view(3, -1, 1, 1)
    assert (shown - maps).abs().amax() <= peaks.max() / 65535

    state = map_state(model, 0)
    with capture(model, state, queries="all") as trace, torch.no_grad():
        model(images)
    for layer in range(found["layers"]):
        truth = trace[state, layer][0]
        assert (attention(found, layer) - truth).abs().amax() < 5e-4 * truth.max()

    report = layerwise_analysis(model, [images], report=lambda _: None)
    for quantity, states in found["measures"].items():
        for state, values in states.items():
            assert values == pytest.approx(list(report[quantity, state].mean))  # type: ignore[index]


def test_what_does_not_fit_with_16_bits_has_8() -> None:
    picture, model = load_image(SAMPLES / "coffee.jpg"), small("crate_nano.tuxpaint_composites", pretrained=True)
    fine, coarse = (reading(view(picture, model, size=96, megabytes=most)) for most in (5, 0.8))
    assert (fine["bits"], coarse["bits"]) == (16, 8) and None not in coarse["rows"]
    for layer in range(6):
        truth = attention(fine, layer)
        errors = (attention(coarse, layer) - truth).abs().amax(-1) / truth.amax(-1)
        assert 1e-4 < errors.median() < 0.03 and errors.max() < 0.1


def test_one_projection_is_there_once() -> None:
    crate, vit = (reading(view(photo(), small(name, depth=1))) for name in ("crate_nano", "vit_nano"))
    assert "keys" not in crate["rows"][0] and "keys" in vit["rows"][0]


def test_colours_of_different_patches_differ() -> None:
    found = reading(view(SAMPLES / "coffee.jpg", size=SIDE))
    colours = unpacked(found["colours"], "u1").view(found["layers"], -1, 3)
    assert colours.amin() == 0 and colours.amax() == 255
    assert all(len(layer.unique(dim=0)) > 30 for layer in colours)


def test_a_photograph_with_two_small_models_is_under_5_megabytes() -> None:
    page = view(SAMPLES / "coffee.jpg", ["crate_nano", small("vit_nano")], size=144)
    assert len(page.html.encode()) < 5e6
    assert all(None not in reading(page, which)["rows"] for which in (0, 1))


def test_what_does_not_fit_is_left_out_from_the_outer_layers_inward() -> None:
    model, picture = small("vit_nano"), photo()
    whole, page = (view(picture, model, size=144, megabytes=most) for most in (5, 1))
    assert None not in reading(whole)["rows"]
    assert len(page.html.encode()) <= 1e6
    there = [rows is not None for rows in reading(page)["rows"]]
    assert there == sorted(there) and there[-1] and not there[0]  # a ViT starts with its last layer
    assert reading(page)["cls"] == reading(whole)["cls"]


def test_classes_of_one_name_are_all_there() -> None:
    """As two of ImageNet's are called crane."""
    model = small("crate_pico", depth=1, num_classes=3)
    model.pretrained_cfg = replace(model.pretrained_cfg, num_classes=3, label_names=("crane", "crane", "maillot"))
    names = reading(view(photo(), model, size=24))["names"]
    assert sorted(name for name, _ in names) == ["crane", "crane", "maillot"]
    assert sum(share for _, share in names) == pytest.approx(1)


def test_where_a_model_starts() -> None:
    nano = view(SAMPLES / "cat.jpg", "crate_nano", size=SIDE)
    assert reading(nano)["start"] == {"layer": 5, "head": 4}  # the mean, after the heads
    one_head = view(SAMPLES / "cat.jpg", "crate_nano.tuxpaint_composites", size=SIDE)
    assert reading(one_head)["start"] == {"layer": 4, "head": 1}
    assert reading(view(photo(), small("vit_nano")))["start"] == {"layer": 5, "head": 4}


def test_the_page_fetches_nothing_and_runs_its_own_script_alone() -> None:
    html = view(photo(), small("crate_nano", depth=1)).html
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    script = re.search(r"<script>(.*)</script>", html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'") and f"script-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy.replace("style-src 'unsafe-inline'", "")
    addresses = set(re.findall(r"https?://[^\"'\s]*", html))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, not fetched
    assert not re.search(r"<link|<script[^>]* src|@import|url\(", html)


def test_a_name_is_text(tmp_path: Path) -> None:
    name = "<!--<script>{{style}}&'.png"
    photo().save(tmp_path / name)
    page = view(tmp_path / name, small("crate_nano", depth=1))
    assert data(page)["photographs"][0]["name"] == name
    assert page.html.count("<!--") == 0 and page.html.count("<script>") == 1


def test_a_notebook_shows_the_page_in_a_frame_of_its_own() -> None:
    page = Page('<p class="a">1 & 2</p>')
    assert repr(page) == "Page()"
    shown = page._repr_html_()
    assert 'srcdoc="&lt;p class=&quot;a&quot;&gt;1 &amp; 2&lt;/p&gt;"' in shown
    assert 'sandbox="allow-scripts allow-downloads"' in shown


@pytest.mark.parametrize(
    ("images", "models", "options", "error", "words"),
    [
        ([], "crate_nano", {}, InputError, "at least one photograph"),
        ("absent.jpg", "crate_nano", {}, InputError, "absent.jpg"),
        (photo(), [], {}, InputError, "one model"),
        (photo(), "crate_nona", {}, UnknownNameError, "crate_nano"),
        (photo(), 3, {}, InputError, "not 3"),
        (photo(), "crate_nano", {"megabytes": 0}, InputError, "more than 0"),
        (photo(), "crate_nano", {"megabytes": float("inf")}, InputError, "not inf"),
        (photo(), "crate_nano", {"size": 0}, InputError, "not 0"),
    ],
    ids=["no photograph", "no file", "no model", "unknown", "number", "megabytes", "endless", "side"],
)
def test_what_is_wrong_is_said(images: Any, models: Any, options: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        view(images, models, **options)


def test_a_folder_and_arrays() -> None:
    model = small("crate_pico", depth=1)
    names = [one["name"] for one in data(view(SAMPLES, model, size=24))["photographs"]]
    assert names == ["cat.jpg", "coffee.jpg", "rocket.jpg"]
    page = view([np.zeros((30, 20, 3), np.uint8) + photo((20, 30))], model, device="cpu")
    assert data(page)["photographs"][0]["name"] == "photograph 1"


def test_a_model_whose_tokens_do_not_look_at_each_other_is_refused() -> None:
    model = small_model(FAMILIES["tost"], dynamic_img_size=True)
    with pytest.raises(InputError, match=r"layers 3, 4 have attention.*--state membership"):
        view(photo(), model, size=SIDE)


def test_a_stack_of_two_kinds_of_layers_is_refused() -> None:
    model = small_model(FAMILIES["crate_cbt"], dynamic_img_size=True)
    with pytest.raises(InputError, match="the page needs equal layers"):
        view(photo(), model, size=SIDE)


def test_a_folded_model_is_refused() -> None:
    with pytest.raises(InputError, match="fold"):
        view(photo(), fold_for_inference(small("crate_nano", depth=1)))


class TestCommand:
    def test_photographs_and_models(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "new" / "page.html"
        words = ["--model", "crate_nano", "--model", "crate_pico", "--size", "24", "--out", str(out)]
        assert cli.main(["view", str(SAMPLES / "cat.jpg"), *words]) == 0
        (shown,) = data(Page(out.read_text(encoding="utf-8")))["photographs"]
        assert shown["name"] == "cat.jpg"
        assert [one["model"] for one in shown["readings"]] == ["crate_nano", "crate_pico"]
        assert capsys.readouterr().out.startswith(f"{out}  (crate_nano, crate_pico, ")

    def test_what_cannot_be_read_is_left_out(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "notes.txt").write_text("no picture")
        out = tmp_path / "page.html"
        assert cli.main(["view", str(tmp_path / "notes.txt"), "--out", str(out)]) == 1
        assert capsys.readouterr().err.endswith("none of the 1 images can be read; the messages above say why\n")
        assert not out.exists()
        out.write_text("<!DOCTYPE html>the one before")
        assert cli.main(["view", str(tmp_path / "notes.txt"), "--out", str(out)]) == 1
        assert "replaced" not in capsys.readouterr().err and out.read_text().endswith("the one before")
        words = [str(tmp_path / "notes.txt"), str(SAMPLES / "cat.jpg"), "--size", "24", "--out", str(out)]
        assert cli.main(["view", *words]) == 1
        assert "notes.txt" in capsys.readouterr().err
        assert len(data(Page(out.read_text(encoding="utf-8")))["photographs"]) == 1

    def test_a_folder_gets_a_page(self, tmp_path: Path) -> None:
        assert cli.main(["view", str(SAMPLES / "cat.jpg"), "--size", "24", "--out", str(tmp_path)]) == 0
        assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
        with pytest.raises(OutputError):
            Page("").save(tmp_path)  # in Python, a path is a path

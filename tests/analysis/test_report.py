"""The page: it is whole, holds all it shows, says what was measured, and takes names and models as they come."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small_models import DEPTH, small_model

from whitebox_crate.analysis import explain, layerwise_analysis, report, verify_descent
from whitebox_crate.analysis._svg import tick
from whitebox_crate.analysis.descent import DescentReport
from whitebox_crate.analysis.layerwise import RateSettings
from whitebox_crate.analysis.reports import SIDE, _summary
from whitebox_crate.errors import InputError
from whitebox_crate.models import ImageTransformer
from whitebox_crate.preprocess import image_to_tensor, resize_to_grid

VOID = {"meta", "img", "br", "line", "polygon", "polyline", "circle"}  # of SVG, what the page closes itself
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "<img src=x onerror=alert(1)> & \"'\x01\udcff.png"


class Page(HTMLParser):
    """A page as tests see it; every tag has to be closed where it was opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.open and self.open[-1] in {"td", "th"}:
            self.rows[-1][-1] += data.replace("\N{NO-BREAK SPACE}", " ")

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def photos(*sizes: tuple[int, int]) -> Iterator[tuple[str, Any]]:
    """Pictures of smooth noise, by name; can be read once."""
    for index, size in enumerate(sizes):
        values = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(index)).mul(255).byte().numpy()
        yield f"{index}.png", Image.fromarray(values.transpose(1, 2, 0)).resize(size, Image.Resampling.BICUBIC)


def page_of(model: ImageTransformer, pictures: Any, **options: Any) -> tuple[str, Page]:
    text = report(model, pictures, progress=lambda _: None, **options)
    return text, Page(text)


@pytest.fixture(scope="module")
def crate() -> ImageTransformer:
    return small_model("crate_nano", dynamic_img_size=True)


SIZES = ((40, 30), (30, 40), (60, 45), (40, 30))


@pytest.fixture(scope="module")
def made(crate: ImageTransformer) -> tuple[str, Page]:
    return page_of(crate, [(HOSTILE, photo) if name == "1.png" else (name, photo) for name, photo in photos(*SIZES)])


def test_the_page_is_well_formed_and_needs_nothing_else(made: tuple[str, Page]) -> None:
    text, page = made
    assert text.startswith("<!DOCTYPE html>\n")
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "data", "action"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"url\(|@import|https?:", text)
    anchors = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(anchors) == len(set(anchors)) == 7
    assert [attributes["lang"] for attributes in page.of("html")] == ["en"]


def test_every_picture_can_be_read_and_says_what_it_is(crate: ImageTransformer, made: tuple[str, Page]) -> None:
    images = made[1].of("img")
    assert len(images) == len(SIZES) * (1 + crate.num_heads)
    assert len({image["alt"] for image in images}) == len(images)
    for image in images:
        data = base64.b64decode(str(image["src"]).removeprefix("data:image/png;base64,"), validate=True)
        with Image.open(io.BytesIO(data)) as png:
            assert (str(png.width), str(png.height)) == (image["width"], image["height"])
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in made[1].of("svg"))


def test_names_of_files_are_text_whatever_they_hold(made: tuple[str, Page]) -> None:
    text, page = made
    shown = HOSTILE.replace("\x01", "\N{REPLACEMENT CHARACTER}").replace("\udcff", "\N{REPLACEMENT CHARACTER}")
    assert shown in page.words
    assert f"The picture {shown}" in [image["alt"] for image in page.of("img")]
    text.encode("utf-8")


def test_the_numbers_are_those_of_the_measurements_one_picture_at_a_time(
    crate: ImageTransformer, made: tuple[str, Page]
) -> None:
    cfg = crate.pretrained_cfg
    side = cfg.attention_size or min(crate.img_size)
    loader = [
        image_to_tensor(resize_to_grid(photo, crate.patch_embed.patch_size, side), mean=cfg.mean, std=cfg.std)[None]
        for _, photo in photos(*SIZES)
    ]
    wanted = verify_descent(crate, loader, report=lambda _: None)
    verdicts = [row for row in made[1].rows if len(row) == 6 and row[0].isdigit()]
    assert len(verdicts) == len(wanted.verdicts) == 3 * DEPTH
    for row, verdict in zip(verdicts, wanted.verdicts, strict=True):
        layer, outcome, change, before, after, share = row
        assert (int(layer), outcome, share) == (verdict.layer, verdict.outcome, f"{verdict.share:.0%}")
        have = [float(cell) for cell in (change.split(" ± ")[0], before, after)]
        assert have == pytest.approx([verdict.change, verdict.before, verdict.after], rel=1e-3)
    means = layerwise_analysis(crate, loader, report=lambda _: None)
    layers = [row for row in made[1].rows if len(row) == 8 and row[0].isdigit()]
    for row, mean in zip(layers, means["subspace_coding_rate", "compressed"].mean, strict=True):
        assert float(row[1].split("→")[1]) == pytest.approx(mean, rel=1e-3)
    holds = sum(v.claim == "compression" and v.outcome == "holds" for v in wanted.verdicts)
    assert f"Attention compresses: holds in {holds} of {DEPTH} layers" in made[1].text


def test_the_equations_are_those_of_explain(crate: ImageTransformer, made: tuple[str, Page]) -> None:
    assert explain(crate) in made[1].words


def test_many_pictures_are_measured_and_few_are_shown(crate: ImageTransformer) -> None:
    _, page = page_of(crate, photos(*SIZES), shown=1, short_side=12)
    assert len(page.of("img")) == 1 + crate.num_heads
    assert "Shown are the first 1 of 4." in page.text and "4 pictures, for the model" in page.text


def test_a_strip_does_not_make_the_page_large(crate: ImageTransformer) -> None:
    text, page = page_of(crate, photos((3000, 2), (30, 30)), short_side=12)
    assert max(int(image["width"] or 0) for image in page.of("img")) == 3 * SIDE
    assert len(text) < 500_000


def test_of_one_picture_nothing_is_decided(crate: ImageTransformer) -> None:
    _, page = page_of(crate, photos((30, 30)), title="<mine> & yours")
    assert "One picture has no spread" in page.text and "standard deviation" not in page.text
    assert f"holds in 0 of {DEPTH} layers; undecided in 0, 1, 2" in page.text
    assert "<mine> & yours" in page.words


@pytest.mark.parametrize(
    "name",
    [
        *("vit_tiny_patch16_224", "crate_alpha_tiny_patch16_224", "crate_mlp", "crate_mhsa"),
        *("crate_tied", "crate_attention_only"),
    ],
)
def test_other_models_have_a_page_as_well(name: str) -> None:
    model = small_model(name, depth=1, dynamic_img_size=True)
    _, page = page_of(model, photos((40, 40), (50, 40)))
    assert ("key projections stand in" in page.text) == (name in {"vit_tiny_patch16_224", "crate_mhsa"})
    if name in {"vit_tiny_patch16_224", "crate_mlp", "crate_attention_only"}:
        assert "not asked, for no layer codes by ISTA" in page.text


def test_half_precision_is_measured(crate: ImageTransformer) -> None:
    model = small_model("crate_nano", dynamic_img_size=True).bfloat16()
    assert "What was found" in page_of(model, photos((30, 30), (30, 30)))[1].text


def test_what_cannot_be_measured_is_a_typed_error(crate: ImageTransformer) -> None:
    with pytest.raises(InputError, match="no picture"):
        page_of(crate, [])
    with pytest.raises(InputError, match="channels"):
        page_of(small_model("crate_nano", in_chans=1), photos((30, 30)))


@given(st.floats(1e-9, 1e9))
def test_axes_have_few_round_ticks(largest: float) -> None:
    step = tick(largest)
    assert step * 5 >= largest * (1 - 1e-9) and step * 1.9 < largest
    assert f"{step:.1e}"[:3] in {"1.0", "2.0", "5.0"}


def test_a_report_of_no_verdict_still_has_a_summary() -> None:
    found = "".join(_summary(DescentReport("x", 2, RateSettings(), 0.95, ())))
    assert found.count("not asked") == 3


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_shows_all_of_it_on_a_telephone(made: tuple[str, Page], tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(made[0], encoding="utf-8")
    (tmp_path / "frame.html").write_text(
        """<!DOCTYPE html><iframe src="report.html" width="360" height="640" onload="
        const page = contentDocument, images = [...page.images];
        document.title = [page.documentElement.scrollWidth <= 360, images.length,
          images.every(image => image.naturalWidth > 0), page.compatMode].join()"></iframe>"""
    )
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom"]
    shown = subprocess.run([*command, (tmp_path / "frame.html").as_uri()], capture_output=True, text=True, timeout=60)
    title = re.search("<title>(.*?)</title>", shown.stdout)
    assert title is not None and title[1] == f"true,{len(made[1].of('img'))},true,CSS1Compat"

"""The command `analyze`: what it writes, and what is left when something is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import whitebox_crate.cli as cli
from whitebox_crate import create_model, save_pretrained


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of two sizes, and a file that is none."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index, size in enumerate([(40, 30), (30, 40), (40, 30)]):
        Image.effect_noise(size, 60).convert("RGB").save(pictures / f"{index}.png")
    (pictures / "notes.txt").write_text("not a picture, and not taken for one")
    return pictures


def run(*words: object) -> int:
    return cli.main(["analyze", "--size", "24", *map(str, words)])


def test_photographs_of_the_package_are_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h1>crate_nano</h1>" in page and all(f"<h3>{name}.jpg</h3>" in page for name in ("cat", "coffee", "rocket"))
    assert "407,860 parameters\n" in page  # none of them fixed
    assert capsys.readouterr().out.startswith("report.html  (crate_nano")


def test_a_folder_stands_for_the_pictures_in_it(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "page.html"
    assert run(folder, "--out", out) == 0
    page = out.read_text(encoding="utf-8")
    assert "3 pictures, for the model 30 x 24, 24 x 30 pixels" in page


def test_a_picture_that_cannot_be_read_is_reported_and_left_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.png").write_bytes(b"no image")
    out = tmp_path / "page.html"
    assert run(folder, tmp_path / "absent.jpg", "--out", out) == 1
    said = capsys.readouterr().err
    assert "broken.png" in said and "absent.jpg" in said
    assert "3 pictures" in out.read_text(encoding="utf-8") and "broken.png" not in out.read_text(encoding="utf-8")


def test_without_a_picture_nothing_is_written(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder / "notes.txt", "--out", tmp_path / "page.html") == 1
    assert "there is no picture" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"pictures"}


def test_a_page_goes_into_a_folder_and_over_another_page_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = folder / "0.png"
    for out in (f"{tmp_path}/new/", tmp_path / "new"):
        capsys.readouterr()
        assert run(photo, "--out", out) == 0
        assert (tmp_path / "new" / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert "report.html existed and was replaced" in capsys.readouterr().err
    before = photo.read_bytes()
    assert run(photo, "--out", photo) == 1
    assert "is not an HTML page" in capsys.readouterr().err
    assert photo.read_bytes() == before


def test_weights_of_ones_own(folder: Path, tmp_path: Path) -> None:
    home = save_pretrained(create_model("vit_nano"), tmp_path / "vit")
    assert run(folder, "--model", f"local-dir:{home}", "--out", tmp_path / "vit.html") == 0
    assert "key projections stand in" in (tmp_path / "vit.html").read_text(encoding="utf-8")
    weights = next(home.glob("*.safetensors"))
    assert run(folder, "--model", "vit_nano", "--checkpoint", weights, "--out", tmp_path / "file.html") == 0
    assert f"<h1>vit_nano with {weights.name}</h1>" in (tmp_path / "file.html").read_text(encoding="utf-8")

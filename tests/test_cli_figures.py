"""The commands that draw the paper's figures: pca, heads, noise and curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import whitebox_crate.cli as cli
from whitebox_crate import create_model, save_pretrained
from whitebox_crate.evaluation import find_checkpoints, read_folder, score_image, summarize
from whitebox_crate.segmentation.draw import CAPTION, GAP

SIDE = 120  # of a picture on a sheet
pytest.importorskip("matplotlib")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three images of a bright disc on noise, and where it is, as a folder data set."""
    folder = tmp_path / "data"
    random = np.random.default_rng(0)
    for index in range(3):
        height, width = [(60, 60), (60, 84), (72, 60)][index]
        rows, columns = np.mgrid[:height, :width]
        disc = (rows - 20 - 8 * index) ** 2 + (columns - 25) ** 2 < 15**2
        pixels = random.integers(0, 120, (height, width, 3)).astype(np.uint8)
        pixels[disc] = (250, 200, 40 * index)
        for kind, array in (("images", pixels), ("masks", disc.astype(np.uint8))):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / kind / f"{index}.png")
    return folder


def images_of(data: Path) -> list[str]:
    return [str(path) for path in sorted((data / "images").iterdir())]


def run(*words: object) -> int:
    return cli.main([str(word) for word in words])


def size_of(columns: int, rows: int, width: int = SIDE, height: int = SIDE) -> tuple[int, int]:
    return columns * (width + GAP) + GAP, rows * (height + CAPTION + GAP)


def test_pca_draws_one_sheet_of_all_images(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pca", *images_of(data), "--size", 48, "--out", tmp_path / "out") == 0
    (sheet,) = (tmp_path / "out").iterdir()
    assert sheet.name == "pca-layer5.png" and str(sheet) in capsys.readouterr().out
    with Image.open(sheet) as image:
        assert image.size == size_of(3, 4)
        # The colours of the foreground are on white paper.
        parts = np.asarray(image.convert("RGB"))[3 * (SIDE + CAPTION + GAP) + CAPTION :]
        assert (parts == 255).all(-1).mean() > 0.3 and (parts != 255).any(-1).mean() > 0.02


def test_pca_of_all_layers_is_a_strip(data: Path, tmp_path: Path) -> None:
    assert run("pca", images_of(data)[0], "--layer", "all", "--size", 48, "--out", tmp_path / "out") == 0
    with Image.open(tmp_path / "out" / "pca-layers.png") as image:
        assert image.size == size_of(7, 2)


def test_more_images_than_fit_beside_each_other_go_on_below(data: Path, tmp_path: Path) -> None:
    assert run("pca", *images_of(data)[:1] * 9, "--size", 36, "--out", tmp_path / "out") == 0
    with Image.open(tmp_path / "out" / "pca-layer5.png") as image:
        assert image.size == size_of(8, 8)


@pytest.mark.parametrize("command", ["pca", "heads", "noise"])
def test_an_image_that_cannot_be_read_is_reported_and_the_others_are_drawn(
    command: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    out = tmp_path / "out"
    few = ("--strengths", 10) if command == "noise" else ()
    assert run(command, broken, *images_of(data), "--size", 36, *few, "--out", out) == 1
    assert "broken.png" in capsys.readouterr().err and list(out.glob("*.png"))
    assert run(command, broken, "--out", tmp_path / "none") == 1
    assert "none of the 1 images" in capsys.readouterr().err and not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("pca", "--layer", 9), "layer"),
        (("pca", "--layer", "all", "--threshold", 1), "--threshold"),
        (("pca", "--threshold", "nan"), "threshold"),
        (("heads", "--layer", 9), "layer"),
        (("heads", "--size", 36, "--masks", "nowhere"), "there is no mask nowhere"),
        (("noise", "--shares", 2), "share"),
        (("noise", "--strengths", -1), "strength"),
    ],
)
def test_bad_options_are_refused_and_write_nothing(
    words: tuple[Any, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words, "--out", tmp_path / "out") == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_layer_is_a_number_or_all(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("pca", "--layer", "last")
    assert "a layer's number, or all" in capsys.readouterr().err


def test_heads_are_ordered_by_score_and_the_numbers_are_in_json(data: Path, tmp_path: Path) -> None:
    assert run("heads", *images_of(data), "--size", 48, "--layer", 3, "--out", tmp_path / "out") == 0
    found = json.loads((tmp_path / "out" / "heads-layer3.json").read_text())
    scores = [head["score"] for head in found["heads"]]
    assert scores == sorted(scores, reverse=True) and sorted(head["head"] for head in found["heads"]) == [0, 1, 2, 3]
    assert found["layer"] == 3 and found["images"] == images_of(data) and "iou" not in found["heads"][0]
    for head in found["heads"]:
        assert head["score"] == pytest.approx(head["consistency"] - head["in_place"])
    with Image.open(tmp_path / "out" / "heads-layer3.png") as image:
        assert image.size == size_of(5, 3)


def test_heads_are_ordered_by_iou_where_masks_are_given(data: Path, tmp_path: Path) -> None:
    words = ("heads", *images_of(data), "--size", 48, "--masks", data / "masks", "--keep", 0.5)
    assert run(*words, "--out", tmp_path / "out") == 0
    found = json.loads((tmp_path / "out" / "heads-layer5.json").read_text())
    model = create_model("crate_nano", pretrained=True, dynamic_img_size=True).eval()
    records = [score_image(model, pair, size=48, keep=0.5)["1"]["mass"][5] for _, pair in read_folder(data).items]
    np.testing.assert_allclose(found["iou_by_image"], records, atol=1e-6)
    means = np.mean(records, axis=0)
    assert [head["head"] for head in found["heads"]] == list(np.argsort(-means, kind="stable"))
    assert [head["iou"] for head in found["heads"]] == pytest.approx(sorted(means, reverse=True))


def test_photographs_are_turned_as_their_masks_are(data: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    words = ("heads", *images_of(data), "--size", 48, "--masks", data / "masks")
    assert run(*words, "--out", tmp_path / "without") == 0
    for path in images_of(data):
        with Image.open(path) as image:
            image.save(path, exif=exif)
    assert run(*words, "--out", tmp_path / "with") == 0
    assert (tmp_path / "with" / "heads-layer5.json").read_bytes() == (
        tmp_path / "without" / "heads-layer5.json"
    ).read_bytes()


@pytest.mark.parametrize("command", ["segment", "attention", "pca", "heads", "noise"])
def test_a_model_of_grey_images_is_refused_once(
    command: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"local-dir:{save_pretrained(create_model('vit_nano', depth=1, in_chans=1), tmp_path / 'grey')}"
    assert run(command, *images_of(data), "--model", name, "--out", tmp_path / "out") == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert errors == [f"whitebox-crate: error: {name} takes 1 channels, but photographs have 3; choose another model"]


def test_masks_of_heads_are_found_whatever_the_case_of_their_suffix(data: Path, tmp_path: Path) -> None:
    for path in (data / "masks").iterdir():
        path.rename(path.with_suffix(".PNG"))
    words = ("heads", *images_of(data), "--size", 48, "--masks", data / "masks")
    assert run(*words, "--out", tmp_path / "out") == 0


@pytest.mark.parametrize("command", ["segment", "attention", "pca", "heads", "noise"])
def test_the_last_layer_of_a_vit_is_drawn(
    command: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_pretrained(create_model("vit_nano", depth=3, img_size=48, num_classes=0), tmp_path / "vit")
    words = (command, *images_of(data)[:2], "--model", f"local-dir:{folder}", "--size", 48)
    few = ("--strengths", 10) if command == "noise" else ()
    assert run(*words, *few, "--out", tmp_path / "out") == 0
    assert "layer 2" in capsys.readouterr().out


def test_heads_of_one_image_or_of_an_empty_mask_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("heads", images_of(data)[0], "--out", tmp_path / "out") == 1
    assert "give two or more" in capsys.readouterr().err
    Image.new("L", (60, 60)).save(data / "masks" / "0.png")
    assert run("heads", *images_of(data), "--masks", data / "masks", "--out", tmp_path / "out") == 1
    assert "is empty" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_noise_is_drawn_the_same_again(data: Path, tmp_path: Path) -> None:
    for out in ("a", "b"):
        words = ("noise", *images_of(data)[:2], "--size", 36, "--strengths", 25, 75)
        assert run(*words, "--out", tmp_path / out) == 0
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"0.png", "1.png"}
    with Image.open(tmp_path / "a" / "0.png") as image, Image.open(tmp_path / "b" / "0.png") as again:
        assert image.size == size_of(5, 3)
        assert np.array_equal(np.asarray(image), np.asarray(again))


def curves(data: Path, *words: object) -> tuple[int, Any]:
    """Runs curves on a folder data set; its exit code and JSON."""
    out = words[words.index("--out") + 1]
    code = run("curves", *words, "--data", "folder", "--root", data, "--size", 36)
    target = Path(str(out)) / "curves.json"
    return code, json.loads(target.read_text()) if target.exists() else None


def test_the_curve_by_layer_is_that_of_evaluate(data: Path, tmp_path: Path) -> None:
    code, found = curves(data, "layers", "--out", tmp_path / "out", "--void", 255)
    model = create_model("crate_nano", pretrained=True, dynamic_img_size=True).eval()
    records = [(name, score_image(model, pair, size=36, void=255)) for name, pair in read_folder(data).items]
    expected = summarize(records, layer=0)["rules"]
    (curve,) = found["curves"]
    assert code == 0 and curve["label"] == "crate_nano" and [point["x"] for point in curve["points"]] == list(range(6))
    for rule in ("mean", "mass", "entries"):
        assert [point["best_head"][rule] for point in curve["points"]] == pytest.approx(expected[rule]["miou_by_layer"])
        assert all(point["mean_head"][rule] <= point["best_head"][rule] for point in curve["points"])
    with Image.open(tmp_path / "out" / "curves.png") as image:
        assert image.size == (720, 480)


def test_models_are_drawn_beside_each_other(data: Path, tmp_path: Path) -> None:
    other = save_pretrained(create_model("vit_nano", depth=2), tmp_path / "vit")
    code, found = curves(data, "layers", "--against", f"local-dir:{other}", "--out", tmp_path / "out")
    assert code == 0
    assert [(curve["label"], len(curve["points"])) for curve in found["curves"]] == [
        ("crate_nano", 6),
        (f"local-dir:{other}", 2),
    ]


def test_what_was_measured_is_not_measured_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("noise", "--strengths", 0, 75, "--out", tmp_path / "out")
    assert curves(data, *words)[0] == 0
    first = (tmp_path / "out" / "curves.json").read_bytes()
    monkeypatch.setattr(
        "whitebox_crate.evaluation.attention_runs.score_image", lambda *_, **__: pytest.fail("measured again")
    )
    assert curves(data, *words)[0] == 0
    assert (tmp_path / "out" / "curves.json").read_bytes() == first
    capsys.readouterr()
    assert curves(data, *words, "--seed", 1)[0] == 1
    assert "other settings" in capsys.readouterr().err
    path = data / "images" / "1.png"
    path.write_bytes(path.read_bytes() + b"0")
    assert curves(data, *words)[0] == 1
    assert "1 has changed since" in capsys.readouterr().err


def test_noise_makes_a_curve_for_each_share_that_begins_without_noise(data: Path, tmp_path: Path) -> None:
    words = ("--strengths", 0, 75, "--shares", 0, 0.1, 0.75, "--layer", 2)
    found = [curves(data, "noise", *words, "--out", tmp_path / out)[1]["curves"] for out in ("a", "b")]
    clean = curves(data, "layers", "--out", tmp_path / "clean")[1]["curves"][0]["points"][2]
    assert found[0] == found[1]
    assert [curve["label"].partition(", ")[2] for curve in found[0]] == [
        "0% of pixels",
        "10% of pixels",
        "75% of pixels",
    ]
    for curve in found[0]:
        assert curve["layer"] == 2 and [point["x"] for point in curve["points"]] == [0, 75]
        assert curve["points"][0]["best_head"] == clean["best_head"]
    assert found[0][0]["points"][1]["best_head"] == clean["best_head"]
    assert found[0][2]["points"][1]["best_head"] != clean["best_head"]


def test_a_broken_image_stops_the_curve_or_is_left_out(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "images" / "1.png").write_bytes(b"no image")
    assert curves(data, "layers", "--out", tmp_path / "out")[0] == 1
    said = capsys.readouterr().err
    assert "1.png" in said and "--skip-broken" in said
    code, found = curves(data, "layers", "--skip-broken", "--out", tmp_path / "out")
    assert code == 0 and list(found["broken"]) == ["1"] and found["curves"][0]["points"][0]["images"] == 2


def test_bad_curves_are_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (("noise", "--shares", 2), "share"),
        (("noise", "--layer", 7), "layer"),
        (("epochs", tmp_path / "nowhere"), "there is no folder"),
        (("epochs", data), "no checkpoint"),
    ):
        assert curves(data, *words, "--out", tmp_path / "out")[0] == 1
        assert message in capsys.readouterr().err


def small(seed: int) -> Any:
    torch.manual_seed(seed)
    return create_model("crate_nano", depth=2, num_classes=3, img_size=36)


def test_checkpoints_of_three_kinds_make_a_curve_in_the_order_of_their_numbers(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    save_pretrained(small(0), folder / "step-10")
    model = small(1)
    trained = folder / "checkpoint-0000009"  # as train writes it
    trained.mkdir()
    save_file(model.state_dict(), trained / "model.safetensors")
    args = {"depth": 2, "num_classes": 3, "img_size": [36, 36]}
    (trained / "run.json").write_text(
        json.dumps({"step": 9, "run": {"architecture": "crate_nano", "model_args": args}})
    )
    torch.save({"state_dict": small(2).state_dict()}, folder / "epoch_100.pth")
    (folder / "log.jsonl").touch()
    assert [number for number, _ in find_checkpoints(folder)] == [9, 10, 100]
    code, found = curves(data, "epochs", folder, "--out", tmp_path / "out", "--layer", 1)
    assert code == 0
    (curve,) = found["curves"]
    assert [point["x"] for point in curve["points"]] == [9, 10, 100] and curve["layer"] == 1
    pair = read_folder(data).items
    for point, seed in zip(curve["points"], (1, 0, 2), strict=True):
        weights = small(seed).eval()
        same = create_model("crate_nano", depth=2, num_classes=3, img_size=36, dynamic_img_size=True).eval()
        same.load_state_dict(weights.state_dict())
        records = [(name, score_image(same, files, size=36)) for name, files in pair]
        assert point["best_head"]["mass"] == pytest.approx(summarize(records, layer=1)["rules"]["mass"]["miou"])
